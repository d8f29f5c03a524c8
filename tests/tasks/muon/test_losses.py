"""The adversarial losses on sets: what they must not depend on, and that a batch may be cut anywhere."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train import keyed
from accel_train.data.processes import to_tensors
from accel_train.task import Batch
from accel_train.tasks.muon.losses import between, penalty, slopes
from accel_train.tasks.muon.model import Critic, Multiplicity, gamma_quantile, owners, poisson_quantile
from accel_train.tasks.muon.normalise import Fitted, Fixed
from accel_train.tasks.muon.synth import simulate
from accel_train.tasks.muon.task import MuonTask, cut


def batch_of(events: int, seed: int = 0) -> Batch:
    ragged = simulate(max(events // 5, 2), seed, log10_energy=(5.0, 7.0)).take(np.arange(events))
    key = keyed.bits(seed, np.arange(events))[:, 0].view(np.int64)
    batch = to_tensors({**ragged.batch(), "key": key})
    assert batch is not None
    return batch


def build(**options) -> tuple[MuonTask, dict[str, torch.nn.Module]]:
    torch.manual_seed(0)
    task = MuonTask("none.parquet", **options)
    models = task.build_model(None)
    batch = batch_of(200, 9)
    for model in models.values():
        model.normalise.fit(batch["primary"], batch["muons"])
    return task, {name: model.double() for name, model in models.items()}


def gradients(task, models, batch, objective, limit, max_muons=None):
    task.max_muons_per_batch = max_muons
    parts = task.split(batch, limit)
    totals = {}
    for part in parts:
        for name, value in task.totals(models, part, objective).items():
            totals[name] = totals.get(name, 0) + torch.as_tensor(value)
    models[objective.trains[0]].zero_grad()
    values = {}
    for part in parts:
        loss = task.loss_step(models, part, totals, objective)
        loss.value.backward()
        for name, value in {"loss": loss.value, **loss.terms}.items():
            values[name] = values.get(name, 0) + torch.as_tensor(value).detach()
    grads = [p.grad for p in models[objective.trains[0]].parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in grads]), values, len(parts)


@pytest.mark.parametrize("preset", ["default", "legacy"])
@pytest.mark.parametrize("kind", ["event", "one_sided", "r1", "muon", "none"])
def test_a_batch_cut_anywhere_has_the_gradient_of_the_whole(preset, kind):
    task, models = build(preset=preset, gradient_penalty=kind)
    batch = batch_of(60)
    for objective in task.objectives():
        objective = dataclasses.replace(objective, repeat=1)
        whole, terms, parts = gradients(task, models, batch, objective, 60)
        assert parts == 1
        for limit, max_muons in ((7, None), (60, 40), (1, None), (13, 5)):
            pieces, summed, parts = gradients(task, models, batch, objective, limit, max_muons)
            assert parts > 3
            scale = 1e9 if preset == "legacy" and objective.name != "multiplicity" else 1  # its sentinel
            torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=1e-12 * scale * float(whole.abs().max()))
            for name in terms:
                torch.testing.assert_close(summed[name], terms[name], rtol=1e-12, atol=1e-12 * scale)


def test_repeats_draw_other_noise():
    task, models = build()
    batch = batch_of(30)
    critic = task.objectives()[1]
    first, second = (gradients(task, models, batch, dataclasses.replace(critic, repeat=r), 30)[0] for r in (0, 1))
    assert not torch.equal(first, second)


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    events=st.integers(1, 50),
    muons=st.integers(1, 60),
)
def test_cuts_keep_every_event_and_both_limits(counts, events, muons):
    counts = np.array(counts)
    cuts = cut(counts, events, muons)
    assert cuts[0] == 0 and cuts[-1] == len(counts)
    for a, b in itertools.pairwise(cuts):
        assert 1 <= b - a <= events
        assert counts[a:b].sum() <= muons or b - a == 1


# -- the penalty -----------------------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """A critic whose score is the sum of w.x over an event's muons."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([0.6, 1.7], dtype=torch.float64))

    def forward(self, muons, conditions, counts, event):
        return torch.zeros(len(counts), dtype=torch.float64).index_add(0, event, muons @ self.w)


def sets(counts):
    counts = torch.tensor(counts)
    event = owners(counts, int(counts.sum()))
    generator = torch.Generator().manual_seed(0)
    muons = torch.randn(len(event), 2, generator=generator, dtype=torch.float64)
    return counts, event, muons


def test_of_a_linear_critic():
    counts, event, muons = sets([3, 0, 1, 5])
    critic = Linear()
    slope = slopes(critic, muons.requires_grad_(), None, counts, event)
    norm = float(critic.w.detach().norm())
    assert penalty(slope, event, counts, "muon").item() == pytest.approx(9 * (norm - 1) ** 2, rel=1e-9)
    of_sets = [(norm * n**0.5 - 1) ** 2 for n in (3, 1, 5)]
    assert penalty(slope, event, counts, "event").item() == pytest.approx(sum(of_sets), rel=1e-6)
    assert penalty(slope, event, counts, "r1").item() == pytest.approx(9 * norm**2, rel=1e-9)
    assert penalty(slope / 100, event, counts, "one_sided").item() == 0.0


@settings(deadline=None, max_examples=20)
@given(counts=st.lists(st.integers(0, 6), min_size=2, max_size=8).filter(any), seed=st.integers(0, 99))
def test_neither_score_nor_penalty_depends_on_the_order_of_muons_or_on_empty_events(counts, seed):
    torch.manual_seed(seed)
    critic = Critic(3, 2, width=8).double()
    counts, event, real = sets(counts)
    fake = real.flip(0) * 0.7
    conditions = torch.randn(len(counts), 3, dtype=torch.float64)
    alpha = torch.rand(len(counts), dtype=torch.float64)

    def both(real, fake, counts, event, conditions, alpha):
        points = between(real, fake, event, alpha, paired=True)
        score = critic(real, conditions, counts, event)
        return score, penalty(slopes(critic, points, conditions, counts, event), event, counts, "event")

    score, value = both(real, fake, counts, event, conditions, alpha)
    turn = torch.randperm(len(event))
    turn = turn[event[turn].argsort(stable=True)]
    again, same = both(real[turn], fake[turn.flip(0)[event[turn.flip(0)].argsort(stable=True)]], counts, event,
                       conditions, alpha)  # fmt: skip
    torch.testing.assert_close(again, score)
    torch.testing.assert_close(same, value)
    more = [torch.cat([part, part[:1] * 0]) for part in (counts, conditions, alpha)]
    longer, with_empty = both(real, fake, more[0], event, more[1], more[2])
    torch.testing.assert_close(longer[:-1], score)
    torch.testing.assert_close(with_empty, value)


def test_memory_grows_with_the_muons_of_an_event_by_so_much():
    """What the page says, and ``max_muons_per_event`` rests on: 8 to 24 kB a muon are kept for the backward passes."""
    from accel_train.tasks.muon.task import MuonTask

    task = MuonTask("x.parquet")
    models = task.build_model(None)
    kept = []
    for n in (1000, 3000):
        muons = torch.rand(n, 3) * 100 + 1
        batch = {"primary": torch.tensor([[1e9, 0.1, 52.0, 1500.0]]), "counts": torch.tensor([n]), "muons": muons}
        (part,) = task.split(batch | {"key": torch.arange(1), "host_counts": np.array([n])}, 1)
        held: dict[int, int] = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        totals = {"sizes": torch.tensor([1.0, 1.0, float(n)])}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = task.loss_step(models, part, totals, task.objectives()[1])
        assert loss.value.requires_grad
        kept.append(sum(held.values()))
    per_muon = (kept[1] - kept[0]) / 2000
    assert 8_000 < per_muon < 24_000, per_muon


# -- multiplicity ----------------------------------------------------------------------------------------------------


def test_counts_follow_the_distribution_whose_likelihood_is_trained():
    torch.manual_seed(0)
    model = Multiplicity(2).double()
    conditions = torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    _log_mean, _log_shape, _extra = model(conditions)
    n = torch.arange(400)
    probability = (-model.negative_log_likelihood(conditions, n)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=1e-9)
    mean, zero = model.moments(conditions)
    assert (probability * n).sum().item() == pytest.approx(mean.item(), rel=1e-6)
    assert probability[0].item() == pytest.approx(zero.item(), rel=1e-9)
    uniform = keyed.tensor_uniform(keyed.tensor_keys(1, torch.arange(40_000)), 3)
    counts = model.sample(conditions.expand(40_000, 2), uniform)
    seen = torch.bincount(counts, minlength=400).double() / 40_000
    assert float((seen.cumsum(0)[:400] - probability.detach().cumsum(0)).abs().max()) < 0.01


def test_quantiles_are_the_inverse_of_their_distribution():
    u = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    for shape in (0.02, 0.5, 6.0, 900.0):
        shapes = torch.full_like(u, shape)
        back = torch.special.gammainc(shapes, gamma_quantile(u, shapes))
        torch.testing.assert_close(back, u, rtol=1e-6, atol=1e-6)
    for rate in (1e-9, 0.3, 12.0, 4000.0):
        rates = torch.full_like(u, rate)
        n = poisson_quantile(u, rates).double()
        assert (torch.special.gammaincc(n + 1, rates) > u).all()
        below = torch.where(n > 0, torch.special.gammaincc(n.clamp(min=1), rates), 0)
        assert (below <= u).all()


# -- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Fitted, Fixed])
def test_muons_come_back_in_their_units(kind):
    batch = batch_of(100)
    normaliser = kind().double()
    normaliser.fit(batch["primary"], batch["muons"])
    muons = batch["muons"].double()
    features = normaliser.encode_muons(muons)
    turn = torch.atan2(muons[:, 1], muons[:, 2]) / (2 * torch.pi)
    torch.testing.assert_close(normaliser.decode_muons(features, turn), muons, rtol=1e-5, atol=2e-4)
    if kind is Fitted:
        torch.testing.assert_close(features.std(0), torch.ones(2, dtype=torch.float64), rtol=1e-5, atol=1e-5)
        conditions = normaliser.encode_conditions(batch["primary"].double())
        assert conditions.mean(0).abs().max() < 1e-5
