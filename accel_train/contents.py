"""What the blocks of a data set held when they were read: a 64-bit hash of each, compared when it is read again.

A block is what a source reads at once: some rows of a row group, a frame, a window. Its hash is taken from the arrays
that were read anyway, in the thread that read them, and kept from one session to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xxhash

from accel_train.errors import DataError

ALGORITHM = "xxh3_64"
MOST_BLOCKS = 1 << 20
"""So many hashes are kept, 8 MB. Of data with k times as many blocks, one in k is looked at."""

News = tuple[np.ndarray, np.ndarray]
"""Places among the hashes, int64 [n], and what was found there, uint64 [n]."""


class Contents:
    """The hashes of all blocks of a data set. Threads may share it; to a worker process goes a copy, whose ``news`` are
    for the original.

    Args:
        blocks: how many there are.
        place: which one is meant, in words: "data/x.parquet, row group 5".

    Attributes:
        watched: whether anybody wants to know; else nothing is hashed.
        tolerant: other content than before is no error, but an event.
        hashes: uint64, 0 for a block that was not read yet.
    """

    def __init__(self, blocks: int, place: Callable[[int], str] = str) -> None:
        self.blocks, self.place = blocks, place
        self.every = max(1, -(-blocks // MOST_BLOCKS))
        self.hashes = np.zeros(-(-blocks // self.every), np.uint64)
        self.watched = self.tolerant = False
        self._seen, self._new = np.zeros((2, len(self.hashes)), bool)
        self._all_seen = False
        self._other: list[str] = []

    def __getstate__(self) -> dict[str, Any]:
        # It knows nothing and refuses nothing: the original compares, and knows the place.
        return {**self.__dict__, "place": str, "hashes": np.zeros_like(self.hashes), "tolerant": True}

    def due(self, blocks: np.ndarray) -> list[int]:
        """Which of these (places in the array, not numbers of blocks) were not looked at in this session."""
        if not self.watched or self._all_seen:
            return []
        due = ~self._seen[blocks // self.every]
        found = np.flatnonzero(due if self.every == 1 else due & (blocks % self.every == 0)).tolist()
        self._all_seen = not found and bool(self._seen.all())
        return found

    def look(self, block: int, *arrays: np.ndarray) -> None:
        """A block has been read.

        Raises:
            DataError: it holds something else than before.
        """
        if self.watched and block % self.every == 0:
            self._note(block // self.every, hash_of(*arrays) or 1)

    def look_around(self, items: np.ndarray, each: int, slices: Callable[[int, int], list[np.ndarray]]) -> None:
        """Items have been read that are small: the blocks of ``each`` neighbours around them are looked at, once.

        Args:
            slices: from the first item to the last (exclusive) what they hold.
        """
        if not self.watched or self._all_seen:
            return
        blocks = np.unique(items // each)
        for block in blocks[self.due(blocks)].tolist():
            self.look(block, *slices(block * each, (block + 1) * each))

    def _note(self, at: int, found: int) -> None:
        known = int(self.hashes[at])
        if known not in (0, found):
            differs = f"content differs from what this run read before ({ALGORITHM} {known:016x}, now {found:016x})"
            what = f"{self.place(at * self.every)}: {differs}"
            if not self.tolerant:
                raise DataError(f"{what}; bring back the data of before, or give --allow_changed_data=true")
            self._other.append(what)
        self.hashes[at] = found
        self._new[at] |= known != found
        self._seen[at] = True

    # -- between sessions, ranks and processes -------------------------------------------------------------------------

    def news(self) -> News:
        """What was found since the last call."""
        new = np.flatnonzero(self._new)
        self._new[new] = False
        return new, self.hashes[new]

    def learn(self, news: News) -> None:
        """What another process found, or an earlier session. Raises ``DataError`` as ``look`` does."""
        at, found = news
        known = self.hashes[at]
        for i in np.flatnonzero((known != 0) & (known != found)).tolist():
            self._note(int(at[i]), int(found[i]))
        self.hashes[at] = found
        self._new[at[known == 0]] = True

    def found_other(self) -> list[str]:
        """Blocks that were read since the last call with another content than before, in words."""
        found, self._other = self._other, []
        return found

    def about(self) -> dict[str, Any]:
        """As JSON. ``digest`` is of all blocks, once all have been read."""
        read = int(np.count_nonzero(self.hashes))
        digest = xxhash.xxh3_128_hexdigest(self.hashes.tobytes()) if read == len(self.hashes) else None
        return {"algorithm": ALGORITHM, "blocks": self.blocks, "one_in": self.every, "read": read, "digest": digest}


def hash_of(*arrays: Any) -> int:
    """64 bits of the bytes of these arrays, one after another."""
    if len(arrays) == 1:
        return xxhash.xxh3_64_intdigest(_bytes_of(arrays[0]))
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
    array = np.ascontiguousarray(array)  # also of a single number
    return array.reshape(-1).view(np.uint8) if array.size else b""
