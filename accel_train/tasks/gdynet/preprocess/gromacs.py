"""XTC and TRR of GROMACS: coordinates by MDAnalysis. Where frames begin is found here, since MDAnalysis leaves a last
frame that is cut short out, and says nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess.frames import Frame, even_spacing, library
from accel_train.tasks.gdynet.preprocess.rows import CutError
from accel_train.tasks.gdynet.preprocess.topology import Nameless

XTC, TRR = "xtc", "trr"
MAGIC = {XTC: 1995, TRR: 1993}
LESS = "it has less than nothing in it"

ANGSTROM, NS = 10.0, 1e-3
"""Angstrom in a nanometre, nanoseconds in a picosecond."""


def kind(start: bytes) -> str | None:
    """The format of a file that starts so, or None."""
    magic = int.from_bytes(start[:4], "big")
    return next((name for name, number in MAGIC.items() if magic == number), None)


def prepare(path: Path, format: str, folder: Path) -> None:
    """Write to ``folder`` where the frames begin, their steps and times [ns], and what is after them that is no frame.
    Raises ``DataError`` if there is no frame."""
    starts, steps, times, fault, atoms = [0], [], [], None, None
    size, head = path.stat().st_size, _xtc if format == XTC else _trr
    with open(path, "rb") as file:
        while starts[-1] < size and fault is None:
            file.seek(starts[-1])
            try:
                count, step, time, length = head(file)
                there = size - starts[-1]
                if there < length:
                    raise CutError(f": {there:,} of its {length:,} bytes are there")
                if count != (atoms := atoms if steps else count):
                    fault = f"has {count} atoms, the first has {atoms}"
                else:
                    starts.append(starts[-1] + length)
                    steps.append(step)
                    times.append(time * NS)
            except CutError as cut:
                fault = f"is cut short{cut}"
            except ValueError as error:
                fault = f"does not begin as a frame: {error}"
    if not steps:
        raise DataError(f"{path}: frame 0 {fault}")
    np.save(folder / "starts.npy", np.array(starts[:-1], np.int64))
    np.save(folder / "steps.npy", np.array(steps, np.int64))
    np.save(folder / "times.npy", np.array(times))
    (folder / "fault.json").write_text(json.dumps(fault))


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f">{form}"
    content = file.read(struct.calcsize(form))
    if len(content) < struct.calcsize(form):
        raise CutError("")
    return struct.unpack(form, content)


def _xtc(file: BinaryIO) -> tuple[int, int, float, int]:
    """Atoms, step, time in ps, and length in bytes of the frame that begins here. Few atoms are not compressed."""
    (magic,) = _unpack(file, "i")
    if magic != MAGIC[XTC]:
        raise ValueError(f"its number is {magic}, it should be {MAGIC[XTC]}")
    atoms, step, time, *_ = _unpack(file, "2i11f")
    if atoms < 0:
        raise ValueError(LESS)
    if atoms <= 9:
        return atoms, step, time, 56 + 12 * atoms
    *_, packed = _unpack(file, "f8i")
    if packed < 0:
        raise ValueError(LESS)
    return atoms, step, time, 92 + packed + -packed % 4


def _trr(file: BinaryIO) -> tuple[int, int, float, int]:
    """The same. It may hold positions, velocities and forces, in numbers of 4 or of 8 bytes."""
    (magic,) = _unpack(file, "i")
    if magic != MAGIC[TRR]:
        raise ValueError(f"its number is {magic}, it should be {MAGIC[TRR]}")
    _unpack(file, "2i12s")
    *sizes, atoms, step, _ = _unpack(file, "13i")
    box, each = sizes[2], [size for size in sizes[7:10] if size]
    if min(sizes) < 0 or atoms < 0:
        raise ValueError(LESS)
    width = box // 9 if box else each[0] // (3 * atoms) if each and atoms else 4
    (time,) = _unpack(file, "d" if width == 8 else "f")
    return atoms, step, time, 76 + 2 * width + sum(sizes)


class Gromacs(Nameless):
    """A file for which ``prepare`` was called. A frame without a box is not periodic."""

    def __init__(self, path: Path, format: str, folder: Path, mapping: dict[str, int] | None, topology: Path) -> None:
        super().__init__(path)
        self._starts, self.steps = np.load(folder / "starts.npy"), np.load(folder / "steps.npy")
        self.dt, _ = even_spacing(np.load(folder / "times.npy"), np.float32)
        if fault := json.loads((folder / "fault.json").read_text()):
            self._end(fault)
        reader = library("MDAnalysis.lib.formats.libmdaxdr")
        try:
            self._file = (reader.XTCFile if format == XTC else reader.TRRFile)(str(path))
            self._file.set_offsets(self._starts)
        except Exception as error:
            raise DataError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
        self._name(topology, mapping, self._file.n_atoms)
        self.periodic = self[0].periodic

    def __len__(self) -> int:
        return len(self._starts)

    def _read(self, number: int, place: str) -> Frame:
        moment = self._moment(self._file, number, place)
        if not getattr(moment, "hasx", True):
            raise DataError(f"{place} has no positions: write a file of those that have")
        cell = moment.box.astype(float) * ANGSTROM
        return Frame(place, moment.x.astype(float) * ANGSTROM, cell, np.asarray(cell.any(1)), self.charges)
