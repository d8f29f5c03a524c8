"""Bootstrap intervals: of a mean as theory has it, the same for the same seed, and honest about what has no value."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accel_train.errors import UserError
from accel_train.intervals import Interval, bootstrap, exact, ratio
from accel_train.sums import BinaryScores, Correlation, Moments

EDGES = np.linspace(-5, 5, 101)


def units(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Each unit has 5 values around one of its own, which is standard normal."""
    random = np.random.default_rng(seed)
    values = torch.from_numpy(random.normal(size=(n, 1)) + 0.1 * random.normal(size=(n, 5)))
    return {"x": Moments.sums(values.flatten(), by=(torch.arange(n).repeat_interleave(5), n))}


def mean(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    return {"mean": float(Moments(sums["x"]).mean)}


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    found = [bootstrap(mean, units(40, seed), seed=seed, resamples=200, level=0.9)["mean"] for seed in range(100)]
    assert 80 <= sum(each.low <= 0 <= each.high for each in found) <= 97
    width = np.mean([each.high - each.low for each in found])
    assert width == pytest.approx(2 * 1.645 / math.sqrt(40), rel=0.1)  # of 40 units, not of 200 values


def test_the_interval_of_a_ratio_covers_it_and_is_that_of_a_bootstrap():
    hits, widths = 0, []
    for seed in range(200):
        random = np.random.default_rng(seed)
        y = torch.from_numpy(random.integers(20, 60, 300).astype(float))
        x = 0.3 * y + torch.from_numpy(random.normal(0, 2, 300))
        low, high, _ = ratio(Correlation.sums(x, y), level=0.9)
        hits += low <= 0.3 <= high
        widths.append(high - low)
    assert 165 <= hits <= 195
    assert np.mean(widths) == pytest.approx(2 * 1.645 * 2 / (40 * math.sqrt(300)), rel=0.05)
    units = {"sums": Correlation.sums(x, y, by=(torch.arange(300), 300))}
    drawn = bootstrap(lambda sums: {"r": float(sums["sums"][1] / sums["sums"][2])}, units, 0, 2000, 0.9)["r"]
    assert (low, high) == pytest.approx((drawn.low, drawn.high), rel=0.01)
    assert math.isnan(ratio(Correlation.sums(x[:1], y[:1])).low) and math.isnan(ratio(torch.zeros(6)).high)


def test_the_seed_decides():
    a, b, c = (bootstrap(mean, units(20), seed, resamples=50) for seed in (1, 1, 2))
    assert a == b != c


def test_resamples_without_a_value_are_counted():
    scores, positive, shot = torch.tensor([0.0, 1, 2]), torch.tensor([False, False, True]), torch.arange(3)
    sums = {"scores": BinaryScores.sums(scores, positive, EDGES, by=(shot, 3))}
    found = bootstrap(lambda sums: {"auc": BinaryScores(sums["scores"], EDGES).auc}, sums, seed=0)["auc"]
    assert (found.low, found.high) == (1, 1)
    assert found.undefined / 1000 == pytest.approx((8 + 1) / 27, abs=0.05)  # no positive one, or no other


def test_nothing_can_be_said_of_one_unit():
    assert str(bootstrap(mean, units(1), seed=0)["mean"]) == str(Interval(math.nan, math.nan, 0))
    nan = {"x": units(3)["x"].index_fill(0, torch.tensor([1]), math.nan)}
    assert str(bootstrap(mean, nan, seed=0, resamples=7)["mean"]) == str(Interval(math.nan, math.nan, 7))


@pytest.mark.parametrize(
    ("more", "settings", "says"),
    [
        ({"y": torch.zeros(3)}, {}, "axis 0 of every sum must be the same units"),
        ({}, {"resamples": 0}, "resamples=0 must be at least 1"),
        ({}, {"level": 1.0}, "level=1.0 between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(more, settings, says):
    with pytest.raises(UserError, match=says):
        bootstrap(mean, units(2) | more, seed=0, **settings)


@pytest.mark.parametrize("part, whole, low, high", [
    (8, 8, 0.025 ** (1 / 8), 1.0),
    (0, 20, 0.0, 1 - 0.025 ** (1 / 20)),
    (4, 20, 0.0573, 0.4366),  # tables of Clopper and Pearson
    (50, 100, 0.3983, 0.6017),
])  # fmt: skip
def test_exact_intervals_of_a_share(part, whole, low, high):
    assert exact(part, whole) == pytest.approx((low, high), abs=1e-4)


def test_an_exact_interval_covers_the_share_at_least_as_often_as_it_says():
    random = np.random.default_rng(0)
    for share in (0.02, 0.5, 0.9):
        ends = {part: exact(part, 15, 0.9) for part in range(16)}
        drawn = random.binomial(15, share, 2000).tolist()
        assert np.mean([ends[part][0] <= share <= ends[part][1] for part in drawn]) > 0.885
    assert all(map(math.isnan, exact(0, 0)))
