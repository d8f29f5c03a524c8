"""Molecular-dynamics trajectories with random access to their frames, whatever their format."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess import gromacs, hoomd, netcdf, packed, text, tng
from accel_train.tasks.gdynet.preprocess.dcd import Dcd
from accel_train.tasks.gdynet.preprocess.elements import check_types
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source

NPZ = ("traj_coords", "lattices", "atom_types")
"""What an npz must hold; also ``target_index`` where the targets are not given otherwise."""

DCD, NETCDF, TNG, GSD = "dcd", "netcdf", "tng", "gsd"
READER = 3
"""Changes with how files are read: work that was begun by another reader is not gone on with."""

SCANNED = (gromacs.XTC, gromacs.TRR)
NO_ATOMS = (DCD, NETCDF, TNG, *SCANNED)
"""Formats that do not say which atoms they hold."""


def kind(path: Path) -> str:
    """The format, by what the file begins with. Raises ``UserError``."""
    if not path.is_file():
        raise UserError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    if path.suffix.lower() == ".npz":
        return "npz"
    how, start = packed.start(path)
    found = text.kind(start)
    if how and not found:
        raise UserError(f"{path}: it is compressed, and no LAMMPS text dump or extended XYZ: unpack it first")
    if found or (found := _binary(start, path.suffix.lower())):
        return found
    if not start.strip():
        raise UserError(f"{path} is empty")
    if start.startswith(b"\x89HDF"):
        raise UserError(f"{path} is HDF5 (NetCDF-4, H5MD), which is not read; nccopy -k nc6 makes NetCDF of NetCDF-4")
    raise UserError(f"{path}: neither a LAMMPS text dump, extended XYZ, DCD, XTC, TRR, NetCDF, TNG, GSD nor .npz")


def _binary(start: bytes, suffix: str) -> str | None:
    if suffix == ".dcd" or b"CORD" in (start[4:8], start[8:12]):
        return DCD
    if start.startswith(netcdf.MAGIC):
        return NETCDF
    if start.startswith(hoomd.MAGIC):
        return GSD
    return TNG if tng.NAME in start[:64] else gromacs.kind(start)


def prepare(path: Path, folder: Path) -> None:
    """Write to ``folder`` what random access needs: where the frames of text, XTC and TRR begin (one pass over the
    file), text that was compressed, the arrays of an npz (unpacked, so that they can be mapped)."""
    format = kind(path)
    if format == "npz":
        _unpack(path, folder)
    elif format in text.FORMATS:
        text.prepare(path, format, folder)
    elif format in SCANNED:
        gromacs.prepare(path, format, folder)


def open_source(path: Path, folder: Path, types: dict[str, int] | None = None, topology: Path | None = None) -> Source:
    """The source for which ``prepare(path, folder)`` was called. ``types``: atomic numbers of LAMMPS types, of symbols
    or of names of atoms. ``topology``: the atoms of a file that has none."""
    format = kind(path)
    if topology is not None and format not in NO_ATOMS:
        raise UserError(f"{path}: --topology is for DCD, XTC, TRR, NetCDF and TNG, this file has its own atoms")
    if types is not None and format == "npz":
        raise UserError(f"{path}: --types is for types and names of atoms, this file has atomic numbers")
    if format == "npz":
        return _Npz(path, folder)
    if format == GSD:
        return hoomd.Gsd(path, types)
    if format in text.FORMATS:
        return text.Text(path, format, folder, types)
    if topology is None:
        raise UserError(f"{path}: {format.upper()} does not say which atoms it holds: give --topology FILE")
    if format in SCANNED:
        return gromacs.Gromacs(path, format, folder, types, topology)
    return {DCD: Dcd, NETCDF: netcdf.Netcdf, TNG: tng.Tng}[format](path, types, topology)


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
