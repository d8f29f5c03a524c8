"""Threads that read, and that nobody has to wait for when they are stuck.

A run that is given up leaves them behind, and they are daemons: the end of the interpreter does not wait for them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from accel_train.system import waiting

T = TypeVar("T")
S = TypeVar("S")


class Threads:
    """At most so many threads, started when there is work, which take it in order."""

    def __init__(self, count: int, name: str) -> None:
        self.count, self.name = count, name
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._queue.put((future, function))
        if len(self._threads) < self.count:
            name = f"{self.name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        return future

    def map(self, function: Callable[[S], T], arguments: Iterable[S]) -> list[T]:
        """``function`` of all of them, in order; the threads end."""
        try:
            return [waiting.result(job) for job in [self.submit(lambda a=a: function(a)) for a in arguments]]
        finally:
            self.close()

    def close(self, cancel: bool = True) -> bool:
        """Wait for what has begun (and what has not, unless ``cancel``), but not in a run that is given up. False if
        a thread had to be left behind."""
        self._end(cancel)
        for thread in self._threads:
            while thread.is_alive() and not waiting.given_up():
                thread.join(waiting.SLICE_S)
        if not any(thread.is_alive() for thread in self._threads):
            return True
        self._end(cancel=True)
        return False

    def _end(self, cancel: bool) -> None:
        while cancel:
            try:
                job = self._queue.get_nowait()
            except Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in self._threads:
            self._queue.put(None)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            future, function = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del job, future, function  # a batch must not stay in memory until the next one comes
