"""Could it be chance? Predictions moved against the brain in time, in a circle, keep what each of both does from one
volume to the next, and lose what they have to do with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.sherlock.scores import measured, stretches, voxel_blocks

SHORTEST = 40
"""TRs of a stretch at least: with fewer shifts no voxel could stand out among many."""


@dataclass(frozen=True, eq=False)
class Null:
    """p: float64 [V], the share of the shifts that do as well, the true one counted with them (Phipson and Smyth, Stat.
    Appl. Genet. Mol. Biol. 9, 39, 2010); NaN where there is no correlation.
    shifts: how many there are, so that no p can be less than 1 / (1 + shifts).
    """

    p: np.ndarray
    shifts: int


def circular_shifts(pairs: Sequence[tuple[np.ndarray, np.ndarray]], runs: np.ndarray) -> Null:
    """One-sided p of each voxel's correlation over time, of its mean over people if there are several.

    The same shifts for all people and all stretches, each of which is a circle: all that there are, up to half of the
    shortest stretch in either direction. Small ones are among them: a prediction that is right does nearly as well a
    TR later, but not better, so that little is lost. Without them the true place would be one of a few that do alike,
    of which all others are left out, and chance be found too often: in stretches of 60 TRs, with shifts of 20 or more,
    13 % of the voxels would have p below 5 % (``tests/tasks/sherlock/test_nulls.py``). Of the circles, volumes that
    were not measured are taken out.

    Args:
        pairs: predicted and true [T, V], of each person.
        runs: the stretch of each row (``scores``).

    Raises:
        UserError: a stretch is too short to be moved.
    """
    people = [(*pair, _kept(pair, runs)) for pair in pairs]
    shortest = min(len(rows) for _, _, kept in people for rows in kept)
    if shortest < SHORTEST:
        raise UserError(f"circular shifts: a stretch of {shortest} TRs is too short, {SHORTEST} will do")
    shifts = np.delete(np.arange(shortest) - shortest // 2, shortest // 2)
    p = np.empty(pairs[0][0].shape[1])
    for at in voxel_blocks(len(p)):
        r = np.stack([_shifted(predicted[:, at], true[:, at], kept, shifts) for predicted, true, kept in people]).sum(0)
        as_good = (r[1:] >= r[0]).sum(0)
        p[at] = np.where(np.isnan(r[0]), np.nan, (1 + as_good) / (1 + len(shifts)))
    return Null(p, len(shifts))


def significant(p: np.ndarray, rate: float = 0.05) -> np.ndarray:
    """bool [V]: what is found if at most this share of the findings may be false (Benjamini and Hochberg, J. R. Stat.
    Soc. B 57, 289, 1995), among the voxels that have a p."""
    order = np.argsort(p)  # NaN last
    tested = int((~np.isnan(p)).sum())
    passes = np.flatnonzero(p[order[:tested]] <= rate * np.arange(1, tested + 1) / max(tested, 1))
    found = np.zeros(len(p), bool)
    found[order[: passes[-1] + 1 if len(passes) else 0]] = True
    return found


def _kept(pair: tuple[np.ndarray, np.ndarray], runs: np.ndarray) -> list[np.ndarray]:
    rows = measured(*pair)
    return [np.arange(at.start, at.stop)[rows[at]] for at in stretches(runs)]


def _shifted(predicted: np.ndarray, true: np.ndarray, kept: list[np.ndarray], shifts: np.ndarray) -> np.ndarray:
    """float64 [1 + shifts, V]: correlations, first without a shift. Means and variances do not change by one."""
    rows = np.concatenate(kept)
    x, y = (each - each[rows].mean(0) for each in (predicted.astype(np.float64), true.astype(np.float64)))
    products = np.zeros((1 + len(shifts), x.shape[1]))
    for of_stretch in kept:
        spectrum = np.fft.rfft(x[of_stretch], axis=0) * np.fft.rfft(y[of_stretch], axis=0).conj()
        circle = np.fft.irfft(spectrum, len(of_stretch), axis=0)
        products += circle[np.append(0, shifts % len(of_stretch))]
    norm = np.sqrt((x[rows] ** 2).sum(0) * (y[rows] ** 2).sum(0))
    return np.divide(products, norm, out=np.full_like(products, np.nan), where=norm > 0)
