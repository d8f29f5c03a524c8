"""A frame of a molecular-dynamics trajectory, where frames come from, and which elements their atoms are."""

from __future__ import annotations

import importlib
import re
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

    targets: np.ndarray | None = None
    """The file's own target atoms, if it names any."""

    steps: np.ndarray | None = None
    """int64 [F], the simulation's time steps, if the file gives them."""

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


def library(name: str) -> Any:
    """A module of the extra ``gdynet``. Raises ``UserError`` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        needed = name.partition(".")[0]
        raise UserError(f"preprocess needs {needed}, which is not here: pip install 'accel_train[gdynet]'") from None


def atomic_number(label: str) -> int | None:
    """Z of a symbol in capitals or not, of D and T, or of an atom's name such as Ba1 (symbol and number); else None."""
    symbol = re.fullmatch(r"([A-Z][a-z]?)[0-9]+", label)
    name = symbol[1] if symbol else label.capitalize()
    return library("ase.data").atomic_numbers.get({"D": "H", "T": "H"}.get(name, name))


def element(text: str) -> int:
    """Atomic number of a symbol or a number, 1 to 99. Raises ``UserError``."""
    number = int(text) if text.isdecimal() else library("ase.data").atomic_numbers.get(text)
    if number is None or not 1 <= number <= 99:
        raise UserError(f"{text!r} is no element: give a symbol (Ti) or an atomic number from 1 to 99")
    return number


def elements(atoms: Any, mapping: dict[str, int] | None, place: str) -> np.ndarray:
    """int32 [N], atomic numbers of an ``ase.Atoms``; of its LAMMPS types where there is a mapping."""
    if mapping is None:
        numbers = atoms.numbers
    else:
        if "type" not in atoms.arrays:
            raise DataError(f"{place} has no LAMMPS types for --types")
        kinds, which = np.unique(atoms.arrays["type"], return_inverse=True)
        missing = [str(k) for k in kinds if str(k) not in mapping]
        if missing:
            raise DataError(f"{place} has type {', '.join(missing)}, which --types does not name")
        numbers = np.array([mapping[str(k)] for k in kinds])[which]
    return check_types(numbers, place)


def check_types(numbers: np.ndarray, place: str) -> np.ndarray:
    """The numbers as int32. Raises ``DataError`` unless all are from 0 to 99: a network has vectors for these."""
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) == 0:
        raise DataError(f"{place}: atomic numbers must be integers (N,), there is {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() > 99:
        raise DataError(f"{place}: atomic numbers go from {numbers.min()} to {numbers.max()}; 0 to 99 are possible")
    return numbers.astype(np.int32)


def charges(atoms: Any) -> np.ndarray | None:
    """From a dump's column q, or a column charge, charges, initial_charges or q of extended XYZ."""
    found = {**(atoms.calc.results if atoms.calc else {}), **atoms.arrays}
    return next((np.asarray(found[k], float) for k in ("initial_charges", "charges", "q") if k in found), None)
