"""The graph network is its formulas, written out edge by edge, for every shape and with neighbours that are missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_train.tasks.gdynet.model import GaussianBasis, GraphConv, Lobe
from accel_train.tasks.gdynet.norm import BatchNorm, make_norm
from accel_train.tasks.gdynet.programs import write_programs
from accel_train.tasks.gdynet.task import GDyNetTask

NORMS = ["layer", "batch", "sync_batch"]
FEATURES, STATES, GAUSSIANS, CUTOFF = 5, 3, 7, 6.0


def lobe(n_conv=2, ferro=True, norm="layer", seed=0, dtype=torch.float64):
    """With biases and normalisations that are not the trivial ones of the beginning."""
    torch.manual_seed(seed)
    model = Lobe(FEATURES, n_conv, STATES, CUTOFF, GAUSSIANS, ferro, norm)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.to(dtype)


def structure(frames=3, atoms=6, neighbours=4, targets=3, ferro=True, seed=0, missing=0.3, dtype=torch.float64):
    """Types, targets, neighbours, distances and directions; atom 0 has all its neighbours, atom 1 has none at all."""
    draw = np.random.default_rng(seed)
    lists = draw.integers(0, atoms, (frames, atoms, neighbours))
    lists[draw.random(lists.shape) < missing] = -1
    lists[:, 0], lists[:, 1] = np.abs(lists[:, 0]), -1
    distances = np.where(lists >= 0, draw.uniform(0.5, 8, lists.shape), 0)
    arrays = [draw.integers(0, 100, atoms), draw.choice(atoms, targets, replace=False), lists.astype(np.int32)]
    arrays += [distances, draw.normal(size=(frames, atoms, 3))][: 2 if ferro else 1]
    return [torch.from_numpy(a).to(dtype) if a.dtype == np.float64 else torch.from_numpy(a) for a in arrays]


# -- the formulas, one edge at a time --------------------------------------------------------------------------------


def normalised(rows, layer):
    """Rows [R, f]: each by itself, or all together as ``nn.BatchNorm1d`` does it."""
    if isinstance(layer, nn.LayerNorm):
        mean, var = rows.mean(1, keepdim=True), rows.var(1, keepdim=True, correction=0)
    else:
        mean, var = rows.mean(0), rows.var(0, correction=0)
    return (rows - mean) / torch.sqrt(var + 1e-5) * layer.weight + layer.bias


def by_hand(model, types, targets, neighbours, distances, directions=None):
    """The same with loops; float64 [B, n, k]."""
    frames, atoms, _ = neighbours.shape
    h = {(b, i): model.embedding.weight[types[i]] for b in range(frames) for i in range(atoms)}
    if directions is not None:
        h = {(b, i): x + model.direction.weight @ directions[b, i] + model.direction.bias for (b, i), x in h.items()}
    centres = [CUTOFF * g / (GAUSSIANS - 1) for g in range(GAUSSIANS)]
    edges = [(b, i, m) for b, i, m in np.ndindex(*neighbours.shape) if neighbours[b, i, m] >= 0]
    for conv in model.convs:
        z = {}
        for b, i, m in edges:
            e = [math.exp(-0.5 * ((float(distances[b, i, m]) - mu) / centres[1]) ** 2) for mu in centres]
            z[b, i, m] = torch.cat([h[b, i], h[b, int(neighbours[b, i, m])], torch.tensor(e, dtype=torch.float64)])
        core = normalised(torch.stack([conv.core.weight @ z[edge] + conv.core.bias for edge in edges]), conv.norm_edge)
        score = {edge: float(conv.filter.weight @ z[edge] + conv.filter.bias) for edge in edges}
        gathered = []
        for b, i in h:
            mine = [number for number, edge in enumerate(edges) if edge[:2] == (b, i)]
            total = sum(math.exp(score[edges[number]]) for number in mine)
            parts = [math.exp(score[edges[number]]) / total * F.relu(core[number]) for number in mine]
            gathered.append(sum(parts, torch.zeros(FEATURES, dtype=torch.float64)) / max(len(mine), 1))
        added = normalised(torch.stack(gathered), conv.norm_atom)
        h = {place: F.relu(x + added[number]) for number, (place, x) in enumerate(h.items())}
    rows = []
    for b in range(frames):
        for i in targets.tolist():
            u = F.relu(model.hidden.weight @ F.relu(h[b, i]) + model.hidden.bias)
            rows.append(F.softmax(model.out.weight @ u + model.out.bias, dim=0))
    return torch.stack(rows).reshape(frames, len(targets), STATES)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ferro", [False, True])
@pytest.mark.parametrize("n_conv", [0, 1, 3])
def test_the_network_is_its_formulas(n_conv, ferro, norm):
    """For no convolution, one and several; missing neighbours and an atom that has none."""
    model, data = lobe(n_conv, ferro, norm), structure(ferro=ferro)
    with torch.no_grad():
        found, expected = model(*data), by_hand(model, *data)
    assert found.shape == (3, 3, STATES)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(3, 3, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
def test_sizes_of_the_guide(norm):
    for kind, count in (("gdynet_vanilla", 46_883), ("gdynet_ferro", 47_139)):
        models = GDyNetTask([], model_type=kind, norm=norm).build_model(None)
        assert sum(p.numel() for p in models["lobe_0"].parameters()) == count
    pair = GDyNetTask([], lobes="separate", norm=norm).build_model(None)
    assert list(pair) == ["lobe_0", "lobe_t"]
    for one, other in zip(*(model.parameters() for model in pair.values()), strict=True):
        assert torch.equal(one, other) and one is not other, "they start equal"


def test_the_beginning():
    torch.manual_seed(0)
    conv = GraphConv(40, 50, "layer")
    for linear, outputs in ((conv.core, 40), (conv.filter, 1)):
        bound = math.sqrt(6 / (130 + outputs))
        assert 0.95 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()
    assert float(Lobe(64, 1, 2, 6.0, 50, True).embedding.weight.detach().std()) == pytest.approx(1, abs=0.03)


def test_gaussians_of_a_distance():
    basis = GaussianBasis(6.0, 4)
    d = torch.tensor([[0.0, 2.0], [5.0, 60.0]])
    values = basis(d)
    assert values.shape == (2, 2, 4)
    for index in np.ndindex(2, 2):
        expected = [math.exp(-0.5 * (float(d[index]) - mu) ** 2 / 2.0**2) for mu in (0, 2, 4, 6)]
        assert values[index].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-30)
    assert values[1, 1].max() == 0, "far beyond the cutoff"
    assert "basis.centres" not in Lobe(4, 1, 2, 6.0, 4, False).state_dict(), "a constant is no weight"


def test_the_last_layer_needs_only_targets():
    model, data = lobe(3), structure()
    expected = model(*data)
    model.targets_last = False
    torch.testing.assert_close(model(*data), expected, rtol=1e-12, atol=1e-14)


def test_directions_are_needed():
    with pytest.raises(ValueError, match="the ferroelectric variant needs directions"):
        lobe()(*structure(ferro=False))


# -- symmetries ------------------------------------------------------------------------------------------------------

SHAPES = dict(
    frames=st.integers(1, 3), atoms=st.integers(2, 6), neighbours=st.integers(1, 4), targets=st.integers(1, 2),
    missing=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 2**32 - 1), ferro=st.booleans(),
)  # fmt: skip


@given(norm=st.sampled_from(["layer", "batch"]), n_conv=st.integers(0, 3), **SHAPES)
@settings(deadline=None, max_examples=40)
def test_names_of_atoms_and_order_mean_nothing(norm, n_conv, seed, ferro, **shape):
    """Atoms under other numbers, neighbours and targets in another order: the same probabilities for the same atom."""
    model, data = lobe(n_conv, ferro, norm, seed % 7), structure(seed=seed, ferro=ferro, **shape)
    types, targets, neighbours, distances, *directions = data
    expected = model(*data)
    draw = torch.Generator().manual_seed(seed % 2**31)
    atoms = torch.randperm(shape["atoms"], generator=draw)  # new -> old
    named = torch.cat([torch.argsort(atoms), torch.tensor([-1])]).int()  # old -> new; the last is -1, none
    order = torch.randperm(shape["neighbours"], generator=draw)
    which = torch.randperm(shape["targets"], generator=draw)
    moved = [named[neighbours.long()][:, atoms][:, :, order], distances[:, atoms][:, :, order]]
    moved += [x[:, atoms] for x in directions]
    found = model(types[atoms], named[targets[which]].long(), *moved)
    torch.testing.assert_close(found, expected[:, which], rtol=1e-9, atol=1e-11)


@given(**SHAPES)
@settings(deadline=None, max_examples=20)
def test_a_frame_does_not_see_the_others(seed, ferro, **shape):
    """With statistics of a layer; what is written in the place of a missing neighbour is not read either."""
    model, data = lobe(2, ferro), structure(seed=seed, ferro=ferro, **shape)
    whole = model(*data)
    alone = [model(*data[:2], *(x[b : b + 1] for x in data[2:])) for b in range(shape["frames"])]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-12, atol=1e-14)
    data[3] = data[3].masked_fill(data[2] < 0, 2.5)
    torch.testing.assert_close(model(*data), whole, rtol=0, atol=0)


def test_more_padding_changes_nothing():
    model, data = lobe(), structure()
    wider = [F.pad(x, (0, 3), value=value) for x, value in zip(data[2:4], (-1, 0), strict=True)]
    torch.testing.assert_close(model(*data[:2], *wider, data[4]), model(*data), rtol=1e-12, atol=1e-14)


# -- normalisation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "sync_batch"])  # on one rank the same
def test_batch_normalisation_is_that_of_torch(norm):
    """Outputs, gradients and running statistics of nn.BatchNorm1d on the rows that the mask keeps, in both modes."""
    draw = torch.Generator().manual_seed(0)
    ours, theirs = make_norm(norm, 4).double(), nn.BatchNorm1d(4).double()
    with torch.no_grad():
        ours.weight.uniform_(generator=draw), ours.bias.normal_(generator=draw)
    theirs.load_state_dict(ours.state_dict())
    for step in range(4):
        x = 3 + 2 * torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=draw)
        mask = torch.rand(2, 5, 3, generator=draw) < 0.6 if step else None
        kept = x.flatten(0, 2) if mask is None else x[mask]
        mine, its = x.clone().requires_grad_(), kept.clone().requires_grad_()
        out, expected = ours(mine, mask), theirs(its)
        chosen = out.flatten(0, 2) if mask is None else out[mask]
        torch.testing.assert_close(chosen, expected)
        for result in (chosen, expected):
            (result.sin() * torch.arange(4)).sum().backward()
        gradient = mine.grad.flatten(0, 2) if mask is None else mine.grad[mask]
        torch.testing.assert_close(gradient, its.grad)
        assert mask is None or not mine.grad[~mask].any()
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x, mask), theirs(x.flatten(0, 2)).view_as(x))
    assert ours.num_batches_tracked == 4


@pytest.mark.parametrize("norm", ["layer", "batch", "sync_batch"])
def test_a_mean_that_hides_the_variance(norm):
    x = 1e4 + torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    found = make_norm(norm, 8)(x)
    dims = 1 if norm == "layer" else 0
    torch.testing.assert_close(found, (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True, correction=0),
                               rtol=1e-2, atol=5e-3)  # fmt: skip


@pytest.mark.parametrize("twice", [False, True])
def test_running_statistics_move_once_a_step(twice):
    """A repeated forward pass, first without a gradient, counts once; evaluation does not count at all."""
    model, data = lobe(2, norm="batch"), structure()
    reference = lobe(2, norm="batch")
    reference(*data)
    if twice:
        with torch.no_grad():
            first = model(*data)
        torch.testing.assert_close(first, model(*data))
    else:
        model(*data)
    model.eval()(*data)
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    assert len(norms) == 4 and all(module.num_batches_tracked == 1 for module in norms)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_a_batch_without_any_neighbour_spoils_nothing():
    model, data = lobe(2, norm="batch"), structure()
    data[2] = torch.full_like(data[2], -1)
    out = model(*data)
    out.square().sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())
    assert all(value.isfinite().all() for value in model.state_dict().values())


# -- gradients and precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_every_parameter_learns(norm):
    """But the bias of the filter, which a softmax over neighbours cancels, and with statistics over the batch the bias
    of the core, which subtracting their mean cancels."""
    model, data = lobe(2, norm=norm), structure(frames=4, atoms=12, targets=8)
    (model(*data) * torch.arange(STATES)).square().sum().backward()
    without = ("filter.bias", "core.bias") if norm == "batch" else ("filter.bias",)
    for name, parameter in model.named_parameters():
        largest = float(parameter.grad.abs().max())
        assert largest < 1e-12 if name.endswith(without) else largest > 1e-6, name
    seen = torch.zeros(100, dtype=torch.bool).index_fill(0, data[0], True)
    assert not model.embedding.weight.grad[~seen].any()


def test_the_gradient_is_that_of_finite_differences():
    model, data = lobe(2), structure(frames=1, atoms=4)
    assert torch.autograd.gradcheck(lambda d, p: model(*data[:3], d, p), [x.requires_grad_() for x in data[3:]])


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_the_precision_is_close(norm, dtype, most):
    """The probabilities themselves stay in single precision: what a loss sees of them are small differences."""
    model, data = lobe(2, norm=norm, dtype=torch.float32), structure(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        half = model(*data)
    assert half.dtype == torch.float32 and (half - model(*data)).abs().max() < most
    torch.testing.assert_close(half.sum(-1), torch.ones(3, 3))
    half.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_single_precision_is_close():
    data = structure()
    single = lobe(3, dtype=torch.float32)(*(x.float() if x.is_floating_point() else x for x in data))
    torch.testing.assert_close(single, lobe(3)(*data).float(), rtol=1e-4, atol=1e-5)


# -- compiled and exported -------------------------------------------------------------------------------------------


def compiled_is_eager(backend, norm):
    torch._dynamo.reset()
    eager, compiled = (lobe(2, norm=norm, dtype=torch.float32) for _ in range(2))
    compiled.compile(backend=backend, fullgraph=True)
    for frames in (3, 5):  # the last batch of an epoch is another one
        data = structure(frames, dtype=torch.float32)
        results = []
        for model in (eager, compiled):
            model.zero_grad()
            out = model(*data)
            (out * torch.arange(STATES)).square().sum().backward()
            results.append([out, *(p.grad for p in model.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value)


@pytest.mark.parametrize(("backend", "norm"), [("aot_eager", "layer"), ("eager", "batch")])
def test_compiled_is_the_same(backend, norm):
    compiled_is_eager(backend, norm)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_compiled_by_inductor_is_the_same(norm):
    compiled_is_eager("inductor", norm)


@pytest.mark.parametrize(("ferro", "n_conv", "norm"), [(True, 2, "layer"), (False, 1, "batch"), (False, 0, "layer")])
def test_programs_run_without_us(tmp_path, ferro, n_conv, norm):
    """Loaded from their files, on sizes that they were not made with, one frame, one target and one neighbour too."""
    model = lobe(n_conv, ferro, norm, dtype=torch.float32)
    write_programs({"lobe_0": model}, ferro, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lobe_0.pt2", "lobe_0.torchscript.pt"]
    programs = [torch.export.load(tmp_path / "lobe_0.pt2").module()]
    with pytest.warns(DeprecationWarning):
        programs.append(torch.jit.load(tmp_path / "lobe_0.torchscript.pt"))
    for sizes in ((3, 9, 5, 4), (1, 4, 2, 2), (1, 2, 1, 1), (7, 6, 6, 1)):
        frames, atoms, neighbours, targets = sizes
        data = structure(frames, atoms, neighbours, targets, ferro, dtype=torch.float32)
        for program in programs:
            torch.testing.assert_close(program(*data), model(*data), rtol=1e-4, atol=1e-5)


def test_a_program_that_differs_is_refused(tmp_path, monkeypatch):
    from accel_train.errors import UserError

    monkeypatch.setattr(torch.jit, "load", lambda *_: lambda *data: torch.zeros(1))
    with pytest.raises(UserError, match=r"export: lobe_0.torchscript.pt differs from the model by "):
        write_programs({"lobe_0": lobe(0, dtype=torch.float32)}, True, tmp_path)
