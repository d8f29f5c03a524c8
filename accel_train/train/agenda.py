"""When the next synchronisation point is, and what is due then."""

from __future__ import annotations

import os
import time

from accel_train.config.schema import TrainConfig
from accel_train.plan import Duration, Every, Plan, Position
from accel_train.train.control import JOB_END
from accel_train.train.probes import Probes

SYNC_SECONDS = 0.5
GRACE_S = 30.0
"""From what should be the end of a run to the end of its job: trackers, clocks that differ, a first save."""
SIGNAL_S = 120.0
"""So long before the end examples/slurm.sh asks for a signal."""


class Agenda:
    """``sync_at`` is the next step after which the ranks synchronise. Steps are the same on all ranks; time is asked
    for on rank 0 only. ``until``: a replay ends after this step."""

    def __init__(self, config: TrainConfig, plan: Plan, probes: Probes, until: int | None = None) -> None:
        self.plan, self.probes, self.until = plan, probes, until
        self.save_every = Every(config.save_steps, "save_steps")
        self.eval_every = Every(config.eval_steps, "eval_steps")
        self.log_every = Every(config.logging_steps, "logging_steps")
        self.sync_at = 1
        self._save_seconds = 0.0
        self._enough: dict[str, float] = {}  # seconds for the last steps and to save, before somebody should know
        self._ends: dict[str, float] = {}  # time.monotonic()
        now = time.monotonic()
        if config.max_time:
            seconds = Duration.parse(config.max_time, "max_time").amount
            self._ends["max_time"], self._enough["max_time"] = now + seconds, max(seconds / 2, 10.0)
        if (seconds := _job_seconds()) > 0:
            self._ends[JOB_END], self._enough[JOB_END] = now + seconds - GRACE_S, SIGNAL_S

    def plan_sync(self, position: Position, step_seconds: float) -> None:
        """The next step at which something is due; at the latest in about half a second, agreed by all ranks."""
        step = position.step
        soon = SYNC_SECONDS / step_seconds if step_seconds > 0 else 1
        due = [step + max(1, min(int(soon), 1000))]
        every = (self.log_every, self.eval_every, self.save_every)
        due += [n for n in (each.next_step(step) for each in every) if n is not None]
        due += self.probes.next_steps(step)
        boundary = self.plan.steps_to_boundary(position)
        if boundary is not None:
            due.append(step + boundary)
        if self.until is not None and self.until > step:
            due.append(self.until)
        self.sync_at = min(due)

    def arrived(self, position: Position) -> str:
        """Why a replay ends here; "" if it does not, or this is none."""
        return f"replayed to step {position.step:,}" if position.step == self.until else ""

    def at_once(self) -> None:
        """Synchronise after the step that is being done."""
        self.sync_at = 0

    def begin_saving_by_clock(self) -> None:
        self.save_every.last_time = time.monotonic()

    def saved(self, seconds: float) -> None:
        """A checkpoint is on the disk, and took so long."""
        self.save_every.last_time = time.monotonic()
        self._save_seconds = max(self._save_seconds, seconds)

    def time_is_up(self, step_seconds: float) -> str:
        """Which end is about to pass, so that what is left is needed for the last steps and to save; or ""."""
        then = time.monotonic() + self._reserve(step_seconds)
        return next((why for why, end in self._ends.items() if then >= end), "")

    def too_slow(self, step_seconds: float) -> str:
        """What to warn of, once, if steps and saves are too slow for an end of this run."""
        reserve = self._reserve(step_seconds)
        why = next((why for why, enough in self._enough.items() if reserve > enough), "")
        if not why:
            return ""
        del self._enough[why]
        need = f"{why}: to finish the last steps and save may take {reserve:,.0f} s"
        if why == JOB_END:
            return f"{need}, before which the run stops by itself; a signal has to come earlier than that: with " \
                   f"examples/slurm.sh, --signal=B:USR1@{reserve + GRACE_S:.0f}"  # fmt: skip
        return f"{need}, more than half of it; give it more time"

    def _reserve(self, step_seconds: float) -> float:
        """One save may be on its way when the last one is due."""
        return 2 * self._save_seconds + 4 * max(step_seconds, SYNC_SECONDS)


def _job_seconds() -> float:
    """How long this job of SLURM still has; nothing if this is none, or one that should be over."""
    try:
        return float(os.environ.get(JOB_END, 0)) - time.time()
    except ValueError:
        return 0.0
