"""Ragged data as flat arrays in files that are mapped into memory: written once, then read in any order.

folder/flat/           manifest.json, offsets.npy, rows.NAME.npy, flat.NAME.npy: all that is read
folder/.flat.writing/  what is being written; flushed and renamed when it is complete
folder/lock            a kernel lock, gone with the process that holds it: one process builds, the others wait
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.contents import Contents
from accel_train.data.lanes import LanesSource, event_keys
from accel_train.data.ragged import Ragged, gather
from accel_train.data.remote import storage
from accel_train.data.remote.requests import is_remote
from accel_train.data.source import IndexedSource
from accel_train.data.threads import Threads
from accel_train.errors import DataError, UserError
from accel_train.system.locking import locked
from accel_train.system.secrets import scrub
from accel_train.system.writing import replace_folder
from accel_train.task import Batch, Event

log = logging.getLogger(__name__)

VERSION = 1  # of what is in the folder
BLOCK_BYTES = 1 << 16
"""Of neighbouring items whose content is looked at together."""
WAIT_S = 3600.0
"""Longest wait for another process that builds the cache."""


def cached(
    folder: str | Path,
    source: LanesSource,
    settings: Mapping[str, Any],
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
) -> CachedSource:
    """Batches of what ``source`` reads, from a cache that is built first where there is none, or not the right one.

    Args:
        folder: on a local disk with room for the data as it is in memory; may be missing or empty.
        source: in order, as for ``build``.
        settings: what else than the files decides the content, such as layouts and splits; values that JSON knows.
        batch_size, seed, shuffle: as for ``IndexedSource``; all events are shuffled, not only those of a block.

    Raises:
        UserError: the folder cannot be written to, or the wait was too long.
        DataError: the data cannot be read.
    """
    folder = Path(folder)
    with _alone(folder):
        why, started = _unfit(folder, _origin(source, settings)), time.monotonic()
        if why:
            log.warning("%s: %s; reading %s rows into it now", folder, why, f"{source.total_rows:,}")
            build(folder, source, settings)
        cache = FlatCache(folder)
    events = source.events()
    if why:
        events.append(Event("note", f"{folder}: {why}; built in {time.monotonic() - started:.1f} s"))
    elif cache.left_out:
        left_out = ", ".join(f"{number:,} {what}" for what, number in cache.left_out.items())
        events.append(Event("warning", f"{folder}: was built without {left_out} that could not be used"))
    return CachedSource(cache, batch_size, seed, shuffle, events, source.fingerprint())


def build(folder: str | Path, source: LanesSource, settings: Mapping[str, Any]) -> None:
    """Write the cache, a batch of ``source`` at a time; what was there is replaced when all is written.

    Args:
        source: ``lanes=1`` and ``shuffle="none"``: items keep their order, and their number in ``event``.
    """
    if source.lanes != 1 or source.shuffle != "none":
        raise ValueError("a flat cache is built from one lane that is not shuffled")

    def write(building: Path) -> None:
        origin = _origin(source, settings)  # before the files are read: one that changes meanwhile makes it stale
        arrays = _write_arrays(building, source)
        left_out = source.bad.left_out if source.bad else {}
        manifest = json.dumps({"arrays": arrays, "left_out": left_out, "origin": origin}, indent=1)
        (building / "manifest.json").write_text(manifest)

    try:
        replace_folder(Path(folder) / "flat", write)
    except OSError as error:
        raise UserError(f"{folder}: the flat cache cannot be written: {error.strerror or error}") from None


class FlatCache:
    """Items of a cache that is there, in any order, for an ``IndexedSource``. What it returns are copies of its own.

    Args:
        folder: as given to ``build``.

    Raises:
        DataError: there is no cache, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            manifest = json.loads((self.folder / "flat" / "manifest.json").read_text())
            arrays = {name: self._map(name, about) for name, about in manifest["arrays"].items()}
            self.origin: dict[str, Any] = manifest["origin"]
            self.left_out: dict[str, int] = manifest["left_out"]
            self._offsets = arrays.pop("offsets")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self.folder}: the flat cache is damaged: {type(error).__name__}: {error}") from None
        self._rows, self._flat = (
            {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in ("rows.", "flat.")
        )
        in_bytes = sum(array.nbytes for array in (*self._rows.values(), *self._flat.values()))
        self._each = max(1, BLOCK_BYTES * len(self) // max(1, in_bytes))
        self.contents = Contents(-(-len(self) // self._each), self._place, self._paths(manifest["arrays"]))

    def _paths(self, names: Iterable[str]) -> list[Path]:
        return [self.folder / "flat" / f"{name}.npy" for name in names]

    def _map(self, name: str, about: Mapping[str, Any]) -> np.ndarray:
        (path,) = self._paths([name])
        if path.stat().st_size != about["bytes"]:
            raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes, not {about['bytes']:,}")
        array = np.load(path, mmap_mode="r").view(np.ndarray)
        if [array.dtype.str, *array.shape] != [about["dtype"], *about["shape"]]:
            raise ValueError(f"{path.name} holds {array.dtype} {array.shape}, not {about['dtype']} {about['shape']}")
        return array

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return FlatCache, (self.folder,), {"contents": self.contents}  # another process maps the files itself

    def take(self, indices: np.ndarray) -> Ragged:
        """These items (int64), in this order."""
        self.contents.look_around(indices, self._each, self._slices)
        n = len(indices)
        if n == 0 or indices[-1] - indices[0] != n - 1 or (np.diff(indices) != 1).any():
            return gather(self._rows, self._offsets, self._flat, indices)
        a, b = int(indices[0]), int(indices[-1]) + 1
        offsets = self._offsets[a : b + 1]
        return Ragged(
            {name: values[a:b].copy() for name, values in self._rows.items()},
            np.diff(offsets),
            {name: values[offsets[0] : offsets[-1]].copy() for name, values in self._flat.items()},
        )

    def fingerprint(self) -> dict[str, Any]:
        """What it was made of says more, see ``CachedSource``."""
        arrays = {**self._rows, **self._flat}
        return {"parts": {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items()}}

    def _slices(self, first: int, last: int) -> list[np.ndarray]:
        offsets = self._offsets[first : last + 1]
        flat = [values[offsets[0] : offsets[-1]] for values in self._flat.values()]
        return [*(values[first:last] for values in self._rows.values()), offsets, *flat]

    def _place(self, block: int) -> str:
        return (
            f"{self.folder / 'flat'}, items {block * self._each:,} to {min((block + 1) * self._each, len(self)) - 1:,}"
        )

    def read(self, indices: np.ndarray) -> Batch:
        """The arrays of ``LanesSource``, but for ``key``, which depends on the epoch."""
        return self.take(indices).batch()


class CachedSource(IndexedSource):
    """Batches with all the arrays of ``LanesSource``; ``events`` are reported once; ``origin`` is its fingerprint."""

    def __init__(
        self, cache: FlatCache, batch_size: int, seed: int, shuffle: bool, events: list[Event], origin: dict[str, Any]
    ) -> None:
        super().__init__(cache, batch_size, seed, shuffle)
        self._events, self._origin = events, origin

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), **self._origin}

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        batch = super().batch(epoch, step, rank, world_size)
        return batch and {**batch, "key": event_keys(self.seed, epoch, batch["event"])}

    def item_names(self, batch: Batch) -> list[str]:
        """Where each was in the files that the cache was made of."""
        files = self._origin["files"]
        ends = np.cumsum([file["rows"] for file in files])
        of = [(int(np.searchsorted(ends, event, side="right")), event) for event in batch["event"].tolist()]
        return [f"{files[file]['name']}, row {event - int(ends[file]) + files[file]['rows']}" for file, event in of]

    def first(self, items: int) -> Ragged:
        """What epoch 0 begins with, at most so many items: a sample to be looked at."""
        order = self._permutation(0) if self.shuffle else np.arange(len(self.data))
        return self.data.take(order[:items])

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


# -- what a cache was made of ----------------------------------------------------------------------------------------


def _origin(source: LanesSource, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the content, as JSON gives it back: per file its rows, bytes and time of change, or what its
    server says of it."""

    def identity(path_and_rows: tuple[str, int]) -> list[Any]:
        path, rows = path_and_rows
        if rows == 0:  # also what cannot be read and is left out
            return [rows, 0]
        if is_remote(path):
            known = storage.known(path)
            return [rows, known.size, known.server, known.tag, known.time]
        stat = os.stat(storage.local_path(path))
        return [rows, stat.st_size, stat.st_mtime_ns]

    found = Threads(16, "sizes").map(identity, zip(source.files, source.rows_of_files(), strict=True))
    files = dict(zip(map(scrub, source.files), found, strict=True))
    return json.loads(json.dumps({"settings": {**settings, "version": VERSION}, "files": files}))


def _unfit(folder: Path, wanted: dict[str, Any]) -> str:
    """Why the cache that is there, if any, cannot be used; "" if it can."""
    if not (folder / "flat").exists():
        return "no flat cache yet"
    try:
        origin = FlatCache(folder).origin
    except DataError as error:
        return str(error).removeprefix(f"{folder}: ")
    for what, there in wanted.items():
        before = origin.get(what, {})
        other = sorted(name for name in {**there, **before} if _differ(there.get(name), before.get(name)))
        if other:
            return f"the flat cache was made with other {what} ({', '.join(other[:3])}{', ...' * (len(other) > 3)})"
    # The order of the files numbers the events.
    return "" if list(origin["files"]) == list(wanted["files"]) else "the flat cache has the files in another order"


def _differ(now: Any, before: Any) -> bool:
    of_remote = isinstance(now, list) and isinstance(before, list) and len(now) == len(before) == 5
    if of_remote and now[2] != before[2]:  # another server may have tags and times of its own
        return now[:2] != before[:2]
    return now != before


# -- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None]:
    """No other process has this folder meanwhile."""
    waits = f"waiting for another process, which is building {folder}; at most {WAIT_S:g} s"
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / "lock", waits, WAIT_S))
        except TimeoutError:
            raise UserError(f"{folder}: another process has been at it for {WAIT_S:g} s; wait for it to end") from None
        except OSError as error:  # also a disk that knows no locks
            raise UserError(f"{folder}: cannot be used for a flat cache: {error.strerror}") from None
        yield


def _write_arrays(folder: Path, source: LanesSource) -> dict[str, dict[str, Any]]:
    """All items in order; name -> dtype, shape and bytes of each array."""
    arrays: dict[str, _Array] = {}
    with contextlib.ExitStack() as stack:

        def append(name: str, values: np.ndarray) -> None:
            if name not in arrays:
                arrays[name] = _Array(stack.enter_context(open(folder / f"{name}.npy", "wb")), values)
            arrays[name].append(values)

        entries = 0
        append("offsets", np.zeros(1, np.int64))
        for share in stack.enter_context(contextlib.closing(source.shares(0, 0, 0, 1, 1))):
            if share is not None:
                append("offsets", entries + share.offsets[1:])
                entries += int(share.offsets[-1])
                for kind, of_kind in (("rows", share.rows), ("flat", share.flat)):
                    for name, values in of_kind.items():
                        append(f"{kind}.{name}", values)
        if len(arrays) == 1:
            raise DataError(f"{source.files[0]}, ...: none of {source.total_rows:,} rows is wanted here")
        return {name: array.finish() for name, array in arrays.items()}


class _Array:
    """An .npy file that grows; numpy leaves room in the header for any length."""

    def __init__(self, file: Any, like: np.ndarray) -> None:
        self._file, self.dtype, self.shape = file, like.dtype, (0, *like.shape[1:])
        self._header()

    def _header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        if (values.dtype, values.shape[1:]) != (self.dtype, self.shape[1:]):
            kinds = f"{values.dtype} {values.shape[1:]} after {self.dtype} {self.shape[1:]}"
            raise DataError(f"{Path(self._file.name).stem}: entries of two kinds, {kinds}")
        self._file.write(np.ascontiguousarray(values))
        self.shape = (self.shape[0] + len(values), *self.shape[1:])

    def finish(self) -> dict[str, Any]:
        self._file.seek(0)
        self._header()
        self._file.flush()
        return {"dtype": self.dtype.str, "shape": self.shape, "bytes": os.fstat(self._file.fileno()).st_size}
