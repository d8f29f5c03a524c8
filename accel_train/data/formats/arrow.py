"""Nested Arrow columns as numpy arrays: whole columns at once, without a copy where Arrow allows it.

Lists, large lists and lists of fixed size, sliced or chunked, of any float or integer type. A null list is empty.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from accel_train.data.bad import BadRows
from accel_train.errors import DataError

Column: TypeAlias = pa.Array | pa.ChunkedArray


def column(batch: pa.RecordBatch | pa.Table, name: str) -> Column:
    """A column by name; DataError names the columns there are."""
    if batch.schema.get_field_index(name) < 0:  # also where two have the name
        raise DataError(f"needs one column {name!r}; there are {', '.join(map(repr, batch.schema.names)) or 'none'}")
    return batch.column(name)


def vectors(column: Column, name: str, width: int | None = None) -> np.ndarray:
    """A column of equally long lists of numbers as float32 [B, W].

    Args:
        width: W; by default what most rows have; without rows what the type says, or else 0.

    Raises:
        DataError: the column is of another type.
        BadRows: rows of another length, or with a null among their numbers.
    """
    lengths, numbers = _lists(_single(column), name, "list of numbers")
    if width is None:
        width = _usual(lengths) if len(lengths) else int(getattr(column.type, "list_size", 0))
    other = np.flatnonzero(lengths != width)
    if len(other):
        raise BadRows(f"{name}: {lengths[other[0]]} numbers, not {width}", other)
    values, nulls = _float32(numbers, name)
    if len(nulls):
        raise BadRows(f"{name}: a null among the numbers", np.unique(nulls // width))
    return values.reshape(len(lengths), width)


def nested(column: Column, name: str, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists of equally long lists of numbers.

    Args:
        width: W; by default what most inner lists have; without any what the type says, or else 0.

    Returns:
        counts: int64 [B], inner lists per row.
        values: float32 [counts.sum(), W].

    Raises:
        DataError, BadRows: as ``vectors``.
    """
    lengths, entries = _lists(_single(column), name, "list of lists of numbers")
    counts = lengths.astype(np.int64)
    try:
        return counts, vectors(entries, name, width)
    except BadRows as error:
        rows = np.searchsorted(np.cumsum(counts), error.rows, side="right")
        within = error.rows[0] - counts[: rows[0]].sum()
        raise BadRows(f"{error.reason} (entry {within})", np.unique(rows)) from None


def _single(column: Column) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _lists(lists: pa.Array, name: str, wanted: str) -> tuple[np.ndarray, pa.Array]:
    """Length of each list, and what they hold, one after another; null lists hold nothing."""
    kind = lists.type
    if pt.is_null(kind):  # what a reader of JSON makes of a column that is empty everywhere
        return np.zeros(len(lists), np.int64), lists.slice(0, 0)
    if pt.is_fixed_size_list(kind):
        lengths = np.full(len(lists), kind.list_size, np.int32)
        if lists.null_count:
            lengths[lists.is_null().to_numpy(zero_copy_only=False)] = 0
        return lengths, lists.flatten()
    if pt.is_list(kind) or pt.is_large_list(kind):
        lengths = lists.value_lengths()
        return (lengths.fill_null(0) if lists.null_count else lengths).to_numpy(), lists.flatten()
    raise DataError(f"column {name!r} must be a {wanted}, but there is {kind}")


def _float32(numbers: pa.Array, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, and where there is a null instead of one."""
    kind = numbers.type
    if pt.is_null(kind) or ((pt.is_floating(kind) or pt.is_integer(kind)) and numbers.null_count):
        nulls = np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))
        return np.zeros(len(numbers), np.float32), nulls
    if not (pt.is_floating(kind) or pt.is_integer(kind)):
        raise DataError(f"column {name!r} must hold numbers, but there is {kind}")
    with np.errstate(over="ignore"):  # too large is infinite, which is for the caller to judge
        return numbers.to_numpy().astype(np.float32, copy=False), np.zeros(0, np.int64)


def _usual(lengths: np.ndarray) -> int:
    """The most frequent length; the smallest of several."""
    if (lengths == lengths[0]).all():
        return int(lengths[0])
    values, counts = np.unique(lengths, return_counts=True)
    return int(values[counts.argmax()])
