"""Copies checkpoints to the mirror beside the training, and says what became of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from accel_train.errors import UserError, brief
from accel_train.run.mirror import AheadError, Mirror, OvertakenError
from accel_train.run.mirror_folder import ForeignError
from accel_train.system import waiting
from accel_train.task import Event
from accel_train.tracking.observer import Observer, Record, Run

STOP_S, END_S = 20.0, 600.0
"""A run that was told to stop, or has failed, waits at most so long for the last copies, since a scheduler may end it
soon; one that is done, longer."""
SLOW_S = 600.0
"""A copy that takes longer is remarked upon."""
PAUSE_S, LONGEST_PAUSE_S = 60.0, 3600.0
"""Before a copy that has failed is tried again, unless a newer checkpoint comes; doubled each time."""
SOON_S = 5.0
"""A wait that takes longer is announced."""


class Mirroring(Observer):
    """One thread, and in it one copy at a time; of the checkpoints that wait for it the newest is copied next.

    What goes wrong is a warning, once for each kind, and at the end how often it did. It never reaches the training.

    Args:
        newest: the checkpoint that the run goes on from, which may not be there yet.
        emit: takes the warnings, in the thread of the training.
    """

    def __init__(self, mirror: Mirror, newest: int | None, emit: Callable[[Event], None]) -> None:
        self.mirror, self.emit = mirror, emit
        self._wanted = newest
        self._copying: int | None = None
        self._since = self._not_before = 0.0
        self._closing = self._dropped = False
        self._changed = threading.Condition()
        self._tried = self._failed = self._failed_in_row = 0
        self._to_say: list[str] = []
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="checkpoint_mirror", daemon=True)

    def on_start(self, run: Run) -> None:
        self._thread.start()

    def on_save(self, step: int, path: Path) -> None:
        with self._changed:
            self._wanted, self._not_before = step, 0.0
            self._changed.notify_all()

    def on_tick(self, status: Record) -> None:
        step, took = self._copying, time.monotonic() - self._since
        if step is not None and took > SLOW_S:
            self._note("slow", f"the copy of step {step:,} takes more than {SLOW_S / 60:g} minutes")
        self._say()

    def on_end(self, outcome: str, status: Record) -> None:
        with self._changed:
            self._closing = True
            self._dropped = outcome == "lost"
            self._changed.notify_all()
        self._wait(outcome == "completed")
        newest = self.mirror.newest
        holds = "the mirror holds " + ("no checkpoint of this session" if newest is None else f"step {newest:,}")
        if self._thread.is_alive() and outcome != "lost":
            self._note("end", f"the last copy was not finished in {self._limit(outcome == 'completed'):g} s; {holds}")
        self._dropped = True
        if self._failed:
            self._note("count", f"{self._failed:,} of {self._tried:,} copies failed; {holds}")
        self._say()

    def _wait(self, completed: bool) -> None:
        began, said = time.monotonic(), False
        while self._thread.is_alive() and not self._dropped:
            passed, limit = time.monotonic() - began, self._limit(completed)
            if passed > limit:
                return
            if passed > SOON_S and not said:
                said = True
                text = f"checkpoint_mirror: waiting for the last copy, at most {limit:g} s; it is saved here"
                self.emit(Event("note", text))
            self._thread.join(waiting.SLICE_S)

    def _limit(self, completed: bool) -> float:
        return END_S if completed and not self._failed_in_row and not waiting.given_up() else STOP_S

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with waiting.to_the_end():  # also when the run is to stop: for how long, the end decides
            while (step := self._next()) is not None:
                try:
                    self._copy(step)
                except Exception as error:
                    if isinstance(error, ForeignError):
                        self._note("foreign", f"{error}; nothing more is copied")
                        return
                    self._fail(step, error)
                finally:
                    self._copying = None

    def _next(self) -> int | None:
        with self._changed:
            while not self._dropped:
                left = 0.0 if self._closing else self._not_before - time.monotonic()
                if self._wanted is not None and left <= 0:
                    self._copying, self._wanted, self._since = self._wanted, None, time.monotonic()
                    return self._copying
                if self._closing:
                    return None
                self._changed.wait(left if self._wanted is not None else None)
            return None

    def _copy(self, step: int) -> None:
        try:
            new = self.mirror.copy(step, self._go_on)
        except OvertakenError:
            return
        except Exception:
            if not self._dropped:
                self._prune(tell=False)  # what was half written may be what fills it
            raise
        self._tried += new
        self._failed_in_row = 0
        if new:
            self._prune(tell=True)

    def _prune(self, tell: bool) -> None:
        try:
            self.mirror.prune()
        except Exception as error:
            if tell:
                self._note("prune", f"old checkpoints could not be removed: {_said_of(error)}")

    def _go_on(self) -> None:
        if self._dropped:
            raise OvertakenError

    def _fail(self, step: int, error: Exception) -> None:
        ahead = isinstance(error, AheadError)
        self._tried, self._failed = self._tried + 1, self._failed + 1
        self._failed_in_row += 1
        self._note("ahead" if ahead else "", f"step {step:,} was not copied: {_said_of(error)}")
        with self._changed:
            if self._wanted is None and not self._closing and not ahead:
                self._wanted = step
                pause = min(PAUSE_S * 2 ** (self._failed_in_row - 1), LONGEST_PAUSE_S)
                self._not_before = time.monotonic() + pause

    # -- what is said ------------------------------------------------------------------------------------------------

    def _note(self, kind: str, text: str) -> None:
        """Once for each kind; without one, what is left of the text without names and numbers."""
        kind = kind or re.sub(r"\S*[/\d]\S*", "", text)
        with self._changed:
            if kind not in self._said:
                self._said.add(kind)
                self._to_say.append(text)

    def _say(self) -> None:
        with self._changed:
            texts, self._to_say = self._to_say, []
        for text in texts:
            self.emit(Event("warning", f"checkpoint_mirror: {text}"))


def _said_of(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else brief(error)
