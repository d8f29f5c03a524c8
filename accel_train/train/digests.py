"""Digests of gradients and weights: 64 bits by which two runs are compared step by step.

Every bit counts, and its place. They are computed on the device and not waited for; rank 0 reads them at the
synchronisation point. Of a model that is spread over the ranks there are none.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from accel_train.train.groups import Group
from accel_train.train.session import Session

_CHUNK = {"cpu": 2**15}  # words that stay in the cache; a GPU has more of them at once
_CHUNK_OF_GPU = 2**20


def digest(tensors: Iterable[Tensor]) -> Tensor:
    """int64 [], on their device, of the bytes of these tensors in this order. Shapes are not part of it.

    A word of 64 bits is mixed (its upper half into the lower one, so that the multiplication carries every bit upwards)
    and multiplied by an odd number that belongs to its place; sums wrap around.
    """
    words = [word for tensor in tensors for word in _words(tensor.detach())]
    if not words:
        return torch.zeros((), dtype=torch.int64)
    odds = _odds(words[0].device)
    sums = [((chunk >> 32).bitwise_xor_(chunk)).mul_(odds[: len(chunk)]).sum() for chunk in _chunks(words, len(odds))]
    return sums[0] if len(sums) == 1 else digest([torch.stack(sums)])


def written(value: int) -> str:
    """Of 64 bits, as logs have them."""
    return f"{value & (2**64 - 1):016x}"


def _words(tensor: Tensor) -> Iterator[Tensor]:
    """As int64, without a copy where that can be."""
    raw = tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    whole = len(raw) - len(raw) % 8
    if whole:
        words = raw[:whole]
        yield (words if words.storage_offset() % 8 == 0 else words.clone()).view(torch.int64)
    if whole < len(raw):
        yield nn.functional.pad(raw[whole:], (0, whole + 8 - len(raw))).view(torch.int64)


def _chunks(words: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Large tensors in pieces, small ones together."""
    held: list[Tensor] = []
    count = 0
    for piece in (piece for word in words for piece in word.split(size)):
        if held and count + len(piece) > size:
            yield torch.cat(held) if len(held) > 1 else held[0]
            held, count = [], 0
        held.append(piece)
        count += len(piece)
    if held:
        yield torch.cat(held) if len(held) > 1 else held[0]


@functools.cache
def _odds(device: torch.device) -> Tensor:
    count = _CHUNK.get(device.type, _CHUNK_OF_GPU)
    drawn = torch.randint(-(2**62), 2**62, (count,), generator=torch.Generator().manual_seed(1))
    return (2 * drawn + 1).to(device)


class Digests:
    """Of each trained group, every ``digest_steps`` steps: its gradient (reduced, before clipping; several updates of a
    step one after the other) and what it is after the step, parameters and saved buffers."""

    def __init__(self, session: Session) -> None:
        self.session, self.stepper = session, session.stepper
        wanted = session.ranks.is_main and not session.is_sharded
        self.every = session.config.digest_steps if wanted else 0
        self._gradients: dict[str, Tensor] = {}
        self._unread: list[tuple[int, dict[str, tuple[Tensor, Tensor]]]] = []

    def begin(self, step: int) -> None:
        """Before the updates of this step (from 1)."""
        if self.every and step % self.every == 0:
            self._gradients = {}
            self.stepper.on_gradients = self._gradient

    def end(self, step: int) -> None:
        """After them."""
        if self.stepper.on_gradients is None:
            return
        self.stepper.on_gradients = None
        with self.session.reports("digests", self.session.emit):
            zero = torch.zeros((), dtype=torch.int64, device=self.session.device)
            self._unread.append((step, {
                group.name: (self._gradients.get(group.name, zero), digest([*group.params, *group.buffers]))
                for group in self.stepper.each_group()
            }))  # fmt: skip

    def _gradient(self, group: Group) -> None:
        with self.session.reports("digests", self.session.emit):
            found = digest(p.grad for p in group.params if p.grad is not None)
            before = self._gradients.get(group.name)
            self._gradients[group.name] = found if before is None else digest([torch.stack([before, found])])

    def take(self) -> list[dict[str, Any]]:
        """Since the last call: ``step``, and by group what its gradient and its weights are."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        with self.session.reports("digests", self.session.emit):
            values = iter(
                torch.stack([each for _, found in unread for pair in found.values() for each in pair]).tolist()
            )
            return [
                {"step": step} | {name: [written(next(values)), written(next(values))] for name in found}
                for step, found in unread
            ]
        return []
