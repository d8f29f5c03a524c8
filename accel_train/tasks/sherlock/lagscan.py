"""When does the brain answer? How well volumes are predicted if they are taken to come earlier or later than they do.

A *shift* is by how many TRs the volumes were moved earlier than the response to the stimulus comes: 0 in what a scanner
wrote, 3 in files that were moved by 3 TRs. The scan peaks at it, in each voxel, whatever a file says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from accel_train.tasks.sherlock import ridge
from accel_train.tasks.sherlock.scores import Rois, by_roi, stretches, temporal_r

SHIFTS = tuple(range(-10, 11))
ALPHAS = np.logspace(-2, 4, 7)


@dataclass(frozen=True, eq=False)
class LagScan:
    """shifts: int [S], in TRs. r: float64 [S, V], correlation over time for each."""

    shifts: np.ndarray
    r: np.ndarray

    @property
    def peak(self) -> np.ndarray:
        """float64 [V]: the shift with the largest correlation, NaN for a voxel without any."""
        known = ~np.isnan(self.r).all(0)
        return np.where(known, self.shifts[np.where(np.isnan(self.r), -np.inf, self.r).argmax(0)], np.nan)

    def curves(self, rois: Rois) -> dict[str, list[float]]:
        """The mean correlation of each region for each shift."""
        of_shift = [by_roi(r, rois) for r in self.r]
        return {name: [each[name] for each in of_shift] for name in rois}

    def peaks(self, rois: Rois) -> dict[str, int]:
        """Where the curve of each region is highest; of those that have one."""
        curves = {name: curve for name, curve in self.curves(rois).items() if not np.isnan(curve).all()}
        return {name: int(self.shifts[np.nanargmax(curve)]) for name, curve in curves.items()}


def lag_scan(reference: np.ndarray, fmri: np.ndarray, runs: np.ndarray, shifts: Sequence[int] = SHIFTS) -> LagScan:
    """The correlation of volume t with row t + shift of what it should be, over the rows of a stretch that have both.

    Args:
        reference, fmri: [T, V].
    """
    r = [temporal_r(_moved(reference, runs, shift), fmri) for shift in shifts]
    return LagScan(np.asarray(shifts), np.stack(r))


def stimulus_lag_scan(
    features: Mapping[str, np.ndarray],
    response: np.ndarray,
    fmri: np.ndarray,
    runs: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    shifts: Sequence[int] = SHIFTS,
) -> LagScan:
    """The same without a network: for each shift, ridge regression on the features after a hemodynamic response.

    Args:
        features: [T, D] of each modality.
        response: [K], the response 0, 1, ... TRs after the stimulus.
        fmri: [T, V].
        train, test: bool [T].
    """
    after = {name: after_response(each, response, runs) for name, each in features.items()}
    rows, alike = np.flatnonzero(test), np.full((1, len(features)), 1 / len(features))
    r = []
    for shift in shifts:
        fitted = ridge.fit(ridge.Design(after, runs, train, [-shift]), fmri, alike, ALPHAS)
        r.append(temporal_r(fitted.predict(rows), fmri[rows]))
    return LagScan(np.asarray(shifts), np.stack(r))


def after_response(features: np.ndarray, response: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """float64 [T, D]: sum over k of response[k] * features[t - k], nothing before the beginning of a stretch."""
    found = np.zeros(features.shape)
    for at in stretches(runs):
        part, rows = features[at].astype(np.float64), at.stop - at.start
        part = part - part.mean(0)  # what was before is then the mean, not a step
        for k, h in enumerate(response[:rows]):
            found[at][k:] += h * part[: rows - k]
    return found


def _moved(x: np.ndarray, runs: np.ndarray, shift: int) -> np.ndarray:
    """Row t + shift of a stretch in the place of row t; NaN where there is none."""
    found = np.full(x.shape, np.nan)
    for at in stretches(runs):
        part, rows = x[at], at.stop - at.start
        first, last = max(-shift, 0), min(rows - shift, rows)
        if first < last:
            found[at][first:last] = part[first + shift : last + shift]
    return found
