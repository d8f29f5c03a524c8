"""A run and its watchdogs: each rank starts one, lets it see where it is, and does what it asks."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import IO

from accel_train.errors import brief
from accel_train.plan import Duration
from accel_train.system import waiting, watchdog
from accel_train.system.signals import Signals, end_at_once
from accel_train.system.whereabouts import here
from accel_train.task import Event
from accel_train.train.session import Session
from accel_train.train.world import flight_recorder

START_S = 5.0
"""A watchdog starts so long after its run (sooner where the warning comes early): short ones do without."""
LEAVE_S = 2.0
"""How long a watchdog may take to end."""
LAST_WORDS_S = 5.0
"""How long it may take to say that a rank is ended."""
MARK_ENV = "ACCEL_TRAIN_REQUEUE_FILE"
"""The environment variable with the name of a file that is made when a run which has made steps is ended since it
hangs."""


class Watch:
    """The watchdog of this rank, from ``begin`` to ``end``.

    Args:
        stop: asks the loop to stop and save, and why.
        last_words: what can still be said of a rank that does not move, before it is ended.

    ``hosts``: the machine of each rank, once it has begun.
    """

    def __init__(
        self, session: Session, signals: Signals, stop: Callable[[str], None], last_words: Callable[[str], None]
    ) -> None:
        self.session, self.signals, self.stop, self.last_words = session, signals, stop, last_words
        self.hosts: list[str] = []
        self._folder, self._first_step = Path(), 1  # of the session: where hangs are written, and where it began
        self._starts_at: float | None = None
        self._words: memoryview | None = None
        self._page: mmap.mmap | None = None
        self._asked = False
        self._held = contextlib.ExitStack()
        self._lock = threading.Lock()  # the beginning is beside the loop, the end is not

    def begin(self, first_step: int) -> None:
        """Every rank must call it, before its first step."""
        now = datetime.now().strftime("%Y-%m-%dT%H%M%S")
        everywhere = self.session.ranks.gather((socket.gethostname(), now))
        self.hosts = [host for host, _ in everywhere]
        self._folder, self._first_step = self.session.output_dir / "hangs" / everywhere[0][1], first_step
        here.at(watchdog.STARTING, first_step)
        if (warning := _seconds(self.session.config.hang_warning, "hang_warning")) is not None:
            self._starts_at = time.monotonic() + min(START_S, warning / 10)

    def end(self) -> None:
        with self._lock:
            self._starts_at = self._words = self._page = None
            self._held.close()

    def _start(self) -> None:
        """A watchdog that cannot be started is a warning."""
        with self._lock:
            if self._starts_at is None:  # the run has ended meanwhile
                return
            self._starts_at = None
            try:
                self._start_process()
            except (OSError, ValueError, RuntimeError) as error:
                self._words = self._page = None
                self._held.close()
                rank = f" of rank {self.session.ranks.rank}" if len(self.hosts) > 1 else ""
                text = f"hang_warning: the watchdog{rank} cannot be started: {brief(error)}"
                self.session.emit(Event("warning", text))

    def _start_process(self) -> None:
        file = self._held.enter_context(_memory())
        number = file.fileno()
        os.truncate(number, watchdog.PAGE)
        os.lseek(number, watchdog.PAGE, os.SEEK_SET)  # stacks are written behind the notes
        self._page = mmap.mmap(number, watchdog.PAGE)
        self._words = memoryview(self._page).cast("Q")
        here.share(self._words)
        self._held.callback(here.share)
        faulthandler.register(watchdog.STACKS, file, all_threads=True)
        self._held.callback(faulthandler.unregister, watchdog.STACKS)
        theirs, ours = os.pipe()
        settings = self._settings() | {"file": number, "alive": theirs}
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog.__file__, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(number, theirs),
                start_new_session=True,  # what a terminal or a scheduler sends to the whole group is not meant for it
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._held.callback(_leave, process, ours)

    def _settings(self) -> dict[str, object]:
        config, ranks = self.session.config, self.session.ranks
        ends = config.hang_timeout is not None and self.signals.program  # a notebook is not ours to end
        return {
            "rank": ranks.rank,
            "world_size": ranks.world_size,
            "folder": str(self._folder.absolute()),
            "first_step": self._first_step,
            "warning": _seconds(config.hang_warning, "hang_warning"),
            "timeout": _seconds(config.hang_timeout, "hang_timeout") if ends else None,
            "code": config.requeue_exit_code or 1,
            "mark": os.environ.get(MARK_ENV, ""),
            "recorder": flight_recorder(ranks.rank),
        }

    def tick(self) -> None:
        """Several times a second, beside the loop: say and do what the watchdog asks for."""
        if self._starts_at is not None and time.monotonic() >= self._starts_at:
            self._start()
        words, page = self._words, self._page
        if words is None or page is None:
            return
        if news := _text(page, words, watchdog.NEWS):
            words[watchdog.NEWS] = 0
            self._say(news)
        if not (asked := words[watchdog.ASKED]):
            return
        why = f"hang_timeout: {_text(page, words, watchdog.WHY)}"
        if not self._asked:
            self._asked, self.signals.exit_code = True, int(words[watchdog.CODE])
            self.stop(why)
        if asked == watchdog.END:
            with contextlib.suppress(Exception), waiting.to_the_end():
                waiting.call(lambda: self.last_words(why), LAST_WORDS_S)
            end_at_once(int(words[watchdog.CODE]), f"accel-train: rank {self.session.ranks.rank} ends: {why}")

    def _say(self, text: str) -> None:
        if self.session.observers.listening:
            self.session.emit(Event("hang", text))
        else:
            with contextlib.suppress(OSError, ValueError):  # nobody is there to read it
                print(f"accel-train: {text}", file=sys.stderr, flush=True)


def _memory() -> IO[bytes]:
    """A file that no disk can delay."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("accel_train"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _text(page: mmap.mmap, words: memoryview, word: int) -> str:
    begin = watchdog.TEXT_AT[word]
    return page[begin : begin + words[word]].decode(errors="replace")


def _seconds(duration: str | None, setting: str) -> float | None:
    return None if duration is None else Duration.parse(duration, setting).amount


def _leave(process: subprocess.Popen[bytes], ours: int) -> None:
    os.close(ours)
    try:
        process.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
