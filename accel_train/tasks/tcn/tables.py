"""Shots as a table, the way open tools for tokamak data write it: shot, time, time_until_disrupt, and a column for each
signal, in CSV or Parquet. Times are in seconds; time_until_disrupt is empty (NaN) for a shot that did not disrupt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.contents import named_hash
from accel_train.data.units import plain_hash
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.norm import Moments, norm, together
from accel_train.tasks.tcn.shots import SPLITS, Shot, index, split_of
from accel_train.tasks.tcn.store import as_json

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ("shot", "time", "time_until_disrupt")
AGREE_MS = 1.0
"""By which the rows of a shot may differ in when it disrupts."""


class Table:
    """``Shots`` of a table, in memory as float32 on an even grid.

    A sample is the newest row at its time or before it, and a signal that a row does not have is the one of the row
    before: no sample knows of what comes after it. Where nothing came before it is the mean of the training split.

    Args:
        path: .csv or .parquet. A column ``split`` (train, val, test) is taken, if there is one; else the split follows
            from the number of a shot.
        dt_ms: of the grid. Rows may be uneven, as they often are before a disruption.
        signals: columns; all numbers besides the key by default.

    Raises:
        UserError: dt is not above 0, or a signal is not there.
        DataError: the table cannot be read; rows of a shot are out of order or disagree on when it disrupts or on its
            split; there is no shot for training, or a signal without any value there.
    """

    def __init__(self, path: str | Path, dt_ms: float, signals: Sequence[str] | None = None) -> None:
        if not 0 < dt_ms < np.inf:
            raise UserError(f"dt_ms: must be above 0, it is {dt_ms}")
        self.path, self.dt_ms, self.dtype = Path(path), dt_ms, np.dtype(np.float32)
        table = _read(self.path)
        self.signals = _signals(self.path, table, signals)
        self.channels = len(self.signals)
        numbers = _column(self.path, table, "shot").astype(np.int64)
        values = np.stack([_column(self.path, table, name) for name in self.signals])
        times, until = (1000 * _column(self.path, table, name) for name in KEYS[1:])
        splits = table["split"].to_pylist() if "split" in table.column_names else None
        self.shots: list[Shot] = []
        self._values: dict[int, np.ndarray] = {}
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            split = split_of(number) if splits is None else _split(self.path, number, {splits[row] for row in rows})
            where = f"{self.path}: shot {number}"
            shot = _shot(where, number, times[rows], until[rows], dt_ms, split)
            self.shots.append(shot)
            self._values[number] = _hold(values[:, rows], times[rows], shot)
        train = [self._values[shot.number] for shot in self.split("train")]
        if not train:
            raise DataError(f"{self.path}: no shot is for training, of which mean and deviation are taken")
        self.mean, self.std = self._norm(train)
        for array in self._values.values():
            np.copyto(array, self.mean.astype(np.float32)[:, None], where=np.isnan(array))

    def split(self, name: str) -> list[Shot]:
        return [shot for shot in self.shots if shot.split == name]

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        return self._values[number][:, first:last]

    def scale(self, number: int) -> np.ndarray:
        return np.ones(self.channels, np.float32)

    def offset(self, number: int) -> np.ndarray:
        return np.zeros(self.channels, np.float32)

    def fingerprint(self) -> dict[str, Any]:
        made = plain_hash([[as_json(shot) for shot in self.shots], self.signals])
        size = self.path.stat().st_size
        values = named_hash(*(self._values[shot.number] for shot in self.shots))
        return {
            "files": [{"name": self.path.name, "rows": len(self.shots), "size": size, "tag": made, "header": values}]
        }

    def files(self, shots: Sequence[Shot]) -> list[Path]:
        return []

    def _norm(self, train: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of the values that are there, signal by signal."""
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for channel, name in enumerate(self.signals):
            rows = [array[channel][~np.isnan(array[channel])].astype(np.float64) for array in train]
            parts = [Moments(len(x), x.mean(keepdims=True), np.square(x - x.mean()).sum(keepdims=True))
                     for x in rows if len(x)]  # fmt: skip
            if not parts:
                raise DataError(f"{self.path}: {name} has no value in any shot for training; leave it out of signals")
            found.append(norm(together(parts)))
        mean, std = (np.concatenate(each) for each in zip(*found, strict=True))
        return mean, std


def _read(path: Path) -> pa.Table:
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".csv":
            return csv.read_csv(path)
        if path.suffix == ".parquet":
            return parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    raise UserError(f"{path}: a table is .csv or .parquet")


def _signals(path: Path, table: pa.Table, asked: Sequence[str] | None) -> list[str]:
    for name in KEYS:
        if name not in table.column_names:
            raise DataError(f"{path}: has no column {name}; there are {', '.join(table.column_names)}")
    others = [name for name in table.column_names if name not in (*KEYS, "split")]
    if asked is not None and (missing := [name for name in asked if name not in others]):
        raise UserError(f"signals: {path} has no {', '.join(missing)}; there are {', '.join(others)}")
    chosen = others if asked is None else list(asked)
    if not chosen:
        raise DataError(f"{path}: has no signals, only {', '.join(table.column_names)}")
    return chosen


def _column(path: Path, table: pa.Table, name: str) -> np.ndarray:
    """float64, NaN where nothing is."""
    import pyarrow as pa

    try:
        values = table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException:
        raise DataError(f"{path}: column {name} is {table[name].type}, must be numbers") from None
    if infinite := int(np.isinf(values).sum()):
        raise DataError(f"{path}: column {name} has {infinite:,} values that are infinite; leave them empty")
    return values


def _split(path: Path, number: int, said: set[Any]) -> str:
    names = {"validation" if str(name).lower() == "val" else str(name).lower() for name in said}
    if len(names) > 1 or not names <= set(SPLITS):
        raise DataError(f"{path}: shot {number} has split {', '.join(sorted(names))}; must be one of train, val, test")
    return names.pop()


def _shot(where: str, number: int, times: np.ndarray, until: np.ndarray, dt_ms: float, split: str) -> Shot:
    """Its segment is the whole record, to the disruption."""
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise DataError(f"{where}: its rows must be in order of their times, each once")
    ends = times + until
    disruptive, t0 = bool(np.isfinite(until).any()), float(times[0])
    if disruptive and not np.ptp(ends) <= AGREE_MS:
        raise DataError(f"{where}: time + time_until_disrupt goes from {ends.min():g} to {ends.max():g} ms; it must be "
                        "the same in all rows")  # fmt: skip
    end = float(ends[0]) if disruptive else float("nan")
    samples = index(float(times[-1]), t0, dt_ms) + 1
    stop = min(samples, max(1, index(end, t0, dt_ms))) if disruptive else samples
    return Shot(number, disruptive, end, t0, dt_ms, samples, 0, stop, split)


def _hold(values: np.ndarray, times: np.ndarray, shot: Shot) -> np.ndarray:
    """float32 [C, samples]; NaN where nothing came before."""
    known = np.where(np.isnan(values), -1, np.arange(values.shape[1]))
    latest = np.maximum.accumulate(known, 1)  # the newest row that has the signal
    filled = np.where(latest >= 0, np.take_along_axis(values, np.maximum(latest, 0), 1), np.nan)
    grid = shot.t0_ms + shot.dt_ms * np.arange(shot.samples)
    rows = np.searchsorted(times, grid + 1e-6 * shot.dt_ms, side="right") - 1
    return filled[:, rows].astype(np.float32)
