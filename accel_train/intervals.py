"""How far a metric would move if other units had been drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from accel_train import keyed
from accel_train.errors import UserError


class Interval(NamedTuple):
    """The interval of a metric.

    low, high: its ends, NaN where nothing can be said.
    undefined: in how many resamples the metric was NaN, such as an AUC of one class; these are left out of the ends.
    """

    low: float
    high: float
    undefined: int


def bootstrap(
    metrics: Callable[[dict[str, Tensor]], Mapping[str, float]],
    sums: Mapping[str, Tensor],
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Percentile bootstrap over independent units (Efron, Ann. Statist. 7, 1, 1979): again and again, as many
    units as there are, drawn with replacement, are added up and the metrics computed from the sums.

    Units are what was drawn independently: a shot or a subject, not its time steps, which follow one another. The same
    seed draws the same units for every model, so that the metric of one minus that of another may be given, too.

    Args:
        metrics: metrics by name from sums, as ``Task.eval_metrics``.
        sums: by name [units, ...], what each unit adds (``by`` in ``accel_train.sums``).
        level: share of the resamples between the ends.

    Returns:
        An interval for each metric; NaN at both ends if there are fewer than 2 units, or if no resample has a value.

    Raises:
        UserError: tensors of different numbers of units, no resamples, or a level that is not between 0 and 1.
    """
    sizes = {name: len(value) for name, value in sums.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"bootstrap: axis 0 of every sum must be the same units, but they have {sizes}")
    if resamples < 1 or not 0 < level < 1:
        raise UserError(f"bootstrap: resamples={resamples} must be at least 1, level={level} between 0 and 1")
    units = next(iter(sizes.values()))
    if units < 2:
        whole = metrics({name: value.double().sum(0) for name, value in sums.items()})
        return dict.fromkeys(whole, Interval(math.nan, math.nan, 0))
    draw = np.random.default_rng(keyed.key(seed, "bootstrap"))
    times = draw.multinomial(units, np.full(units, 1 / units), resamples).astype(np.float64)
    tables = {name: value.double().flatten(1) for name, value in sums.items()}
    found: dict[str, list[float]] = {}
    for row in torch.from_numpy(times):
        drawn = {name: (row @ table).view(sums[name].shape[1:]) for name, table in tables.items()}
        for name, value in metrics(drawn).items():
            found.setdefault(name, []).append(float(value))
    return {name: _interval(np.array(values), level) for name, values in found.items()}


def ratio(sums: Tensor, level: float = 0.95) -> Interval:
    """The interval of the sum of x over the sum of y, from sums over many independent units: the delta method (Cochran,
    Sampling Techniques, 3rd ed. 1977, eq. 6.13). It costs no resamples, and ratios of parts of one whole, such as a
    difference of two losses per token, are treated as such.

    Args:
        sums: [6], added-up ``Correlation.sums`` of x and y, an item for each unit.

    Returns:
        NaN at both ends with fewer than 2 units, or where the sum of y is 0.
    """
    n, x, y, xx, yy, xy = (float(value) for value in sums)
    if n < 2 or y == 0:
        return Interval(math.nan, math.nan, 0)
    value = x / y
    spread = max(xx - 2 * value * xy + value * value * yy, 0.0) * n / (n - 1)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(spread) / abs(y)
    return Interval(value - half, value + half, 0)


def exact(part: int, whole: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share that was ``part`` of ``whole`` independent units (Clopper and Pearson, Biometrika 26,
    404, 1934). It says what a bootstrap cannot: that 20 of 20 may be luck, if the true share is 83 %.

    Returns:
        Its ends; NaN without units.
    """
    if not whole:
        return math.nan, math.nan
    tail = (1 - level) / 2
    n = np.arange(whole + 1)
    ways = np.array([math.lgamma(whole + 1) - math.lgamma(k + 1) - math.lgamma(whole - k + 1) for k in n])

    def probability(share: float, of: slice) -> float:
        """That so many units are in."""
        return float(np.exp(ways + n * math.log(share) + (whole - n) * math.log1p(-share))[of].sum())

    def solve(too_low: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if too_low(middle) else (low, middle)
        return (low + high) / 2

    low = solve(lambda share: probability(share, slice(part, None)) < tail) if part else 0.0
    high = solve(lambda share: probability(share, slice(part + 1)) > tail) if part < whole else 1.0
    return low, high


def _interval(values: np.ndarray, level: float) -> Interval:
    defined = values[~np.isnan(values)]
    undefined = len(values) - len(defined)
    if not len(defined):
        return Interval(math.nan, math.nan, undefined)
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(float(low), float(high), undefined)
