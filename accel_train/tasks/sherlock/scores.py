"""How well voxels are predicted over time: correlations, what they average to, and how far other minutes or other
people would have moved that.

Arrays are of time and voxel. ``runs`` int [T] numbers the stretches of time: rows of one number stand together and
follow one another without a gap. A volume that was not measured is a row with a NaN, which is left out everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from accel_train.errors import DataError
from accel_train.intervals import Interval, bootstrap
from accel_train.sums import Correlation

VOXELS = 4096  # at once: the sums of a correlation take many times the memory of what they sum
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
    z = np.arctanh(np.clip(r, -NEARLY_ONE, NEARLY_ONE))
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


def over_time(
    models: Mapping[str, Sequence[Tensor]], rois: Rois, reference: str, seed: int, resamples: int = 1000
) -> dict[str, Interval]:
    """95 % intervals of mean correlations by a bootstrap over blocks of time (Kuensch, Ann. Statist. 17, 1217, 1989),
    the same blocks for all models and people, who saw the same film.

    Args:
        models: for each, the ``block_sums`` of every person.
        reference: the model that others are compared with.

    Returns:
        ``MODEL/ROI``, and for other models than the reference ``REFERENCE-MODEL/ROI``, how much better that is.
    """
    blocks = len(next(iter(models.values()))[0])

    def metrics(drawn: dict[str, Tensor]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, people in models.items():
            r = np.stack([_pearson(drawn["times"], table) for table in people])
            found |= {f"{name}/{roi}": value for roi, value in by_roi(r, rois).items()}
        for name in models.keys() - {reference}:
            found |= {f"{reference}-{name}/{roi}": found[f"{reference}/{roi}"] - found[f"{name}/{roi}"] for roi in rois}
        return found

    # what is drawn is how often each block comes, so that the sums of all people need not be in memory twice
    return bootstrap(metrics, {"times": torch.eye(blocks, dtype=torch.float64)}, seed, resamples)


def over_people(r: np.ndarray, rois: Rois, seed: int, resamples: int = 1000) -> dict[str, Interval]:
    """95 % intervals of the mean correlation of each region by a bootstrap over people; NaN for one alone.

    Args:
        r: [people, V].
    """
    of_each = np.array([list(by_roi(each, rois).values()) for each in r])
    sums = {"z": torch.from_numpy(np.arctanh(np.clip(of_each, -NEARLY_ONE, NEARLY_ONE)))}

    def metrics(drawn: dict[str, Tensor]) -> dict[str, float]:
        return dict(zip(rois, torch.tanh(drawn["z"] / len(r)).tolist(), strict=True))

    return bootstrap(metrics, sums, seed, resamples)


def _pearson(times: Tensor, table: Tensor) -> np.ndarray:
    return Correlation((times @ table.flatten(1)).view(table.shape[1:])).pearson.numpy()
