"""Molecular-dynamics trajectories with random access to their frames: LAMMPS dumps, extended XYZ, DCD, npz."""

from __future__ import annotations

import io
import shutil
import warnings
import zipfile
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source, charges, check_types, elements, library

NPZ = ("traj_coords", "lattices", "atom_types")
"""What an npz must hold; also ``target_index`` where the targets are not given otherwise."""

LAMMPS, EXTXYZ = "lammps-dump-text", "extxyz"


def kind(path: Path) -> str:
    """The format, by suffix for binary files and else by the first line. Raises ``UserError``."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix in (".npz", ".dcd"):
        return path.suffix[1:]
    with open(path, "rb") as file:
        first = file.readline(1000).strip()
    if first == b"ITEM: TIMESTEP":
        return LAMMPS
    if first.isdigit():
        return EXTXYZ
    packed = first.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/"))  # gzip, bzip2, xz, zstd
    more = "; it is compressed: unpack it first" if packed else ""
    raise UserError(f"{path}: neither a LAMMPS text dump, extended XYZ, .dcd nor .npz{more}")


def prepare(path: Path, folder: Path) -> None:
    """Write to ``folder`` what random access needs: where the frames of a text file begin (one pass over it), the
    arrays of an npz (unpacked, so that they can be mapped)."""
    format = kind(path)
    if format == "npz":
        _unpack(path, folder)
    elif format in (LAMMPS, EXTXYZ):
        starts, steps = _scan(path, format)
        np.save(folder / "starts.npy", np.array(starts, np.int64))
        if steps:
            np.save(folder / "steps.npy", np.array(steps, np.int64))


def open_source(path: Path, folder: Path, types: dict[str, int] | None = None, topology: Path | None = None) -> Source:
    """The source for which ``prepare(path, folder)`` was called. ``types``: atomic numbers of LAMMPS types.
    ``topology``: the atoms of a DCD, in any format that ASE reads (a LAMMPS data file, PDB, XYZ, ...)."""
    format = kind(path)
    if topology is not None and format != "dcd":
        raise UserError(f"{path}: --topology is for DCD, this file has its own atoms")
    if types is not None and format not in (LAMMPS, "dcd"):
        raise UserError(f"{path}: --types is for LAMMPS types, this file has its own elements")
    if format == "npz":
        return _Npz(path, folder)
    if format == "dcd":
        return _Dcd(path, types, topology)
    return _Text(path, format, folder, types)


# -- text ------------------------------------------------------------------------------------------------------------


def _scan(path: Path, format: str) -> tuple[list[int], list[int]]:
    """Where each frame begins, the end of the last, and the time steps of a dump. Only counts are parsed."""
    starts, steps = [], []
    with open(path, "rb") as file:
        while True:
            starts.append(file.tell())
            line = file.readline()
            if not line.strip():
                break
            place = f"{path}: frame {len(starts) - 1}"
            try:
                if format == EXTXYZ:
                    _skip(file, int(line) + 1)
                    continue
                if line.strip() != b"ITEM: TIMESTEP":
                    raise ValueError
                steps.append(int(file.readline()))
                while not (line := file.readline()).startswith(b"ITEM: NUMBER OF ATOMS"):
                    if not line:
                        raise EOFError
                count = int(file.readline())
                while not (line := file.readline()).startswith(b"ITEM: ATOMS"):
                    if not line:
                        raise EOFError
                _skip(file, count)
            except EOFError:
                mend = f"truncate -s {starts[-1]} {path}"
                raise DataError(f"{place}, the last, is cut short; leave it out for good with: {mend}") from None
            except ValueError:
                raise DataError(f"{place} does not begin as a frame of this format: {line[:40]!r}") from None
    return starts, steps


def _skip(file: Any, lines: int) -> None:
    deque(islice(file, lines - 1), maxlen=0)
    if not file.readline().endswith(b"\n"):
        raise EOFError


class _Text(Source):
    """A file of which ASE parses one frame at a time."""

    def __init__(self, path: Path, format: str, folder: Path, mapping: dict[str, int] | None) -> None:
        super().__init__(path)
        self._format, self._mapping = format, mapping
        self._starts = np.load(folder / "starts.npy")
        self.steps = np.load(folder / "steps.npy") if format == LAMMPS else None
        self._io = library("ase.io")
        self.types = self._elements(self._atoms(0, f"{path}: frame 0"), f"{path}: frame 0")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _atoms(self, number: int, place: str) -> Any:
        first, end = self._starts[number : number + 2]
        with open(self.path, "rb") as file:
            file.seek(first)
            text = file.read(end - first).decode()
        if self._format == LAMMPS:
            columns = text.partition("ITEM: ATOMS")[2].partition("\n")[0].split()
            if "id" not in columns:
                raise DataError(f"{place} has no column 'id', so its atoms may be in any order: dump the ids too")
            if self._mapping is None and not {"element", "mass"} & set(columns):
                raise DataError(f"{place} names no elements: give --types, as in --types 1=Ba,2=Ti,3=O")
        try:
            return self._io.read(io.StringIO(text), index=0, format=self._format)
        except Exception as error:  # whatever the parser stumbles over: the file is not as it should be
            raise DataError(f"{place} cannot be read: {type(error).__name__}: {error}") from error

    def _elements(self, atoms: Any, place: str) -> np.ndarray:
        return elements(atoms, self._mapping, place)

    def _read(self, number: int, place: str) -> Frame:
        atoms = self._atoms(number, place)
        if len(atoms) == len(self.types) and (self._elements(atoms, place) != self.types).any():
            raise DataError(f"{place} has other elements than the first, or the same in another order")
        return Frame(place, atoms.positions, atoms.cell.array, atoms.pbc, charges(atoms))


# -- binary ----------------------------------------------------------------------------------------------------------


class _Dcd(Source):
    """Coordinates by MDAnalysis. A file without a unit cell is not periodic."""

    def __init__(self, path: Path, mapping: dict[str, int] | None, topology: Path | None) -> None:
        super().__init__(path)
        if topology is None:
            raise UserError(f"{path}: a DCD does not say which atoms it holds: give --topology FILE")
        if not topology.is_file():
            raise UserError(f"{topology}: no such file")
        reader = library("MDAnalysis.coordinates.DCD").DCDReader
        try:
            with warnings.catch_warnings():  # of a change in 3.0 that does not concern reads of single frames
                warnings.simplefilter("ignore", DeprecationWarning)
                library("MDAnalysis.lib.formats.libdcd").DCDFile(str(path)).close()  # fails without an aftermath
                self._reader = reader(str(path))
        except Exception as error:
            raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
        try:
            format = "lammps-data" if topology.suffix in (".data", ".lmp") else None
            atoms = library("ase.io").read(topology, format=format)
        except UserError:
            raise
        except Exception as error:
            raise DataError(f"{topology} cannot be read by ASE: {type(error).__name__}: {error}") from error
        self.types = elements(atoms, mapping, str(topology))
        self._fixed = charges(atoms)
        if len(atoms) != self._reader.n_atoms:
            raise DataError(f"{topology} has {len(atoms)} atoms, {path} has {self._reader.n_atoms}")

    def __len__(self) -> int:
        return len(self._reader)

    def _read(self, number: int, place: str) -> Frame:
        try:
            moment = self._reader[number]
        except Exception as error:
            raise DataError(f"{place} cannot be read: {type(error).__name__}: {error}") from error
        vectors = moment.triclinic_dimensions
        cell = np.zeros((3, 3)) if vectors is None else vectors.astype(float)
        return Frame(place, moment.positions.astype(float), cell, np.full(3, vectors is not None), self._fixed)


class _Npz(Source):
    """``traj_coords`` (F, N, 3), ``lattices`` (F, 3, 3) with the vectors as rows, ``atom_types``, ``target_index``.
    Periodic along every vector that is not zero."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        try:
            self._coords = np.load(folder / "traj_coords.npy", mmap_mode="r", allow_pickle=False)
            self._lattices = np.load(folder / "lattices.npy", mmap_mode="r", allow_pickle=False)
            self.types = check_types(np.load(folder / "atom_types.npy", allow_pickle=False), f"{path}: atom_types")
            if (folder / "target_index.npy").exists():
                self.targets = np.load(folder / "target_index.npy", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error
        frames = len(self._coords) if self._coords.ndim else 0
        for name, array, shape in (
            ("traj_coords", self._coords, (frames, len(self.types), 3)),
            ("lattices", self._lattices, (frames, 3, 3)),
        ):
            if array.shape != shape or array.dtype.kind != "f":
                raise DataError(f"{path}: {name} is {array.dtype} {array.shape}, it should be float {shape}")

    def __len__(self) -> int:
        return len(self._coords)

    def _read(self, number: int, place: str) -> Frame:
        cell = np.array(self._lattices[number], float)
        return Frame(place, np.array(self._coords[number], float), cell, np.asarray(cell.any(1)))


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            if missing := [name for name in NPZ if f"{name}.npy" not in names]:
                raise DataError(f"{path} has no {', '.join(missing)}; a trajectory holds {', '.join(NPZ)}")
            for name in names & {f"{name}.npy" for name in (*NPZ, "target_index")}:
                with archive.open(name) as member, open(folder / name, "wb") as file:
                    shutil.copyfileobj(member, file, 1 << 20)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} cannot be read: {error}") from None
