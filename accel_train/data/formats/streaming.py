"""Whatever the datasets library can stream: slower, and a file is read in one go, but any of its formats will do."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Generator
from functools import lru_cache
from glob import escape
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from datasets import config, load_dataset
from datasets.exceptions import DatasetsError

from accel_train.data.bad import BadDataPolicy
from accel_train.data.formats.tables import Tables
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError

BUILDERS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".arrow": "arrow",
}
"""Extension -> builder of the datasets library: those whose columns can be lists."""

_opening = threading.Lock()  # load_dataset is not made for several threads at once: its progress bars share a lock
COUNT_ROWS = 65_536
CHECKED = ds.ParquetFragmentScanOptions(page_checksum_verification=True)


class Streaming(Tables):
    """The format of ``LanesSource`` for Parquet, JSON (lines) and Arrow files, also compressed ones (``.jsonl.gz``).

    A file is one row group. Its rows are counted by reading it once, so many large files take long to start.

    Args:
        decode, bad: as for ``Tables``.
    """

    def __init__(self, decode: Callable[[pa.RecordBatch], Ragged], bad: BadDataPolicy) -> None:
        super().__init__(decode, bad)
        self._count = lru_cache(None)(lambda path: sum(map(len, _batches(path, COUNT_ROWS))))

    def group_rows(self, path: str) -> list[int]:
        return [self._count(path)]

    def batches_of(self, path: str, group: int, rows: int) -> Generator[pa.RecordBatch]:
        return _batches(path, rows)


def _batches(path: str, rows: int) -> Generator[pa.RecordBatch]:
    """A file in batches of ``rows`` rows, the last one shorter.

    Raises:
        DataError: an unknown extension, or the library cannot read the file.
    """
    found = [BUILDERS[suffix] for suffix in map(str.lower, PurePath(path).suffixes) if suffix in BUILDERS]
    if not found:
        raise DataError(f"cannot tell its kind by the extension; there are {', '.join(BUILDERS)}")
    # Parquet would be read a row group at a time, and one without rows not at all.
    options: dict[str, Any] = {"batch_size": rows, "fragment_scan_options": CHECKED} if found[-1] == "parquet" else {}
    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # otherwise opening a local file asks the network first
    try:
        with _opening, tempfile.TemporaryDirectory() as cache:  # streaming keeps nothing but wants a place for a lock
            stream: Any = load_dataset(
                found[-1], data_files=[escape(path)], split="train", streaming=True, cache_dir=cache, **options
            )
        for table in stream.with_format("arrow").iter(rows):
            yield from table.combine_chunks().to_batches()
    except (DatasetsError, pa.ArrowException) as error:
        reason = error.__cause__ or error
        if isinstance(reason, OSError) and reason.errno:  # not of the content
            raise reason from None
        raise DataError(f"the datasets library cannot read it: {reason}".splitlines()[0]) from error
