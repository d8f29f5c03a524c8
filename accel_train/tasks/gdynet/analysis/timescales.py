"""Over many lags: implied timescales, the Chapman-Kolmogorov test and autocorrelations, with bands over splits.

All are functions of a table of moments, so that each lag is read once. Times are in frames. Formulas: Prinz et al.,
J. Chem. Phys. 134, 174105 (2011).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.gdynet.analysis.koopman import koopman, spectrum

Table = Mapping[int, np.ndarray]
"""Lag -> ``moments.moments`` at this lag, [splits, 2k+1, 2k+1]."""

Z95 = 1.96


def implied_timescales(table: Table) -> dict[str, np.ndarray]:
    """Timescales in frames over the lags of ``table``, slowest first.

    ``lags`` [l]; ``timescales`` of all pairs [l, k-1]; ``low`` and ``high`` [l, k-1], the band of the mean logarithm
    over splits, NaN where fewer than two splits have a finite timescale; ``splits_used`` [l, k-1].
    """
    lags = sorted(table)
    times = np.array([spectrum(koopman(table[lag].sum(0)), lag).timescales for lag in lags])
    split = np.array([[spectrum(koopman(one), lag).timescales for one in table[lag]] for lag in lags])
    with np.errstate(divide="ignore"):
        logs = np.log(split).swapaxes(0, 1)  # [splits, l, k-1]
    mean, half = band(logs)
    return {
        "lags": np.array(lags),
        "timescales": times,
        "low": np.exp(mean - half),
        "high": np.exp(mean + half),
        "splits_used": np.isfinite(logs).sum(0),
    }


def chapman_kolmogorov(table: Table, lag: int, steps: int = 5) -> dict[str, Any]:
    """Is K(m lag) the m-th power of K(lag)? For m = 0 to steps - 1; ``table`` holds the lags m * lag.

    ``predicted`` and ``estimated`` [steps, k, k] with the half widths of their bands over splits; ``max_difference``;
    ``share_within_band``: of the entries with m >= 2, those whose difference is at most 1.96 of its standard errors
    over splits.

    Raises:
        UserError: fewer than 3 steps, which test nothing.
    """
    check_steps(steps)

    def both(pick: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        first = koopman(pick(table[lag]))
        powers = [np.linalg.matrix_power(first, m) for m in range(steps)]
        return np.array(powers), np.array([powers[0], *(koopman(pick(table[m * lag])) for m in range(1, steps))])

    predicted, estimated = both(lambda moments: moments.sum(0))
    split = [both(lambda moments, i=i: moments[i]) for i in range(len(table[lag]))]
    predictions, estimates = (np.array(each) for each in zip(*split, strict=True))
    difference = np.abs(predicted - estimated)
    within = difference <= band(predictions - estimates)[1] + 1e-12  # where the splits agree, rounding would decide
    return {
        "predicted": predicted,
        "estimated": estimated,
        "predicted_half_width": band(predictions)[1],
        "estimated_half_width": band(estimates)[1],
        "max_difference": float(difference.max()),
        "share_within_band": float(within[2:].mean()),
    }


def check_steps(steps: int) -> None:
    """Raises UserError for fewer steps of the Chapman-Kolmogorov test than test anything."""
    if steps < 3:
        raise UserError(f"steps: {steps} test nothing, as m = 0 and m = 1 agree by construction; give at least 3")


def autocorrelations(table: Table) -> dict[str, np.ndarray]:
    """``lags`` [l] and the correlation [l, k] of each state's probability with itself; NaN for a constant one."""
    lags = sorted(table)
    found = []
    for lag in lags:
        moments = table[lag].sum(0)
        mean = moments[0, 1:] / moments[0, 0]
        covariance = moments[1:, 1:] / moments[0, 0] - np.outer(mean, mean)
        k = len(covariance) // 2
        spread = np.sqrt(np.diag(covariance).clip(0))
        scale = spread[:k] * spread[k:]
        found.append(np.divide(np.diag(covariance, k), scale, out=np.full(k, np.nan), where=scale > 1e-15))
    return {"lags": np.array(lags), "correlation": np.array(found)}


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width of its 95 % band, 1.96 std / sqrt(n), over axis 0, the splits.

    Values that are not finite are left out; NaN where fewer than two are left.
    """
    finite = np.ma.masked_invalid(values)
    half = Z95 * finite.std(0, ddof=1) / np.sqrt(finite.count(0))
    return finite.mean(0).filled(np.nan), half.filled(np.nan)
