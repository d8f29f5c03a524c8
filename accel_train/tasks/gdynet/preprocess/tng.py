"""TNG of GROMACS, by pytng."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess.frames import Frame, even_spacing, library
from accel_train.tasks.gdynet.preprocess.topology import Nameless

NAME = b"GENERAL INFO"
"""What the first block of a file is called."""

POSITIONS, BOX = "TNG_TRAJ_POSITIONS", "TNG_TRAJ_BOX_SHAPE"
ANGSTROM, NS = 10.0, 1e9
"""Angstrom in a nanometre, nanoseconds in a second."""


class Tng(Nameless):
    """A frame for every step that has positions. Without boxes, or where one is zero, it is not periodic."""

    def __init__(self, path: Path, mapping: dict[str, int] | None, topology: Path) -> None:
        super().__init__(path)
        iterator = library("pytng", "pytng").TNGFileIterator
        _walk(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a stride that it mends
                self._file = iterator(str(path), "r")
        except Exception as error:
            raise DataError(f"{path} cannot be read: {error}; is it cut short?") from error
        strides = self._file.block_strides
        if POSITIONS not in strides:
            raise DataError(f"{path} has no positions")
        if strides.get(BOX, strides[POSITIONS]) != strides[POSITIONS]:
            raise DataError(
                f"{path} has a box every {strides[BOX]} steps and positions every {strides[POSITIONS]}: write a file "
                "of the frames that have both (gmx trjconv)"
            )
        self._steps = self.steps = np.arange(0, self._file.n_steps, strides[POSITIONS])
        self._name(topology, mapping, self._file.n_atoms)
        self.periodic = self[0].periodic
        try:
            last = self._at(len(self) - 1, f"{path}: frame {len(self) - 1}")[2]
            self.dt, _ = even_spacing(np.linspace(0, last, len(self)) if last > 0 else np.zeros(1), float)
        except DataError as error:  # said now, not hours later
            self.fault = f"{error}; --frames can end before it"

    def __len__(self) -> int:
        return len(self._steps)

    def _at(self, number: int, place: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Positions [N, 3] and box [3, 3] in nanometres, and the time in ns."""
        positions, box = np.empty((self._file.n_atoms, 3), np.float32), np.zeros((1, 9), np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is raised here
            step = self._file.read_step(int(self._steps[number]))
            step.get_positions(positions)
            read = step.read_success
            if BOX in self._file.block_strides:
                step.get_box(box)
                read = read and step.read_success
        if not read:
            raise DataError(f"{place} cannot be read: it is cut short, or not where its stride says")
        return positions, box.reshape(3, 3), step.get_time() * NS

    def _read(self, number: int, place: str) -> Frame:
        positions, box, _ = self._at(number, place)
        cell = box.astype(float) * ANGSTROM
        return Frame(place, positions.astype(float) * ANGSTROM, cell, np.asarray(cell.any(1)), self.charges)


def _walk(path: Path) -> None:
    """From block to block, as their lengths say. Raises ``DataError`` unless the last one ends the file: pytng may
    crash on what is cut short."""
    size, at = path.stat().st_size, 0
    with open(path, "rb") as file:
        order = "<" if struct.unpack("<q", file.read(8))[0] < 1 << 32 else ">"
        while at < size:
            file.seek(at)
            head = file.read(16).ljust(16, b"\0")
            lengths = struct.unpack(f"{order}2q", head)
            if not lengths[0] > 0 <= lengths[1] or at + sum(lengths) > size:
                raise DataError(f"{path} is cut short: its block at byte {at:,} is not all there")
            at += sum(lengths)
