"""The atoms of a trajectory that does not say which it holds."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess import elements, packed, text
from accel_train.tasks.gdynet.preprocess.elements import Elements, Said
from accel_train.tasks.gdynet.preprocess.frames import Source, charges, library

PSF_ATOM = re.compile(
    rb"(\S+)\s+(\S+)\s+(-?\d*\.\d*(?:E[-+]?\d+)?)\s+(\d*\.\d*(?:E[-+]?\d+)?)\s+-?\d+(?!\S)", re.IGNORECASE
)
"""Name, type, charge, mass and a flag, after a segment and residue that may be blank."""

MDANALYSIS = {".prmtop": "TOP", ".parm7": "TOP", ".top": "TOP", ".tpr": "TPR"}
"""What MDAnalysis reads, by the ends of names. AMBER's .top, that is; that of GROMACS is a program's source."""


Read = Callable[[Path], tuple[Said, np.ndarray | None]]
"""What a file says of its atoms, and their charges."""


class Atoms(NamedTuple):
    """Elements, and charges float64 [N] in e if the file has them."""

    elements: Elements
    charges: np.ndarray | None


class Nameless(Source):
    """A trajectory of places: its atoms are those of another file."""

    charges: np.ndarray | None

    def _name(self, topology: Path, mapping: dict[str, int] | None, count: int) -> None:
        (self.types, self.how), self.charges = read_atoms(topology, mapping, self.path, count)


def read_atoms(topology: Path, mapping: dict[str, int] | None, trajectory: Path, count: int) -> Atoms:
    """Of the first frame of a trajectory of text, of PSF, PDB, GRO, prmtop, TPR, or of whatever else ASE reads. Raises
    ``UserError`` or ``DataError``, also if they are not ``count``."""
    if not topology.is_file():
        raise UserError(f"{topology}: no such file")
    how, start = packed.start(topology)
    if how:
        raise UserError(f"{topology}: it is compressed: unpack it first")
    suffix = topology.suffix.lower()
    if start.startswith(b"PSF"):
        read, by = _psf, ""
    elif suffix in OWN:
        read, by = OWN[suffix], ""
    elif suffix in MDANALYSIS:
        read, by = _by_mdanalysis, " by MDAnalysis"
    else:
        read, by = _by_ase, " by ASE"
    if read is _by_ase and (format := text.kind(start)):
        found = _of_text(topology, format, mapping)
    else:
        found = _found(topology, mapping, read, by)
    if (there := len(found.elements.numbers)) != count:
        raise DataError(f"{topology} has {there} atoms, {trajectory} has {count}")
    return found


def _found(path: Path, mapping: dict[str, int] | None, read: Read, by: str) -> Atoms:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not needed: bonds, masses that are missing
            said, charge = read(path)
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read{by}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    try:
        found = elements.find(said, mapping, str(path))
        how = found.how if said.numbers is None else found.how.replace("atomic numbers", f"what is read{by}")
        return Atoms(found._replace(how=how), charge)
    except elements.UnknownError as error:
        raise DataError(f"{path}: atom {error.atom}: {error}") from None


def _of_text(path: Path, format: str, mapping: dict[str, int] | None) -> Atoms:
    with tempfile.TemporaryDirectory() as folder:
        text.prepare(path, format, Path(folder))
        source = text.Text(path, format, Path(folder), mapping)
        return Atoms(Elements(source.types, source.how), source[0].charges)


def _psf(path: Path) -> tuple[Said, np.ndarray | None]:
    """By what stands in a line, not by columns, which differ between programs and within CHARMM."""
    lines = path.read_bytes().splitlines()
    first = next((i for i, line in enumerate(lines) if b"!NATOM" in line), None)
    if first is None:
        raise ValueError("there is no !NATOM")
    count = int(lines[first].split()[0])
    found = [PSF_ATOM.search(line) for line in lines[first + 1 : first + 1 + count]]
    if len(found) < count or None in found:
        where = first + 2 + (found.index(None) if None in found else len(found))
        raise ValueError(f"line {where} is not one of its {count} atoms")
    names, types, charge, masses = zip(*(atom.groups() for atom in found if atom), strict=True)
    said = Said(names=np.array(names), types=np.array(types), masses=np.array(masses, float))
    return said, np.array(charge, float)


def _pdb(path: Path) -> tuple[Said, np.ndarray | None]:
    """Elements are in columns 77 and 78; in old files there are only names, with the element in 13 and 14."""
    symbols, names = [], []
    for line in path.read_text("utf-8", "backslashreplace").splitlines():
        if line.startswith(("ATOM", "HETATM")):
            symbols.append(line[76:78].strip())
            names.append(line[12:16].strip())
        elif line.startswith("END"):
            break
    if not names:
        raise ValueError("there are no ATOM lines")
    return (Said(symbols=np.array(symbols)) if all(symbols) else Said(names=np.array(names))), None


def _gro(path: Path) -> tuple[Said, np.ndarray | None]:
    lines = path.read_text("utf-8", "backslashreplace").splitlines()
    count = int(lines[1])
    if len(lines) < count + 3:
        raise ValueError(f"it ends before its {count} atoms do")
    return Said(names=np.array([line[10:15].strip() for line in lines[2 : 2 + count]])), None


def _by_mdanalysis(path: Path) -> tuple[Said, np.ndarray | None]:
    found: Any = library(f"MDAnalysis.topology.{MDANALYSIS[path.suffix.lower()]}Parser")
    parser = getattr(found, f"{MDANALYSIS[path.suffix.lower()]}Parser")
    with parser(str(path)) as opened:
        atoms = opened.parse()
    symbols = atoms.elements.values.astype(str) if hasattr(atoms, "elements") else None
    if symbols is not None and not all(symbols):
        symbols = None
    said = Said(symbols=symbols, types=atoms.types.values.astype(str), masses=atoms.masses.values)
    return said, atoms.charges.values.astype(float)


def _by_ase(path: Path) -> tuple[Said, np.ndarray | None]:
    if path.suffix not in (".data", ".lmp"):
        atoms = library("ase.io").read(path)
        return Said(numbers=atoms.numbers), charges(atoms)
    atoms = library("ase.io").read(path, format="lammps-data")
    types, masses = atoms.arrays["type"].astype(str), atoms.arrays.get("masses")
    # without masses or labels, ASE takes the types for atomic numbers
    numbers = None if masses is not None or (atoms.numbers == atoms.arrays["type"]).all() else atoms.numbers
    return Said(numbers=numbers, masses=masses, types=types), charges(atoms)


OWN: dict[str, Read] = {".psf": _psf, ".pdb": _pdb, ".ent": _pdb, ".gro": _gro}
