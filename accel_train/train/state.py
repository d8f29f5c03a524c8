"""Where a run stands, between two steps: all that a checkpoint holds of it besides tensors."""

from __future__ import annotations

import time
from typing import Any

from accel_train.plan import Position
from accel_train.run.checkpoint import VERSION
from accel_train.run.folder import machine
from accel_train.task import Event
from accel_train.tracking.observer import Record
from accel_train.train.best import BestModel
from accel_train.train.clock import Clock
from accel_train.train.nonfinite import NonFiniteGuard
from accel_train.train.scalars import StepScalars
from accel_train.train.session import Session
from accel_train.train.stragglers import Stragglers


class RunState:
    """Where a run stands; the same on every rank.

    ``ended`` says why early stopping ended the run before its length, or is empty. ``trained`` is the epoch and the
    phase of the last step, since the position is already one further. ``evaluation_owed``: the evaluation of the last
    step failed, or a stop came meanwhile; the step may be saved, and the run makes up for it when it goes on.
    """

    def __init__(self, session: Session) -> None:
        config = session.config
        self.session, self.config, self.plan = session, config, session.plan
        self.position = Position()
        self.scalars = StepScalars(session.ranks)
        self.best_model = BestModel(config)
        self.non_finite = NonFiniteGuard(config.non_finite, config.max_skipped_steps, session.source)
        self.clock = Clock(0)
        self.stragglers = Stragglers(session.emit)
        self.ended = ""
        self.trained: tuple[int, int] | None = None
        self.evaluation_owed = False

    def done(self) -> bool:
        return not self.evaluation_owed and (bool(self.ended) or self.plan.finished(self.position))

    def phase_trained(self) -> int:
        """The phase of the last step; the position is one further."""
        return self.trained[1] if self.trained else min(self.position.phase, len(self.plan.phases) - 1)

    def where(self, kind: str) -> Record:
        """The beginning of a record of this kind."""
        epoch, phase = self.trained or (self.position.epoch, self.phase_trained())
        return {
            "kind": kind,
            "step": self.position.step,
            "epoch": epoch,
            "phase": self.plan.phases[phase].name,
            "wall_time": time.time(),
        }

    def about(self) -> dict[str, Any]:
        """What an exported model says of its origin."""
        step, epoch = self.position.step, self.position.epoch
        return {"step": step, "epoch": epoch, "metrics": self.best_model.last(), "seed": self.config.seed}

    # -- saved and restored ------------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, as JSON."""
        position = {name: getattr(self.position, name) for name in Position.__slots__}
        return {
            "version": VERSION,
            "position": position,
            "scalars": self.scalars.state(),
            "best_model": self.best_model.state(),
            "skipped_in_row": self.non_finite.in_a_row,
            "stepper": self.session.stepper.state(),
            "phases": self._phases_so_far(),
            "evaluation_owed_after": self.trained if self.evaluation_owed else None,
            "world_size": self.session.ranks.world_size,
            "made_on": machine(self.session.ranks.world_size, self.session.device),
            "data": self.session.data,
            "validation": self.session.validation,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take the place of the run that saved ``progress``."""
        self.position = Position(**progress["position"])
        self.plan.locate(self.position)
        for i, (old, new) in enumerate(zip(progress.get("phases", []), self._phases_so_far(), strict=False)):
            if old != new:
                self.session.emit(
                    Event("warning", f"phase {i} is {new} now, but what has been trained of it was {old}")
                )
        self.trained = progress.get("evaluation_owed_after")
        self.evaluation_owed = self.trained is not None
        self.scalars.restore(progress["scalars"])
        self.best_model.restore(progress["best_model"])
        self.non_finite.in_a_row = progress["skipped_in_row"]
        self.session.stepper.restore(progress["stepper"])
        if self.best_model.last().get("step") == self.position.step:
            self.ended = self.best_model.early_stop()  # unless patience or target have been changed since

    def _phases_so_far(self) -> list[str]:
        """The phases that have begun, as "NAME for 30 ep"."""
        begun = self.plan.phases[: self.position.phase + 1]
        return [f"{phase.name} for {phase.length.count} {phase.length.unit}" if phase.length else phase.name
                for phase in begun]  # fmt: skip
