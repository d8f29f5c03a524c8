"""Learning rates against tables, closed forms and torch's own schedulers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR

from accel_train.errors import UserError
from accel_train.train.schedules import SCHEDULES, Schedule


def test_the_cosine_of_the_known_run():
    schedule = Schedule("cosine", 1e-4, 1_000_000, options={"min_lr": 1e-6})
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
    schedule = Schedule(kind, 1.0, 100, options=kwargs)
    for step, rate in table.items():
        assert schedule(step) == pytest.approx(rate, abs=1e-12), step
    warm = Schedule(kind, 1.0, 110, warmup_steps=10, warmup_start_factor=0.1, options=kwargs)
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
    ours = Schedule("cosine", base, steps, options={"min_lr": floor})
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
    options = {"mode": mode, "factor": 0.5, "patience": patience, "threshold": threshold, "min_lr": min_lr}
    ours = Schedule("plateau", 0.4, None, options=options)
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
        Schedule(kind, 0.1, total, options=kwargs)


@given(st.integers(1, 300), st.integers(0, 50), st.integers(1, 5), st.floats(0.5, 3))
def test_the_schedules_of_the_hf_trainer(steps, warmup, cycles, power):
    """Factors as its documentation has them, of the step alone."""

    def left(s):
        return max(0.0, (steps - s) / steps)

    factors = {
        "linear": (left, {}),
        "constant_with_warmup": (lambda s: 1.0, {}),
        "polynomial": (lambda s: 0.1 + 0.9 * left(s) ** power, {"lr_end": 0.05, "power": power}),
        "inverse_sqrt": (lambda s: math.sqrt((warmup or 10_000) / (s + (warmup or 10_000))), {}),
        "cosine_with_restarts": (
            lambda s: 0.5 * (1 + math.cos(math.pi * (cycles * (s / steps) % 1))) if s < steps else 0.0,
            {"num_cycles": cycles},
        ),
    }
    for kind, (factor, options) in factors.items():
        ours = Schedule(kind, 0.5, warmup + steps, warmup, options=options)
        for s in range(warmup):
            assert ours(s) == pytest.approx(0.5 * s / warmup)
        for s in range(steps + 1):
            assert ours(warmup + s) == pytest.approx(0.5 * factor(s), abs=1e-12), (kind, s)


def half_life(steps_done, base, *, steps=10):
    return base * 0.5 ** (steps_done / steps)


def of_the_way(done, base, total_steps):
    return base * (1 - done) if total_steps > 3 else "none"


def test_a_function_of_one_s_own():
    ours = Schedule(f"{__name__}.half_life", 2.0, None, warmup_steps=4, options={"steps": 5})
    assert [ours(step) for step in (0, 2, 4, 9, 14)] == [0.0, 1.0, 2.0, 1.0, 0.5]
    assert Schedule(f"{__name__}.of_the_way", 2.0, 10)(5) == 1.0


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (OneCycleLR, {"max_lr": 0.3, "total_steps": 40, "cycle_momentum": False}),
        (CosineAnnealingWarmRestarts, {"T_0": 7, "T_mult": 2}),
    ],
)
def test_a_scheduler_class_of_torch(cls, options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs, rates = cls(optimizer, **options), []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    kind = f"torch.optim.lr_scheduler.{cls.__name__}"
    ours = Schedule(kind, 0.1, 45, warmup_steps=5, options=options)
    assert [ours(5 + step) for step in range(40)] == rates
    assert Schedule(kind, 0.1, 45, warmup_steps=5, options=options)(30) == rates[25], "whatever was asked for before"


@pytest.mark.parametrize(
    ("kind", "total", "kwargs", "says"),
    [
        (f"{__name__}.half_lives", 5, {}, "lr_scheduler_type: cannot import"),
        (f"{__name__}.half_life", 5, {"step": 3}, r"half_life has no option 'step' \(did you mean steps\?\)"),
        (f"{__name__}.of_the_way", None, {}, "of_the_way needs to know the length of the run: give max_steps"),
        (f"{__name__}.of_the_way", 2, {}, "of_the_way cannot take {}: could not convert string to float: 'none'"),
        (f"{__name__}.half_life", 5, {"steps": 0}, "half_life cannot take {'steps': 0}"),
        ("math.pi", 5, {}, "lr_scheduler_type: math.pi is no function"),
        ("torch.nn.Linear", 5, {}, "torch.nn.Linear is neither a function nor a scheduler class of torch"),
        ("torch.optim.lr_scheduler.StepLR", 5, {}, "StepLR refuses {}: TypeError: .*step_size"),
        ("torch.optim.lr_scheduler.OneCycleLR", 90, {"max_lr": 1.0, "total_steps": 9, "cycle_momentum": False},
         "OneCycleLR cannot take .*: Tried to step"),
        ("cosine", 5, {"warmup_steps": 3}, "lr_scheduler_kwargs: cosine has no option 'warmup_steps'"),
        ("polynomial", 5, {"lr_end": -1.0}, "the rate at step 2 would be -0"),
        ("cosine_with_restarts", 5, {"num_cycles": 0}, "num_cycles must be at least 1"),
    ],
)  # fmt: skip
def test_schedules_of_one_s_own_that_cannot_be(kind, total, kwargs, says):
    with pytest.raises(UserError, match=says):
        Schedule(kind, 0.1, total, options=kwargs)
