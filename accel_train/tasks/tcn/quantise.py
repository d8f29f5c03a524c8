"""Samples as they are stored: int16 with a scale and an offset per channel, float16 or float32.

A digitiser gives counts. Values on such a grid are found to be so, and what is stored in int16 are the counts
themselves: nothing is lost. Other values are rounded to 65,535 steps between the smallest and the largest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from accel_train.errors import DataError

DTYPES = ("int16", "float16", "float32")

LEVELS = 65_535
"""Steps from the lowest int16 to the highest."""

OFF_GRID = 0.02
"""Of a step. Values that are nearer to a grid are on it: float32 of many bits is rounded by less."""

PARTS = range(1, 9)
"""The smallest gap between values is so many steps of the grid at most."""


class Stored(NamedTuple):
    """Channels as they are stored. ``values`` * scale + offset are the samples.

    Args:
        values: [c, n], int16, float16 or float32.
        scale, offset: float64 [c].
        error: float64 [c], the largest difference to the samples, in their unit.
        counts: bool [c], whether the values are the digitiser's own, or the samples themselves.
    """

    values: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    counts: np.ndarray


def store(x: np.ndarray, dtype: str, first_channel: int = 0) -> Stored:
    """float32 [c, n] as one of ``DTYPES``. Raises ``DataError``, which names the channel, for what is not finite, or
    too large for float16."""
    refuse_not_finite(x, first_channel)
    if dtype == "int16":
        parts = [_as_int16(row) for row in x]
        values, scale, offset, counts = (np.array(each) for each in zip(*parts, strict=True))
    else:
        with np.errstate(over="ignore"):
            values = x.astype(dtype)
        scale, offset, counts = np.ones(len(x)), np.zeros(len(x)), np.full(len(x), dtype == "float32")
        if len(large := np.flatnonzero(~np.isfinite(values).all(1))):
            raise DataError(f"channel {first_channel + large[0]}: values are too large for float16; store int16")
    error = [
        float(np.abs(row * scale[i] + offset[i] - x[i]).max(initial=0.0))
        for i, row in enumerate(values.astype(np.float64))
    ]
    return Stored(values, scale, offset, np.array(error), counts)


def refuse_not_finite(x: np.ndarray, first_channel: int = 0) -> None:
    """A ``DataError`` that names the channel."""
    for channel, row in enumerate(x, first_channel):
        if bad := len(row) - int(np.isfinite(row).sum()):
            raise DataError(f"channel {channel}: {bad:,} of {len(row):,} values are not finite")


def _as_int16(x: np.ndarray) -> tuple[np.ndarray, float, float, bool]:
    """Values, scale, offset, and whether they are on a grid."""
    low, high = float(x.min(initial=np.inf)), float(x.max(initial=-np.inf))
    if not low < high:
        return np.zeros(len(x), np.int16), 1.0, low if len(x) else 0.0, True
    found = grid(np.unique(x).astype(np.float64))
    scale, zero = found or ((high - low) / (LEVELS - 1), low)
    middle = round((high - low) / scale) // 2
    offset = zero + scale * middle
    return np.rint((x - offset) / scale).astype(np.int16), scale, offset, found is not None


def grid(values: np.ndarray) -> tuple[float, float] | None:
    """Step and first point of the coarsest grid of at most 65,536 points on which these lie; None if there is none.

    Args:
        values: float64, two or more, in order, each once. They may be rounded: gaps are counted one by one, so that the
            rounding of the smallest does not add up over thousands of them.
    """
    gaps = np.diff(values)
    smallest = float(np.median(gaps[gaps < 1.5 * gaps.min()]))
    for part in PARTS:
        points = np.concatenate([[0.0], np.cumsum(np.rint(gaps * part / smallest))])
        if points[-1] > LEVELS:
            return None
        centred = points - points.mean()
        step = float((centred * values).sum() / (centred * centred).sum())
        first = float(values.mean() - step * points.mean())
        if np.abs(first + step * points - values).max() <= OFF_GRID * step:
            return step, first
    return None
