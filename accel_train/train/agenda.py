"""When the next synchronisation point is, and what is due then."""

from __future__ import annotations

import time

from accel_train.config.schema import TrainConfig
from accel_train.plan import Duration, Every, Plan, Position
from accel_train.train.probes import Probes

SYNC_SECONDS = 0.5


class Agenda:
    """``sync_at`` is the next step after which the ranks synchronise. Steps are the same on all ranks; time is asked
    for on rank 0 only."""

    def __init__(self, config: TrainConfig, plan: Plan, probes: Probes) -> None:
        self.plan, self.probes = plan, probes
        self.save_every = Every(config.save_steps, "save_steps")
        self.eval_every = Every(config.eval_steps, "eval_steps")
        self.log_every = Every(config.logging_steps, "logging_steps")
        self.sync_at = 1
        self._max_seconds = Duration.parse(config.max_time, "max_time").amount if config.max_time else None
        self._started = time.monotonic()
        self._save_seconds = 0.0

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
        self.sync_at = min(due)

    def at_once(self) -> None:
        """Synchronise after the step that is being done."""
        self.sync_at = 0

    def begin_saving_by_clock(self) -> None:
        self.save_every.last_time = time.monotonic()

    def saved(self, seconds: float) -> None:
        """A checkpoint is on the disk, and took so long."""
        self.save_every.last_time = time.monotonic()
        self._save_seconds = max(self._save_seconds, seconds)

    def time_is_up(self, step_seconds: float) -> bool:
        """``max_time`` is about to pass: what is left is needed for the last steps and to save."""
        if self._max_seconds is None:
            return False
        reserve = 2 * self._save_seconds + 4 * max(step_seconds, SYNC_SECONDS)
        return time.monotonic() - self._started + reserve >= self._max_seconds
