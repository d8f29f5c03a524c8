"""HDF5 files of ragged items, as row groups that are read a slice at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from accel_train.contents import named_hash
from accel_train.data.bad import BadDataPolicy
from accel_train.data.formats.tables import Tables
from accel_train.data.ragged import Ragged
from accel_train.data.remote.requests import is_remote, shown
from accel_train.errors import AccessError, DataError

GROUP_ROWS = 10_000
"""Rows of a row group. The file has none; this is what the same data in Parquet usually has."""


class Hdf5(Tables):
    """The format of ``LanesSource`` for HDF5 files: datasets with one entry per item, datasets with the entries of all
    items one after another, and one with the number of entries per item.

    Args:
        decode, bad: as for ``Tables``; the schema of the record batches has the metadata ``format: hdf5``.
        rows: column -> dataset [n, W] of numbers. In the record batch: a list of W float32.
        flat: column -> dataset [counts.sum(), W] of numbers. In the record batch: a list of lists of W float32.
        counts: dataset [n] of integers.
    """

    def __init__(
        self,
        decode: Callable[[pa.RecordBatch], Ragged],
        bad: BadDataPolicy,
        rows: Mapping[str, str],
        flat: Mapping[str, str],
        counts: str,
    ) -> None:
        super().__init__(decode, bad)
        self.rows, self.flat, self.counts = dict(rows), dict(flat), counts
        self._starts = lru_cache(None)(self._read_starts)  # 16 bytes per row group
        self._headers: dict[str, str] = {}

    def header(self, path: str) -> str:
        """A hash of names, shapes and types, and of all counts; "" for a file that is left out."""
        return self._headers.get(path, "")

    def group_rows(self, path: str) -> list[int]:
        return np.diff(self._starts(path)[0]).tolist()

    def batches_of(self, path: str, group: int, rows: int) -> Generator[pa.RecordBatch]:
        (first, entry), (last, _) = self._starts(path)[:, group : group + 2].T.tolist()
        for start in range(first, last, rows):
            # Opened for every block: nothing stays open while others read, nor when a reader is given up.
            with _open(path) as file:
                batch, entries = self._read(file, start, min(start + rows, last), entry)
            entry += entries
            yield batch

    def _read(self, file: h5py.File, start: int, stop: int, entry: int) -> tuple[pa.RecordBatch, int]:
        """These rows, the first of which has its first entry at ``entry``; and the number of their entries."""
        offsets = np.zeros(stop - start + 1, np.int64)
        np.cumsum(_dataset(file, self.counts)[start:stop], out=offsets[1:])
        entries = int(offsets[-1])
        columns = {name: _vectors(_dataset(file, data), start, stop) for name, data in self.rows.items()}
        for name, data in self.flat.items():
            columns[name] = pa.LargeListArray.from_arrays(
                offsets, _vectors(_dataset(file, data), entry, entry + entries)
            )
        return pa.RecordBatch.from_pydict(columns, metadata={"format": "hdf5"}), entries

    def _read_starts(self, path: str) -> np.ndarray:
        """First row and first entry of every row group, and the end of the last: int64 [2, groups + 1].

        Raises:
            DataError: a dataset is missing, of another type or shape, or does not go with the others.
        """
        with _open(path) as file:
            sets = {name: _dataset(file, name) for name in (*self.rows.values(), *self.flat.values(), self.counts)}
            counts = sets[self.counts]
            if counts.ndim != 1 or counts.dtype.kind not in "iu":
                raise DataError(f"dataset {self.counts!r} must be [n] integers, but is {_shown(counts)}")
            for name in (*self.rows.values(), *self.flat.values()):
                if sets[name].ndim != 2 or sets[name].dtype.kind not in "fiu" or sets[name].shape[1] == 0:
                    raise DataError(f"dataset {name!r} must be [n, width] numbers, but is {_shown(sets[name])}")
            rows, entries = [*range(0, len(counts), GROUP_ROWS), len(counts)], [0]
            parts = ["; ".join(f"{name} {_shown(data)}" for name, data in sets.items()).encode()]
            for start in rows[:-1]:
                part = counts[start : start + GROUP_ROWS].astype(np.int64)
                if part.min() < 0:
                    raise DataError(f"dataset {self.counts!r}, row {start + int(part.argmin())}: negative count")
                entries.append(entries[-1] + int(part.sum()))
                parts.append(part.tobytes())
            lengths = dict.fromkeys(self.rows.values(), rows[-1]) | dict.fromkeys(self.flat.values(), entries[-1])
            for name, length in lengths.items():
                if len(sets[name]) != length:
                    raise DataError(f"dataset {name!r} has {len(sets[name])} rows, but {self.counts!r} says {length}")
        self._headers[path] = named_hash(*parts)
        return np.array([rows, entries], np.int64)


def _open(path: str) -> h5py.File:
    if is_remote(path):
        raise AccessError(f"{shown(path)}: HDF5 files are not read from URLs; copy them to a disk first")
    return h5py.File(path, "r", locking="best-effort")  # shared file systems may have no locks


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Raises ``DataError`` if it is not there, or leads to what is not there."""
    found = _follow(file, name)
    if not isinstance(found, h5py.Dataset):
        broken = _broken_link(file, name)
        if broken:
            raise DataError(f"dataset {name!r} is not there: {broken}")
        if isinstance(found, h5py.Group):
            raise DataError(f"{name!r} must be a dataset, but is a group of {', '.join(map(repr, found)) or 'nothing'}")
        raise DataError(f"needs a dataset {name!r}; there are {', '.join(map(repr, file)) or 'none'}")
    if missing := _missing_source(found):
        raise DataError(f"dataset {name!r} {missing}")
    return found


def _follow(group: h5py.Group, name: str) -> Any:
    try:
        return group.get(name)
    except (OSError, RuntimeError, ValueError):  # a link into a file that is no HDF5 file, links in a circle
        return None


def _broken_link(file: h5py.Group, name: str, seen: tuple[str, ...] = ()) -> str:
    """The first link on the way to ``name`` that leads nowhere, in words; "" if there is none."""
    group: Any = file
    for part in filter(None, name.split("/")):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        there = _follow(group, part) if link is not None else None
        if there is None and isinstance(link, h5py.ExternalLink):
            return f"{part!r} is an external link to {link.path!r} in {link.filename!r}, {_state(group, link.filename)}"
        if there is None and isinstance(link, h5py.SoftLink):
            if link.path in seen:
                return "soft links lead in a circle"
            start = file if link.path.startswith("/") else group
            further = _broken_link(start, link.path, (*seen, link.path))
            return f"{part!r} is a soft link to {link.path!r}, " + (further or "which is not there")
        group = there
    return ""


def _state(beside: h5py.Group | h5py.Dataset, name: str) -> str:
    path = _find(beside, name)
    if path is None:
        return "and there is no such file"
    return "where it is not" if h5py.is_hdf5(path) else "which is no HDF5 file or is damaged"


def _find(beside: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """The path of a file that this one names: beside it or, as HDF5 tries too, in the working directory."""
    folder = os.path.dirname(os.path.abspath(beside.file.filename))
    tried = (os.path.join(folder, name), os.path.join(folder, os.path.basename(name)), name)
    return next((path for path in tried if os.path.isfile(path)), None)


def _missing_source(data: h5py.Dataset) -> str:
    """What a dataset is put together from and is not there; HDF5 would give zeros, in silence. "" if all is there."""
    for name, *_ in data.external or ():
        if _find(data, name) is None:
            return f"has its content in {name!r}, and there is no such file"
    for source in data.virtual_sources() if data.is_virtual else ():
        here = source.file_name == "."
        what = f"is put together from {source.dset_name!r} in {'this file' if here else repr(source.file_name)}"
        if here:
            if not isinstance(_follow(data.file, source.dset_name), h5py.Dataset):
                return f"{what}, where it is not"
        elif "%b" not in source.file_name:  # with a pattern of names any number of files may be there
            path = _find(data, source.file_name)
            if path is None or not h5py.is_hdf5(path):
                return f"{what}, {_state(data, source.file_name)}"
            with _open(path) as file:
                found = _follow(file, source.dset_name)
                if not isinstance(found, h5py.Dataset):
                    return f"{what}, where it is not"
                if missing := _missing_source(found):
                    return f"{what}, which {missing}"
    return ""


def _shown(data: h5py.Dataset) -> str:
    kind = "references to other objects" if h5py.check_ref_dtype(data.dtype) else str(data.dtype)
    return f"{kind} {list(data.shape) if data.shape is not None else '(empty)'}"


def _vectors(data: h5py.Dataset, start: int, stop: int) -> pa.Array:
    """Rows of a dataset as lists of float32."""
    values = data.astype(np.float32)[start:stop]
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), data.shape[1])
