"""Trivial models are fitted as they should be, and those that see no signal foresee nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from accel_train.errors import DataError, UserError
from accel_train.intervals import bootstrap
from accel_train.sums import BinaryScores
from accel_train.tasks.tcn import baselines
from accel_train.tasks.tcn.baselines import LEAKS, STATISTICS, Examples, Logistic, examples, fit, names, track
from accel_train.tasks.tcn.discharge import DT_MS, RECIPES, T0_MS, TWARN_MS, signals
from accel_train.tasks.tcn.synth import FIRST, _generator, plan

STEP = 5  # samples of the record for one that is kept
WINDOW, EVERY = 253, 40


@dataclass(frozen=True)
class Segment:
    number: int
    dt_ms: float
    samples: int
    start: int
    stop: int
    end_ms: float
    disruptive: bool


def segments(split, size, recipe, flattop_only=False):
    """From -10 ms to the disruption, or to the end of the record; or of the flattop."""

    def at(ms):
        return int((ms - T0_MS) / DT_MS) // STEP

    for shot in plan(1, split, size, recipe):
        truth = shot.truth
        end = truth.end_ms if truth.disruptive else truth.flat_stop_ms if flattop_only else truth.last_ms
        samples = -(-truth.samples // STEP)
        yield Segment(
            shot.number, STEP * DT_MS, samples, at(-10), min(at(end) + 1, samples), truth.end_ms, truth.disruptive
        )


def label_of(shots):
    by_number = {shot.number: shot for shot in shots}

    def label(number, first, last):
        shot = by_number[number]
        t = T0_MS + STEP * DT_MS * np.arange(first, last)
        return shot.disruptive & (t >= shot.end_ms - TWARN_MS), np.ones(last - first, bool)

    return label


def auc_of_shots(model, shown, shots):
    """The area under the ROC curve of shots by their highest score, and its interval."""
    scores = model.logit(shown)
    highest = torch.tensor([scores[shown.shot == shot.number].max() for shot in shots])
    disruptive = torch.tensor([shot.disruptive for shot in shots])
    edges = np.linspace(float(highest.min()) - 1e-6, float(highest.max()) + 1e-6, 500)
    sums = BinaryScores.sums(highest, disruptive, edges, by=(torch.arange(len(shots)), len(shots)))
    interval = bootstrap(lambda s: {"auc": BinaryScores(s["scores"], edges).auc}, {"scores": sums}, 0, 400)["auc"]
    return BinaryScores(sums.sum(0), edges).auc, interval


# -- what sees no signal -------------------------------------------------------------------------------------------


def without_signals(shots):
    """As ``examples`` makes them, in a thousandth of the time."""
    nothing = np.zeros((1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "statistics", lambda x: np.zeros((len(x), len(STATISTICS))))
        return examples(shots, lambda _, a, b: np.broadcast_to(nothing, (1, b - a)), label_of(shots), WINDOW, EVERY)


@pytest.fixture(scope="module")
def many():
    return [list(segments(split, 800, RECIPES["hard"])) for split in ("train", "test")]


@pytest.mark.parametrize("name", LEAKS)
def test_leak_detectors_are_at_chance(many, name):
    train, test = many
    auc, interval = auc_of_shots(fit(name, without_signals(train)), without_signals(test), test)
    assert interval.low <= 0.5 <= interval.high and interval.high - interval.low < 0.1, (auc, interval)


def test_a_leak_is_detected():
    """In flattops only, those that do not disrupt are shorter by their ramp-down."""
    train, test = (list(segments(split, 400, RECIPES["hard"], flattop_only=True)) for split in ("train", "test"))
    _, interval = auc_of_shots(fit("time since start", without_signals(train)), without_signals(test), test)
    assert interval.low > 0.6


# -- what sees statistics ------------------------------------------------------------------------------------------


def named(x):
    return dict(zip(STATISTICS, baselines.statistics(x)[0], strict=True))


def test_statistics_of_known_signals():
    n, hz = 256, 0.2  # of the sampling rate: 0.4 of the highest frequency
    t = np.arange(n)
    straight = named(np.stack([3 + 0.5 * np.linspace(-1, 1, n), np.full(n, 1.0)])[None])
    assert len(straight) == 20
    assert straight["level, mean"] == pytest.approx(2) and straight["level, spread"] == pytest.approx(1)
    assert straight["slope, mean"] == pytest.approx(0.25) and straight["slope, spread"] == pytest.approx(0.25)
    wave = named(np.tile(2**0.5 * np.sin(2 * np.pi * hz * t), (4, 1))[None])
    assert wave["log fluctuation, mean"] == pytest.approx(0, abs=0.01)
    powers = {name: value for name, value in wave.items() if name.startswith("log power")}
    assert {name for name in powers if powers[name] > max(powers.values()) - 5} == {
        "log power, 0.25 to 0.5, mean", "log power, 0.25 to 0.5, highest tenth",
    }  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(64, 90), st.sampled_from(["i2", "f2", "f4", "f8"]))
def test_statistics_do_not_know_places(seed, channels, n, dtype):
    random = np.random.default_rng(seed)
    x = (100 * random.normal(size=(3, channels, n))).astype(dtype)
    found = baselines.statistics(x)
    assert found.shape == (3, 20) and found.dtype == np.float64 and np.isfinite(found).all()
    np.testing.assert_allclose(baselines.statistics(x[:, random.permutation(channels)]), found, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(baselines.statistics(x[1:2])[0], found[1], rtol=1e-5, atol=1e-5)


def test_what_has_no_statistics():
    with pytest.raises(UserError, match="a window of 63 samples has no statistics; give at least 64"):
        baselines.statistics(np.zeros((1, 2, 63)))
    x = np.zeros((2, 3, 64))
    x[1, 2, 5] = np.nan
    with pytest.raises(DataError, match="channel 2 of window 1 is not finite"):
        baselines.statistics(x)


def test_examples_are_windows_that_end_there():
    shots = [Segment(7, 0.5, 300, 20, 290, 140.0, True), Segment(8, 0.5, 90, 20, 80, 40.0, False)]
    data = {shot.number: np.random.default_rng(shot.number).normal(size=(3, shot.samples)) for shot in shots}
    shown = examples(shots, lambda number, a, b: data[number][:, a:b], label_of(shots), 64, 30)
    assert shown.sample.tolist() == list(range(83, 290, 30)) and set(shown.shot) == {7}
    windows = np.stack([data[7][:, s - 63 : s + 1] for s in shown.sample])
    np.testing.assert_allclose(shown.statistics, baselines.statistics(windows), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shown.elapsed_ms, (shown.sample - 20) / 2)
    with pytest.raises(UserError, match="no shot has 300 samples that count"):
        examples(shots, lambda number, a, b: data[number][:, a:b], label_of(shots), 300, 30)


# -- models --------------------------------------------------------------------------------------------------------


def test_logistic_of_a_yes_and_no_is_the_log_odds():
    """Of a column of 0 and 1, with classes of the same weight: log p(1 | positive) / p(1 | negative)."""
    x = np.repeat([0.0, 1.0, 0.0, 1.0], [30, 10, 20, 140])[:, None]
    target = np.repeat([False, False, True, True], [30, 10, 20, 140])
    model = Logistic(x, target, ridge=1e-10)
    assert model.logit(np.array([[1.0], [0.0]])) == pytest.approx(
        np.log([(7 / 8) / (1 / 4), (1 / 8) / (3 / 4)]), rel=1e-5
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 30), arrays.arrays(float, 3, elements=st.floats(0.01, 100)))
def test_logistic_is_at_its_minimum_whatever_the_units(seed, distance, units):
    random = np.random.default_rng(seed)
    target = random.random(80) < 0.3
    target[:2] = True, False
    x = random.normal(size=(80, 3)) + distance * target[:, None]
    model = Logistic(x, target)
    z = model._columns(x)
    sign, weight = np.where(target, 1, -1), np.where(target, 0.5 / target.sum(), 0.5 / (~target).sum())
    gradient = -z.T @ (weight * sign / (1 + np.exp(sign * (z @ model.w)))) + np.r_[0, np.full(3, 1e-4)] * model.w
    assert np.abs(gradient).max() < 1e-6
    np.testing.assert_allclose(
        Logistic(units * x + 5, target).logit(units * x + 5), model.logit(x), rtol=1e-4, atol=1e-3
    )


def test_a_constant_column_counts_for_nothing():
    x = np.stack([np.arange(20.0), np.full(20, 3.0)], 1)
    target = np.arange(20) % 3 == 0
    np.testing.assert_allclose(Logistic(x, target).logit(x), Logistic(x[:, :1], target).logit(x[:, :1]), atol=1e-9)


def some_examples(target):
    n = len(target)
    random = np.random.default_rng(0)
    columns = random.normal(size=(n, 20)) + target[:, None]
    return Examples(columns, np.arange(n), np.arange(n) / n, target, np.ones(n, bool), np.zeros(n, int), np.arange(n))


@pytest.mark.parametrize("name", names())
def test_the_same_examples_give_the_same_model(name):
    shown = some_examples(np.arange(200) % 2 == 0)
    scores = [fit(name, shown).logit(shown) for _ in range(2)]
    np.testing.assert_array_equal(*scores)
    assert scores[0].shape == (200,)


def test_what_cannot_be_fitted():
    with pytest.raises(UserError, match="all 20 moments that count are of one class"):
        fit("logistic", some_examples(np.zeros(20, bool)))
    with pytest.raises(UserError, match=r"no 'logistics' here \(did you mean logistic\?\)"):
        fit("logistics", some_examples(np.arange(20) < 9))


@given(st.integers(0, 50), st.integers(1, 60), st.sets(st.integers(0, 120), max_size=12))
def test_a_track_holds_the_last_score(start, length, samples):
    sample = np.array(sorted(samples), int)
    logit = np.random.default_rng(0).normal(size=len(sample))
    expected = [logit[sample <= i][-1] if (sample <= i).any() else -np.inf for i in range(start, start + length)]
    np.testing.assert_array_equal(track(sample, logit, start, start + length), expected)


def test_the_easy_set_is_foreseen():
    recipe = RECIPES["easy"]
    sizes = {"train": 16, "test": 24}
    sets = {split: list(segments(split, size, recipe)) for split, size in sizes.items()}
    data = {}
    for split in sets:
        for shot in plan(1, split, sizes[split], recipe):
            random = partial(_generator, 1, split, shot.number - FIRST[split])
            x = signals(shot.truth, random, recipe)
            data[shot.number] = (x - x[:, :400].mean(1, keepdims=True))[:, ::STEP]
    std = np.concatenate([data[shot.number] for shot in sets["train"]], 1).std(1, keepdims=True)
    shown = {
        split: examples(shots, lambda n, a, b: data[n][:, a:b] / std, label_of(shots), WINDOW, EVERY)
        for split, shots in sets.items()
    }
    auc, _ = auc_of_shots(fit("logistic", shown["train"]), shown["test"], sets["test"])
    assert auc > 0.8
