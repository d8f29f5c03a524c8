"""How a person or a scheduler talks to a run: signals, typed words, and files in ``output_dir/control``.

Nothing here acts. It collects requests on one rank; the loop makes them votes that all ranks count together, so every
rank finishes the same step.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
COMMANDS = ("stop", "save", "status")


class Control:
    """Requests that reached this rank since the run began.

    ``stop_reason`` is None or says who asked; ``by_signal`` whether that was a signal. The second SIGINT does not wait.
    """

    def __init__(
        self,
        folder: Path,
        is_main: bool,
        on_request: Callable[[], None] = lambda: None,
        on_status: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder, self.is_main = folder, is_main
        self.on_request, self.on_status = on_request, on_status
        self.stop_reason: str | None = None
        self.by_signal = False
        self.save_requested = False
        self._previous: dict[int, object] = {}
        self._closing = threading.Event()

    def __enter__(self) -> Control:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
            die_with_launcher()
        if self.is_main:
            for command in COMMANDS:  # a request to an earlier run is not one to this
                (self.folder / command).unlink(missing_ok=True)
            if sys.stdin is not None and not sys.stdin.closed and _is_terminal(sys.stdin):
                threading.Thread(target=self._listen, name="typed commands", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def poll(self) -> None:
        """Look for request files (rank 0, at every moment of attention)."""
        if not self.is_main:
            return
        for command in COMMANDS:
            path = self.folder / command
            if path.exists():
                path.unlink(missing_ok=True)
                self._obey(command, f"accel-train {command}")

    def _obey(self, word: str, who: str) -> None:
        if word in ("stop", "quit", "exit"):
            self.stop_reason = self.stop_reason or who
            self.on_request()
        elif word == "save":
            self.save_requested = True
            self.on_request()
        elif word == "status":
            self.on_status()
        elif word:
            print(f"{word!r} is not a command; type stop, save or status and Enter", flush=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop_reason is not None:
            raise KeyboardInterrupt  # the second one forces
        self.by_signal = True
        self.stop_reason = self.stop_reason or signal.Signals(number).name
        self.on_request()

    def _listen(self) -> None:
        while not self._closing.is_set():
            # Never blocked in a read, so that a notebook or a test can end the run without a key press.
            ready, _, _ = select.select([sys.stdin], [], [], 0.25)
            if ready:
                line = sys.stdin.readline()
                if not line:
                    return
                self._obey(line.strip().lower(), "typed stop")


def request(output_dir: Path, command: str) -> None:
    """Ask a running run for something, from another process."""
    folder = output_dir / "control"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / command).touch()


def _is_terminal(stream: object) -> bool:
    """A terminal whose foreground job we are: a job in the background would be stopped by reading from it."""
    try:
        number = stream.fileno()  # type: ignore[attr-defined]
        return os.isatty(number) and os.tcgetpgrp(number) == os.getpgrp()
    except (OSError, ValueError, AttributeError):
        return False


def die_with_launcher() -> None:
    """A launcher passes not every signal on, and none when it is killed: ask the kernel for a SIGTERM when it dies."""
    if sys.platform == "linux" and {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)
