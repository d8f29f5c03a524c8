"""What there is to judge: predictions, what was measured, and the stimulus, all on one row per TR of all runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

NETWORK, RIDGE, MEAN, SHUFFLED = "network", "banded ridge", "train mean", "shuffled stimulus"
STIMULUS = "stimulus"
"""A lag scan without a network."""
OTHERS, CHANCE = "mean of the others", "chance"
EVERYWHERE = "all"
AVERAGE = "average"
"""The name of the mean over people, where that is what is predicted."""


@dataclass(frozen=True, eq=False)
class Case:
    """The prepared data.

    runs: int [T], of all TRs of all runs, one after another. train: bool [T].
    people: all who were measured. held_out: those of them that no network has seen.
    fmri: [T, V] of one of them or of ``AVERAGE``, which is over all that are not held out; NaN where a volume is
        missing.
    features: [T, D] of each modality, for ridge. stimulus: [n, ...] of some rows of each, as stored; ``mean``: that of
        the training; ``there``: bool [T], in which rows it exists.
    rois: columns of each region, ``EVERYWHERE`` among them.
    response: [K], hemodynamic, 0, 1, ... TRs after a stimulus; of volumes that were not moved.
    places: int [X, Y, Z], the column of each place in the brain, -1 for none; None where that is not known.
    """

    tr_s: float
    preshift: int
    runs: np.ndarray
    train: np.ndarray
    people: list[str]
    held_out: list[str]
    fmri: Callable[[str], np.ndarray]
    features: Mapping[str, np.ndarray]
    stimulus: Callable[[str, np.ndarray], np.ndarray]
    mean: Mapping[str, np.ndarray]
    there: Mapping[str, np.ndarray]
    rois: Mapping[str, np.ndarray]
    response: np.ndarray
    places: np.ndarray | None = None

    def shown(self, rows: np.ndarray) -> np.ndarray:
        """int: the row of the stimulus while these volumes were measured, which were moved earlier since; -1 where the
        run had ended."""
        row = np.minimum(rows + self.preshift, len(self.runs) - 1)
        return np.where((rows + self.preshift < len(self.runs)) & (self.runs[row] == self.runs[rows]), row, -1)

    def regions(self, most: int) -> dict[str, np.ndarray]:
        """Those to show, the first ``most``: none of a parcellation, whose regions are columns themselves."""
        found = {roi: columns for roi, columns in self.rois.items() if len(columns) > 1 and roi != EVERYWHERE}
        return dict([*found.items()][:most])

    def must_peak(self, scan: str) -> int:
        """The shift at which a lag scan peaks if all is right: by ``STIMULUS`` or by the predictions of a model, which
        stand where the volumes are."""
        return self.preshift if scan == STIMULUS else 0

    @property
    def hrf_trs(self) -> int:
        """How long the response lasts, 32 s, in TRs; at least 20. A stimulus moved by so much is a wrong one."""
        return max(int(np.ceil(32 / self.tr_s)), 20)


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network made of a split.

    rows: int [n], of the case. fmri: [n, V] for each person, or for ``AVERAGE`` alone.
    without: the same by the modality that was withheld.
    made: [n, ...] of each modality. lesioned: [n] the error of each TR (``reconstruction.errors``), by the region whose
        voxels were silenced.
    missing: a line for each of these that is not there.
    about: split and weights.
    held_out: people whom the network has not seen.
    """

    rows: np.ndarray
    fmri: Mapping[str, np.ndarray]
    without: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    made: Mapping[str, np.ndarray] = field(default_factory=dict)
    lesioned: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    about: Mapping[str, str] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)


def average(people: Iterable[np.ndarray]) -> np.ndarray:
    """float32 [T, V], over those who have a volume, NaN where nobody has."""
    total, count = 0.0, 0.0
    for fmri in people:
        there = ~np.isnan(fmri).any(1, keepdims=True)
        total, count = total + np.where(there, fmri, 0.0), count + there
    return np.where(np.greater(count, 0), total / np.maximum(count, 1), np.nan).astype(np.float32)
