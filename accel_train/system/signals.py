"""Signals, caught from the first moment of a program, or of a ``fit``, to its last.

A signal is noted at once and acts where nothing can be left half done: preparation is interrupted, the loop is told and
ends after its step (see ``control``). A second SIGINT interrupts whatever is done. A thread listens as well, since the
main thread hears nothing while it is inside a library: in a collective, or in the read of a file that does not answer.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType

from accel_train.system import waiting
from accel_train.system.waiting import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STARTING, PREPARING, WORKING = "starting", "preparing", "working"

TICK_S = 0.5
"""The thread looks up so often, and whenever a signal comes."""
PATIENCE_S = {STARTING: 5.0, PREPARING: 1.0}
"""A program that is to stop while it prepares, and does not, is ended after so long. To start is to import, which ends
by itself and finds out which exit code was asked for."""
FORCED_S = 1.0
"""The same after a second SIGINT."""


class _Interrupted(BaseException):
    """No ``KeyboardInterrupt``, since Python would then choose the exit code if one passes through ``exec``."""


class Signals:
    """What was signalled to this process since it was caught.

    Args:
        program: the process is ours to end, as in a program and unlike in a notebook.

    ``reason`` is None or the name of the first signal, ``forced`` whether a second SIGINT came. ``state`` says what the
    main thread does. ``exit_code``: of a program that was stopped, once that is known.
    """

    def __init__(self, program: bool = False) -> None:
        self.program = program
        self.state = STARTING
        self.reason: str | None = None
        self.forced = False
        self.exit_code: int | None = None
        self.on_signal: Callable[[], None] = lambda: None
        self.on_tick: Callable[[], None] = lambda: None
        self._interrupts = 0
        self._previous: dict[int, object] = {}
        self._closing = threading.Event()
        self._pipe: tuple[int, int] | None = None
        self._old_pipe = -1

    # -- from beginning to end ---------------------------------------------------------------------------------------

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            for end in self._pipe:
                os.set_blocking(end, False)
            self._old_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in SIGNALS:
                if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN):  # nohup
                    self._previous[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        if self.program:  # all is done; what comes now must not change the exit code
            for number in self._previous.keys() - {signal.SIGINT}:
                signal.signal(number, signal.SIG_IGN)
        self._closing.set()
        if self._pipe is not None:
            os.write(self._pipe[1], b"\0")  # no signal: it looks up
        self._thread.join()
        for end in self._pipe or ():
            os.close(end)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
        if self._pipe is not None:
            signal.set_wakeup_fd(self._old_pipe)

    def in_child(self) -> None:
        """A forked process has signals of its own, and must not write into our pipe."""
        self._old_pipe = -1
        self._restore()

    # -- in the main thread ------------------------------------------------------------------------------------------

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                self.forced = True
                raise KeyboardInterrupt
        self._note(number)
        if self.state == PREPARING:
            raise _Interrupted

    def _note(self, number: int) -> None:
        self.reason = self.reason or signal.Signals(number).name
        self.on_signal()

    @contextlib.contextmanager
    def preparing(self) -> Generator[None]:
        """What is done inside ends at once when a signal comes, or has come before.

        Raises:
            StoppedError: it did.
        """
        try:
            self.state = PREPARING
            if self.reason is not None:
                raise _Interrupted
            yield
            self.state = WORKING
        except BaseException:  # also an error that comes of other ranks having stopped already
            self.state = WORKING
            if self.reason is None or self.forced:
                raise
            raise StoppedError(self._stopped()) from None

    def _stopped(self) -> str:
        return f"stopped while preparing ({self.reason}); nothing was trained"

    # -- beside it ---------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        interrupts, since, forced_since = 0, 0.0, 0.0
        while not self._closing.is_set():
            heard = self._heard()
            interrupts += heard.count(signal.SIGINT)
            for number in heard:
                if number in SIGNALS:
                    self._note(number)
            self.on_tick()
            now = time.monotonic()
            if interrupts > 1:
                waiting.give_up()
                forced_since = forced_since or now
                if now - forced_since > FORCED_S:
                    self._end(130, "interrupted")
            if self.reason is not None:
                since = since or now
                if now - since > TICK_S and self.state == PREPARING:
                    waiting.give_up()
                if now - since > PATIENCE_S.get(self.state, math.inf):
                    number = signal.Signals[self.reason]
                    self._end(128 + number if self.exit_code is None else self.exit_code, self._stopped())

    def _heard(self) -> bytes:
        """The numbers of the signals that came within the next moment."""
        if self._pipe is None:
            self._closing.wait(TICK_S)
            return b""
        select.select([self._pipe[0]], [], [], TICK_S)
        try:
            return os.read(self._pipe[0], 4096)
        except BlockingIOError:
            return b""

    def _end(self, code: int, why: str) -> None:
        if self.program:
            end_at_once(code, f"accel-train: {why}")


_active: Signals | None = None


@contextlib.contextmanager
def caught(program: bool = False) -> Generator[Signals]:
    """Signals are caught inside, by whoever asked first. What they ended the waiting for is over afterwards, unless the
    program is."""
    global _active
    if _active is not None:
        yield _active
        return
    waiting.begin()
    try:
        with Signals(program) as _active:
            try:
                yield _active
            finally:
                _active = None
    finally:
        if not program:
            waiting.begin()


def active() -> Signals | None:
    return _active


def end_at_once(code: int, line: str = "") -> None:
    """Nothing is joined, and what other threads and loader processes do is left undone."""
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, end="\n" if line else "")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody is there to read it any more
            stream.flush()
    os._exit(code)


def _after_fork() -> None:
    global _active
    if _active is not None:
        _active.in_child()
        _active = None


os.register_at_fork(after_in_child=_after_fork)
