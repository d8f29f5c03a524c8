"""The units of ``preprocess``: a modality of a run, or the volumes of a run of one viewer.

A unit of volumes keeps the voxels that change in it, without confounds, for the merge alone; which of them all viewers
have, and their mean and deviation, is known when all units are there: ``finish``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accel_train.data.units import Unit, refuse_no_room
from accel_train.tasks.sherlock.data import array_hash
from accel_train.tasks.sherlock.preprocess import confounds, nifti
from accel_train.tasks.sherlock.preprocess.scan import Setup, clock_of, scan

TAIL = 3
"""So many equal volumes at the end are no measurement."""
STILL = 1e-6
"""A voxel whose deviation is below this share of its largest value does not change."""


class Raw(NamedTuple):
    """Volumes of a run as the file has them.

    Args:
        values: float32 [TRs, voxels that change], mapped.
        places: int64 [voxels that change], where they are on the grid, ascending.
        still: float32 [grid], the value of the others; NaN for one that is not finite in every volume.
        changes: bool [grid], whether a voxel changes in the TRs for training; all True where the run has none.
        missing: bool [TRs], volumes that were not measured.
    """

    values: np.ndarray
    places: np.ndarray
    still: np.ndarray
    changes: np.ndarray
    missing: np.ndarray

    def columns(self, wanted: np.ndarray) -> np.ndarray:
        """float32 [TRs, voxels] of these places on the grid, ascending."""
        out = np.repeat(self.still[None, wanted], len(self.values), 0)
        _, to, of = np.intersect1d(wanted, self.places, assume_unique=True, return_indices=True)
        out[:, to] = self.values[:, of]
        return out


class Pieces:
    """What ``finish.Job`` merges."""

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.content, self.parts, self.setup = folder / "content", folder / "parts", setup
        self.scan: dict[str, Any] = json.loads((folder / "scan.json").read_text())
        self.clock = clock_of(self.scan)
        self.stimuli = {Unit(f"stimulus/{run}/{source.name}.npy"): (source, run)
                        for source in setup.sources for run in source.files}  # fmt: skip
        self.scans = {Unit(f"{subject}/{run}", kept=False): (subject, run)
                      for subject in setup.brains for run in setup.runs}  # fmt: skip
        self.units = [*self.stimuli, *self.scans]

    def do(self, unit: Unit, path: Path) -> dict[str, Any]:
        if unit in self.scans:
            return self._volumes(*self.scans[unit], path)
        source, run = self.stimuli[unit]
        rows = np.ascontiguousarray(source.at_trs(run, self.clock))
        np.save(path, rows)
        return {"modality": source.name, "kind": source.kind, "run": run, "shape": rows.shape[1:],
                "dtype": str(rows.dtype), "hash": array_hash(rows)}  # fmt: skip

    def _volumes(self, subject: str, run: str, folder: Path) -> dict[str, Any]:
        file, first, trs = self.setup.brains[subject][run], self.scan["first"][subject][run], self.clock.trs[run]
        volumes = nifti.read(file, first, first + trs)
        if run == max(each for each, other in self.setup.brains[subject].items() if other == file):
            nifti.refuse_damaged(file)  # once, whatever of it is used
        tail, empty = equal_tail(volumes), ~np.isfinite(volumes).any(1)
        missing = empty | (np.arange(trs) >= trs - tail)
        if self.setup.confounds:
            _, columns = confounds.read(self.setup.confounds[subject][run], self.setup.confound_columns)
            confounds.regress_out(volumes, ~missing, columns[:trs])
        there = volumes[~missing]
        grid = volumes.shape[1]
        finite = np.isfinite(there).all(0) if len(there) else np.zeros(grid, bool)
        places = np.flatnonzero(finite & changes(there))
        train = self.clock.train[run] & ~missing
        changes_in_train = changes(volumes[train]) if train.any() else np.ones(grid, bool)
        still = np.full(grid, np.nan, np.float32)
        still[finite] = there[0, finite] if len(there) else 0
        folder.mkdir()
        for name, array in (
            ("values", volumes[:, places]), ("places", places), ("still", still),
            ("changes", changes_in_train), ("missing", missing),
        ):  # fmt: skip
            np.save(folder / f"{name}.npy", array)
        return {"subject": subject, "run": run, "tail": tail, "empty": int(empty.sum()),
                "not_finite": int((~np.isfinite(volumes[~empty]).all(0)).sum())}  # fmt: skip

    def missing(self, subject: str, run: str) -> list[int]:
        """TRs that were not measured."""
        return np.flatnonzero(np.load(self.parts / subject / run / "missing.npy")).tolist()

    def open_raw(self, subject: str, run: str) -> Raw:
        folder = self.parts / subject / run
        values = np.load(folder / "values.npy", mmap_mode="r")
        return Raw(values, *(np.load(folder / f"{name}.npy") for name in Raw._fields[1:]))


def prepare(folder: Path, setup: Setup) -> None:
    """Compare the headers of all files, and see whether there is room."""
    scanned = scan(setup)
    header = nifti.header(next(iter(next(iter(setup.brains.values())).values())))
    volumes = len(setup.brains) * sum(scanned["trs"].values())
    refuse_no_room("preprocess: --out", folder, volumes * int(np.prod(header.grid)) * 4 // 2)  # half are brain, or so
    (folder / "scan.json").write_text(json.dumps(scanned))


def equal_tail(volumes: np.ndarray) -> int:
    """How many volumes at the end are equal, where a value is finite at all; 0 for fewer than ``TAIL``."""
    count = 1
    while count < len(volumes) and np.array_equal(volumes[-count - 1], volumes[-count], equal_nan=True):
        count += 1
    return count if count >= TAIL else 0


def changes(volumes: np.ndarray) -> np.ndarray:
    """bool [voxels]: whether each has a deviation worth the name. ``volumes``: [n, voxels]."""
    if len(volumes) == 0:
        return np.zeros(volumes.shape[1], bool)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = volumes.min(0), volumes.max(0)
        return (high - low) > STILL * np.maximum(np.abs(low), np.abs(high))
