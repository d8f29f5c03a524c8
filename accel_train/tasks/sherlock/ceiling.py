"""How well a voxel can be predicted at all, from how much people have in common who saw the same film.

With c the correlation of one person's voxel with what all share, two people correlate by c^2 (``pairwise``), one with
the mean of N - 1 others by c^2 / sqrt(c^2 + (1 - c^2) / (N - 1)) (``leave_one_out``). The best prediction from the
stimulus alone reaches c for one person, c / sqrt(c^2 + (1 - c^2) / N) for the mean of N. Inter-subject correlation:
Hasson et al., Science 303, 1634 (2004); what follows for a ceiling is classical test theory (Spearman and Brown, 1910).
It knows only what is shared: a person of their own may be predicted better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.sherlock.scores import fisher_mean, measured

WORTH = 0.1  # a ceiling below it says little of the share that is reached


@dataclass(frozen=True, eq=False)
class Isc:
    """What people have in common in each voxel.

    pairwise: float64 [V], mean correlation of two people.
    leave_one_out: float64 [people, V], of each with the mean of the others.
    people: how many.
    volumes: how many of them all people have.
    """

    pairwise: np.ndarray
    leave_one_out: np.ndarray
    people: int
    volumes: int

    @property
    def c(self) -> np.ndarray:
        """float64 [V] in [0, 1]: the correlation of one person with what all share, by the leave-one-out correlation;
        0 where people have nothing in common."""
        return c_of_leave_one_out(fisher_mean(self.leave_one_out, 0), self.people)

    def ceiling(self, averaged: int = 1) -> np.ndarray:
        """float64 [V]: the best correlation for the mean of so many people."""
        return of_average(self.c, averaged)

    def within(self, columns: np.ndarray, averaged: int = 1) -> float:
        """That of a region, from its mean correlation between people."""
        mean = np.atleast_1d(fisher_mean(self.leave_one_out[:, columns]))
        return float(of_average(c_of_leave_one_out(mean, self.people), averaged)[0])


def isc(people: Sequence[np.ndarray]) -> Isc:
    """Over the volumes that all have, each voxel of each person on one scale.

    Args:
        people: [T, V] of each, the same times.

    Raises:
        UserError: fewer than 2 people, or fewer than 3 volumes that all have.
    """
    if len(people) < 2:
        raise UserError("a ceiling from what people have in common takes at least 2 of them")
    rows = np.logical_and.reduce([measured(each) for each in people])
    volumes, n = int(rows.sum()), len(people)
    if volumes < 3:
        raise UserError(f"a ceiling takes volumes that all {n} people have, but there are {volumes}")
    total = np.zeros((volumes, people[0].shape[1]))
    for each in people:
        total += _standard(each[rows])
    square = (total * total).mean(0)
    others = np.empty((n, total.shape[1]))
    for i, each in enumerate(people):
        common = (_standard(each[rows]) * total).mean(0)  # with everyone, oneself included
        with np.errstate(invalid="ignore"):
            others[i] = (common - 1) / np.sqrt(square - 2 * common + 1)
    return Isc((square - n) / (n * (n - 1)), others, n, volumes)


def of_average(c: np.ndarray, people: int) -> np.ndarray:
    """The best correlation for the mean of so many people; 0 where c is."""
    square = c * c
    return np.divide(c, np.sqrt(square + (1 - square) / people), out=np.zeros_like(c), where=c != 0)


def leave_one_out_of(c: np.ndarray, people: int) -> np.ndarray:
    """What one of so many people correlates with the mean of the others."""
    return c * of_average(c, people - 1)


def c_of_leave_one_out(r: np.ndarray, people: int) -> np.ndarray:
    """The inverse: c in [0, 1], 0 for a correlation that is negative."""
    square, n = np.clip(r, 0, 1) ** 2, people - 1
    half = square * (1 - 1 / n) / 2
    return np.sqrt(half + np.sqrt(half * half + square / n)).clip(0, 1)


def of_ceiling(r: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """The share r / ceiling of each voxel, NaN where the ceiling is at most ``WORTH``."""
    return np.divide(r, ceiling, out=np.full(np.broadcast(r, ceiling).shape, np.nan), where=ceiling > WORTH)


def _standard(x: np.ndarray) -> np.ndarray:
    """float64, each column with mean 0 and variance 1; NaN for one that is constant."""
    x = x.astype(np.float64)
    x -= x.mean(0)
    std = x.std(0)
    return np.divide(x, std, out=np.full_like(x, np.nan), where=std > 0)
