"""Parquet files, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from accel_train.contents import named_hash
from accel_train.data.bad import BadDataPolicy
from accel_train.data.formats.tables import Tables
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError


class Parquet(Tables):
    """The format of ``LanesSource`` for Parquet files. Reads with the thread that asks, and only these columns.

    Args:
        columns: the names to read.
        decode, bad: as for ``Tables``.
        open: path -> what ``pyarrow.parquet.ParquetFile`` takes; for remote files.
    """

    def __init__(
        self,
        columns: Sequence[str],
        decode: Callable[[pa.RecordBatch], Ragged],
        bad: BadDataPolicy,
        open: Callable[[str], Any] = str,
    ) -> None:
        super().__init__(decode, bad)
        self.columns, self._open = list(columns), open
        # A footer costs as much to parse as some hundred rows; files are read a row group at a time.
        self._metadata = lru_cache(256)(self._read_metadata)
        self._headers: dict[str, str] = {}

    def header(self, path: str) -> str:
        """A hash of the footer, as it was when the row groups were asked for; "" for a file that is left out."""
        return self._headers.get(path, "")

    def _read_metadata(self, path: str) -> pq.FileMetaData:
        with pq.ParquetFile(self._open(path)) as file:
            return file.metadata

    def group_rows(self, path: str) -> list[int]:
        metadata = self._metadata(path)
        there = metadata.schema.to_arrow_schema().names
        missing = [name for name in self.columns if name not in there]
        if missing:
            raise DataError(f"no column {missing[0]!r}; there are {', '.join(there)}")
        footer = pa.BufferOutputStream()
        metadata.write_metadata_file(footer)
        self._headers[path] = named_hash(memoryview(footer.getvalue()))
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def batches_of(self, path: str, group: int, rows: int) -> Generator[pa.RecordBatch]:
        source = self._open(path)
        with pq.ParquetFile(
            source, metadata=self._metadata(path), memory_map=True, pre_buffer=False, page_checksum_verification=True
        ) as file:
            read = file.iter_batches(rows, row_groups=[group], columns=self.columns, use_threads=False)
            yield from _regular(read, rows)


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
