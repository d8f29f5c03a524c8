"""How well voxels are predicted over time: correlations, what they average to, and how far other minutes or other
people would have moved that.

Arrays are of time and voxel. ``runs`` int [T] numbers the stretches of time: rows of one number stand together and
follow one another without a gap. A volume that was not measured is a row with a NaN, which is left out everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from accel_train import keyed
from accel_train.errors import DataError
from accel_train.intervals import bootstrap
from accel_train.sums import Correlation

VOXELS = 4096  # at once: the sums of a correlation take many times the memory of what they sum
RESAMPLES = 1000
NEARLY_ONE = 1 - 1e-12  # Fisher's z of 1 is infinite

Rois = Mapping[str, np.ndarray]
"""The columns of each region, int."""


def stretches(runs: np.ndarray) -> list[slice]:
    """The rows of each stretch of time. Raises ``DataError`` if one comes back after another."""
    edges = np.flatnonzero(np.diff(runs)) + 1
    found = [slice(int(a), int(b)) for a, b in zip([0, *edges], [*edges, len(runs)], strict=True) if b > a]
    if len(found) != len(np.unique(runs)):
        raise DataError("runs: the rows of a run must stand together, in order of time")
    return found


def numbered(rows: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """The stretch of each of some rows, int [n]: a new one begins where the run changes or rows are left out.

    Args:
        rows: int [n], in order. runs: int [T], of all rows.
    """
    breaks = (np.diff(rows) != 1) | (np.diff(runs[rows]) != 0)
    return np.append(0, np.cumsum(breaks))[: len(rows)]


def measured(*arrays: np.ndarray) -> np.ndarray:
    """bool [T]: rows without a NaN in any of the arrays [T, V]."""
    return ~np.logical_or.reduce([np.isnan(each).any(1) for each in arrays])


def voxel_blocks(voxels: int) -> Iterator[slice]:
    return (slice(at, min(at + VOXELS, voxels)) for at in range(0, voxels, VOXELS))


def temporal_r(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Pearson's r over time: float64 [V], NaN where a voxel is constant.

    Args:
        predicted, true: [T, V].
    """
    return Correlation(block_sums(predicted, true, np.zeros(len(true), np.int64))[0]).pearson.numpy()


def block_sums(predicted: np.ndarray, true: np.ndarray, block: np.ndarray) -> Tensor:
    """float64 [blocks, V, 6]: ``Correlation.sums`` of each block of time.

    Args:
        predicted, true: [T, V].
        block: int [T], numbered from 0 (``time_blocks``).

    Raises:
        DataError: shapes that differ.
    """
    if predicted.shape != true.shape or len(block) != len(true):
        raise DataError(f"predictions {predicted.shape} do not fit the {true.shape} volumes (times, voxels)")
    rows, count = measured(predicted, true), int(block.max()) + 1
    by = torch.from_numpy(block[rows]), count
    parts = [
        Correlation.sums(torch.from_numpy(predicted[rows, at]), torch.from_numpy(true[rows, at]), by)
        for at in voxel_blocks(true.shape[1])
    ]
    return torch.cat(parts, 1)


def time_blocks(runs: np.ndarray, length: int) -> np.ndarray:
    """The block of each row, int64 [T]: ``length`` rows of a stretch and up to twice that at its end, so that what one
    volume says of the next stays in a block as far as it can."""
    found, first = np.empty(len(runs), np.int64), 0
    for at in stretches(runs):
        rows = at.stop - at.start
        count = max(rows // length, 1)
        found[at] = first + np.minimum(np.arange(rows) // length, count - 1)
        first += count
    return found


def fisher_mean(r: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The mean of correlations over an axis, by Fisher's z (Biometrika 10, 507, 1915); those that are NaN are left out,
    and without any other it is NaN."""
    z = _z(r)
    defined = ~np.isnan(z)
    with np.errstate(invalid="ignore"):
        return np.tanh(np.where(defined, z, 0.0).sum(axis) / defined.sum(axis))


def by_roi(r: np.ndarray, rois: Rois) -> dict[str, float]:
    """The mean correlation of each region: over its voxels, and over the people in front of them.

    Args:
        r: [V] or [people, V].
    """
    return {name: float(fisher_mean(r[..., columns])) for name, columns in rois.items()}


# -- intervals -------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A number, and the ends of its 95 % interval; NaN where nothing can be said."""

    value: float
    low: float
    high: float


def draws_of_blocks(blocks: int, seed: int, resamples: int = RESAMPLES) -> Tensor:
    """How often each block of time comes: float64 [1 + resamples, blocks], each once in the first row, then as drawn
    with replacement (Künsch, Ann. Statist. 17, 1217, 1989). The same for all models and people, who saw one film.
    Of one block alone nothing can be drawn: the first row is all."""
    if blocks < 2:
        return torch.ones(1, blocks, dtype=torch.float64)
    draw = np.random.default_rng(keyed.key(seed, "blocks"))
    drawn = draw.multinomial(blocks, np.full(blocks, 1 / blocks), resamples)
    return torch.from_numpy(np.vstack([np.ones((1, blocks)), drawn]))


def drawn_z(table: Tensor, draws: Tensor, rois: Rois) -> np.ndarray:
    """float64 [draws, rois]: Fisher's z of each region, the mean over its voxels that have a correlation.

    Args:
        table: ``block_sums`` of one person and model.
        draws: ``draws_of_blocks``.
    """
    voxels, of_draws = table.shape[1], max(1, 8 * VOXELS // len(draws))
    totals, counts = np.zeros((2, len(draws), len(rois)))
    member = np.zeros((voxels, len(rois)))
    for i, columns in enumerate(rois.values()):
        member[columns, i] = 1
    for first in range(0, voxels, of_draws):
        part = table[:, first : first + of_draws]
        r = Correlation((draws @ part.flatten(1)).unflatten(1, part.shape[1:])).pearson.numpy()
        z, of_part = _z(r), member[first : first + of_draws]
        totals += np.nan_to_num(z) @ of_part
        counts += ~np.isnan(z) @ of_part
    return np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)


def estimate(r: np.ndarray) -> Estimate:
    """Of a number in each draw, the first of which is the number itself."""
    if len(r) < 2 or np.isnan(r).all():
        return Estimate(float(r[0]), math.nan, math.nan)
    low, high = np.nanquantile(r[1:], [0.025, 0.975])
    return Estimate(float(r[0]), float(low), float(high))


def over_people(z: np.ndarray, seed: int) -> Estimate:
    """The mean correlation, and how it would move with other people: a bootstrap over them. No interval for one alone.

    Args:
        z: [people], Fisher's z of each.
    """
    found = bootstrap(
        lambda drawn: {"r": math.tanh(float(drawn["z"]) / len(z))}, {"z": torch.from_numpy(z)[:, None]}, seed, RESAMPLES
    )
    return Estimate(math.tanh(float(z.mean())), *found["r"][:2])


def _z(r: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(r, -NEARLY_ONE, NEARLY_ONE))
