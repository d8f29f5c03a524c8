"""Parquet files, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from accel_train.data.bad import Bad
from accel_train.data.lanes import Place
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError


class Parquet:
    """The format of ``LanesSource`` for Parquet files. Reads with the thread that asks, and only these columns.

    Args:
        columns: the names to read.
        decode: one record batch to a ``Ragged`` without ``rows["row"]``; may raise ``BadRows`` or ``DataError``.
        bad: what to do about a file or rows that cannot be used.
        open: path -> what ``pyarrow.parquet.ParquetFile`` takes; for remote files.
    """

    def __init__(
        self,
        columns: Sequence[str],
        decode: Callable[[pa.RecordBatch], Ragged],
        bad: Bad,
        open: Callable[[str], Any] = str,
    ) -> None:
        self.columns, self.decode, self.bad, self._open = list(columns), decode, bad, open
        # A footer costs as much to parse as some hundred rows; files are read a row group at a time.
        self._metadata = lru_cache(256)(self._read_metadata)

    def _read_metadata(self, path: str) -> pq.FileMetaData:
        with pq.ParquetFile(self._open(path)) as file:
            return file.metadata

    def groups(self, path: str) -> list[int]:
        with self.bad.file(path):
            metadata = self._metadata(path)
            self._check_columns(metadata)
            return self.bad.counted(path, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        return []

    def _check_columns(self, metadata: pq.FileMetaData) -> None:
        there = metadata.schema.to_arrow_schema().names
        missing = [name for name in self.columns if name not in there]
        if missing:
            raise DataError(f"no column {missing[0]!r}; there are {', '.join(there)}")

    def blocks(self, path: str, group: int, rows: int) -> Iterator[Ragged]:
        place, start = Place(path, group), 0
        with self.bad.rest_of(place):
            source = self._open(path)
            with pq.ParquetFile(
                source,
                metadata=self._metadata(path),
                memory_map=True,
                pre_buffer=False,
                page_checksum_verification=True,
            ) as file:
                read = file.iter_batches(rows, row_groups=[group], columns=self.columns, use_threads=False)
                for batch in _regular(read, rows):
                    yield self.bad.decode(self.decode, batch, place, start)
                    start += len(batch)


def _regular(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of exactly ``rows`` (the last one shorter), which Arrow gives almost always."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= rows:
            whole = waiting[0] if len(waiting) == 1 else _join(waiting)
            yield whole.slice(0, rows)
            waiting = [whole.slice(rows)] if len(whole) > rows else []
    if waiting:
        yield _join(waiting)


def _join(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
