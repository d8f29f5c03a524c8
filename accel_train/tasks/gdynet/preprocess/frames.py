"""A frame of a molecular-dynamics trajectory, and where frames come from."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError, UserError


@dataclass(frozen=True)
class Frame:
    """One moment: positions float64 [N, 3] and cell float64 [3, 3] (rows are the vectors) in Angstrom, which of the
    three are periodic, and charges float64 [N] in e where the file has them. ``place`` names it in messages."""

    place: str
    positions: np.ndarray
    cell: np.ndarray
    periodic: np.ndarray
    charges: np.ndarray | None = None


class Source:
    """Frames by number, from 0. Every frame holds the same atoms in the same order; LAMMPS atoms are ordered by id."""

    types: np.ndarray
    """int32 [N], atomic numbers."""

    how: str = "atomic numbers"
    """What they are known by."""

    targets: np.ndarray | None = None
    """The file's own target atoms, if it names any."""

    steps: np.ndarray | None = None
    """int64 [F], the simulation's time steps, if the file gives them."""

    dt: float | None = None
    """Nanoseconds from one frame to the next, if the file says so."""

    periodic: np.ndarray | None = None
    """Along which vectors the first frame is periodic, and all others must be."""

    fault: str | None = None
    """What is wrong after the last whole frame: a line for whoever wants all frames."""

    remark: str | None = None
    """What is odd about the file, and does no harm."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, number: int) -> Frame:
        """Raises ``DataError`` if the frame cannot be read, has other atoms, or a coordinate that is not finite."""
        place = f"{self.path}: frame {number}"
        frame = self._read(number, place)
        if frame.positions.shape != (len(self.types), 3):
            raise DataError(f"{place} has {len(frame.positions)} atoms, the first has {len(self.types)}")
        bad = np.flatnonzero(~np.isfinite(frame.positions).all(1))
        if len(bad):
            raise DataError(f"{place}, atom {bad[0]}: the position is not finite; --frames can end before it")
        if not np.isfinite(frame.cell).all():
            raise DataError(f"{place}: the cell is not finite; --frames can end before it")
        if self.periodic is not None and (frame.periodic != self.periodic).any():
            here, first = (" ".join("FT"[int(each)] for each in p) for p in (frame.periodic, self.periodic))
            raise DataError(f"{place} is periodic along other cell vectors ({here}) than the first ({first})")
        return frame

    def _end(self, text: str) -> None:
        """Say what is wrong with the frame after the last one."""
        last = f"; --frames :{len(self)} takes what is before it" if len(self) else ""
        self.fault = f"{self.path}: frame {len(self)} {text}{last}"

    def _read(self, number: int, place: str) -> Frame:
        raise NotImplementedError

    @staticmethod
    def _moment(file: Any, number: int, place: str) -> Any:
        """A frame as MDAnalysis reads it from one of its files."""
        try:
            file.seek(number)
            return file.read()
        except Exception as error:
            raise DataError(f"{place} cannot be read: {type(error).__name__}: {error}") from error


def library(name: str, install: str = "'accel_train[gdynet]'") -> Any:
    """A module of the extra ``gdynet``, or of a package of its own. Raises ``UserError`` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        needed = name.partition(".")[0]
        raise UserError(f"preprocess needs {needed}, which is not here: pip install {install}") from None


def charges(atoms: Any) -> np.ndarray | None:
    """From a dump's column q, or a column charge, charges, initial_charges or q of extended XYZ."""
    found = {**(atoms.calc.results if atoms.calc else {}), **atoms.arrays}
    return next((np.asarray(found[k], float) for k in ("initial_charges", "charges", "q") if k in found), None)


def vectors(lengths: np.ndarray, cosines: np.ndarray) -> np.ndarray | None:
    """Cell vectors (as rows) with these lengths and cosines of alpha, beta, gamma; None if there are none. The first is
    along x, the second in xy."""
    (a, b, c), (alpha, beta, gamma) = lengths, cosines
    sine = np.sqrt(1 - gamma**2)
    along = (alpha - beta * gamma) / sine if sine else np.inf
    height = 1 - beta**2 - along**2
    if not height > 0:
        return None
    return np.array([[a, 0, 0], [b * gamma, b * sine, 0], [c * beta, c * along, c * np.sqrt(height)]])


def even_spacing(times: np.ndarray, dtype: Any) -> tuple[float | None, np.ndarray | None]:
    """(ns from one frame to the next, steps int64 [F]) of times [F] in ns that were numbers of ``dtype``, whose
    rounding is no unevenness. The steps are even where the times are. None where times do not grow: they say nothing.
    """
    gaps = np.diff(times)
    middle = float(np.median(gaps)) if len(gaps) else 0.0
    if middle <= 0:
        return None, None
    away = gaps - middle
    even = abs(away) <= 1e-3 * middle + 4 * np.finfo(dtype).eps * abs(times).max()
    dt, noise = middle, np.finfo(dtype).eps * abs(times).max()
    if even.all():
        dt, noise = (times[-1] - times[0]) / len(gaps), noise / len(gaps)
    digits = np.clip(int(np.log10(dt / noise)), 1, 9)
    return float(f"{dt:.{digits}g}"), np.append(0, np.cumsum(np.where(even, 2, np.where(away > 0, 3, 1))))
