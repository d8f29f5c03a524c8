"""What formats of tables have in common: they give record batches, which are decoded here, and here is what happens to
data that cannot be used."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator

import pyarrow as pa

from accel_train.data.bad import BadDataPolicy
from accel_train.data.lanes import Place
from accel_train.data.ragged import Ragged


class Tables(ABC):
    """A format of ``LanesSource``.

    Args:
        decode: one record batch to a ``Ragged`` without ``rows["row"]``; may raise ``BadRows`` or ``DataError``.
        bad: what to do about a file or rows that cannot be used.
    """

    def __init__(self, decode: Callable[[pa.RecordBatch], Ragged], bad: BadDataPolicy) -> None:
        self.decode, self.bad = decode, bad

    @abstractmethod
    def group_rows(self, path: str) -> list[int]:
        """Rows of each row group."""

    @abstractmethod
    def batches_of(self, path: str, group: int, rows: int) -> Generator[pa.RecordBatch]:
        """One row group in batches of ``rows`` rows, the last one shorter. Called from several threads at once."""

    def groups(self, path: str) -> list[int]:
        with self.bad.at_stake("files", path):
            rows = self.group_rows(path)
            if sum(rows) == 0:
                self.bad.warn(f"{path}: there are no rows in it")
            return rows
        return []

    def blocks(self, path: str, group: int, rows: int) -> Iterator[Ragged]:
        place, start = Place(path, group), 0
        batches = self.batches_of(path, group, rows)
        with self.bad.at_stake("row groups", place), contextlib.closing(batches):
            for batch in batches:
                yield self.bad.decode(self.decode, batch, place, start)
                start += len(batch)
