"""Molecular-dynamics trajectories with random access to their frames: LAMMPS dumps, extended XYZ, DCD, XTC,
TRR, npz."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess import gromacs, text
from accel_train.tasks.gdynet.preprocess.dcd import Dcd
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source, check_types

NPZ = ("traj_coords", "lattices", "atom_types")
"""What an npz must hold; also ``target_index`` where the targets are not given otherwise."""

LAMMPS, DCD = "lammps-dump-text", "dcd"
READER = 2
"""Changes with how files are read: work that was begun by another reader is not gone on with."""

NO_ATOMS = (DCD, gromacs.XTC, gromacs.TRR)
"""Formats that do not say which atoms they hold."""


def kind(path: Path) -> str:
    """The format, by what the file begins with. Raises ``UserError``."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    with open(path, "rb") as file:
        start = file.read(1 << 16)
    if path.suffix.lower() == ".npz":
        return "npz"
    if path.suffix.lower() == ".dcd" or b"CORD" in (start[4:8], start[8:12]):
        return DCD
    if found := gromacs.kind(start) or text.kind(start):
        return found
    if not start.strip():
        raise UserError(f"{path} is empty")
    packed = start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"(\xb5/"))  # gzip, bzip2, xz, zstd
    more = "; it is compressed: unpack it first" if packed else ""
    raise UserError(f"{path}: neither a LAMMPS text dump, extended XYZ, DCD, XTC, TRR nor .npz{more}")


def prepare(path: Path, folder: Path) -> None:
    """Write to ``folder`` what random access needs: where the frames of text, XTC and TRR begin (one pass
    over the file), the arrays of an npz (unpacked, so that they can be mapped)."""
    format = kind(path)
    if format == "npz":
        _unpack(path, folder)
    elif format in text.FORMATS:
        text.prepare(path, format, folder)
    elif format != DCD:
        gromacs.prepare(path, format, folder)


def open_source(path: Path, folder: Path, types: dict[str, int] | None = None, topology: Path | None = None) -> Source:
    """The source for which ``prepare(path, folder)`` was called. ``types``: atomic numbers of LAMMPS types.
    ``topology``: the atoms of a DCD, XTC or TRR, in any format that ASE reads (a LAMMPS data file, PDB, XYZ, ...)."""
    format = kind(path)
    if topology is not None and format not in NO_ATOMS:
        raise UserError(f"{path}: --topology is for DCD, XTC and TRR, this file has its own atoms")
    if types is not None and format not in (LAMMPS, *NO_ATOMS):
        raise UserError(f"{path}: --types is for LAMMPS types, this file has its own elements")
    if format == "npz":
        return _Npz(path, folder)
    if format not in NO_ATOMS:
        return text.Text(path, format, folder, types)
    if topology is None:
        raise UserError(f"{path}: {format.upper()} does not say which atoms it holds: give --topology FILE")
    if format == DCD:
        return Dcd(path, types, topology)
    return gromacs.Gromacs(path, format, folder, types, topology)


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
        if frames:
            self.periodic = np.asarray(self._lattices[0].any(1))

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
