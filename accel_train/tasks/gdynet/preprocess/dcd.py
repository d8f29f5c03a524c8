"""DCD files of CHARMM, NAMD, LAMMPS and others: coordinates by MDAnalysis, frames and cells as their writers mean."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess.frames import Frame, library, vectors
from accel_train.tasks.gdynet.preprocess.topology import Nameless

AKMA = 4.888821e-5
"""Nanoseconds in CHARMM's unit of time: Angstrom, dalton and kcal/mol are 1 with it."""

COMMON = 24
"""The version that every other program writes where CHARMM writes its own."""


class Dcd(Nameless):
    """Frames as many as the file holds. ``topology``: the atoms. A file without a unit cell is not periodic."""

    def __init__(self, path: Path, mapping: dict[str, int] | None, topology: Path) -> None:
        super().__init__(path)
        self._header = _Header(path)
        self.dt = self._header.dt
        try:
            self._file = library("MDAnalysis.lib.formats.libdcd").DCDFile(str(path))
        except Exception as error:
            raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
        if self._file.ndims != 3:
            raise DataError(f"{path} has {self._file.ndims} coordinates for each atom; 3 are possible")
        self._count(self._header.promised)
        self._name(topology, mapping, self._file.header["natoms"])
        first = self[0]
        self.periodic = first.periodic
        if not self._header.along_x and (first.cell - np.diag(np.diag(first.cell))).any() and self.remark is None:
            self.remark = (
                f"{path} gives lengths and angles of its cell and not how it lies: its first vector was taken to be "
                "along x, the second in xy; NAMD may have others: then distances across a face are wrong, and extended "
                "XYZ with the right Lattice is what to give"
            )

    def _count(self, promised: int) -> None:
        """How many frames there are by the size of the file, and whether that is what the header promises."""
        first, later = self._file._firstframesize, self._file._framesize
        size = self.path.stat().st_size - self._file._header_size
        self._frames = 0 if size < first else 1 + (size - first) // later
        torn = size - (first + (self._frames - 1) * later if self._frames else 0)
        if torn:
            whole = later if self._frames else first
            self._end(f"is cut short: {torn:,} of its {whole:,} bytes are there")
        elif self._frames < promised:
            self._end(f"is missing: the file holds {self._frames} of {promised} frames that its header promises")
        elif self._frames > promised > 0:
            self.remark = f"{self.path} holds {self._frames} frames, its header says {promised}; all of them are read"
        if not self._frames:
            raise DataError(self.fault or f"{self.path} holds no frame")

    def __len__(self) -> int:
        return self._frames

    def _read(self, number: int, place: str) -> Frame:
        moment = self._moment(self._file, number, place)
        cell = np.zeros((3, 3))
        if self._file.is_periodic and moment.unitcell.any():
            cell = _cell(moment.unitcell, self._header.version, place)
        return Frame(place, moment.xyz.astype(float), cell, np.full(3, bool(cell.any())), self.charges)


class _Header:
    """``promised``: how many frames (0: it does not say); ``version``: of CHARMM; ``dt``: ns per frame, if it is known
    what the time step is in, as it is of CHARMM, NAMD and OpenMM: LAMMPS writes its own units, others write 1 there."""

    def __init__(self, path: Path) -> None:
        with open(path, "rb") as file:
            start = file.read(512)
        for order in "<>":
            form = struct.Struct(f"{order}i4s9if10i")
            if len(start) >= form.size:
                size, magic, self.promised, _, every, *_, step, _, _, _, _, _, _, _, _, _, self.version = (
                    form.unpack_from(start)
                )
                if (size, magic) == (84, b"CORD"):
                    break
        else:
            more = ", but as one with marks of 8 bytes" if start[8:12] == b"CORD" else ""
            raise DataError(
                f"{path} cannot be read: it does not begin as a DCD of coordinates with marks of 4 bytes{more}"
            )
        title, charmm = start[form.size :], self.version not in (0, COMMON)
        self.along_x = charmm or b"by LAMMPS" in title or b"by OpenMM" in title
        ns = every * step * AKMA
        self.dt = float(f"{ns:.6g}") if ns > 0 and (charmm or b"BY NAMD" in title or b"by OpenMM" in title) else None


def _cell(six: np.ndarray, version: int, place: str) -> np.ndarray:
    """The vectors as rows, of six numbers that are one of three things:

    - CHARMM: the lower half of a symmetric matrix, whose rows the coordinates belong to;
    - others: a, cos(gamma), b, cos(beta), cos(alpha), c; or the same with angles in degrees. a is along x, b in xy.

    Where all are possible, the version in the header decides: CHARMM writes its own.
    """
    matrix = six[[[0, 1, 3], [1, 2, 4], [3, 4, 5]]]
    lengths, rest = six[[0, 2, 5]], six[[4, 3, 1]]
    cosines = rest if (abs(rest) <= 1).all() else np.cos(np.radians(rest))
    angles = (abs(rest) <= 1).all() or ((rest > 0) & (rest < 180)).all()
    readings = [matrix] if np.linalg.eigvalsh(matrix)[0] > 0 else []
    if angles and (lengths > 0).all() and (made := vectors(lengths, cosines)) is not None:
        readings.insert(len(readings) if version not in (0, COMMON) else 0, made)
    if not readings:
        raise DataError(f"{place}: the unit cell {np.round(six, 4).tolist()} is none that is known")
    return readings[0]
