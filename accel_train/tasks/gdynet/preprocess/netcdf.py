"""NetCDF of AMBER, and of LAMMPS and others by AMBER's conventions. The header is read here, since it alone says where
frames begin and how many there must be; libraries fail on a file that is cut short without saying where."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess.frames import Frame, even_spacing, vectors
from accel_train.tasks.gdynet.preprocess.topology import Nameless

MAGIC = (b"CDF\x01", b"CDF\x02", b"CDF\x05")
TYPES = {1: "i1", 2: "S1", 3: ">i2", 4: ">i4", 5: ">f4", 6: ">f8", 7: "u1", 8: ">u2", 9: ">u4", 10: ">i8", 11: ">u8"}
"""The numbers of a NetCDF file, by its number for them."""

LENGTHS = {"angstrom": 1.0, "nanometer": 10.0, "bohr": 0.529177210903, "lj": 1.0}
"""Angstrom in a unit of length. What has no unit is taken to be in Angstrom, as AMBER's conventions want it."""

TIMES = {"picosecond": 1e-3, "femtosecond": 1e-6, "nanosecond": 1.0}
"""Nanoseconds in a unit of time."""


class Variable(NamedTuple):
    """``begin``: where its numbers are, of frame 0 if there are frames. ``shape``: of a frame, or of all."""

    framed: bool
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int
    size: int
    attributes: dict[str, Any]


class Header:
    """What the first bytes say (Unidata's file format specification, classic, 64-bit offset and 64-bit data).
    ``promised``: how many frames there are, None if that is not known; ``first``: where they begin; ``each``: their
    bytes. Raises ``ValueError`` or ``KeyError`` if it cannot be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        version = file.read(4)[3]
        self._count, self._offset = ("q" if version == 5 else "i"), ("i" if version == 1 else "q")
        promised = self._number(self._count)
        self.promised = None if promised == -1 else promised
        sizes = [size for _, size in ((self._text(), self._size()) for _ in range(self._list()))]
        self._attributes()
        self.variables = {self._text(): self._variable(sizes) for _ in range(self._list())}
        framed = [variable for variable in self.variables.values() if variable.framed]
        self.first = min((variable.begin for variable in framed), default=0)
        self.each = sum(v.size if len(framed) == 1 else v.size + -v.size % 4 for v in framed)
        if self.first < 0 or any(v.begin + v.size > self.first + self.each for v in framed) or promised < -1:
            raise ValueError("its frames overlap")

    def _number(self, kind: str) -> int:
        size = struct.calcsize(f">{kind}")
        if len(content := self._file.read(size)) < size:
            raise ValueError("it ends within its header")
        return struct.unpack(f">{kind}", content)[0]

    def _size(self) -> int:
        if (size := self._number(self._count)) < 0:
            raise ValueError("a size is below 0")
        return size

    def _list(self) -> int:
        """How many entries follow."""
        self._number("i")  # what they are; 0 if there are none
        return self._size()

    def _bytes(self, size: int) -> bytes:
        """Which are filled up to a word."""
        return self._file.read(size + -size % 4)[:size]

    def _text(self) -> str:
        return self._bytes(self._size()).decode("utf-8", "backslashreplace")

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._list()):
            name, dtype = self._text(), np.dtype(TYPES[self._number("i")])
            content = self._bytes(self._size() * dtype.itemsize)
            text = dtype.kind == "S"
            found[name] = content.decode("utf-8", "backslashreplace") if text else np.frombuffer(content, dtype)
        return found

    def _variable(self, sizes: list[int]) -> Variable:
        of = [self._size() for _ in range(self._size())]
        attributes, dtype = self._attributes(), np.dtype(TYPES[self._number("i")])
        self._number(self._count)  # its size, which may be wrong for large ones
        framed = bool(of) and sizes[of[0]] == 0
        shape = tuple(sizes[i] for i in of[framed:])
        return Variable(framed, shape, dtype, self._number(self._offset), prod(shape) * dtype.itemsize, attributes)


class Netcdf(Nameless):
    """Frames as many as the header says. Atoms are in the order of ``id`` where there is one, as LAMMPS writes it. Not
    periodic along vectors of length 0, or if there is no cell."""

    def __init__(self, path: Path, mapping: dict[str, int] | None, topology: Path) -> None:
        super().__init__(path)
        try:
            with open(path, "rb") as file:
                self._header = Header(file)
        except (ValueError, KeyError, IndexError) as error:
            raise DataError(f"{path} cannot be read: its header is not that of NetCDF: {error}") from None
        coordinates = self._header.variables.get("coordinates")
        if coordinates is None or not coordinates.framed or coordinates.shape[1:] != (3,) or not coordinates.size:
            raise DataError(f"{path}: there are no coordinates (frame, atom, 3) by AMBER's conventions")
        self._scales = {name: self._scale(name, LENGTHS) for name in ("coordinates", "cell_lengths")}
        self._scales["cell_angles"] = self._scale("cell_angles", {"degree": 1.0})
        self._count()
        self._values = self._map()
        self._name(topology, mapping, coordinates.shape[0])
        self._time()
        self.periodic = self[0].periodic

    def _count(self) -> None:
        """How many frames there are by the size of the file, and whether that is what the header promises."""
        size, each = self.path.stat().st_size - self._header.first, self._header.each
        there, torn = divmod(max(size, 0), each)
        promised = there + bool(torn) if self._header.promised is None else self._header.promised
        self._frames = min(there, promised)
        if there < promised and torn:
            self._end(f"is cut short: {torn:,} of its {each:,} bytes are there")
        elif there < promised:
            self._end(f"is missing: the file holds {there} of {promised} frames that its header promises")
        elif (more := size - promised * each) > 3:  # up to 3 may fill a word
            self._end(f"is not counted: {more:,} bytes follow the {promised} frames of the header")
        if not self._frames:
            raise DataError(self.fault or f"{self.path} holds no frame")

    def __len__(self) -> int:
        return self._frames

    def _map(self) -> dict[str, np.ndarray]:
        """The numbers of each variable that has frames, (F, ...), mapped."""
        content = np.memmap(self.path, np.uint8, "r")
        found = {name: v for name, v in self._header.variables.items() if v.framed}
        return {
            name: np.ndarray(
                (len(self), *v.shape),
                v.dtype,
                buffer=content,
                offset=v.begin,
                strides=(self._header.each, *np.empty(v.shape, v.dtype).strides),
            )
            for name, v in found.items()
        }

    def _scale(self, name: str, units: dict[str, float]) -> float:
        if (variable := self._header.variables.get(name)) is None:
            return 1.0
        unit = str(variable.attributes.get("units", "")).strip("\0 ").lower().removesuffix("s")
        if unit and unit not in units:
            raise DataError(f"{self.path}: {name} is in {unit!r}; {', '.join(units)} are known")
        factor = np.atleast_1d(variable.attributes.get("scale_factor", 1.0))
        if factor.shape != (1,) or factor.dtype.kind not in "fiu":
            raise DataError(f"{self.path}: scale_factor of {name} is not a number")
        return float(factor[0]) * (units[unit] if unit else 1.0)

    def _time(self) -> None:
        time = self._header.variables.get("time")
        if time is not None and time.framed and time.attributes.get("units", "lj") != "lj":
            times = self._values["time"].reshape(len(self), -1)[:, 0] * self._scale("time", TIMES)
            self.dt, self.steps = even_spacing(times, time.dtype)

    def _read(self, number: int, place: str) -> Frame:
        positions = self._values["coordinates"][number] * self._scales["coordinates"]
        if "id" in self._values:
            ids = self._values["id"][number]
            order = np.argsort(ids, kind="stable")
            if (ids[order] != np.sort(self._values["id"][0])).any():
                raise DataError(f"{place} has atoms with other ids than the first")
            positions = positions[order]
        cell = np.zeros((3, 3))
        if {"cell_lengths", "cell_angles"} <= self._values.keys():
            lengths, angles = (self._values[n][number] * self._scales[n] for n in ("cell_lengths", "cell_angles"))
            none = lengths == 0
            angles[[none[1] | none[2], none[0] | none[2], none[0] | none[1]]] = 90
            made = vectors(lengths, np.cos(np.radians(angles)))
            if made is None or (lengths < 0).any():
                raise DataError(f"{place}: there is no cell of lengths {lengths.tolist()} and angles {angles.tolist()}")
            cell = made
        return Frame(place, positions, cell, np.asarray(cell.any(1)), self.charges)
