"""Reads the parts of every batch that a rank owns, each as if it were the share of a rank of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from accel_train.data.loader import Loader, Share
from accel_train.errors import UserError
from accel_train.plan import Position
from accel_train.task import BatchSource, Event


class PartLoader:
    """Shares are lists with a batch, or None, for each of these parts.

    Args:
        own: numbers of the parts of this rank.
        count: how many parts a global batch has.
        num_workers: for all of them together, at least one for each; 0 reads in the loop.
        options: of each ``Loader``.

    Raises:
        UserError: nobody knows how long the source is before it has been read.
    """

    def __init__(
        self, source: BatchSource, device: torch.device, own: range, count: int, num_workers: int, **options: Any
    ) -> None:
        if source.steps(0) is None and type(source).iterate is not BatchSource.iterate:
            raise UserError("reduction: fixed needs data that know their length: a stream does not say before its end "
                            "which part of a batch an item belongs to; take reduction: ordinary")  # fmt: skip
        self.source = source
        workers = -(-num_workers // len(own))
        self._loaders = [Loader(source, device, part, count, workers, **options) for part in own]

    def batches(self, start: Position, last_epoch: int | None = None) -> Iterator[tuple[int, int, Share]]:
        """(epoch, batch number, share) from ``start`` on; without end unless ``last_epoch`` (exclusive) is given."""
        with contextlib.ExitStack() as opened:
            each = [loader.batches(start, last_epoch) for loader in self._loaders]
            for batches in each:
                opened.enter_context(contextlib.closing(batches))  # pyright: ignore[reportArgumentType]
            for found in zip(*each, strict=True):
                epoch, number, _ = found[0]
                yield epoch, number, [batch for _, _, batch in found]

    def events(self) -> list[Event]:
        """What reading found, since the last call, that whoever watches the run should hear of."""
        return [event for loader in self._loaders for event in loader.events()]
