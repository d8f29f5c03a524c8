"""Rows of all items that are evaluated, put together on the disk of rank 0: for metrics that are no sums."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from accel_train.errors import UserError
from accel_train.run import late
from accel_train.train.world import Ranks

Kind = tuple[str, tuple[int, ...]]
"""Type and shape of a row."""


class Gathering:
    """One evaluation. Every rank appends its rows to files of its own, without a word to the others; at the end rank 0
    joins them, in the order in which the items stand in the data: batch by batch, and in each rank by rank.

    Inside a ``with``; its files are gone at the end of that.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self._files: dict[str, BinaryIO] = {}
        self._kinds: dict[str, Kind] = {}
        self._counts: dict[int, int] = {}  # of rows, by batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Every rank removes its own: another one may be writing by now, in the next evaluation."""
        for i, file in enumerate(self._files.values()):
            with contextlib.suppress(OSError):
                file.close()
            self._path(i, self.ranks.rank).unlink(missing_ok=True)
            if self.ranks.is_main:
                self._path(i).unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing more comes from this rank."""
        for file in self._files.values():
            file.close()

    def append(self, batch: int, rows: dict[str, np.ndarray]) -> None:
        """More of this rank's rows of one batch. Raises UserError if they are not like those before."""
        kinds: dict[str, Kind] = {name: (array.dtype.str, array.shape[1:]) for name, array in rows.items()}
        if not self._files:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: open(self._path(i, self.ranks.rank), "wb") for i, name in enumerate(kinds)}
            self._kinds = kinds
        _refuse_other(kinds, self._kinds)
        for name, array in rows.items():
            self._files[name].write(np.ascontiguousarray(array).data)
        self._counts[batch] = self._counts.get(batch, 0) + len(next(iter(rows.values()), ()))

    def arrays(self) -> dict[str, np.ndarray]:
        """All rows by name, memory-mapped, on rank 0; elsewhere nothing. All ranks must call it, once they have closed
        their files."""
        kinds, counts = zip(*self.ranks.gather((self._kinds, self._counts)), strict=True)
        if not self.ranks.is_main:
            return {}
        known = next(each for each in kinds if each)
        for each in filter(None, kinds):
            _refuse_other(each, known)
        total = sum(sum(each.values()) for each in counts)
        arrays = {}
        for i, (name, (kind, shape)) in enumerate(known.items()):
            dtype, shape = np.dtype(kind), (total, *shape)
            path = self._path(i, 0) if self.ranks.world_size == 1 else self._join(i, dtype.itemsize, shape, counts)
            # copy on write, for functions that want an array into which they could write
            arrays[name] = np.memmap(path, dtype, "c", shape=shape) if 0 not in shape else np.empty(shape, dtype)
        return arrays

    def _join(self, i: int, itemsize: int, shape: tuple[int, ...], counts: tuple[dict[int, int], ...]) -> Path:
        size, path = itemsize * int(np.prod(shape[1:])), self._path(i)
        sizes = {self._path(i, r).name: size * sum(each.values()) for r, each in enumerate(counts) if each}
        late.await_files(self.folder, sizes)
        with contextlib.ExitStack() as opened:
            parts = {r: opened.enter_context(open(self._path(i, r), "rb")) for r, each in enumerate(counts) if each}
            whole = opened.enter_context(open(path, "wb"))
            for batch in sorted(set().union(*counts)):
                for rank, part in parts.items():
                    whole.write(part.read(size * counts[rank].get(batch, 0)))
        return path

    def _path(self, i: int, rank: int | None = None) -> Path:
        """Of the rows of one rank, or of all."""
        return self.folder / f".gathered-{i}.{'all' if rank is None else rank}"


def _refuse_other(kinds: dict[str, Kind], known: dict[str, Kind]) -> None:
    if kinds != known:
        raise UserError(f"eval_gather: rows of all batches must be alike, but there are {known} and {kinds}")
