"""How a person or a scheduler talks to a run: signals, typed words, and files in ``output_dir/control``.

Requests are collected on each rank; the loop makes them votes that all ranks count together, so every rank finishes the
same step. All that happens here is that waiting ends, once somebody asked to stop: nobody waits for data that may never
come. On several ranks that takes a few seconds, in which those whose data come agree to stop after a whole step.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from accel_train.system import waiting
from accel_train.system.process import status_fields
from accel_train.system.signals import Signals

COMMANDS = ("stop", "save", "status")
GRACE_S = 3.0
"""Between a request to stop and the end of waiting, on several ranks."""
RELAY_S = 1.0
"""A rank that was asked and has not stopped after so long may be held up by one that was not; it passes it on."""

JOB_END = "SLURM_JOB_END_TIME"
"""Where SLURM says, in seconds since 1970, when it ends the job. A run that stops for it says so by this name."""


class Control:
    """Requests that reached this rank since the run began.

    ``stop_reason`` is None or says who asked; ``by_signal`` whether that was a signal, or counts as one: the end of a
    job, a hang. The second SIGINT does not wait.
    """

    def __init__(
        self,
        folder: Path,
        is_main: bool,
        signals: Signals,
        alone: bool = True,
        on_request: Callable[[], None] = lambda: None,
        on_status: Callable[[], None] = lambda: None,
        time_is_up: Callable[[], str] = lambda: "",
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.is_main, self.signals, self.alone = folder, is_main, signals, alone
        self.on_request, self.on_status, self.time_is_up, self.on_tick = on_request, on_status, time_is_up, on_tick
        self.save_requested = False
        self._asked: str | None = None
        self._as_by_signal = False
        self._asked_at = 0.0
        self._closing = threading.Event()

    def __enter__(self) -> Control:
        if threading.current_thread() is threading.main_thread():
            die_with_launcher()
        if self.is_main:
            for command in COMMANDS:  # a request to an earlier run is not one to this
                (self.folder / command).unlink(missing_ok=True)
            number = _readable(sys.stdin)
            if number is not None:
                threading.Thread(target=self._listen, args=(number,), name="typed commands", daemon=True).start()
        return self

    def begin(self) -> None:
        """The loop begins: from now on requests are heard. Files of an earlier run must be gone by then."""
        self.signals.on_signal, self.signals.on_tick = self.on_request, self._on_tick
        if self.stop_reason is not None:
            self.on_request()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.signals.on_signal = self.signals.on_tick = lambda: None
        if self.is_main:
            with contextlib.suppress(OSError):  # the next run removes it
                (self.folder / "stop").unlink(missing_ok=True)  # until now other ranks may have wanted to see it

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def stop_reason(self) -> str | None:
        return self._asked or self.signals.reason

    @property
    def by_signal(self) -> bool:
        return self.signals.reason is not None or self._as_by_signal

    def stop(self, who: str, as_by_signal: bool = False) -> None:
        """``as_by_signal``: so that a scheduler starts the run again."""
        self._as_by_signal = self._as_by_signal or (as_by_signal and self.stop_reason is None)
        self._asked = self.stop_reason or who
        self.on_request()

    def _obey(self, word: str, who: str) -> None:
        if word in ("stop", "quit", "exit"):
            self.stop(who)
        elif word == "save":
            self.save_requested = True
            self.on_request()
        elif word:
            with contextlib.suppress(OSError, ValueError):  # nobody reads what is printed
                if word == "status":
                    self.on_status()
                else:
                    print(f"{word!r} is not a command; type stop, save or status and Enter", flush=True)

    def poll(self) -> None:
        """Look for request files. All ranks look for ``stop``, rank 0 alone for the others."""
        for command in COMMANDS if self.is_main else COMMANDS[:1]:
            path = self.folder / command
            try:
                who = path.read_text(errors="replace").strip() or f"accel-train {command}"
                if command != "stop":
                    path.unlink(missing_ok=True)
            except OSError:  # nobody asked
                continue
            self._obey(command, who)

    def _listen(self, number: int) -> None:
        rest = b""
        while not self._closing.is_set():
            # Never blocked in a read, so that a notebook or a test can end the run without a key press.
            ready, _, _ = select.select([number], [], [], 0.25)
            if ready:
                try:
                    text = os.read(number, 4096)
                except OSError:  # the terminal is gone
                    return
                *lines, rest = (rest + text).split(b"\n")
                for line in lines if text else [rest]:
                    self._obey(line.decode(errors="replace").strip().lower(), "typed stop")
                if not text:
                    return

    # -- the end of waiting ------------------------------------------------------------------------------------------

    def _on_tick(self) -> None:
        """Several times a second, beside the loop."""
        self.on_tick()
        self.poll()
        if self.stop_reason is None and (why := self.time_is_up()):
            self.stop(why, as_by_signal=why == JOB_END)
        if (who := self.stop_reason) is None:
            return
        self._asked_at = self._asked_at or time.monotonic()
        passed = time.monotonic() - self._asked_at
        if (self.alone or passed >= GRACE_S) and not waiting.given_up():
            waiting.give_up()
        if passed >= RELAY_S and not self.alone and not (self.folder / "stop").exists():
            with contextlib.suppress(OSError):  # a full disk: the request does not reach the other ranks this way
                request(self.folder.parent, "stop", who)


def request(output_dir: Path, command: str, who: str = "") -> None:
    """Ask a running run for something, from another process."""
    folder = output_dir / "control"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / command).write_text(who)


def _readable(stream: object) -> int | None:
    """The file number of a stream that somebody may type or send words to: a pipe, or the terminal whose foreground
    job we are, since a job in the background would be stopped by reading from it, or take what is meant for others."""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        if os.isatty(number):
            return number if _in_foreground(number) else None
        return number if stat.S_ISFIFO(os.fstat(number).st_mode) else None
    except (OSError, ValueError, AttributeError):
        return None


def _in_foreground(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:  # another session's terminal: the launcher's, which gives each rank a session of its own
        return _foreground_job(os.getppid())


def _foreground_job(process: int) -> bool:
    fields = status_fields(process)
    return fields is not None and fields[2] == fields[5]  # its group and that of its terminal


def die_with_launcher() -> None:
    """Ask the kernel for a SIGTERM when the launcher dies: it does not pass all signals on, and none when killed."""
    if sys.platform == "linux" and {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)
