"""Units in processes of one host, and a line now and then of how many are done."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from accel_train.system import process

SAY = 30.0
"""Seconds between two lines of progress."""


def in_processes(
    do: Callable[[int], Any],
    numbers: Sequence[int],
    workers: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Generator[tuple[int, Any]]:
    """Numbers and what ``do`` gives, as they end.

    Args:
        start: with ``arguments``, in each process before its first.

    Raises:
        BrokenProcessPool: a process was killed. What ``do`` raises ends all, too.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(numbers)), spawn, start, arguments) as pool:
        running = {pool.submit(do, number): number for number in numbers}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Progress:
    """Lines for whoever watches, once it has taken a while: who waits for a few seconds is told the end alone."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.done = total, what, 0
        self._start = self._said = time.monotonic()
        self._failed: list[str] = []

    def add(self, items: int) -> None:
        """How many are done, now and then."""
        self.done += items
        if (now := time.monotonic()) - self._said > SAY:
            self._said, rate = now, self.done / (now - self._start)
            left = (self.total - self.done) / rate / 60
            text = f"{self.done:,} of {self.total:,} {self.what}, {rate:,.1f}/s, {left:.0f} min left"
            print(f"rank {process.rank()}: {text}", flush=True)
            self._say_failed()

    def fail(self, text: str) -> None:
        """What is wrong with one, which is said again at the end."""
        self._failed.append(text)
        if time.monotonic() - self._start > SAY:
            self._say_failed()

    def _say_failed(self) -> None:
        for text in self._failed:
            print(text, file=sys.stderr, flush=True)
        self._failed.clear()
