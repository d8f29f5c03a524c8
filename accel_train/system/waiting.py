"""Waiting that ends when the run is to stop. Every wait for something outside of this process goes through here.

Whoever asks the run to stop calls ``give_up``; from then on each wait below raises ``StoppedError`` within a fraction
of a second, in whatever thread it is. What a thread does that never returns is left behind: threads here are daemons,
so neither a stop nor the end of the interpreter waits for them.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

T = TypeVar("T")

SLICE_S = 0.1
"""A wait looks up so often."""


_given_up = False  # no Event, whose lock a signal handler might find taken
_here = threading.local()
_exposed = False  # the main thread is where it may be interrupted
_armed = False  # the signal that does it has its handler; nobody else uses it, and by default it is ignored


class StoppedError(RuntimeError):
    """The run is to stop, and what was waited for is not there."""


def give_up() -> None:
    """From now on nobody waits."""
    global _given_up
    _given_up = True
    if _exposed:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGURG)


def begin() -> None:
    """Waiting is allowed again: before a run, and after it in a process that goes on."""
    global _given_up
    _given_up = False


def given_up() -> bool:
    return _given_up and not getattr(_here, "to_the_end", False)


@contextlib.contextmanager
def to_the_end(wanted: bool = True) -> Generator[None]:
    """What is waited for inside, in this thread and its calls, is waited for all the same: the last words of a run."""
    _here.to_the_end = wanted
    try:
        yield
    finally:
        _here.to_the_end = False


def sleep(seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not given_up():
        left = ends - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, SLICE_S))
    raise StoppedError("stopped in a pause")


def result(future: Future[T]) -> T:
    """The result of ``future``, or its error."""
    while True:
        try:
            return future.result(SLICE_S)
        except FutureTimeoutError:
            if future.done():  # the function itself raised a TimeoutError
                return future.result()
            if given_up():
                raise StoppedError("stopped while waiting") from None


def interruptibly(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)`` in this thread, where another would cost too much. If this is the main one, ``give_up``
    interrupts it wherever Python can be: at a lock, a pause, a socket, a pipe."""
    global _exposed, _armed
    if threading.get_ident() != threading.main_thread().ident:
        return function(*arguments)
    if not _armed:
        signal.signal(signal.SIGURG, _interrupt)
        _armed = True
    _exposed = True
    try:
        if _given_up:
            raise StoppedError("stopped before reading")
        return function(*arguments)
    finally:
        _exposed = False


def _interrupt(*_: object) -> None:
    if _exposed:
        raise StoppedError("stopped while reading")


def in_thread(function: Callable[[], T], name: str = "waiting") -> Future[T]:
    """What comes of ``function()`` in a thread of its own. It waits to the end where the caller does."""
    future: Future[T] = Future()
    patient = getattr(_here, "to_the_end", False)

    def work() -> None:
        try:
            with to_the_end(patient):
                result = function()
            future.set_result(result)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name=name, daemon=True).start()
    return future


def call(function: Callable[[], T], seconds: float | None = None, meanwhile: Callable[[], object] | None = None) -> T:
    """``function()`` in a thread of its own, which is left behind by a stop or after so many ``seconds``.

    ``meanwhile`` is called in every slice.

    Raises:
        TimeoutError: after ``seconds``.
    """
    future = in_thread(function)
    ends = None if seconds is None else time.monotonic() + seconds
    while not future.done():
        if ends is not None and time.monotonic() >= ends:
            raise TimeoutError(f"not done in {seconds:g} s")
        if given_up():
            raise StoppedError("stopped while waiting")
        try:
            return future.result(SLICE_S)
        except FutureTimeoutError:
            if meanwhile is not None:
                meanwhile()
    return future.result()
