"""What a data set draws from the global generators of torch, numpy and Python.

A batch is to be a function of (seed, epoch, batch, rank), and dropout draws from the same generator of torch as a
``torch.randn`` in a data set does. So a source that draws is read while nothing else runs, with the generators set by
the place of the batch before, and put back afterwards. Most sources do not draw, and need not pay for that: what is
read first is looked at, and then a sample.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from accel_train import keyed
from accel_train.task import Event

T = TypeVar("T")

FIRST = 3
"""Reads that are checked before a source is taken not to draw."""
SAMPLE = 128
"""After that, one read in so many is checked, which takes 0.1 ms."""


class _Generator(NamedTuple):
    get: Callable[[], Any]
    set: Callable[[Any], Any]
    seed: Callable[[int], Any]  # with 64 bits
    same: Callable[[Any, Any], bool]  # of two states


_torch = torch.default_generator
GENERATORS = {
    "torch": _Generator(_torch.get_state, _torch.set_state, lambda key: _torch.manual_seed(key >> 1), torch.equal),
    "numpy": _Generator(
        np.random.get_state,
        np.random.set_state,
        lambda key: np.random.seed(key & 0xFFFFFFFF),
        lambda a, b: a[2:] == b[2:] and np.array_equal(a[1], b[1]),
    ),
    "random": _Generator(random.getstate, random.setstate, random.seed, lambda a, b: a == b),
}


def place_key(seed: int, epoch: int, number: int, rank: int) -> int:
    """What one rank's share of a batch is drawn from."""
    return keyed.key(seed, "reader", epoch, number, rank)


def seed_generators(key: int, names: Iterable[str] = GENERATORS) -> None:
    for name in names:
        GENERATORS[name].seed(key)


@contextlib.contextmanager
def generators(key: int, names: Iterable[str] = GENERATORS) -> Generator[None]:
    """Inside, the global generators follow from ``key``; afterwards they are as they were."""
    before = _states(names)
    seed_generators(key, names)
    try:
        yield
    finally:
        for name, state in before.items():
            GENERATORS[name].set(state)


class Draws:
    """Knows whether one source draws, and reads it accordingly. To be used in one thread.

    ``found``: the generators it was seen to draw from. ``name`` and ``advice`` are for what is said of it.
    """

    def __init__(self, seed: int, rank: int, name: str = "the data set", advice: str = "") -> None:
        self.seed, self.rank, self.name, self.advice = seed, rank, name, advice
        self.found: set[str] = set()
        self.reads = 0
        self._events: list[Event] = []

    def due(self) -> bool:
        """Whether the next batch must be read by ``read``; one that need not be is counted."""
        if self.found or self.reads < FIRST or self.reads % SAMPLE == 0:
            return True
        self.reads += 1
        return False

    def read(
        self, epoch: int, number: int, read: Callable[[], T], look: bool = False, end: Callable[[], Any] | None = None
    ) -> T:
        """``read()`` one batch, while no other thread draws. ``look``: whether it draws, always. ``end()`` is called
        if it was seen to, before the generators are put back: whatever reads ahead must end."""
        look = look or self.reads < FIRST or self.reads % SAMPLE == 0
        self.reads += 1
        names = GENERATORS if look else self.found
        if not names:
            return read()
        with generators(place_key(self.seed, epoch, number, self.rank), names):
            if not look:
                return read()
            seeded = _states(names)
            batch = read()
            self._compare(seeded, late=self.reads > FIRST)
            if self.found and end is not None:
                end()
            return batch

    def watch(self, wait: Callable[[], T]) -> T:
        """``wait()`` for other threads to read, and see whether they draw what dropout draws from."""
        before = _states(["torch"])
        found = wait()
        self._compare(before, late=True)
        return found

    def resumed(self, epoch: int) -> None:
        """To be called when a stream that draws is begun in the middle of an epoch."""
        line = f"{self.name} is read in sequence and draws from global generators: begun again within epoch {epoch}, it"
        line += " has drawn anew what it draws at the beginning of one, such as an order, and may give batches twice or"
        self._events.append(Event("warning", f"{line} never; draw that from np.random.default_rng((seed, epoch))"))

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _compare(self, before: dict[str, Any], late: bool) -> None:
        now = _states(before)
        new = [name for name in before if name not in self.found and not GENERATORS[name].same(before[name], now[name])]
        if not new:
            return
        self.found |= set(new)
        line = f"{self.name} draws from the global generator of {' and '.join(new)}"
        if late:
            lost = "what it and dropout drew" if "torch" in new else "what it drew"
            line += f", but was not seen to at first: {lost} until now cannot be repeated"
        line += "; from now on it is set by (seed, epoch, batch, rank) before every batch"
        self._events.append(Event("warning" if late else "note", line + self.advice))


def _states(names: Iterable[str]) -> dict[str, Any]:
    return {name: GENERATORS[name].get() for name in names}
