"""Items of different length as flat arrays: item ``i`` owns ``counts[i]`` consecutive entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """A run of items.

    Args:
        rows: name -> array with one entry per item on axis 0.
        counts: int64 [B], entries that each item owns; each at least 0.
        flat: name -> array with ``counts.sum()`` entries on axis 0, items one after another.
    """

    rows: dict[str, np.ndarray]
    counts: np.ndarray
    flat: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def offsets(self) -> np.ndarray:
        """int64 [B + 1]: entries of item i are ``offsets[i]:offsets[i + 1]``."""
        offsets = np.zeros(len(self.counts) + 1, np.int64)
        np.cumsum(self.counts, out=offsets[1:])
        return offsets

    def batch(self) -> dict[str, np.ndarray]:
        """All arrays by name, and the counts a second time for the host, which cuts the batch by them."""
        return {**self.rows, "counts": self.counts, "host_counts": self.counts, **self.flat}

    def take(self, order: np.ndarray) -> Ragged:
        """These items (int64 indices, or a mask), entries and all, in this order."""
        order = np.flatnonzero(order) if order.dtype == bool else np.asarray(order, np.int64)
        return gather(self.rows, self.offsets, self.flat, order)


def gather(rows: dict[str, np.ndarray], offsets: np.ndarray, flat: dict[str, np.ndarray], order: np.ndarray) -> Ragged:
    """The items ``order`` (int64) of arrays whose item i has the entries ``offsets[i]:offsets[i + 1]``."""
    starts = offsets.take(order)
    counts = offsets.take(order + 1) - starts
    ends = np.cumsum(counts)
    entries = np.repeat(starts - (ends - counts), counts)
    entries += np.arange(len(entries))
    # On arrays of short vectors ``take`` is twice as fast as an index.
    return Ragged(
        {name: values.take(order, axis=0) for name, values in rows.items()},
        counts,
        {name: values.take(entries, axis=0) for name, values in flat.items()},
    )


def concatenate(parts: Sequence[Ragged]) -> Ragged:
    """One after another, in arrays of their own; at least one part."""
    return Ragged(
        {name: np.concatenate([part.rows[name] for part in parts]) for name in parts[0].rows},
        np.concatenate([part.counts for part in parts]),
        {name: np.concatenate([part.flat[name] for part in parts]) for name in parts[0].flat},
    )
