"""What moves BOLD and is no answer to a film: head motion, slow drifts. Tables as fMRIPrep writes them, and regression.

A run is regressed as a whole, with what is held out in it: confounds know nothing of the film, and what is fitted to a
part of a run does not hold for the rest of it, since drifts go on.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from accel_train.errors import DataError, UserError

COLUMNS = ("trans_*", "rot_*", "cosine*")
"""6 parameters of motion with their derivatives and squares (24 in all: Friston et al., Magn. Reson. Med. 35, 346,
1996), as far as the table has them, and the cosines that are its high-pass filter. Nothing of it is measured BOLD."""
AT_ONCE = 2048
"""Voxels whose volumes are taken as float64 together."""


def read(path: Path, patterns: Sequence[str] | None) -> tuple[list[str], np.ndarray]:
    """Names of columns, and float64 [rows, columns] of them. What has no number in its first rows, as derivatives, has
    the first number there, as in nilearn.

    Args:
        patterns: names with ``*`` and ``?``, each of which must be there; None takes what there is of ``COLUMNS``.

    Raises:
        DataError: no such table, or a number is missing. UserError: no such column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header, *lines = csv.reader(file, delimiter="\t")
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {' '.join(str(error).split())[:160]}") from None
    fitting = {each: [name for name in header if fnmatchcase(name, each)] for each in patterns or COLUMNS}
    missing = [each for each, names in fitting.items() if not names]
    if missing and (patterns is not None or len(missing) == len(fitting)):
        raise UserError(f"{path}: has no columns {', '.join(missing)}; choose by --confound_columns among "
                        f"{', '.join(header[:12])}{', ...' if len(header) > 12 else ''}")  # fmt: skip
    names = list(dict.fromkeys(name for each in fitting.values() for name in each))
    return names, np.stack([_column(path, name, header.index(name), lines) for name in names], 1)


def _column(path: Path, name: str, at: int, lines: Sequence[Sequence[str]]) -> np.ndarray:
    values = np.array([_number(line[at]) if at < len(line) else np.nan for line in lines])
    known = np.flatnonzero(np.isfinite(values))
    first = known[0] if len(known) else len(values)
    if wrong := sorted(set(range(int(first), len(values))) - set(known.tolist())):
        raise DataError(f"{path}, row {2 + wrong[0]}: {name} is no number; leave the column out by --confound_columns")
    if not len(known):
        raise DataError(f"{path}: {name} has no number; leave the column out by --confound_columns")
    values[:first] = values[first]
    return values


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # n/a
        return np.nan


def regress_out(volumes: np.ndarray, measured: np.ndarray, confounds: np.ndarray) -> None:
    """Take from each voxel what least squares say that the confounds make of it, and leave its mean. In place.

    Args:
        volumes: float32 [TRs, voxels]; a voxel that is not finite stays so.
        measured: bool [TRs]; others do not count, and stay.
        confounds: float64 [TRs, columns].
    """
    if not measured.any():
        return
    used = confounds[measured] - confounds[measured].mean(0)
    length = np.linalg.norm(used, axis=0)
    u, s, _ = np.linalg.svd(used[:, length > 0] / length[length > 0], full_matrices=False)
    basis = u[:, s > 1e-8]
    with np.errstate(invalid="ignore"):
        for first in range(0, volumes.shape[1], AT_ONCE):
            at = slice(first, first + AT_ONCE)
            block = volumes[measured, at].astype(np.float64)
            volumes[measured, at] = block - basis @ (basis.T @ (block - block.mean(0)))
