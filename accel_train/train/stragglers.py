"""Which rank the others wait for. What each took for itself rides in the all-reduce of the synchronisation point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from accel_train.task import Event

STANDS_OUT = 1.3
"""A rank that took so many times as long as the median of the others, in two log lines running, is named."""
WORTH_SAYING, NOISE_S = 0.05, 0.25
"""But only if what it took longer is so much of the time of a step, and more than so many seconds in each of the two:
a millisecond in a few steps is chance."""
PARTS = ("reading data", "computing")
"""What a rank does alone, in the order of ``Whereabouts.take_own_seconds``."""


class Stragglers:
    """Adds up, since the last log line, what every rank took for itself.

    Args:
        emit: hears of a rank that stands out.

    ``hosts``: the machine of each rank.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.emit, self.hosts = emit, list[str]()
        self._seconds: list[list[float]] = []  # by rank and part
        self._steps = 0
        self._last: tuple[int, str] | None = None  # who stood out in the last log line
        self._said: tuple[int, str] | None = None

    def add(self, everyone: Sequence[Sequence[float]], steps: int) -> None:
        """Seconds of all ranks by part, over so many steps."""
        before = self._seconds or [[0.0] * len(PARTS)] * len(everyone)
        self._seconds = [[a + b for a, b in zip(*each, strict=True)] for each in zip(before, everyone, strict=True)]
        self._steps += steps

    def take(self, step_s: float) -> dict[str, float]:
        """What a log line has of several ranks: the slowest, and how many times as long as the others it took.

        Args:
            step_s: seconds of a step, by the clock.
        """
        steps, taken = max(self._steps, 1), self._seconds
        self._seconds, self._steps = [], 0
        if len(taken) < 2:
            return {}
        own = [sum(parts) / steps for parts in taken]
        slowest = max(range(len(own)), key=own.__getitem__)
        others = median(own[:slowest] + own[slowest + 1 :])
        ratio = own[slowest] / max(others, 1e-9)
        more = [mine - median(parts) for mine, parts in zip(taken[slowest], zip(*taken, strict=True), strict=True)]
        part = PARTS[more.index(max(more))]
        longer = own[slowest] - others
        stands_out = ratio >= STANDS_OUT and longer >= WORTH_SAYING * step_s and longer * steps >= NOISE_S
        self._judge((slowest, part) if stands_out else None, ratio, own[slowest], others)
        return {"slowest/rank": slowest, "slowest/ratio": ratio}

    def _judge(self, found: tuple[int, str] | None, ratio: float, own: float, others: float) -> None:
        if found is not None and found == self._last and found != self._said:
            self._said, (rank, part) = found, found
            took = f"{1e3 * own:,.1f} ms of its own in a step, the others {1e3 * others:,.1f} ms"
            self.emit(Event("warning", f"slowest rank {rank} on {self.hosts[rank]}: {ratio:.1f}x in {part} ({took})"))
        elif found is None and self._last is None:  # it is as the others again
            self._said = None
        self._last = found
