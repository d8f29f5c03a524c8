"""HDF5 files of shots, ``LFS`` (20, 8, T) or (C, T): what one holds, and ``Shots`` that are read from them directly."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.data.bad import BadDataPolicy
from accel_train.data.units import plain_hash
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.lists import Entry
from accel_train.tasks.tcn.norm import Moments, kept_norm, moments, norm, together
from accel_train.tasks.tcn.quantise import refuse_not_finite
from accel_train.tasks.tcn.shots import ON_GRID, Shot
from accel_train.tasks.tcn.store import as_json

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
        raise DataError(
            f"its segment is empty: it begins at {start_ms:g} ms{until}, the record ends at {end_ms:g} ms, if its "
            f"samples are {record.dt_ms:g} ms apart (dt_ms says otherwise)"
        )
    if entry.disruptive and entry.t_disruption_ms > end_ms + LATE_MS:
        raise DataError(f"disrupts at {entry.t_disruption_ms:g} ms, but the record ends at {end_ms:g} ms: is dt right?")
    return replace(shot, start=start, stop=stop)


def refuse_channels(record: Record, channels: int) -> None:
    """A DataError if a file has other channels than the first one."""
    if record.channels != channels:
        raise DataError(f"has {record.channels} channels, the shots before it have {channels}")


class Hdf5Shots:
    """``Shots`` that are read from their files each time. Preprocessed ones are many times faster.

    Mean and deviation are asked for when a model is made, which keeps them with its weights. They are then computed
    from the training split, which is read once for that; with ``norm_stats`` they are kept for the next run, too.

    Args:
        entries: as ``lists.find`` gives them.
        reading: how; decimation is plain slicing here.
        norm_stats: as ``kept_norm`` has it.
        max_bad: so many files may be unreadable; ``bad`` has a line for each.
        left_out: what ``lists.find`` left out.

    Raises:
        DataError: more files than that cannot be read.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        reading: Reading,
        norm_stats: Path | None = None,
        max_bad: int = 0,
        left_out: Sequence[str] = (),
    ) -> None:
        self.reading, self.dtype, self.left_out = reading, np.dtype(np.float32), list(left_out)
        policy, self.shots, self.channels = BadDataPolicy("skip"), list[Shot](), 0
        for entry in entries:
            with policy.at_stake("shots", entry.path), open_record(entry, reading) as record:
                self.channels = self.channels or record.channels
                refuse_channels(record, self.channels)
                self.shots.append(describe(entry, record, reading))
        self.bad = [event.title for event in policy.events()]
        if policy.left_out["shots"] > max_bad:
            raise DataError(
                f"{policy.left_out['shots']} shots cannot be used, {max_bad} may (raw.max_bad): {self.bad[0]}"
            )
        self._entries, self._max_bad = {entry.number: entry for entry in entries}, max_bad
        self._offsets: dict[int, np.ndarray] = {}
        self._norm_stats, self._norm, self._lock = norm_stats, None, threading.Lock()

    @property
    def warnings(self) -> list[str]:
        said = ((self.bad, "cannot be used"), (self.left_out, "are left out"))
        return [f"{len(lines):,} shots {text}, the first: {lines[0]} (accel-train inspect shows more)"
                for lines, text in said if lines]  # fmt: skip

    def split(self, name: str) -> list[Shot]:
        return [shot for shot in self.shots if shot.split == name]

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        """Raises ``DataError`` for values that are not finite, and for a file that cannot be read any more."""
        with self._open(number) as record:
            return self._kept(record, first, last, 0, self.channels)

    def scale(self, number: int) -> np.ndarray:
        return np.ones(self.channels, np.float32)

    def offset(self, number: int) -> np.ndarray:
        if number not in self._offsets:
            with self._open(number) as record:
                self._offsets[number] = -record.baseline(0, self.channels).astype(np.float32)
        return self._offsets[number]

    @property
    def mean(self) -> np.ndarray:
        return self._norms()[0]

    @property
    def std(self) -> np.ndarray:
        return self._norms()[1]

    def fingerprint(self) -> dict[str, Any]:
        """Of files by their size, and of what lists and options make of them."""
        files = [{"name": path.name, "rows": shot.samples, "size": path.stat().st_size} for path, shot in self._files()]
        made = plain_hash([[as_json(shot) for shot in self.shots], asdict(self.reading)])
        return {"files": [*files, {"name": "lists and options", "rows": len(files), "tag": made}]}

    def files(self, shots: Sequence[Shot]) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:  # another process opens the files again
        entries = list(self._entries.values())
        return Hdf5Shots, (entries, self.reading, self._norm_stats, self._max_bad, self.left_out)

    def _files(self, split: str | None = None) -> list[tuple[Path, Shot]]:
        return [(self._entries[shot.number].path, shot) for shot in self.shots if split in (None, shot.split)]

    @contextmanager
    def _open(self, number: int) -> Generator[Record]:
        entry = self._entries[number]
        policy = BadDataPolicy("skip")
        with policy.at_stake("shots", entry.path), open_record(entry, self.reading) as record:
            yield record
            return
        raise DataError(f"{policy.events()[0].title}; mend it, or move it away, or let tcn preprocess leave it out")

    def _kept(self, record: Record, first: int, last: int, begin: int, end: int) -> np.ndarray:
        """float32 [end - begin, last - first]: stored samples of channels ``begin`` to ``end - 1``."""
        step = self.reading.step
        kept = record.read(begin, end, first * step, max(first, last - 1) * step + (last > first))[:, ::step]
        refuse_not_finite(kept, begin)
        return kept

    def _norms(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._norm is None:
                self._norm = kept_norm(self._norm_stats, self.channels, self._identity(), self._compute_norm)
            return self._norm

    def _identity(self) -> str:
        """Of all that the statistics depend on; a file that was written again is another one."""
        files = [[shot.number, shot.start, shot.stop, path.stat().st_size, path.stat().st_mtime_ns]
                 for path, shot in self._files("train")]  # fmt: skip
        return plain_hash([files, asdict(self.reading)])

    def _compute_norm(self) -> tuple[np.ndarray, np.ndarray]:
        """Some channels at a time, so that memory is that of these."""
        if not (train := self.split("train")):
            raise DataError("no shots for training, of which mean and deviation are taken; look at the splits")
        return norm(together(self._moments(shot) for shot in train))

    def _moments(self, shot: Shot) -> Moments:
        with self._open(shot.number) as record:
            parts: list[Moments] = []
            for begin in range(0, self.channels, record.group):
                end = min(begin + record.group, self.channels)
                baseline = record.baseline(begin, end).astype(np.float32)
                parts.append(moments(self._kept(record, shot.start, shot.stop, begin, end) - baseline[:, None]))
        mean, squares = (np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "squares"))
        return Moments(parts[0].count, mean, squares)
