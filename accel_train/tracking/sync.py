"""A copy of TensorBoard's files elsewhere, so that others can watch a run on a machine they cannot reach."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from accel_train.data.remote import storage
from accel_train.data.remote.requests import is_remote
from accel_train.errors import UserError
from accel_train.system.secrets import scrub
from accel_train.task import Event
from accel_train.tracking.observer import Observer, Record, Run

WAIT_S = 60.0
"""The end of a run waits at most so long for the last pass."""


class TensorBoardSync(Observer):
    """Copies event files that changed to ``destination/RUN_NAME``, from a thread of its own; a last time at the end.

    What goes wrong is reported once and tried again; it never reaches the training.

    Args:
        destination: a directory, or a URL that fsspec can write to.
        interval: seconds between two passes over the files.
        emit: takes the warning, in the thread of the training.
    """

    _thread: threading.Thread | None = None

    def __init__(self, destination: str, interval: float, emit: Callable[[Event], None]) -> None:
        self.destination, self.interval, self.emit = destination, interval, emit
        self.copied: dict[Path, tuple[int, int]] = {}  # as it was when it was copied: mtime in ns, bytes
        self._closing = threading.Event()
        self._problem = ""
        self._warned = False

    def on_start(self, run: Run) -> None:
        self._folder = run.output_dir / "tensorboard"
        slash = "" if self.destination.endswith("/") else "/"
        self._target = f"{self.destination}{slash}{run.output_dir.resolve().name}"
        if "://" not in self._target and Path(self._target).resolve().is_relative_to(self._folder.resolve()):
            raise UserError(f"tb_sync_to: {self.destination} is inside of {self._folder}, which is to be copied")
        self._thread = threading.Thread(target=self._work, name="tb_sync", daemon=True)
        self._thread.start()

    def on_tick(self, status: Record) -> None:
        self._say_problem()

    def on_end(self, outcome: str, status: Record) -> None:
        if self._thread is None:
            return
        self._closing.set()
        self._thread.join(WAIT_S)
        if self._thread.is_alive():
            self._problem = self._problem or f"the last copy took more than {WAIT_S:g} s"
        self._thread = None
        self._say_problem()

    def _work(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(self.interval)
            try:
                self._copy_changed()
            except Exception as error:
                self._problem = self._problem or f"{type(error).__name__}: {error}".splitlines()[0][:300]

    def _copy_changed(self) -> None:
        for file in sorted(self._folder.rglob("*tfevents*")):
            found = file.stat()
            state = found.st_mtime_ns, found.st_size
            if self.copied.get(file) != state:
                copy(file, f"{self._target}/{file.relative_to(self._folder).as_posix()}")
                self.copied[file] = state

    def _say_problem(self) -> None:
        if self._problem and not self._warned:
            self._warned = True
            text = f"tb_sync_to: {self._folder} could not be copied to {self._target}: {self._problem}"
            self.emit(Event("warning", f"{scrub(text)}; it is tried again as long as the run lasts"))


def copy(file: Path, target: str) -> None:
    """To a path or a URL. A file is overwritten in place: a TensorBoard that has it open goes on reading from there."""
    if is_remote(target):
        storage.put(str(file), target)
    else:
        target = storage.local_path(target)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
