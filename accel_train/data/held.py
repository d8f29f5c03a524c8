"""What a data set of one's own holds: the arrays among its attributes, and how they are known again.

Arrays in memory and small files are hashed when a run starts. Of larger ones that have a row for each item, the rows
are hashed when the items are read. Files that arrays are maps of are known, so that a change of them is noticed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from accel_train.contents import Contents, hash_of, named_hash

AT_START = 1 << 28
"""Bytes that are hashed at the start, the smallest arrays first: some tenths of a second."""
BLOCK_BYTES = 1 << 16
"""Rows that are hashed together: at least so much, since each call costs a microsecond."""
DEEPEST, MOST = 6, 100_000
"""How far attributes are followed, and how many values are looked at: beyond that data are not known."""
OWN_NAMES = 64
"""Of a list or a dict with no more entries each array is known by its own name."""
_NO_DATA = (type, ModuleType, FunctionType, MethodType)


class Held:
    """The arrays that a data set holds.

    Args:
        data: any object; its attributes, the items of its lists and dicts, and their attributes are looked through.
        items: how many it has, or None.

    Attributes:
        contents: the hashes of rows that are looked at when they are read, and the files of all arrays; None if there
            are neither.
        unknown: arrays too large to be hashed that have no row for each item, in words.
    """

    def __init__(self, data: Any, items: int | None) -> None:
        walk = _Walk(data)
        self._at_start: dict[str, np.ndarray] = walk.values
        self.unknown = walk.unknown
        by_row: dict[str, np.ndarray] = {}
        size = 0
        for name, array in sorted(walk.found.items(), key=lambda pair: pair[1].nbytes):
            size += array.nbytes
            if size <= AT_START:
                self._at_start[name] = array
            elif items is not None and array.ndim and len(array) == items:
                by_row[name] = array
            else:
                self.unknown.append(f"{name} ({_shape(array)})")
        self._shapes = {name: _shape(array) for name, array in by_row.items()}
        self._rows = list(by_row.values())
        self._each = max(1, BLOCK_BYTES // max(1, sum(array[:1].nbytes for array in self._rows)))
        self.contents = None
        files = {name: path for name, array in walk.found.items() if (path := _file_of(array))}
        if by_row or files:
            blocks = -(-(items or 0) // self._each) if by_row else 0
            told = files.values() if by_row.keys() <= files.keys() else ()  # else nothing would tell of other rows
            name = type(data).__name__
            self.contents = Contents(blocks, lambda block: self._place(block, items or 0, name), told)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_at_start": {}}

    def look_at(self, items: np.ndarray) -> None:
        """These are read now."""
        if self.contents is not None and self._rows:
            self.contents.look_around(items, self._each, lambda a, b: [array[a:b] for array in self._rows])

    def fingerprint(self) -> dict[str, Any]:
        """For a checkpoint; {} if nothing was found."""
        parts = {name: named_hash(*_of_array(array)) for name, array in self._at_start.items()}
        return {"parts": parts | self._shapes} if parts or self._shapes else {}

    def _place(self, block: int, items: int, name: str) -> str:
        first = block * self._each
        return f"{name}, items {first:,} to {min(first + self._each, items) - 1:,}"


def _file_of(array: Any) -> str:
    """Of which file an array is a map that only reads; "" if of none."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.filename is not None:
            return str(array.filename) if array.mode in ("r", "c") else ""  # others may be written to by their owner
        array = array.base
    return ""


def _of_array(array: np.ndarray) -> tuple[Any, ...]:
    return _shape(array).encode(), array


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


class _Walk:
    """Through attributes, lists and dicts, each object once.

    Attributes:
        found: arrays, by the path of attributes that leads there.
        values: of lists and dicts whose items are no large arrays, one array of hashes, uint64. Single numbers and
            texts among the attributes are settings, which may change, and are left out.
        unknown: what was left out since it is too much, in words.
    """

    def __init__(self, data: Any) -> None:
        self.found: dict[str, np.ndarray] = {}
        self.unknown: list[str] = []
        self._hashes: dict[str, list[int]] = {}
        self._seen: set[int] = set()
        self._left, self._bytes_left = MOST, AT_START
        self._into(data, "", 0, isinstance(data, (list, tuple, Mapping)))
        self.values = {name or "items": np.array(hashes, np.uint64) for name, hashes in self._hashes.items()}

    def _into(self, value: Any, name: str, depth: int, is_item: bool) -> None:
        if self._left == 0 or depth > DEEPEST or isinstance(value, _NO_DATA):
            return
        self._left -= 1
        if self._left == 0:
            self.unknown.append(f"more than {MOST:,} values")
        array = _as_array(value)
        if array is not None and array.dtype != object:
            if is_item:
                self._array_in_a_list(name, array)
            else:
                self.found[name] = array
        elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
            if is_item:
                text = value if isinstance(value, bytes) else _as_text(value).encode()
                self._hashes.setdefault(name, []).append(hash_of(type(value).__name__.encode(), text))
        elif id(value) not in self._seen:
            self._seen.add(id(value))
            self._members(value, name, depth + 1, is_item)

    def _members(self, value: Any, name: str, depth: int, is_item: bool) -> None:
        if isinstance(value, (Mapping, list, tuple)):
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            if (numbers := _numbers(value)) is not None:
                pairs = [("", numbers)]
            own_names = not is_item and len(value) <= OWN_NAMES
            for key, member in pairs:
                if own_names and _as_array(member) is not None:  # x and y of a dict, the tensors of a TensorDataset
                    self._into(member, f"{name}.{key}".strip("."), depth, False)
                else:
                    self._into(member, name, depth, True)
        else:
            for key, member in _attributes(value).items():
                self._into(member, f"{name}.{key}".strip("."), depth, False)

    def _array_in_a_list(self, name: str, array: np.ndarray) -> None:
        self._bytes_left -= array.nbytes
        if self._bytes_left >= 0:
            self._hashes.setdefault(name, []).append(hash_of(*_of_array(array)))
        elif name not in self.unknown:
            self.unknown.append(name)


def _as_array(value: Any) -> np.ndarray | None:
    """An array, a tensor, a column or a series; without a copy where that is possible."""
    if isinstance(value, np.ndarray):
        return value
    torch, pyarrow, pandas = (sys.modules.get(name) for name in ("torch", "pyarrow", "pandas"))
    if torch is not None and isinstance(value, torch.Tensor):
        plain = value.detach()
        if plain.device.type != "cpu" or plain.layout != torch.strided:
            return None
        return plain.view(torch.uint8).numpy() if plain.dtype == torch.bfloat16 and plain.ndim else plain.numpy()
    if pyarrow is not None and isinstance(value, pyarrow.Table):
        return _of_table(value)
    if pandas is not None and isinstance(value, (pandas.DataFrame, pandas.Series, pandas.Index)):
        return np.asarray(pandas.util.hash_pandas_object(value))
    return None


def _of_table(table: Any) -> np.ndarray:
    """A hash of each buffer of an Arrow table."""
    found = [hash_of(str(table.schema).encode(), str(table.num_rows).encode())]
    if table.nbytes <= AT_START:
        for chunk in (chunk for column in table.columns for chunk in column.chunks):
            found.append(hash_of(*(memoryview(buffer) for buffer in chunk.buffers() if buffer is not None)))
            found.append(chunk.offset)
    return np.array(found, np.uint64)


def _numbers(values: Any) -> np.ndarray | None:
    """A long list of plain numbers at once."""
    if isinstance(values, Mapping) or len(values) < 64 or {*map(type, values)} not in ({int}, {float}):
        return None
    array = np.asarray(values)
    return None if array.dtype == object else array


def _attributes(value: Any) -> dict[str, Any]:
    if type(value).__module__.partition(".")[0] == "datasets":  # the rest says where it came from
        there = {name: getattr(value, name, None) for name in ("_data", "_indices", "table")}
        return {name: member for name, member in there.items() if member is not None}
    return getattr(value, "__dict__", {})


def _as_text(value: Any) -> str:
    """Of a path the name alone: data that were moved are the same."""
    text = str(value) if isinstance(value, Path) else value if isinstance(value, str) else repr(value)
    return text.rpartition("/")[2] if text.startswith(("/", "~")) else text
