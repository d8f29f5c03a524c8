"""What the observers of a run hear of: events, log lines, how it stands, its figures, its beginning and its end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch

from accel_train.errors import UserError
from accel_train.run.figures import save_figures
from accel_train.task import Event
from accel_train.tracking.chosen import observers_of
from accel_train.tracking.mirroring import Mirroring
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.train.clock import cuda_memory
from accel_train.train.hardware import Hardware
from accel_train.train.saving import Saver
from accel_train.train.session import Session
from accel_train.train.state import RunState

REST = 50.0
"""After figures are drawn, so many times as long without."""


class Reporter:
    """Speaks to the observers, which live on rank 0. Every rank has one and makes the same calls."""

    def __init__(self, session: Session, saver: Saver, state: RunState) -> None:
        self.session, self.saver, self.state = session, saver, state
        self.task, self.ranks = session.task, session.ranks
        self.observers, self.emit = session.observers, session.emit
        self._last: Record = {}  # log record
        self._hardware = Hardware(session.device)
        self._has_figures = True
        self._rest_until = time.monotonic() + REST  # as if the first drawing took a second, matplotlib being imported

    def emit_once(self, found: list[Event]) -> None:
        """What the ranks found in their data; a file that all of them read is reported once."""
        by_title = {event.title: event for events in self.ranks.gather(found) for event in events}
        for event in by_title.values():
            self.emit(event)

    # -- beginning and end -------------------------------------------------------------------------------------------

    def start(self, further: Iterable[Observer], resumed: bool, alone: bool = False) -> None:
        """Write down what the run is; let the observers that the config asks for, and ``further`` ones, know it; and
        hand them the events from before. ``alone``: the further ones only.

        Raises:
            UserError: on every rank, if that cannot be written, or one of them cannot do what it was asked for.
        """
        session, baselines = self.session, {}
        if self.ranks.is_main:
            with session.reports("baselines", self.emit):
                baselines = dict(self.task.baselines())
        run = Run(
            output_dir=session.output_dir,
            task=self.task,
            config=session.described,
            models=session.models,
            total_steps=self.state.plan.total_steps,
            start_step=self.state.position.step,
            world_size=self.ranks.world_size,
            parallel="FSDP2" if session.is_sharded else "DDP" if self.ranks.world_size > 1 else "",
            device="cpu" if session.device.type == "cpu" else str(session.device),
            precision=session.accelerator.mixed_precision,
            resumed_from=str(self.saver.resumed_from) if resumed else None,
            baselines=baselines,
            memory=session.stepper.memory(),
        )
        problem = ""
        if self.ranks.is_main:
            try:
                self.saver.write_about()
                chosen = [] if alone else observers_of(session.config, session.accelerator, self.emit)
                if (mirror := self.saver.mirror) is not None:
                    chosen.append(Mirroring(mirror, self.saver.last_saved, self.emit))
                self.observers.start([*chosen, *further], run)
            except UserError as error:
                problem = str(error)
        if problem := self.ranks.from_main(problem):
            raise UserError(problem)
        self.observers.begin_events()

    def end(self, outcome: str, reason: str) -> None:
        self.observers.call("on_end", outcome, self.status() | {"reason": reason})

    # -- on the way --------------------------------------------------------------------------------------------------

    def log(self) -> None:
        """The means since the last log line."""
        means = self.state.scalars.means(self.session.config.log_last_values)
        if not means:
            return
        record = self.state.where("train") | means
        rates = {group.name: group.lr for group in self.session.stepper.groups.values()}
        record["lr"] = next(iter(rates.values()))
        if len(rates) > 1:
            record |= {f"lr/{name}": lr for name, lr in rates.items()}
        record |= self.state.clock.rates(self.state.position.step, self.state.plan.total_steps)
        record |= self.state.stragglers.take(record.get("step_s", 0.0))
        record |= cuda_memory(self.session.device)
        record |= self._hardware.read()
        self.state.clock.new_window()
        self._last = record
        self.observers.call("on_log", record)

    def phase(self) -> None:
        """Which phase the run is in, if there are several."""
        phases, position = self.state.plan.phases, self.state.position
        if len(phases) == 1:
            return
        phase, how_long = phases[position.phase], "to the end"
        if phase.length is not None:
            epochs = phase.length.unit == "ep"
            done = position.epoch - position.phase_epoch if epochs else position.step - position.phase_step
            how_long = f"{phase.length.count:,} {'epochs' if epochs else 'steps'}"
            how_long += f", {done:,} of them done" if done else ""
        self.emit(Event("note", f"phase {position.phase + 1} of {len(phases)}: {phase.name}, {how_long}"))

    def figures(self, sums: dict[str, torch.Tensor]) -> None:
        """The task's figures of the last evaluation, after everything is saved: when the run is done, and before as
        long as drawing takes a fiftieth of the time at most."""
        began = time.monotonic()
        if not self.ranks.is_main or not self._has_figures or (began < self._rest_until and not self.state.done()):
            return
        drawn: list[str] | None = None
        metrics = {name: value for name, value in self.state.best_model.last().items() if name != "step"}
        with self.session.reports("figures", self.emit):
            drawn = save_figures(
                self.session.output_dir / "figures",
                draw=lambda: self.task.figures(metrics, sums),
                emit=self.emit,
                show=lambda figures: self.observers.call("on_figures", self.state.position.step, figures),
                footer=f"{self.session.output_dir}, step {self.state.position.step:,}, validation",
            )
        self._has_figures = drawn != []
        ended = time.monotonic()
        self._rest_until = ended + REST * (ended - began) if drawn else math.inf

    def tick(self) -> None:
        if self.ranks.is_main:
            self.observers.call("on_tick", self.status())

    def busy(self, what: str) -> None:
        """What keeps the run from training."""
        if self.ranks.is_main:
            self.observers.call("on_busy", what)

    def status(self) -> Record:
        """How the run stands: the last log record, brought up to date."""
        total = self.state.plan.total_steps
        rates = self.state.clock.rates(self.state.position.step, total)
        return {**self._last, **self.state.where("status"), **rates, "total_steps": total,
                "best": self.state.best_model.best, "last_checkpoint_step": self.saver.last_saved}  # fmt: skip

    def print_status(self) -> None:
        from accel_train.tracking.status import describe

        saved = self.saver.last_saved
        more = {"task": self.task.task_name(), "state": "running"}
        if saved is not None:
            more["last_checkpoint"] = str(self.saver.checkpoints.path(saved))
        print(describe(self.status() | more), flush=True)
