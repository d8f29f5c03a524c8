"""Which moment of the film was it? The brain at one is looked for among those at others, by what was predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.sherlock.scores import measured, stretches


@dataclass(frozen=True)
class Identified:
    """two_way: share of (segment, other one) where the prediction is more like its own segment; chance 0.5.
    top1: share of the segments whose prediction is more like it than like any other.
    chance: of ``top1``.
    segments: how many.
    """

    two_way: float
    top1: float
    chance: float
    segments: int


def identify(predicted: np.ndarray, true: np.ndarray, runs: np.ndarray, length: int, apart: int) -> Identified:
    """Segments of ``length`` TRs, one after another, by the correlation over their voxels and TRs.

    Each voxel is first brought to mean 0 and variance 1 over time, so that no segment is known by what is the same in
    all. Equally good counts as one half in ``two_way`` and as wrong in ``top1``.

    Args:
        predicted, true: [T, V]; a segment with a volume that was not measured is left out.
        apart: TRs between a segment and the nearest one that it is compared with: neighbours are alike, because
            the hemodynamic response is slow.

    Raises:
        UserError: no segment has another to be compared with.
    """
    starts, number = _segments(measured(predicted, true), runs, length)
    near = (np.abs(starts[:, None] - starts) < length + apart) & (number[:, None] == number)
    others = (~near).sum(1)
    if not len(starts) or not others.all():
        raise UserError(f"identification: {len(starts)} segments of {length} TRs have no others {apart} TRs away")
    rows = starts[:, None] + np.arange(length)
    alike = _patterns(predicted, rows) @ _patterns(true, rows).T
    own = np.diag(alike)[:, None]
    better = ((own > alike) + 0.5 * (own == alike)) * ~near
    first = ((own > alike) | near).all(1)
    return Identified(
        float((better.sum(1) / others).mean()), float(first.mean()), float((1 / (1 + others)).mean()), len(starts)
    )


def _segments(rows: np.ndarray, runs: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The first row and the stretch of each whole segment that was measured."""
    starts, number = [], []
    for i, at in enumerate(stretches(runs)):
        for start in range(at.start, at.stop - length + 1, length):
            if rows[start : start + length].all():
                starts.append(start)
                number.append(i)
    return np.array(starts, int), np.array(number, int)


def _patterns(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 [segments, length * V]: of norm 1 and mean 0 each, without voxels that are constant."""
    used = x[rows.ravel()].astype(np.float64)
    used -= used.mean(0)
    std = used.std(0)
    used = np.divide(used, std, out=np.zeros_like(used), where=std > 0).reshape(len(rows), -1)
    used -= used.mean(1, keepdims=True)
    norm = np.linalg.norm(used, axis=1, keepdims=True)
    return np.divide(used, norm, out=np.zeros_like(used), where=norm > 0)
