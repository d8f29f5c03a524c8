"""Trajectories of text, with random access to their frames: where each begins is found once, in one pass."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess import elements, lammps, rows, xyz
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source
from accel_train.tasks.gdynet.preprocess.packed import unpack
from accel_train.tasks.gdynet.preprocess.rows import CutError, Parsed, WrongError

FORMATS: dict[str, ModuleType] = {"lammps-dump-text": lammps, "extxyz": xyz}
UNPACKED = "text"
"""What was compressed, in the work folder."""

MARK = b"\xef\xbb\xbf"
"""What some programs put before UTF-8."""


def kind(start: bytes) -> str | None:
    """The format of a file that starts so, or None."""
    lines = (line for line in start.removeprefix(MARK).split(b"\n") if line.strip())
    first = next(lines, b"")
    return next((name for name, format in FORMATS.items() if format.begins(first)), None)


def prepare(path: Path, format: str, folder: Path) -> None:
    """Write to ``folder`` where the frames begin and the last ends, their time steps, and what is after them that is
    no frame; also the text itself, if it is compressed. Raises ``DataError`` if there is no frame at all, or if their
    units differ."""
    scan = _Scan(unpack(path, folder / UNPACKED), FORMATS[format])
    if not scan.count and scan.fault:
        raise DataError(f"{path}: frame 0 {scan.fault}")
    units = {head.get(lammps.UNITS) for head in scan.heads} - {None}
    if len(units) > 1:
        raise DataError(f"{path} has frames in units {' and '.join(sorted(map(str, units)))}: make a file of each")
    np.save(folder / "starts.npy", np.array(scan.starts, np.int64))
    if format == "lammps-dump-text":
        np.save(folder / "steps.npy", np.array([int(head[lammps.STEP]) for head in scan.heads], np.int64))
    unit = next(iter(units), None)
    dt = lammps.spacing(scan.heads, unit) if scan.heads and format == "lammps-dump-text" else None
    (folder / "text.json").write_text(json.dumps({"fault": scan.fault, "units": unit, "dt": dt}))


class _Scan:
    """One pass over a file. ``starts``: of each frame and the end of the last; ``heads``: what each says of itself;
    ``fault``: what ends the file other than the end of a frame. Only counts are parsed, and the last frame where there
    is a doubt: a fault that is noticed at a line may have begun in the frame before."""

    def __init__(self, path: Path, format: ModuleType) -> None:
        self.starts: list[int] = []
        self.heads: list[dict[str, str]] = []
        self.fault: str | None = None
        self._format = format
        with open(path, "rb") as file:
            end = self._frames(file)
            self.starts.append(end)
            if self.count and (self.fault or not _ends_a_line(file, end)):
                self._look_at_the_last(file)

    @property
    def count(self) -> int:
        return len(self.heads)

    def _frames(self, file: BinaryIO) -> int:
        """Returns where the last whole one ends."""
        end = 0
        while line := _begin(file):
            start = file.tell() - len(line)
            try:
                if not self._format.begins(line):
                    whole = line.endswith(b"\n")
                    self.fault = f"does not begin as a frame: {rows.shown(line)}" if whole else "is cut short"
                    break
                self.heads.append(self._format.pass_over(line, file))
            except CutError as cut:
                self.fault = f"is cut short: {cut}"
                break
            except WrongError as wrong:
                self.fault = f"cannot be read, line {_line(file, start) + wrong.line}: {wrong}"
                break
            self.starts.append(start)
            end = file.tell()
        return end

    def _look_at_the_last(self, file: BinaryIO) -> None:
        first, end = self.starts[-2:]
        lines = _lines(file, first, end)
        cut = not lines[-1].endswith(b"\n")
        try:
            self._format.parse(lines)
            if not rows.last_is_odd(lines):
                return
            odd = "its last number has other decimals than those before it"
            if cut:
                self.fault = f"is cut short: {odd} (if it is whole, put a newline after it)"
            else:
                self.fault = f"cannot be read: {odd}, and no whole frame follows"
        except WrongError as wrong:
            how = "is cut short" if cut and wrong.line == len(lines) - 1 else "cannot be read"
            self.fault = f"{how}, line {_line(file, first) + wrong.line}: {wrong}"
        self.heads.pop()
        self.starts.pop()


def _begin(file: BinaryIO) -> bytes:
    """The next line that is not blank, without a mark; nothing at the end."""
    for line in file:
        if (line := line.removeprefix(MARK)).strip():
            return line
    return b""


def _ends_a_line(file: BinaryIO, end: int) -> bool:
    file.seek(end - 1)
    return file.read(1) == b"\n"


def _lines(file: BinaryIO, first: int, end: int) -> list[bytes]:
    file.seek(first)
    return io.BytesIO(file.read(end - first)).readlines()


def _line(file: BinaryIO, start: int) -> int:
    """Which line of the file begins there, counted from 1."""
    file.seek(0)
    return 1 + sum(file.read(min(1 << 20, start - at)).count(b"\n") for at in range(0, start, 1 << 20))


class Text(Source):
    """A file for which ``prepare`` was called. ``mapping``: atomic numbers of types, or of symbols."""

    def __init__(self, path: Path, format: str, folder: Path, mapping: dict[str, int] | None) -> None:
        super().__init__(path)
        self._format, self._mapping = FORMATS[format], mapping
        self._starts = np.load(folder / "starts.npy")
        self._file = unpacked if (unpacked := folder / UNPACKED).exists() else path
        said = json.loads((folder / "text.json").read_text())
        self._options: dict[str, Any] = {"units": said["units"]} if self._format is lammps else {}
        if self._format is lammps:
            self.steps = np.load(folder / "steps.npy")
        self.dt = said["dt"]
        if said["fault"]:
            self._end(said["fault"])
        first = self._parse(0)
        if not len(first.positions):
            raise DataError(f"{path}: frame 0 has no atoms")
        self._ids, self.periodic = first.ids, first.periodic
        self.types, self.how = self._elements(first, 0)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _parse(self, number: int) -> Parsed:
        with open(self._file, "rb") as file:
            lines = _lines(file, *self._starts[number : number + 2])
        try:
            return self._format.parse(lines, **self._options)
        except WrongError as wrong:
            raise self._error(number, wrong.line, str(wrong)) from None

    def _error(self, number: int, line: int, text: str) -> DataError:
        with open(self._file, "rb") as file:
            line += _line(file, int(self._starts[number]))
        return DataError(f"{self.path}: frame {number}, line {line}: {text}")

    def _elements(self, parsed: Parsed, number: int) -> elements.Elements:
        place = f"{self.path}: frame {number}"
        try:
            return elements.find(parsed.said, self._mapping, place)
        except elements.UnknownError as error:
            raise self._error(number, int(parsed.lines[error.atom]), str(error)) from None

    def _read(self, number: int, place: str) -> Frame:
        parsed = self._parse(number)
        if len(parsed.positions) == len(self.types):
            if parsed.ids is not None and (parsed.ids != self._ids).any():
                raise DataError(f"{place} has atoms with other ids than the first")
            if (self._elements(parsed, number).numbers != self.types).any():
                raise DataError(f"{place} has other elements than the first, or the same in another order")
        return Frame(place, parsed.positions, parsed.cell, parsed.periodic, parsed.charges)
