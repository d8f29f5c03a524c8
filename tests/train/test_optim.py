"""Learning rates against tables and torch's own schedulers; optimisers by name."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.errors import UserError, suggest
from accel_train.train.optim import SCHEDULES, Schedule, build_optimizer, optimizer_class, renew_options


def test_the_cosine_of_the_known_run():
    schedule = Schedule("cosine", 1e-4, 1_000_000, min_lr=1e-6)
    assert schedule(100_000) == pytest.approx(9.758e-05, abs=5e-9)
    assert schedule(0) == 1e-4 and schedule(1_000_000) == pytest.approx(1e-6) == schedule(2_000_000)
    assert schedule(500_000) == pytest.approx((1e-4 + 1e-6) / 2)


@pytest.mark.parametrize(
    ("kind", "kwargs", "table"),
    [
        ("constant", {}, {0: 1.0, 7: 1.0, 100: 1.0, 1000: 1.0}),
        ("linear", {"min_lr": 0.2}, {0: 1.0, 25: 0.8, 50: 0.6, 100: 0.2, 101: 0.2}),
        ("step", {"step_size": 30, "gamma": 0.5}, {0: 1.0, 29: 1.0, 30: 0.5, 59: 0.5, 60: 0.25, 100: 0.125}),
        ("cosine", {}, {0: 1.0, 50: 0.5, 100: 0.0, 25: 0.5 + math.sqrt(0.125)}),
    ],
)
def test_tables(kind, kwargs, table):
    schedule = Schedule(kind, 1.0, 100, **kwargs)
    for step, rate in table.items():
        assert schedule(step) == pytest.approx(rate, abs=1e-12), step
    warm = Schedule(kind, 1.0, 110, warmup_steps=10, warmup_start_factor=0.1, **kwargs)
    for step, rate in table.items():
        assert warm(step + 10) == pytest.approx(rate, abs=1e-12), "the schedule begins where warm-up ends"
    assert [warm(s) for s in (0, 5, 9)] == pytest.approx([0.1, 0.55, 0.91])


def test_warm_up_from_zero_and_none():
    assert [Schedule("constant", 2.0, None, warmup_steps=4)(s) for s in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert Schedule("constant", 2.0, None)(0) == 2.0
    assert Schedule("cosine", 2.0, 4, warmup_steps=9)(8) == pytest.approx(16 / 9), "warm-up longer than the run"


def test_cosine_is_that_of_torch():
    base, floor, steps = 0.3, 0.01, 37
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=floor)
    ours = Schedule("cosine", base, steps, min_lr=floor)
    for step in range(steps + 1):
        assert ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@given(
    st.lists(st.floats(0.01, 10) | st.sampled_from([1.0, math.nan, math.inf]), max_size=60),
    st.sampled_from(["min", "max"]),
    st.integers(0, 4),
    st.sampled_from([0.0, 1e-4, 0.3]),
    st.sampled_from([0.0, 0.05]),
)
@settings(deadline=None)
def test_plateau_replays_what_torch_does_as_it_goes(values, mode, patience, threshold, min_lr):
    if mode == "max":
        values = [v for v in values if v != math.inf]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, factor=0.5, patience=patience, threshold=threshold, min_lr=min_lr, eps=0.0
    )
    ours = Schedule("plateau", 0.4, None, mode=mode, factor=0.5, patience=patience, threshold=threshold, min_lr=min_lr)
    for n, value in enumerate(values):
        theirs.step(value)
        assert ours(n, values[: n + 1]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 300), st.integers(0, 50), st.integers(1, 200))
def test_rates_are_pure_finite_and_between_zero_and_the_base(kind, at, warmup, total):
    schedule = Schedule(kind, 0.1, total, warmup_steps=warmup)
    assert 0.0 <= schedule(at) <= 0.1 * (1 + 1e-12)
    assert schedule(at) == schedule(at) == Schedule(kind, 0.1, total, warmup_steps=warmup)(at)


@pytest.mark.parametrize(
    ("kind", "total", "kwargs", "says"),
    [
        ("cosin", 5, {}, r"lr_scheduler_type: unknown 'cosin' \(did you mean cosine\?\); there are constant, cosine"),
        ("cosine", 5, {"min_l": 1}, r"lr_scheduler_kwargs: cosine has no option 'min_l' \(did you mean min_lr\?\)"),
        ("constant", 5, {"min_lr": 1}, "lr_scheduler_kwargs: constant has no option 'min_lr'$"),
        ("step", 5, {"steps_done": 1}, "lr_scheduler_kwargs: step has no option 'steps_done'"),
        ("plateau", 5, {"history": []}, "lr_scheduler_kwargs: plateau has no option 'history'"),
        ("cosine", None, {}, "lr_scheduler_type: cosine needs to know the length of the run: give max_steps"),
        ("linear", None, {}, "lr_scheduler_type: linear needs to know the length"),
        ("step", 5, {"step_size": 0}, "lr_scheduler_kwargs"),
        ("cosine", 5, {"min_lr": "low"}, "lr_scheduler_kwargs"),
        ("plateau", 5, {"mode": "lowest"}, "lr_scheduler_kwargs"),
        ("plateau", 5, {"factor": 2}, "factor must be less than 1"),
        ("step", 5, {"step_size": -5}, "step_size must be at least 1"),
    ],
)
def test_schedules_that_cannot_be(kind, total, kwargs, says):
    with pytest.raises(UserError, match=says):
        Schedule(kind, 0.1, total, **kwargs)


# -- optimisers ------------------------------------------------------------------------------------------------------


def named():
    return {str(i): p for i, p in enumerate(parameters())}


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(3, 3))]


@pytest.mark.parametrize("name", ["AdamW", "adamw", "torch.optim.AdamW", "torch.optim.adamw.AdamW"])
def test_names_of_an_optimiser(name):
    assert optimizer_class(name) is torch.optim.AdamW


def test_every_optimiser_of_torch_can_be_named():
    names = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in ("Optimizer", "lr_scheduler")]
    assert {"SGD", "Adam", "RMSprop", "LBFGS"} <= set(names)
    for name in set(names) - {"LBFGS", "SparseAdam"}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert build_optimizer(named(), name, 0.1, {}).param_groups[0]["lr"] == 0.1


def test_lists_become_tuples():
    optimizer = build_optimizer(named(), "AdamW", 1e-3, {"betas": [0.5, 0.9], "weight_decay": 0.0})
    assert optimizer.defaults["betas"] == (0.5, 0.9)


class OnlyAtFirst(torch.optim.Optimizer):
    """As some optimisers do, it tells only at its first step that it needs a closure."""

    def __init__(self, params, lr, **options):
        super().__init__(params, {"lr": lr, **options})

    def step(self, closure=None):
        assert closure is not None or self.defaults.get("easy"), "needs a closure"


def test_options_that_a_signature_does_not_name():
    assert build_optimizer(named(), f"{__name__}.OnlyAtFirst", 0.1, {"easy": 1}).defaults["easy"] == 1


def test_parameters_of_every_kind():
    kinds = [torch.ones(3), torch.ones(2, 2, dtype=torch.complex64), torch.ones(0, 3), torch.tensor(1.0).double()]
    params = [torch.nn.Parameter(t) for t in [*kinds, torch.ones(2, dtype=torch.bfloat16)]]
    for name in ("AdamW", "SGD", "RMSprop"):
        assert len(build_optimizer(dict(enumerate(params)), name, 0.1, {}).param_groups[0]["params"]) == 5
    assert [p.grad for p in params] == [None] * 5


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("Adamm", {}, r"optimizer.class_path: unknown 'Adamm' \(did you mean Adam\?\)"),
        ("no.such", {}, "optimizer.class_path: cannot import 'no.such'"),
        ("torch.optim.Adamm", {}, "optimizer.class_path: cannot import 'torch.optim.Adamm'"),
        ("Optimizer", {}, "optimizer.class_path: unknown 'Optimizer'; give a name in torch.optim, or module.Class"),
        ("AdamW", {"fused": "maybe"}, "optimizer.init_args.fused: expected true or false, got 'maybe'"),
        ("AdamW", {"beta": 1}, r"optimizer.init_args: AdamW has no option 'beta' \(did you mean betas\?\)"),
        ("AdamW", {"lr": 1}, "optimizer.init_args.lr: give the rate as learning_rate"),
        ("AdamW", {"betas": [2.0, 0.9]}, "optimizer: AdamW refuses its arguments: Invalid beta"),
        ("AdamW", {"weight_decay": "much"}, "optimizer: AdamW refuses its arguments"),
        ("AdamW", {"betas": [0.9]}, r"optimizer: AdamW refuses its arguments: IndexError.*betas=\(0.9,\)"),
        ("AdamW", {"params": []}, "optimizer.init_args.params"),
        ("SGD", {"momentum": [0.9]}, "optimizer: SGD refuses its arguments"),
        ("RMSprop", {"alpha": "0.9"}, "optimizer: RMSprop refuses its arguments"),
        ("NAdam", {"capturable": True}, "optimizer: NAdam refuses its arguments"),
        ("LBFGS", {}, "optimizer: LBFGS evaluates the loss several times in a step"),
        (
            "SparseAdam",
            {},
            "optimizer: SparseAdam refuses its arguments: RuntimeError: SparseAdam does not support dense",
        ),
        ("torch.nn.Linear", {}, "torch.nn.Linear is no optimizer class"),
        ("torch.optim.lr_scheduler", {}, "torch.optim.lr_scheduler is no optimizer class"),
        (
            f"{__name__}.OnlyAtFirst",
            {},
            "optimizer: OnlyAtFirst refuses its arguments: AssertionError: needs a closure",
        ),
    ],
)
def test_optimisers_that_cannot_be(name, arguments, says):
    with pytest.raises(UserError, match=says):
        build_optimizer(named(), name, 0.1, arguments)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
def test_an_optimiser_speaks_of_the_model_s_own_parameters():
    with pytest.raises(UserError, match=r"Muon only supports 2D .*Size\(\[7\]\)"):
        build_optimizer({"w": torch.nn.Parameter(torch.ones(7))}, "Muon", 0.1, {})


def test_suggestions():
    assert suggest("cosin", ["cosine", "linear"]) == " (did you mean cosine?)" and suggest("zzz", ["cosine"]) == ""


def test_parameters_that_do_not_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = build_optimizer(dict(model.named_parameters()), "AdamW", 0.1, {"weight_decay": 0.5}, ["*.bias", "1.*"])
    decaying, still = optimizer.param_groups
    assert [p is model[0].weight for p in decaying["params"]] == [True] and decaying["weight_decay"] == 0.5
    assert len(still["params"]) == 3 and still["weight_decay"] == 0.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name != "0.weight"), name
    renew_options(optimizer, {"weight_decay"})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("name", "patterns", "says"),
    [
        ("AdamW", ["*.bais"], r"optimizer.no_weight_decay: '\*.bais' matches none of 0"),
        ("Rprop", ["*"], "optimizer.no_weight_decay: Rprop has no option weight_decay"),
    ],
)
def test_patterns_that_cannot_be(name, patterns, says):
    with pytest.raises(UserError, match=says):
        build_optimizer(named(), name, 0.1, {}, patterns)
