"""Where the time of a few steps goes, as a trace for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from accel_train.plan import parse_steps
from accel_train.task import Event
from accel_train.train.session import Session


class Profiler:
    """Records ``profile_steps``, on every rank, with torch.profiler. It only reports: a failure is a warning.

    ``RUN/profile/steps-A-B-rankN.json`` holds what the host and the GPU did from the moment at which batch A is asked
    for to the end of step B. Both slow down meanwhile.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._first, self._last = parse_steps(session.config.profile_steps or "0:0", "profile_steps")
        self._running: Any = None

    def at(self, step: int) -> None:
        """So many steps are done."""
        if self._running is None and self._first <= step + 1 <= self._last:
            self._guarded(self._start)
        elif self._running is not None and step >= self._last:
            self.close()

    def close(self) -> None:
        """Write what there is; nothing more is recorded."""
        if self._running is not None:
            self._guarded(self._write)
        self._last = 0

    def _guarded(self, what: Any) -> None:
        done = False
        with self.session.reports("profile", self.session.emit):
            what()
            done = True
        if not done:
            self._running, self._last = None, 0

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        on_gpu = [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._running = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self._running.start()

    def _write(self) -> None:
        running, self._running = self._running, None
        running.stop()
        folder = Path(self.session.output_dir) / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"steps-{self._first}-{self._last}-rank{self.session.ranks.rank}.json"
        running.export_chrome_trace(str(path))
        title = f"profile of steps {self._first} to {self._last}: {path}; open it in https://ui.perfetto.dev"
        self.session.emit(Event("note", title))
