"""HDF5 files of shots, ``LFS`` (20, 8, T) or (C, T): what one holds, and ``Shots`` that are read from them directly."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.data.bad import BadDataPolicy
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.lists import Entry
from accel_train.tasks.tcn.norm import moments, norm, together
from accel_train.tasks.tcn.shots import ON_GRID, Shot

if TYPE_CHECKING:
    import h5py

DATA = "LFS"
RAW_DT_MS, RAW_T0_MS = 0.001, -50.0
"""Of files and lists that say nothing: 1 MHz, from 50 ms before the plasma."""
LATE_MS = 100.0
"""A disruption that is so long after the end of its record is a mistake; 20 ms occur."""
GROUP = 8
"""Channels that are read at once, where a file does not say it by its shape."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        step: every so many samples of a file are kept.
        baseline_ms: the mean of so much at the beginning is subtracted from each channel. Files that were decimated
            before (they have the attribute ``baseline_length``) have had that done.
        t0_ms, dt_ms: plasma time of the first sample of a file, and between two samples, whatever file and list say.

    Raises:
        UserError: a value is out of its range.
    """

    step: int = 1
    baseline_ms: float = 40.0
    t0_ms: float | None = None
    dt_ms: float | None = None

    def __post_init__(self) -> None:
        if self.step < 1:
            raise UserError(f"step: must be 1 or more, it is {self.step}")
        if not 0 <= self.baseline_ms < math.inf:
            raise UserError(f"baseline_ms: must be 0 or more, it is {self.baseline_ms}")
        if self.dt_ms is not None and not 0 < self.dt_ms < math.inf:
            raise UserError(f"dt_ms: must be above 0, it is {self.dt_ms}")


class Record:
    """An open file.

    Args:
        channels, samples: of the file, not decimated.
        group: channels that lie together.
    """

    def __init__(self, file: h5py.File, entry: Entry, reading: Reading) -> None:
        data: Any = file.get(DATA)
        if data is None or not hasattr(data, "shape"):
            raise DataError(f"has no dataset {DATA}; there are {', '.join(file) or 'none'}")
        shape: tuple[int, ...] = data.shape
        if len(shape) not in (2, 3) or 0 in shape or data.dtype.kind not in "fiu":
            raise DataError(f"{DATA} is {data.dtype} {shape}, must be numbers (rows, columns, T) or (C, T)")
        self._data, self._time_first = data, len(shape) == 2 and shape[0] > shape[1]
        self.samples = shape[0] if self._time_first else shape[-1]
        self.channels = math.prod(shape) // self.samples
        self.group = shape[1] if len(shape) == 3 else GROUP
        self._columns = shape[1] if len(shape) == 3 else 1
        about, rate = file.attrs, file.attrs.get("effective_fs_hz")
        rate = file.attrs.get("source_fs_hz") if rate is None else rate
        self.dt_ms = _first(reading.dt_ms, None if rate is None else 1000.0 / float(rate), entry.dt_ms, RAW_DT_MS)
        self.t0_ms = _first(reading.t0_ms, about.get("t0_ms"), entry.t0_ms, RAW_T0_MS)
        if not 0 < self.dt_ms < math.inf or not math.isfinite(self.t0_ms):
            raise DataError(f"dt is {self.dt_ms:g} ms and t0 {self.t0_ms:g} ms; must be above 0, and finite")
        length = 0 if "baseline_length" in about else math.floor(reading.baseline_ms / self.dt_ms + ON_GRID)
        self._baseline_samples = min(length, self.samples)

    def read(self, first: int, last: int, begin: int = 0, end: int | None = None) -> np.ndarray:
        """float32 [last - first, end - begin]: of these channels, row by row, these samples of the file."""
        end = self.samples if end is None else end
        if self._time_first:
            return np.asarray(self._data[begin:end, first:last], np.float32).T
        if self._data.ndim == 2:
            return np.asarray(self._data[first:last, begin:end], np.float32)
        row, columns = first // self._columns, self._columns
        rows = self._data[row : -(-last // columns), :, begin:end]
        return np.asarray(rows, np.float32).reshape(-1, end - begin)[first - row * columns : last - row * columns]

    def baseline(self, first: int, last: int) -> np.ndarray:
        """float64 [last - first], the mean of what is not NaN, which is subtracted; 0 where that has been done."""
        if not self._baseline_samples:
            return np.zeros(last - first)
        values = self.read(first, last, 0, self._baseline_samples).astype(np.float64)
        known = ~np.isnan(values)
        return np.where(known, values, 0.0).sum(1) / np.maximum(known.sum(1), 1)


def _first(*values: Any) -> float:
    return float(next(value for value in values if value is not None))


@contextmanager
def open_record(entry: Entry, reading: Reading) -> Generator[Record]:
    """Raises ``DataError``, or what h5py raises for a file that it cannot read."""
    import h5py

    if not entry.path.is_file():
        raise DataError("no such file")
    with h5py.File(entry.path, "r", locking="best-effort") as file:  # shared file systems may have no locks
        yield Record(file, entry, reading)


def describe(entry: Entry, record: Record, reading: Reading) -> Shot:
    """The shot as it is when every ``step``-th sample is kept. Raises ``DataError`` if its segment is empty.

    A segment begins where the list says, or after the baseline. It ends with the disruption, or where a list or the
    record do if that is before.
    """
    samples, dt = -(-record.samples // reading.step), record.dt_ms * reading.step
    shot = Shot(
        entry.number, entry.disruptive, entry.t_disruption_ms, record.t0_ms, dt, samples, 0, samples, entry.split
    )
    start_ms = record.t0_ms + reading.baseline_ms if entry.start_ms is None else entry.start_ms
    ends = [time for time in (entry.stop_ms, entry.t_disruption_ms if entry.disruptive else None) if time is not None]
    start, stop = max(0, shot.index(start_ms)), min([samples, *map(shot.index, ends)])
    end_ms = record.t0_ms + record.samples * record.dt_ms
    if start >= stop:
        until = f" and should end at {min(ends):g} ms" if ends else ""
        raise DataError(f"its segment is empty: it begins at {start_ms:g} ms{until}, the record ends at {end_ms:g} ms")
    if entry.disruptive and entry.t_disruption_ms > end_ms + LATE_MS:
        raise DataError(f"disrupts at {entry.t_disruption_ms:g} ms, but the record ends at {end_ms:g} ms: is dt right?")
    return replace(shot, start=start, stop=stop)


def refuse_channels(record: Record, channels: int) -> None:
    """A DataError if a file has other channels than the first one."""
    if record.channels != channels:
        raise DataError(f"has {record.channels} channels, the shots before it have {channels}")


class Hdf5Shots:
    """``Shots`` that are read from their files each time. Preprocessed ones are many times faster.

    Args:
        entries: as ``lists.find`` gives them.
        reading: how; decimation is plain slicing here.
        norm_stats: .npz with ``mean`` and ``std``, or ``mean_flat`` and ``std_flat``, of (rows, columns) or (C,).
            Without it, they are computed from the training split when they are first asked for, which reads it all.
        max_bad: so many files may be unreadable; ``bad`` has a line for each.

    Raises:
        DataError: more files than that cannot be read.
    """

    def __init__(
        self, entries: Sequence[Entry], reading: Reading, norm_stats: Path | None = None, max_bad: int = 0
    ) -> None:
        self.reading, self.dtype = reading, np.dtype(np.float32)
        policy, self.shots, self.channels = BadDataPolicy("skip"), list[Shot](), 0
        for entry in entries:
            with policy.at_stake("shots", entry.path), open_record(entry, reading) as record:
                self.channels = self.channels or record.channels
                refuse_channels(record, self.channels)
                self.shots.append(describe(entry, record, reading))
        self.bad = [event.title for event in policy.events()]
        if policy.left_out["shots"] > max_bad:
            raise DataError(f"{policy.left_out['shots']} shots cannot be used, {max_bad} may (max_bad): {self.bad[0]}")
        self._entries = {entry.number: entry for entry in entries}
        self._offsets: dict[int, np.ndarray] = {}
        self._norm = None if norm_stats is None else read_norm(norm_stats, self.channels)
        self._lock = threading.Lock()

    def split(self, name: str) -> list[Shot]:
        return [shot for shot in self.shots if shot.split == name]

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        step = self.reading.step
        with open_record(self._entries[number], self.reading) as record:
            return record.read(0, self.channels, first * step, max(first, last - 1) * step + (last > first))[:, ::step]

    def scale(self, number: int) -> np.ndarray:
        return np.ones(self.channels, np.float32)

    def offset(self, number: int) -> np.ndarray:
        if number not in self._offsets:
            with open_record(self._entries[number], self.reading) as record:
                self._offsets[number] = -record.baseline(0, self.channels).astype(np.float32)
        return self._offsets[number]

    @property
    def mean(self) -> np.ndarray:
        return self._norms()[0]

    @property
    def std(self) -> np.ndarray:
        return self._norms()[1]

    def fingerprint(self) -> dict[str, Any]:
        paths = [self._entries[shot.number].path for shot in self.shots]
        return {
            "files": [
                {"name": path.name, "rows": shot.samples, "size": path.stat().st_size}
                for path, shot in zip(paths, self.shots, strict=True)
            ]
        }

    def _norms(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._norm is None:
                if not (train := self.split("train")):
                    raise DataError("no shots for training, of which mean and deviation are taken; give norm_stats")
                self._norm = norm(
                    together(
                        moments(self.read(shot.number, shot.start, shot.stop) + self.offset(shot.number)[:, None])
                        for shot in train
                    )
                )
            return self._norm


def read_norm(path: Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of an .npz, float64 [C]. Raises ``DataError``."""
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = next(kind for kind in ("", "_flat") if f"mean{kind}" in file)
            mean, std = (np.asarray(file[f"{name}{kind}"], np.float64).ravel() for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise DataError(f"{path}: not an .npz with mean and std: {error}") from None
    if len(mean) != channels or len(std) != channels or not (std > 0).all() or not np.isfinite(mean).all():
        raise DataError(f"{path}: mean {len(mean)} and std {len(std)} must be of {channels} channels, std above 0")
    return mean, std
