"""Waiting that ends when the run is to stop. Every wait for something outside of this process goes through here.

Whoever asks the run to stop calls ``give_up``; from then on each wait below raises ``StoppedError`` within a fraction
of a second, in whatever thread it is. What a thread does that never returns is left behind: threads here are daemons,
so neither a stop nor the end of the interpreter waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

T = TypeVar("T")

SLICE_S = 0.1
"""A wait looks up so often."""

_given_up = threading.Event()


class StoppedError(RuntimeError):
    """The run is to stop, and what was waited for is not there."""


def give_up() -> None:
    """From now on nobody waits."""
    _given_up.set()


def begin() -> None:
    """A new run in this process: waiting is allowed again."""
    _given_up.clear()


def given_up() -> bool:
    return _given_up.is_set()


def sleep(seconds: float) -> None:
    if _given_up.wait(seconds):
        raise StoppedError("stopped in a pause")


def result(future: Future[T]) -> T:
    """The result of ``future``, or its error."""
    while True:
        try:
            return future.result(SLICE_S)
        except FutureTimeoutError:
            if future.done():  # the function itself raised a TimeoutError
                return future.result()
            if _given_up.is_set():
                raise StoppedError("stopped while waiting") from None


def call(function: Callable[[], T], seconds: float | None = None, meanwhile: Callable[[], object] | None = None) -> T:
    """``function()`` in a thread of its own, which is left behind by a stop or after so many ``seconds``.

    ``meanwhile`` is called in every slice.

    Raises:
        TimeoutError: after ``seconds``.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="waiting", daemon=True).start()
    ends = None if seconds is None else time.monotonic() + seconds
    while not future.done():
        if ends is not None and time.monotonic() >= ends:
            raise TimeoutError(f"not done in {seconds:g} s")
        if _given_up.is_set():
            raise StoppedError("stopped while waiting")
        try:
            return future.result(SLICE_S)
        except FutureTimeoutError:
            if meanwhile is not None:
                meanwhile()
    return future.result()
