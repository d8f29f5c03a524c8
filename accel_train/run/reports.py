"""Reporting never costs a run. What a picture, a summary or a look at a model raises becomes a warning, and its
traceback a file beside the run; everything else goes on."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path

from accel_train.errors import brief
from accel_train.system.waiting import StoppedError
from accel_train.task import Event, Task

FAILURES = (Exception, SystemExit)
"""What a library that only reports may raise. Not KeyboardInterrupt, by which a person stops the run."""


class Reports:
    """Guards for the parts of a run that only report on it.

    Args:
        folder: of the run; tracebacks go to ``errors/NAME.txt`` in it, or ``errors/NAME-rankN.txt``.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = Path(folder), rank
        self._reported: set[tuple[str, type]] = set()

    @contextlib.contextmanager
    def __call__(self, name: str, emit: Callable[[Event], None]) -> Generator[None]:
        """What is raised inside becomes a warning, once for each kind of error, and not raised."""
        try:
            yield
        except StoppedError:
            emit(Event("note", f"{name} left out, since the run is to stop"))
        except FAILURES as error:
            if (name, type(error)) not in self._reported:
                self._reported.add((name, type(error)))
                emit(Event("warning", f"{name} failed and is left out: {brief(error)}{self._write(name, error)}"))

    def _write(self, name: str, error: BaseException) -> str:
        path = self.folder / "errors" / (f"{name}-rank{self.rank}.txt" if self.rank else f"{name}.txt")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return f" (traceback in {path})"


def summary_of(task: Task, metrics: dict[str, float], folder: Path) -> str:
    """What the task says of its metrics, for a person; nothing if that fails, which is a warning."""
    if not metrics:  # nothing was evaluated
        return ""
    with Reports(folder)("summary", warn):
        return str(task.summary(metrics) or "")
    return ""


def warn(event: Event) -> None:
    """Prints an event on standard error, for commands that have no observers."""
    print(f"accel-train: {event.kind}: {event.title}", file=sys.stderr)
