"""GSD of HOOMD, by gsd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess import elements
from accel_train.tasks.gdynet.preprocess.elements import Said
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source, library

MAGIC = b"\xdfe" * 4


class Gsd(Source):
    """Lengths as they stand: HOOMD has no units. Its types are names of elements, or ``mapping`` says which."""

    def __init__(self, path: Path, mapping: dict[str, int] | None) -> None:
        super().__init__(path)
        try:
            self._file = library("gsd.hoomd", "gsd").open(str(path), "r")
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path} cannot be read: {error}; is it cut short?") from error
        if not len(self._file):
            raise DataError(f"{path} holds no frame")
        first = self._moment(self._file, 0, f"{path}: frame 0")
        self._kinds = np.array(first.particles.types)[first.particles.typeid]
        try:
            self.types, self.how = elements.find(Said(symbols=self._kinds), mapping, str(path))
        except elements.UnknownError as error:
            raise DataError(f"{path}: particle {error.atom}: {error}") from None
        self.steps = np.array([self._step(number) for number in range(len(self))], np.int64)
        self.periodic = self[0].periodic

    def __len__(self) -> int:
        return len(self._file)

    def _step(self, number: int) -> int:
        file, name = self._file.file, "configuration/step"
        return int(file.read_chunk(number, name)[0]) if file.chunk_exists(number, name) else 0

    @staticmethod
    def _moment(file: Any, number: int, place: str) -> Any:
        try:
            return file[number]
        except Exception as error:
            raise DataError(f"{place} cannot be read: {type(error).__name__}: {error}") from error

    def _read(self, number: int, place: str) -> Frame:
        """Vectors from lengths and tilts as HOOMD defines them: the tilts are shares of the lengths, no cosines."""
        moment = self._moment(self._file, number, place)
        particles, (x, y, z, xy, xz, yz) = moment.particles, moment.configuration.box.astype(float)
        if len(particles.typeid) == len(self._kinds):
            if (np.array(particles.types)[particles.typeid] != self._kinds).any():
                raise DataError(f"{place} has other particles than the first, or the same in another order")
        cell = np.array([[x, 0, 0], [xy * y, y, 0], [xz * z, yz * z, z]])
        if moment.configuration.dimensions == 2:
            cell[2] = 0
        return Frame(
            place, particles.position.astype(float), cell, np.asarray(cell.any(1)), particles.charge.astype(float)
        )
