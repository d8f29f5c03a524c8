"""Sums over the frames, and over the pairs of frames, of predicted state probabilities.

Predictions are float [F, n, k] per trajectory: frames, targets, probabilities of k states. They may be memory-mapped;
they are read a few frames at a time. Several trajectories simply add up; no pair crosses from one into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from accel_train.errors import UserError

Predictions = Sequence[np.ndarray]

SPLIT_BY = ("targets", "time")
ROWS = 1 << 18  # read at once


def blocks(start: int, stop: int, targets: int) -> Iterator[slice]:
    """The frames from ``start`` to ``stop`` (exclusive), a few at a time."""
    step = max(ROWS // max(targets, 1), 1)
    return (slice(t, min(t + step, stop)) for t in range(start, stop, step))


# -- over pairs ------------------------------------------------------------------------------------------------------


def moments(predictions: Predictions, lag: int, splits: int = 1, split_by: str = "targets") -> np.ndarray:
    """Sums of z z' over rows z = [1, x, y], float64 [splits, 2k+1, 2k+1]: x is p of a target at t, y at t + lag.

    Each pair is in one split: by neighbouring targets, or by the time t at which it begins. The splits add up to the
    moments of everything. Raises UserError where one of them has no pair.
    """
    k = predictions[0].shape[2]
    found = np.zeros((splits, 2 * k + 1, 2 * k + 1))
    for split, x, y in _pairs(predictions, lag, splits, split_by):
        rows = np.ones((x.shape[0] * x.shape[1], 2 * k + 1))
        rows[:, 1 : k + 1], rows[:, k + 1 :] = x.reshape(-1, k), y.reshape(-1, k)
        found[split] += rows.T @ rows
    if not found[:, 0, 0].all():
        least = f"at least {splits} targets" if split_by == "targets" else f"{splits} pairs of frames that far apart"
        raise UserError(f"lag {lag} frames: {splits} splits by {split_by} need {least}; shorten the lag or split less")
    return found


def transition_counts(predictions: Predictions, lag: int) -> np.ndarray:
    """int64 [k, k]: how often the likeliest state is i at t and j at t + lag, over frames and targets."""
    k = predictions[0].shape[2]
    found = np.zeros(k * k, np.int64)
    for _, x, y in _pairs(predictions, lag, 1, "time"):
        found += np.bincount((x.argmax(2) * k + y.argmax(2)).ravel(), minlength=k * k)
    return found.reshape(k, k)


def _pairs(
    predictions: Predictions, lag: int, splits: int, split_by: str
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each pair once: the number of its split, and [f, n, k] at t and at t + lag."""
    if split_by not in SPLIT_BY:
        raise UserError(f"split_by: unknown {split_by!r}; there are {', '.join(SPLIT_BY)}")
    before, total = 0, sum(max(len(p) - lag, 0) for p in predictions)
    for p in predictions:
        pairs, n = max(len(p) - lag, 0), p.shape[1]
        for split in range(splits):
            part, start, stop = p, 0, pairs
            if split_by == "targets":
                part = p[:, split * n // splits : (split + 1) * n // splits]
            else:
                start, stop = (min(max(i * total // splits - before, 0), pairs) for i in (split, split + 1))
            for at in blocks(start, stop, part.shape[1]):
                yield split, part[at], part[at.start + lag : at.stop + lag]
        before += pairs


# -- over frames -----------------------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Statistics of the probabilities over frames and targets, float64 [k]."""

    mean: np.ndarray
    std: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    argmax_share: np.ndarray
    """How often the state is the likeliest one."""
    crispness: float
    """Mean of the largest probability: 1 for states with sharp borders, 1/k for none."""


def statistics(predictions: Predictions) -> Statistics:
    """One pass over everything."""
    k = predictions[0].shape[2]
    sums, squares, counts, top = np.zeros(k), np.zeros(k), np.zeros(k), 0.0
    smallest, largest = np.full(k, np.inf), np.full(k, -np.inf)
    for p in predictions:
        for at in blocks(0, len(p), p.shape[1]):
            x = p[at]
            sums, squares = sums + x.sum((0, 1), dtype=np.float64), squares + np.square(x, dtype=np.float64).sum((0, 1))
            counts += np.bincount(x.argmax(2).ravel(), minlength=k)
            top += float(x.max(2).sum(dtype=np.float64))
            smallest, largest = np.minimum(smallest, x.min((0, 1))), np.maximum(largest, x.max((0, 1)))
    rows = counts.sum()
    mean = sums / rows
    spread = np.sqrt((squares / rows - mean**2).clip(0))
    return Statistics(mean, spread, smallest, largest, counts / rows, top / rows)


def populations(predictions: Predictions) -> list[np.ndarray]:
    """The mean probability of each state over the targets, float64 [F, k], for each trajectory."""
    return [
        np.concatenate([p[at].mean(1, dtype=np.float64) for at in blocks(0, len(p), p.shape[1])]) for p in predictions
    ]
