"""Ragged data as flat arrays in files that are mapped into memory: written once, then read in any order.

folder/flat/      manifest.json, offsets.npy, rows.NAME.npy, flat.NAME.npy: what is read, all of it or none
folder/building/  what is being written; renamed when it is complete
folder/lock       a kernel lock, gone with the process that holds it: one process builds, the others wait
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.data.lanes import LanesSource, noise
from accel_train.data.ragged import Ragged
from accel_train.data.source import IndexedSource
from accel_train.errors import DataError
from accel_train.task import Batch, Event

log = logging.getLogger(__name__)

VERSION = 1
"""Of what is in the folder."""
POLL_S = 0.1


def cached(
    folder: str | Path,
    source: LanesSource,
    batch_size: int,
    seed: int = 0,
    shuffle: bool = True,
    settings: Mapping[str, Any] | None = None,
    timeout_s: float = 3600.0,
) -> CachedSource:
    """Batches like those of ``source``, from a cache that is built where there is none, or not the right one.

    Args:
        folder: on a disk of this node, with about as much room as the data takes in memory; may be missing or empty.
        source: one lane, not shuffled; read only when the cache is built.
        shuffle: all events by a permutation drawn from (seed, epoch); otherwise in order.
        settings: what else decides the content, such as layouts and splits; values that JSON knows.
        timeout_s: longest wait for another process that builds the same cache.

    Raises:
        UserError: the folder cannot be written to, or another process took longer than ``timeout_s``.
        DataError: the data cannot be read.
    """
    folder, wanted, news = Path(folder), describe(source, settings or {}), []
    with _alone(folder, timeout_s):
        why = _unfit(folder, wanted)
        if why is not None:
            log.warning("%s: %s; %s rows are written to it now", folder, why, f"{source.total_rows:,}")
            started = time.monotonic()
            build(folder, source, settings)
            seconds = time.monotonic() - started
            news = [*source.events(), Event("note", f"{folder}: {why}; built in {seconds:.1f} s")]
        cache = FlatCache(folder)
    if cache.left_out:
        left_out = ", ".join(f"{number:,} {what}" for what, number in cache.left_out.items())
        news.append(Event("warning", f"{folder}: lacks {left_out} that could not be read when it was built"))
    return CachedSource(cache, batch_size, seed, shuffle, news)


class FlatCache:
    """Items of a cache that is there, in any order (``Indexed``). Arrays are copies: nothing refers to the files.

    Args:
        folder: as given to ``build``.

    Raises:
        DataError: there is no cache, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        manifest = _manifest(self.folder)
        arrays = {name: self._map(name, about) for name, about in manifest["arrays"].items()}
        self._offsets = arrays.pop("offsets")
        self._rows = {name[5:]: array for name, array in arrays.items() if name.startswith("rows.")}
        self._flat = {name[5:]: array for name, array in arrays.items() if name.startswith("flat.")}
        self.left_out: dict[str, int] = manifest["left_out"]

    def _map(self, name: str, about: Mapping[str, Any]) -> np.ndarray:
        path = self.folder / "flat" / f"{name}.npy"
        try:
            if path.stat().st_size != about["bytes"]:
                raise DataError(f"{path}: {path.stat().st_size:,} bytes, not {about['bytes']:,}: damaged")
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
        if [str(array.dtype), *array.shape] != [about["dtype"], *about["shape"]]:
            raise DataError(f"{path}: {array.dtype} {array.shape}, not {about['dtype']} {about['shape']}: damaged")
        return array.view(np.ndarray)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return FlatCache, (self.folder,)  # another process maps the files itself

    def take(self, indices: np.ndarray) -> Ragged:
        """These items (int64), in this order."""
        n = len(indices)
        if n and indices[-1] - indices[0] == n - 1 and (np.diff(indices) == 1).all():
            a, b = int(indices[0]), int(indices[-1]) + 1
            offsets = self._offsets[a : b + 1]
            return Ragged(
                {name: values[a:b].copy() for name, values in self._rows.items()},
                np.diff(offsets),
                {name: values[offsets[0] : offsets[-1]].copy() for name, values in self._flat.items()},
            )
        return Ragged(self._rows, self._offsets, self._flat).take(indices)

    def read(self, indices: np.ndarray) -> Batch:
        """The arrays of ``LanesSource``, but for ``key``, which depends on the epoch."""
        part = self.take(indices)
        return {**part.rows, "counts": part.counts, **part.flat}


class CachedSource(IndexedSource):
    """Batches of a cache with all the arrays of ``LanesSource``."""

    def __init__(self, cache: FlatCache, batch_size: int, seed: int, shuffle: bool, news: list[Event]) -> None:
        super().__init__(cache, batch_size, seed, shuffle)
        self._news = news

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        batch = super().batch(epoch, step, rank, world_size)
        return batch and {**batch, "key": noise(self.seed, epoch, batch["event"])}

    def first(self, items: int) -> Ragged:
        """What epoch 0 begins with, at most so many items: a sample to be looked at."""
        order = self._permutation(0) if self.shuffle else np.arange(len(self.data))
        return self.data.take(order[:items])

    def events(self) -> list[Event]:
        news, self._news = self._news, []
        return news
