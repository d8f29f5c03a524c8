"""Where this rank is: the step, the part of it, and whether it waits for other ranks, in a page of memory that its
watchdog shares while there is one. A note takes a fifth of a microsecond. Parts are those of ``watchdog``."""

from __future__ import annotations

from time import perf_counter

from accel_train.system.watchdog import COMPUTING, COUNT, DOING, PAGE, PART, READING, STARTING, STEP, WAITING


class Whereabouts:
    """``spent``: seconds in each part since they were taken, without waiting for other ranks. ``waiting`` is a context:
    what is done inside waits for them."""

    __slots__ = ("_part", "_since", "_words", "spent", "waiting")

    def __init__(self) -> None:
        self._words = memoryview(bytearray(PAGE)).cast("Q")
        self._part, self._since = STARTING, perf_counter()
        self.spent = [0.0] * len(DOING)
        self.waiting = _Waiting(self)

    def at(self, part: int, step: int | None = None) -> None:
        """From now on this rank does that; ``step`` counts from 1, and stays until another is given."""
        now = perf_counter()
        self.spent[self._part] += now - self._since
        self._part, self._since = part, now
        words = self._words
        words[COUNT] += 1
        words[PART] = part
        if step is not None:
            words[STEP] = step

    def share(self, words: memoryview | None = None) -> None:
        """Note into these words, or again into a page of this process alone."""
        new = memoryview(bytearray(PAGE)).cast("Q") if words is None else words
        new[:WAITING] = self._words[:WAITING]
        self._words = new

    def take_own_seconds(self) -> tuple[float, float]:
        """What this rank alone took since the last call: for reading and for computing, the latter until it began to
        send gradients."""
        found = self.spent[READING], self.spent[COMPUTING]
        self.spent[READING] = self.spent[COMPUTING] = 0.0
        return found


class _Waiting:
    __slots__ = ("here",)

    def __init__(self, here: Whereabouts) -> None:
        self.here = here

    def __enter__(self) -> None:
        here = self.here
        here.at(here._part)
        here._words[WAITING] = 1

    def __exit__(self, *_: object) -> None:
        here = self.here
        here._since = perf_counter()  # what has passed is nobody's own
        here._words[COUNT] += 1
        here._words[WAITING] = 0


here = Whereabouts()
"""Of this process, which is one rank and has one run at a time."""
