"""Sequential data: row groups of many files, shuffled, dealt to lanes and read once, ahead of the step.

The row groups of an epoch, in an order drawn from (seed, epoch), are dealt to L lanes. A global batch takes the next
rows of every lane, equally many from each; where one has ended, the others give more, so that only the last batch of
an epoch is short. All of it follows from the number of rows in each row group, which the files say without being read:
where every lane stands after k batches is known at once, and a resume reads no more than the rest of a row group again.
A rank owns whole lanes, so no row group is decoded twice.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from accel_train import keyed
from accel_train.contents import Contents
from accel_train.data import fingerprint
from accel_train.data.bad import BadDataPolicy
from accel_train.data.ragged import Ragged, concatenate
from accel_train.data.remote.identity import Identity
from accel_train.data.remote.requests import is_remote
from accel_train.data.remote.storage import known, local_path
from accel_train.data.threads import Threads
from accel_train.errors import DataError, UserError
from accel_train.system import waiting
from accel_train.task import Batch, BatchSource, Event

if TYPE_CHECKING:
    from accel_train.data.remote.staging import Staging

BLOCK_ROWS = 16_384
"""Rows decoded at once, and the reach of the shuffling of rows; two blocks per lane are in memory."""


Shuffle = Literal["rows", "row_groups", "files", "none"]


class Place(NamedTuple):
    """Where a block of rows stands."""

    path: str
    group: int

    def __str__(self) -> str:
        return f"{self.path}, row group {self.group}"


class Format(Protocol):
    """How files of one kind are read."""

    def groups(self, path: str) -> list[int]:
        """Rows of each row group, from the file's own metadata."""
        ...

    def blocks(self, path: str, group: int, rows: int) -> Iterator[Ragged]:
        """One row group in order, in blocks of ``rows`` rows (the last one shorter). ``rows["row"]``: int64, number
        within the row group, ascending; rows that are not wanted are missing. Called from several threads at once."""
        ...

    # A format may also have ``header(path) -> str``: a hash of the metadata by which ``groups`` knows the file, if any.


class LanesSource(BatchSource):
    """Batches of the rows of many files, each row once per epoch on any number of ranks.

    A batch has the arrays of the blocks, ``counts``, ``event`` (number of the row in the whole data: int64) and ``key``
    (64 random bits of (seed, epoch, event), from which a loss may draw its noise).

    Args:
        files: in the order that numbers the rows.
        format: how they are read.
        batch_size: rows of one *global* batch.
        lanes: how many row groups a batch is mixed from. Ranks own whole lanes: give a multiple of their number.
        shuffle: the order of an epoch: "rows" (row groups, and the rows within blocks of ``BLOCK_ROWS``),
            "row_groups", "files" (a file's row groups stay together: needed where files are staged), or "none".
        prepare: a last look at every block, in the reading thread: drops what this split does not want.
        bad: what the format does about data that cannot be used; ``events`` reports it.
        staging: brings remote files to local disk ahead of use; needs shuffle "files" or "none", since otherwise every
            file would be needed all the time.
        groups: what ``read_groups`` says of these files, where that is known already.
    """

    def __init__(
        self,
        files: Sequence[str],
        format: Format,
        batch_size: int,
        seed: int = 0,
        lanes: int = 8,
        shuffle: Shuffle = "rows",
        prepare: Callable[[Ragged, Place], Ragged] | None = None,
        bad: BadDataPolicy | None = None,
        staging: Staging | None = None,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.files, self.format, self.batch_size, self.seed = list(files), format, batch_size, seed
        self.shuffle, self.prepare, self.bad = shuffle, prepare, bad
        self.staging = staging
        if staging is not None and shuffle in ("rows", "row_groups"):
            raise UserError(f"shuffle: {shuffle} needs all files at once; with a staging_dir give files")
        rows = read_groups(self.files, format) if groups is None else groups
        self.group_file = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
        self.group_number = np.concatenate([np.arange(len(r)) for r in rows] or [np.zeros(0, int)])
        self.group_rows = np.array([n for r in rows for n in r], np.int64)
        self.group_start = np.cumsum(self.group_rows) - self.group_rows
        self.total_rows = int(self.group_rows.sum())
        if self.total_rows == 0:
            raise DataError(f"{', '.join(self.files[:1])}{', ...' if len(self.files) > 1 else ''}: no rows in the data")
        self.lanes = min(lanes, batch_size, int((self.group_rows > 0).sum()))
        self._dealt: tuple[int, list[np.ndarray]] | None = None
        blocks = -(-self.group_rows // BLOCK_ROWS)
        self._first_block = np.cumsum(blocks) - blocks
        self._contents = Contents(int(blocks.sum()), self._place)

    def content_hashes(self) -> Contents:
        return self._contents

    def steps(self, epoch: int) -> int:
        return -(-self.total_rows // self.batch_size)

    # -- where everything stands, from row counts alone ----------------------------------------------------------------

    def order(self, epoch: int) -> np.ndarray:
        """Row groups in the order of this epoch, int64; empty ones are left out."""
        groups = np.flatnonzero(self.group_rows > 0)
        generator = np.random.Generator(np.random.Philox(key=keyed.key(self.seed, "row groups", epoch)))
        if self.shuffle == "none":
            return groups
        groups = generator.permutation(groups)
        if self.shuffle == "files":
            turn = generator.permutation(len(self.files))
            groups = groups[np.argsort(turn[self.group_file[groups]], kind="stable")]
        return groups

    def deal(self, epoch: int) -> list[np.ndarray]:
        """The row groups of every lane: each goes to the lane that has the fewest rows so far."""
        if self._dealt is None or self._dealt[0] != epoch:
            lanes: list[list[int]] = [[] for _ in range(self.lanes)]
            load = [(0, lane) for lane in range(self.lanes)]
            together = self.shuffle == "files"
            last, lane, rows = -1, 0, 0
            for group in self.order(epoch).tolist():
                if not together or self.group_file[group] != last:
                    if last >= 0:
                        heapq.heappush(load, (rows, lane))
                    rows, lane = heapq.heappop(load)
                    last = self.group_file[group]
                lanes[lane].append(group)
                rows += int(self.group_rows[group])
            self._dealt = (epoch, [np.array(groups, np.int64) for groups in lanes])
        return self._dealt[1]

    def rows_given(self, epoch: int, step: int) -> np.ndarray:
        """Rows that every lane has given before this step, int64 [lanes]."""
        rows = np.array([self.group_rows[groups].sum() for groups in self.deal(epoch)])
        left = rows.copy()
        while step > 0 and left.any():
            share = quotas(left, self.batch_size)
            whole = share > 0
            # Until a lane has less than its share, every step is like this one.
            alike = max(1, min(step, int((left[whole] // share[whole]).min())))
            left -= alike * share
            step -= alike
        return rows - left

    # -- reading -------------------------------------------------------------------------------------------------------

    def iterate(
        self, epoch: int, step: int, rank: int, world_size: int, num_workers: int = 1
    ) -> Iterator[Batch | None]:
        with contextlib.closing(self.shares(epoch, step, rank, world_size, num_workers)) as shares:
            for share in shares:
                if share is None:
                    yield None
                else:
                    key = event_keys(self.seed, epoch, share.rows["event"])
                    yield {**share.batch(), "key": key}

    def first(self, items: int) -> Ragged:
        """What an epoch 0 of one rank begins with, at most so many items: a sample to be looked at."""
        parts: list[Ragged] = []
        kept = self.staging.sampling() if self.staging else contextlib.nullcontext()
        with kept, contextlib.closing(self.shares(0, 0, 0, 1, 2)) as shares:
            for share in shares:
                if share is not None:
                    parts.append(share)
                if sum(map(len, parts)) >= items:
                    break
        if not parts:
            raise DataError(f"{self.files[0]}, ...: none of {self.total_rows:,} rows is wanted here")
        whole = concatenate(parts)
        return whole.take(np.arange(min(items, len(whole))))

    def shares(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Generator[Ragged | None]:
        """This rank's share of every global batch from ``step`` on; always a copy, since blocks may be views of a file
        that cannot be written to."""
        lanes, given = self.deal(epoch), self.rows_given(epoch, step)
        rows = np.array([self.group_rows[groups].sum() for groups in lanes])
        mine = [lane for lane in range(self.lanes) if lane * world_size // self.lanes == rank]
        if self.staging is not None:
            self.staging.schedule(self._paths_ahead(lanes, given, mine), rank, world_size)
        readers: dict[int, _Lane] = {}
        pool, ahead = Threads(max(num_workers, 1), "lanes"), num_workers > 0
        try:
            readers |= {lane: _Lane(self, epoch, lanes[lane], int(given[lane]), pool, ahead) for lane in mine}
            while given.sum() < self.total_rows:
                share = quotas(rows - given, self.batch_size)
                given += share
                parts = [part for lane in mine for part in readers[lane].read(int(share[lane]))]
                yield concatenate(parts) if parts else None
        finally:
            if pool.close():
                for reader in readers.values():
                    reader.close()

    def _paths_ahead(self, lanes: list[np.ndarray], given: np.ndarray, mine: list[int]) -> list[str]:
        """Files that these lanes still need, by when: the row of its lane at which each is first read."""
        first: dict[int, int] = {}
        for lane in mine:
            ends = np.cumsum(self.group_rows[lanes[lane]])
            for group, end in zip(lanes[lane].tolist(), ends.tolist(), strict=True):
                if end > given[lane]:
                    file, start = int(self.group_file[group]), end - int(self.group_rows[group]) - int(given[lane])
                    first[file] = min(start, first.get(file, start))
        return [self.files[file] for file in sorted(first, key=lambda file: (first[file], file))]

    def blocks(self, epoch: int, groups: np.ndarray, skip: int) -> Generator[_Block]:
        """Every block of these row groups, from the one with row ``skip`` on."""
        starts = np.cumsum(self.group_rows[groups]) - self.group_rows[groups]
        left = [(int(g), int(s)) for g, s in zip(groups, starts, strict=True) if s + self.group_rows[g] > skip]
        for file, of_file in itertools.groupby(left, lambda pair: int(self.group_file[pair[0]])):
            path = self.files[file]
            here = self.staging.acquire(path) if self.staging else path
            try:
                for group, start in of_file:
                    place = Place(path, int(self.group_number[group]))
                    yield from self._of_group(epoch, group, here, place, skip - start)
            finally:
                if self.staging:
                    self.staging.release(path)

    def _of_group(self, epoch: int, group: int, here: str, place: Place, skip: int) -> Iterator[_Block]:
        n = int(self.group_rows[group])
        found = self.format.blocks(here, place.group, BLOCK_ROWS)
        for number, start in enumerate(range(0, n, BLOCK_ROWS)):
            rows = min(BLOCK_ROWS, n - start)
            ragged = next(found, None)
            if ragged is not None:
                arrays = (*ragged.rows.values(), ragged.counts, *ragged.flat.values())
                self._contents.look(int(self._first_block[group]) + number, arrays)
            if start + rows > skip:
                yield self._arrange(ragged, epoch, group, number, rows, max(skip - start, 0), place)

    def _arrange(
        self, ragged: Ragged | None, epoch: int, group: int, number: int, rows: int, given: int, place: Place
    ) -> _Block:
        """Drop what is not wanted, number the rest, and put it in the order of the epoch."""
        if ragged is not None and self.prepare is not None and len(ragged):
            ragged = self.prepare(ragged, place)
        if ragged is None or len(ragged) == 0:
            return _Block(None, np.zeros(0, np.int64), np.zeros(1, np.int64), rows, given)
        at = ragged.rows["row"] - number * BLOCK_ROWS
        ragged = Ragged(
            {name: values for name, values in ragged.rows.items() if name != "row"}
            | {"event": self.group_start[group] + ragged.rows["row"]},
            ragged.counts,
            ragged.flat,
        )
        if self.shuffle == "rows":
            generator = np.random.Generator(np.random.Philox(key=keyed.key(self.seed, "rows", epoch, group, number)))
            item = np.full(rows, -1)
            item[at] = np.arange(len(at))
            order = item[generator.permutation(rows)]
            at = np.flatnonzero(order >= 0)
            ragged = ragged.take(order[at])
        return _Block(ragged, at, ragged.offsets, rows, given)

    def events(self) -> list[Event]:
        return self.bad.events() if self.bad else []

    def item_names(self, batch: Batch) -> list[str]:
        events = np.array(batch["event"].tolist(), np.int64)
        groups = np.searchsorted(self.group_start, events, side="right") - 1
        return [
            f"{Place(self.files[self.group_file[group]], int(self.group_number[group]))}, "
            f"row {int(event - self.group_start[group])}"
            for group, event in zip(groups, events, strict=True)
        ]

    def rows_of_files(self) -> list[int]:
        return np.bincount(self.group_file, self.group_rows, len(self.files)).astype(int).tolist()

    def fingerprint(self) -> dict[str, Any]:
        header = getattr(self.format, "header", None)
        headers = list(map(header, self.files)) if header is not None else []
        return fingerprint.of_files(self.files, [_known(path) for path in self.files], self.rows_of_files(), headers)

    def _place(self, block: int) -> str:
        group = int(np.searchsorted(self._first_block, block, side="right")) - 1
        first = (block - int(self._first_block[group])) * BLOCK_ROWS
        where = str(Place(self.files[self.group_file[group]], int(self.group_number[group])))
        return where + (f" from row {first:,} on" if first else "")

    def describe(self, epoch: int, step: int) -> str:
        """The row groups that a global batch is taken from."""
        given, then = self.rows_given(epoch, step), self.rows_given(epoch, step + 1)
        shown = []
        for lane, groups in enumerate(self.deal(epoch)):
            if then[lane] > given[lane]:
                at = int(np.searchsorted(np.cumsum(self.group_rows[groups]), given[lane], side="right"))
                group = groups[at]
                shown.append(f"{self.files[self.group_file[group]]} row group {self.group_number[group]}")
        return f"epoch {epoch}, batch {step}: {', '.join(shown[:4])}{', ...' if len(shown) > 4 else ''}"


class _Block(NamedTuple):
    ragged: Ragged | None
    at: np.ndarray  # which of the block's rows each item is, ascending
    offsets: np.ndarray
    rows: int  # of the block, with those that were dropped
    given: int  # of these rows before the position that is read from

    def cut(self, first: int, last: int) -> Ragged | None:
        """What is left of rows ``first`` to ``last`` (exclusive) of this block; a view."""
        if self.ragged is None:
            return None
        whole = len(self.at) == self.rows  # nothing was dropped
        a, b = (first, last) if whole else np.searchsorted(self.at, (first, last))
        if a == b:
            return None
        i, j = self.offsets[a], self.offsets[b]
        return Ragged(
            {name: values[a:b] for name, values in self.ragged.rows.items()},
            self.ragged.counts[a:b],
            {name: values[i:j] for name, values in self.ragged.flat.items()},
        )


class _Lane:
    """Reads one lane: the block that is used now, and (``ahead``) the next one on its way in the pool."""

    def __init__(
        self, source: LanesSource, epoch: int, groups: np.ndarray, skip: int, pool: Threads, ahead: bool
    ) -> None:
        self._pool, self._ahead = pool, ahead
        self._blocks = source.blocks(epoch, groups, skip)
        self._block: _Block | None = None
        self._used = 0
        self._next = self._request() if ahead else None

    def _request(self) -> Future[_Block | None]:
        return self._pool.submit(lambda: next(self._blocks, None))

    def read(self, rows: int) -> list[Ragged]:
        parts = []
        while rows > 0:
            if self._block is None or self._used == self._block.rows:
                self._block = waiting.result(self._next or self._request())
                assert self._block is not None, "a lane gave fewer rows than its files announced"
                self._used = self._block.given
                self._next = self._request() if self._ahead else None
            n = min(rows, self._block.rows - self._used)
            part = self._block.cut(self._used, self._used + n)
            if part is not None:
                parts.append(part)
            self._used, rows = self._used + n, rows - n
        return parts

    def close(self) -> None:
        """Let go of the file, now that no thread reads it."""
        self._blocks.close()


def event_keys(seed: int, epoch: int, events: np.ndarray) -> np.ndarray:
    """64 random bits of (seed, epoch, event): int64 [B]."""
    return keyed.bits(keyed.key(seed, "noise", epoch), events)[:, 0].view(np.int64)


def quotas(left: np.ndarray, batch_size: int) -> np.ndarray:
    """How many rows each lane gives to a batch: equally many, and more where others have no more. int64 [lanes]."""
    share = np.zeros_like(left)
    need = min(batch_size, int(left.sum()))
    while need > 0:
        open_lanes = np.flatnonzero(left > share)
        each = need // len(open_lanes)
        if each == 0:
            share[open_lanes[:need]] += 1
            break
        more = np.minimum(each, (left - share)[open_lanes])
        share[open_lanes] += more
        need -= int(more.sum())
    return share


def _known(path: str) -> Identity:
    """What identifies a file: of a local one its size alone, since its time changes when it is copied."""
    if is_remote(path):
        return known(path)
    try:
        return Identity(os.path.getsize(local_path(path)))
    except OSError:  # one that was left out
        return Identity()


def read_groups(files: Sequence[str], format: Format) -> list[list[int]]:
    """Rows of all row groups of all files; many at once, since remote files answer slowly."""
    return Threads(16, "footers").map(format.groups, files)
