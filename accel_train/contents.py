"""What the blocks of a data set held when they were read: a 64-bit hash of each, compared when it is read again.

A block is what a source reads at once: some rows of a row group, a frame, a window. Its hash is taken from the arrays
that were read anyway, in the thread that read them, and kept from one session to the next. Of files that stay mapped
into memory a block is looked at once, and again after anything has happened to one of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from accel_train.errors import DataError
from accel_train.mapped import MappedFiles

ALGORITHM = "xxh3_64"
MOST_BLOCKS = 1 << 20
"""So many hashes are kept, 8 MB. Of data with k times as many blocks, one in k is looked at."""

News = tuple[np.ndarray, np.ndarray, int]
"""Places among the hashes, int64 [n], what was found there, uint64 [n], and in which files: a hash of what these are
known by."""


class Contents:
    """The hashes of all blocks of a data set. Threads may share it; to a worker process goes a copy, whose ``news`` are
    for the original.

    Args:
        blocks: how many there are.
        place: which one is meant, in words: "data/x.parquet, row group 5".
        files: those that stay mapped into memory; none if the blocks are in memory. A block is then looked at the first
            time in a session. None: blocks are read anew each time, and looked at each time.

    Attributes:
        hashes: uint64, 0 for a block that was not read yet.
    """

    def __init__(
        self, blocks: int, place: Callable[[int], str] = str, files: Iterable[str | Path] | None = None
    ) -> None:
        self.blocks, self.place = blocks, place
        self.every = max(1, -(-blocks // MOST_BLOCKS))
        self.hashes = np.zeros(-(-blocks // self.every), np.uint64)
        self.files = None if files is None else MappedFiles(files)
        self._watched = self._tolerant = False
        self._of = ""
        # looked at by this process, news for others, and by any process in the files as they are now
        self._seen, self._new, self._checked = np.zeros((3, len(self.hashes)), bool)
        self._all_seen = False
        self._other: list[str] = []

    def watch(self, of: str = "", tolerant: bool = False) -> None:
        """From now on blocks are looked at; before nothing is hashed.

        Args:
            of: in words, what these data are, if not what is trained on.
            tolerant: other content than before is no error, but told by ``found_other``.
        """
        self._watched, self._tolerant, self._of = True, tolerant, of and f"{of}, "

    def __getstate__(self) -> dict[str, Any]:
        # It knows nothing and refuses nothing: the original compares, and knows the place.
        return {**self.__dict__, "place": str, "hashes": np.zeros_like(self.hashes), "_tolerant": True}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.files is not None and any(self.files.changes()):  # other files than those of the original
            self._look_again()

    def due(self, blocks: np.ndarray) -> list[int]:
        """Which of these (places in the array, not numbers of blocks) must be looked at."""
        if not self._watched or self._all_seen:
            return []
        due = ~self._seen[blocks // self.every] if self.files is not None else np.ones(len(blocks), bool)
        found = np.flatnonzero(due if self.every == 1 else due & (blocks % self.every == 0)).tolist()
        self._all_seen = not found and self.files is not None and bool(self._seen.all())
        return found

    def look(self, block: int, arrays: Iterable[np.ndarray]) -> None:
        """A block has been read, or is copied while it is looked at: its hash is one of all bytes of ``arrays``, one
        after another, and each is asked for when the one before has been hashed.

        Raises:
            DataError: it holds something else than before.
        """
        if self._watched and block % self.every == 0:
            self._note(block // self.every, _hash_of(arrays) or 1)

    def look_around(self, items: np.ndarray, each: int, slices: Callable[[int, int], list[np.ndarray]]) -> None:
        """Items have been read that are small: the blocks of ``each`` neighbours around them are looked at, once.

        Args:
            slices: from the first item to the last (exclusive) what they hold.
        """
        if not self._watched or self._all_seen:
            return
        blocks = np.unique(items // each)
        for block in blocks[self.due(blocks)].tolist():
            self.look(block, slices(block * each, (block + 1) * each))

    def _note(self, at: int, found: int) -> None:
        known = int(self.hashes[at])
        if known not in (0, found):
            differs = f"content differs from what this run read before ({ALGORITHM} {known:016x}, now {found:016x})"
            what = f"{self._of}{self.place(at * self.every)}: {differs}"
            if not self._tolerant:
                raise DataError(f"{what}; bring back the data of before, or give --allow_changed_data=true")
            self._other.append(what)
        self.hashes[at] = found
        self._new[at] |= not self._seen[at] or known != found
        self._seen[at] = self._checked[at] = True

    # -- files that are changed while they are read --------------------------------------------------------------------

    def look_at_files(self) -> list[str]:
        """Has anybody changed the mapped files? If so, all blocks are looked at again when they are read. Returns what
        should be said of files that are others by now, though the maps are not.

        Raises:
            DataError: one was written to, and nobody knows which content was read since the last time.
        """
        if self.files is None or not self._watched:
            return []
        written, replaced, touched = self.files.changes()
        if written or replaced or touched:
            self._look_again()
        if written:
            what = f"{self._of}{_first(written)} written to while this run was reading; it may have read either content"
            if not self._tolerant:
                raise DataError(f"{what}; start again once the content of before is there (a new time alone is no "
                                "change), or give --allow_changed_data=true")  # fmt: skip
            self._other.append(what)
        if not replaced:
            return []
        return [f"{self._of}{_first(replaced)} replaced or removed while this run is reading: it goes on with the "
                "content of before, which it still has, but the next session needs that content too"]  # fmt: skip

    def _look_again(self) -> None:
        self._seen[:] = self._checked[:] = self._all_seen = False

    # -- between sessions, ranks and processes -------------------------------------------------------------------------

    def news(self) -> News:
        """What was found since the last call."""
        new = np.flatnonzero(self._new)
        self._new[new] = False
        return new, self.hashes[new], hash_of(self._files())

    def learn(self, news: News, of_own_process: bool = False) -> None:
        """What another rank found, or a process of this one. Raises ``DataError`` as ``look`` does."""
        at, found, files = news
        known = self.hashes[at]
        for i in np.flatnonzero((known != 0) & (known != found)).tolist():
            self._note(int(at[i]), int(found[i]))
        self.hashes[at] = found
        self._checked[at] |= files == hash_of(self._files())
        self._new[at[(known == 0) | of_own_process]] = True
        if of_own_process:  # the next processes need not look at them
            self._seen[at] = True

    def state(self) -> dict[str, np.ndarray]:
        """For the next session: the hashes; by which the files are known; and which blocks were looked at in these."""
        return {"hashes": self.hashes, "checked": self._checked, "files": self._files()}

    def go_on(self, before: dict[str, np.ndarray]) -> None:
        """What an earlier session knew. In files that nobody has touched since, its blocks are not looked at again."""
        hashes = before["hashes"]
        if hashes.shape != self.hashes.shape:  # of other data, which were allowed
            return
        other = (self.hashes != 0) & (hashes != 0) & (self.hashes != hashes)
        self._seen[other] = self._checked[other] = False  # read already, for a model: the loop will say what differs
        np.copyto(self.hashes, hashes, where=hashes != 0)
        if len(files := self._files()) and np.array_equal(files, before["files"]):
            self._seen |= before["checked"]
            self._checked |= before["checked"]

    def _files(self) -> np.ndarray:
        return np.zeros((0, 5), np.uint64) if self.files is None else self.files.known()

    def found_other(self) -> list[str]:
        """Blocks and files that were found changed since the last call, in words."""
        found, self._other = self._other, []
        return found

    def about(self) -> dict[str, Any]:
        """As JSON. ``digest`` is of all blocks, once all have been read."""
        read = int(np.count_nonzero(self.hashes))
        digest = xxhash.xxh3_128_hexdigest(self.hashes.tobytes()) if read == len(self.hashes) else None
        return {"algorithm": ALGORITHM, "blocks": self.blocks, "one_in": self.every, "read": read, "digest": digest}


def _first(paths: list[str]) -> str:
    return f"{paths[0]} was" if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more files were"


def hash_of(*arrays: Any) -> int:
    """64 bits of the bytes of these arrays, one after another."""
    return xxhash.xxh3_64_intdigest(_bytes_of(arrays[0])) if len(arrays) == 1 else _hash_of(arrays)


def _hash_of(arrays: Iterable[Any]) -> int:
    together = xxhash.xxh3_64()
    for array in arrays:
        together.update(_bytes_of(array))
    return together.intdigest()


def named_hash(*arrays: Any) -> str:
    """As text that names the algorithm."""
    return f"{ALGORITHM}:{hash_of(*arrays):016x}"


def _bytes_of(array: Any) -> Any:
    if isinstance(array, (bytes, memoryview)):
        return array
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf" and array.flags.c_contiguous:
        return array
    array = np.ascontiguousarray(array)  # also of a single number
    return array.reshape(-1).view(np.uint8) if array.size else b""
