"""Shots: what is known of each, where a time becomes an index, and what every reader of shots gives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from accel_train import keyed
from accel_train.errors import DataError

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)
"""Of the shots of a class, where nothing says which split a shot belongs to."""

ON_GRID = 1e-6
"""Samples. A time that is so near to a sample is that sample's: neither 0.1 nor 1.7 / 0.1 is exact in binary."""


@dataclass(frozen=True)
class Shot:
    """One discharge, as it is stored. Times are plasma times in ms.

    Args:
        number: the shot number, unique in a data set.
        disruptive: whether it ended in a disruption.
        t_disruption_ms: when; NaN for a clear one.
        t0_ms: of stored sample 0.
        dt_ms: from one stored sample to the next.
        samples: how many are stored.
        start, stop: stored samples of the segment that counts, ``stop`` exclusive.
        split: one of ``SPLITS``.
    """

    number: int
    disruptive: bool
    t_disruption_ms: float
    t0_ms: float
    dt_ms: float
    samples: int
    start: int
    stop: int
    split: str

    def index(self, t_ms: float) -> int:
        """The stored sample of a time, by ``index``."""
        return index(t_ms, self.t0_ms, self.dt_ms)


class Shots(Protocol):
    """What a reader of shots gives. Physical value = stored * scale + offset, then z = (physical - mean) / std.

    Methods may be called from several threads at once.
    """

    @property
    def shots(self) -> list[Shot]:
        """In order of their numbers."""
        ...

    @property
    def channels(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what ``read`` gives."""
        ...

    @property
    def mean(self) -> np.ndarray:
        """float64 [C], over the segments of the training split."""
        ...

    @property
    def std(self) -> np.ndarray:
        """float64 [C], likewise; 1 where a channel never changes."""
        ...

    def split(self, name: str) -> list[Shot]:
        """The shots of a split."""
        ...

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        """[C, last - first] stored samples of a shot; 0 <= first <= last <= samples. Not to be written to."""
        ...

    def scale(self, number: int) -> np.ndarray:
        """float32 [C]."""
        ...

    def offset(self, number: int) -> np.ndarray:
        """float32 [C]."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """As ``BatchSource.fingerprint``."""
        ...

    def files(self, shots: Sequence[Shot]) -> list[Path] | None:
        """Those that ``read`` of these shots maps into memory, as ``Contents`` has it: none if all are in memory, None
        if they are read anew each time."""
        ...


def index(t_ms: float, t0_ms: float, dt_ms: float) -> int:
    """The first sample at or after a time; sample i is at t0 + i dt. It may lie before or behind what is stored.

    So the samples of a <= t < b are ``range(index(a), index(b))``, and what holds for all samples of a record holds for
    those that decimation kept.
    """
    return math.ceil((t_ms - t0_ms) / dt_ms - ON_GRID)


def split_of(number: int) -> str:
    """The split of a shot of which nothing says it: a function of its number, so that more shots move none."""
    value = float(keyed.uniform(keyed.key("tcn split"), np.array([number]))[0, 0])
    train, validation, _ = SHARES
    return SPLITS[0] if value < train else SPLITS[1] if value < train + validation else SPLITS[2]


def refuse_twice(numbers: Iterable[int], where: str) -> None:
    """A DataError if a number is there more than once: its shot could be trained on and held out."""
    twice = sorted(number for number, times in Counter(numbers).items() if times > 1)
    if twice:
        raise DataError(f"{where}: shot {twice[0]} is there more than once ({len(twice)} such shots); leave one out")
