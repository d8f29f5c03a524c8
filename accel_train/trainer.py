"""The loop.

    restore the newest checkpoint that verifies, or start
    for share in loader(position):                        # this rank's share of global batch `step`, read ahead
        for objective in phase(position), repeated:
            totals -> shares backward -> clip -> if finite: optimiser step
        position += 1
        if position.step >= next attention:               # one integer compare
            one all-reduce (logged sums, votes) -> log, evaluate, checkpoint, stop

``fit`` reads in that order. Between two moments of attention the host asks nothing of the device or of other ranks.
"""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from accel_train import contract, run_folder, waiting
from accel_train.clock import Clock, cuda_memory
from accel_train.config import TrainConfig, settings_for
from accel_train.control import Control
from accel_train.errors import (
    EvaluationError,
    LostRankError,
    NonFiniteError,
    OtherRankError,
    UserError,
    brief,
    exit_code_of,
    what_is_kept,
)
from accel_train.evaluation import evaluate
from accel_train.interval import Interval
from accel_train.looks import Looks
from accel_train.output import forgiving
from accel_train.progress import Duration, Every, Position
from accel_train.ranks import telling_of_lost_ranks
from accel_train.secrets import scrub
from accel_train.selection import Selection
from accel_train.session import Session, run_dir
from accel_train.signals import caught
from accel_train.skips import Skips
from accel_train.step import AbandonedError
from accel_train.task import Event, Task
from accel_train.tracking import Observer, Observers, Record, Run
from accel_train.tracking.jsonl import histories
from accel_train.writing import refuse_unwritable

ATTENTION_SECONDS = 0.5
FIRST_SEEN = "metric_for_best_model is first looked at after training"


@dataclass
class Result:
    """What ``fit`` returns. ``history``: plain lists by name, from the whole run including earlier sessions."""

    outcome: str  # "completed" or "stopped"
    reason: str
    step: int
    output_dir: Path
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    by_signal: bool = False
    saved: bool = True  # there is a whole checkpoint of ``step``, or this session trained nothing

    @property
    def history(self) -> dict[str, Any]:
        return histories(self.output_dir / "metrics.jsonl")

    def plot(self, *names: str) -> Any:
        """A matplotlib figure of these histories (default: every loss)."""
        from accel_train.tracking.plot import plot_history

        return plot_history(self.history, names)


class Trainer:
    """Trains a task.

    Args:
        task: what to train.
        config: all settings; or give them as keyword arguments (the fields of ``TrainConfig``), over what the task
            recommends.
        observers: further observers, beside those the config asks for.
    """

    def __init__(
        self, task: Task, config: TrainConfig | None = None, *, observers: Iterable[Observer] = (), **settings: Any
    ) -> None:
        if config is not None and settings:
            raise TypeError("give a TrainConfig or its fields, not both")
        self.task = contract.instance(task)
        self.config = config or settings_for(type(task), settings)
        self._extra_observers = list(observers)
        self._asked_to_stop: str | None = None  # before there is a run

    def request_stop(self, reason: str) -> None:
        """Ask, on any rank, that all ranks stop after the same step and save. Before ``fit``: after its first one."""
        if hasattr(self, "control"):
            self.control.stop(reason)
        else:
            self._asked_to_stop = self._asked_to_stop or reason

    # -- the run -----------------------------------------------------------------------------------------------------

    def fit(self) -> Result:
        """Train to the end, or until someone stops it. Resumes by itself; see ``resume_from_checkpoint``.

        Raises:
            StoppedError: someone did before it began.
            LostRankError: another process of this run is gone.
            LockLostError: another run has the folder by now.
            OtherRankError: data failed on another rank; this one saved as well.
        """
        waiting.begin()
        with contextlib.ExitStack() as held:
            held.enter_context(forgiving())
            self._signals = held.enter_context(caught())
            with telling_of_lost_ranks(), self._signals.preparing():
                self._prepare()
                held.enter_context(self.session.folder_to_itself(self._is_stopping, self.tell))
            with self.control:
                try:
                    with telling_of_lost_ranks(lambda: self.session.last_saved):
                        self._start()
                        gc.collect()
                        gc.freeze()  # what exists now stays: the collector need not look through every library again
                        reason = self._loop()
                        return self._finish(reason)
                except BaseException as error:
                    self._crashed(error)
                    raise
                finally:
                    gc.unfreeze()
                    self.session.close(self.tell)

    def _loop(self) -> str:
        """Returns why it ended: "" if the plan is done, else who stopped it."""
        plan, position, stepper, interval = self.plan, self.position, self.session.stepper, self.interval
        if self._evaluation_owed:
            reason = self._attend()
            if reason or self._done():
                return reason or self.ended
        elif self._done():
            why = self.ended or "its last step is reached"
            how = "to go on, raise its length or patience; to start over, --resume_from_checkpoint=never"
            self.tell(Event("note", f"this run is complete ({why}); {how}"))
            return self.ended
        batches = self.session.loader.batches(position, self.config.num_train_epochs)
        while True:
            waiting_since = time.perf_counter()
            try:
                found = next(batches, None)
            except Exception as error:
                return self._stop_short(error)
            if found is None:
                return ""
            epoch, number, share = found
            plan.begin_epoch(position, epoch)
            if plan.finished(position):  # data that only now knows where its last epoch ended
                self._attend()
                return ""
            self._clock.waited += time.perf_counter() - waiting_since
            updates = 0  # of this batch: after the first one, the weights are of no whole step
            try:
                for objective in plan.phases[position.phase].objectives:
                    group = stepper.groups[objective.name]
                    group.set_lr(group.schedule(position.step, self.selection.history))
                    for repeat in range(objective.repeats):
                        values, norm = stepper.step(objective, share, position.step, repeat)
                        updates += 1
                        interval.add(objective.name, position.step + 1, values, norm)
            except AbandonedError:
                return self._stop_short(None)
            except Exception as error:
                if self.ranks.world_size > 1 or updates or stepper.updating:
                    raise
                return self._stop_short(error)
            self._clock.items += self.task.size(share) if share is not None else 0
            self._places.append((epoch, number))
            self._share, self._trained = share, (epoch, position.phase)
            plan.advance(position)
            if position.step >= self._attention_at:
                reason = self._attend()
                if reason or self._done():
                    return reason or self.ended

    def _stop_short(self, error: Exception | None) -> str:
        """There is no further step, since its batch did not come: to this rank because of ``error``, or else to another
        one. All save the last whole step. Returns who stopped the run; if nobody did, raises what went wrong."""
        stepper, several = self.session.stepper, self.ranks.world_size > 1
        stopped = self.control.stop_reason is not None and waiting.given_up()
        if error is not None and several:
            if not stepper.can_abandon:
                if stopped:
                    raise waiting.StoppedError(
                        f"stopped ({self.control.stop_reason}) while waiting for data; without memory_guard the ranks "
                        f"cannot drop a step together, and the last checkpoint is of step {self.session.last_saved}"
                    ) from None
                raise error
            first = self.plan.phases[self.position.phase].objectives[0]
            with contextlib.suppress(AbandonedError):
                stepper.step(first, None, self.position.step, abandon=True)
        failure = None if stopped else error
        told = (f"rank {self.ranks.rank}: {brief(failure)}", exit_code_of(failure)) if failure else None
        failures = [each for each in self.ranks.gather(told) if each]
        try:
            reason = self._attend(short=True)
        except Exception as problem:
            if failure is None:
                raise
            failure.add_note(f"the last whole step could not be saved: {brief(problem)}")
        if failure is not None:
            raise failure
        if failures:
            raise OtherRankError(*failures[0])
        return reason

    def _attend(self, short: bool = False) -> str:
        """Everything that is not a step. Every rank comes here after the same steps. Returns who stops it, or "".
        ``short``: the run ends here, though nothing was due; only save."""
        position, clock = self.position, self._clock
        now = clock.pause(position.step)
        lost = self.session.lost_folder()
        up = self._time_is_up(now)
        asked_to_save, self.control.save_requested = self.control.save_requested, False
        by_clock = self.save_every.due_by_clock(now)
        main = self.ranks.is_main
        news = [*self.session.news(), *self.session.stepper.take_news()]
        votes, bad = self.interval.exchange([
            float(bool(news)),
            float(self.control.stop_reason is not None),
            float(self.control.by_signal),
            float(main and up),
            float(asked_to_save or (main and by_clock)),
            clock.items,
            clock.waited if main else 0.0,
            clock.seconds_per_step() if main else 0.0,
            float(bool(lost)),
        ])  # fmt: skip
        told, stop, signals, time_up, save, items, waited, step_seconds, lost_on_main = votes
        if lost_on_main:
            self.session.check_folder()
        self._signalled = signals > 0
        self.skips.judge(self._places, position.step, bad, self.session.stepper.scale_is_settling, self.tell)
        self._places = []
        if told:
            self._tell_once(news)
        clock.read(items, waited)
        finished = self.plan.finished(position)
        phase_changed = position.phase_step == position.step

        if self.log_every.due(position) or finished or phase_changed:
            self._log()
        reason = self._who_stops() if stop else "max_time" if time_up else ""
        owed, improved, sums = self._evaluation_owed, False, None
        due = finished or owed or self.eval_every.due(position)
        if self.session.eval_loader is not None and due and not short:
            try:
                improved, sums = self._evaluate()
            except waiting.StoppedError:  # on all ranks
                reason = reason or self._who_stops()
        if phase_changed and not finished and not short:
            self._say_phase()
        self._tick()
        due = save or short or owed or self._done() or reason or improved or self.save_every.due(position)
        if due and position.step > 0:  # a run that was stopped before its first step has nothing to keep
            self._save(improved, evaluated=sums is not None)
        if sums is not None and self._done():
            self._draw(sums)
        self.looks.look(position.step, self._share, self.observers)
        self._plan_attention(step_seconds)
        clock.resume()
        return "" if self._done() else reason

    def _who_stops(self) -> str:
        """All ranks ask this together."""
        asked = [each for each in self.ranks.gather((self.control.stop_reason, self.control.by_signal)) if each[0]]
        self._signalled = self._signalled or any(by_signal for _, by_signal in asked)
        return str(asked[0][0]) if asked else "a request"

    def _done(self) -> bool:
        return not self._evaluation_owed and (bool(self.ended) or self.plan.finished(self.position))

    def _plan_attention(self, step_seconds: float) -> None:
        """The next step at which something is due; at the latest in about half a second, agreed by all ranks."""
        step = self.position.step
        soon = ATTENTION_SECONDS / step_seconds if step_seconds > 0 else 1
        due = [step + max(1, min(int(soon), 1000))]
        every = (self.log_every, self.eval_every, self.save_every)
        due += [n for n in (each.next_step(step) for each in every) if n is not None]
        due += self.looks.next_steps(step)
        boundary = self.plan.steps_to_boundary(self.position)
        if boundary is not None:
            due.append(step + boundary)
        self._attention_at = min(due)

    # -- what attention does -----------------------------------------------------------------------------------------

    def _log(self) -> None:
        means = self.interval.means(self.task.logs_last)
        if not means:
            return
        record = self._where("train") | means
        rates = {group.name: group.lr for group in self.session.stepper.groups.values()}
        record["lr"] = next(iter(rates.values()))
        if len(rates) > 1:
            record |= {f"lr/{name}": lr for name, lr in rates.items()}
        record |= self._clock.rates(self.position.step, self.plan.total_steps)
        record |= cuda_memory(self.session.device)
        self._clock.new_window()
        self._last = record
        self.observers.tell("on_log", record)

    def _evaluate(self) -> tuple[bool, dict[str, torch.Tensor]]:
        """Evaluate, remember, and say whether this is the best model so far; and the sums that figures are made of."""
        session = self.session
        self._evaluation_owed = True
        try:
            metrics, sums = self._measure()
            self.selection.metric(metrics)
        except (UserError, NonFiniteError, EvaluationError) as error:
            self._save(False)  # the steps are not to blame
            saved = "saved" if session.last_saved == self.position.step else "not saved"
            raise type(error)(
                f"step {self.position.step} is {saved}, but its evaluation on the validation data failed: {error}"
            ) from error
        self._evaluation_owed = False
        session.check_folder()  # that may have taken long
        record = self._where("eval") | metrics
        phase = self._phase_trained()
        improved = self.selection.note(self.position.step, metrics, phase)
        if self.selection.improved_in_phase and len(self.plan.phases) > 1:
            folder = f"{phase}-{self.plan.phases[phase].name}"
            session.export(session.output_dir / "phases" / folder, self._about(), self.tell)
        self.ended = self.selection.early_stop()
        self.observers.tell("on_evaluate", record)
        return improved, sums

    def _measure(self, batches: int | None = None) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """Metrics of the validation data, or only of so many of its first batches, and the sums behind them."""
        session = self.session
        assert session.eval_loader is not None
        with session.stepper.whole_weights():
            return evaluate(
                self.task, self.models, session.eval_loader, session.accelerator, self.ranks,
                session.stepper.micro_batch_size, batches,
            )  # fmt: skip

    def _check_evaluation(self) -> None:
        """One batch of validation data before the first step shows whether the deciding metric is there at all. Where
        a part of the data does not convince, all of it is looked at. Only what a person can mend is an error yet: an
        untrained model may well be beyond evaluating."""
        if self.session.eval_loader is None or self._done():
            return
        for batches in (1, None):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of cells without items, and the like
                    metrics, _ = self._measure(batches)
            except (NonFiniteError, EvaluationError) as error:
                if batches is None:
                    self.tell(Event("warning", f"the untrained model cannot be evaluated, so {FIRST_SEEN}: {error}"))
                continue
            if batches is None or self.config.metric_for_best_model in metrics:
                self.selection.metric(metrics)
                return

    def _draw(self, sums: dict[str, torch.Tensor]) -> None:
        """The task's figures of the last evaluation, after everything is saved."""
        if not self.ranks.is_main:
            return
        metrics = {name: value for name, value in self.selection.last().items() if name != "step"}
        figures: dict[str, Any] = {}
        with self.session.reports("figures", self.tell):
            try:
                figures = dict(self.task.figures(metrics, sums))
                run_folder.save_figures(self.session.output_dir / "figures", figures)
            except ModuleNotFoundError as error:  # matplotlib is an extra
                self.tell(Event("warning", f"no figures: {error} (pip install accel_train[plots])"))
        if figures:
            self.observers.tell("on_figures", self.position.step, figures)

    def _save(self, is_best: bool, evaluated: bool = False) -> None:
        started = time.monotonic()
        self.session.save(self.position.step, self._progress(), self.tell, evaluated)
        if is_best:
            self.session.mark_best(self.position.step, self._about(), self.tell)
        if self.session.last_saved == self.position.step:
            self.save_every.last_time = time.monotonic()
            self._save_seconds = max(self._save_seconds, time.monotonic() - started)
            self.observers.tell("on_save", self.position.step, self.session.checkpoints.path(self.position.step))

    def _time_is_up(self, now: float) -> bool:
        if self.max_seconds is None:
            return False
        reserve = 2 * self._save_seconds + 4 * max(self._clock.seconds_per_step(), ATTENTION_SECONDS)
        return now - self._started + reserve >= self.max_seconds

    # -- beginning and end -------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config = self.config
        refuse_unwritable("output_dir", run_dir(self.task, config))
        self.session = Session(self.task, config)
        self.models, self.ranks = self.session.models, self.session.ranks
        self.plan = self.session.plan
        self.position = Position()
        self.interval = Interval(self.ranks)
        self.selection = Selection(config)
        self.looks = Looks(self.session)
        self.skips = Skips(config.non_finite, config.max_skipped_steps, self.session.source)
        self.ended = ""  # why, if early stopping ended the run before its length
        self.save_every = Every(config.save_steps, "save_steps")
        self.eval_every = Every(config.eval_steps, "eval_steps")
        self.log_every = Every(config.logging_steps, "logging_steps")
        self.max_seconds = Duration.parse(config.max_time, "max_time").amount if config.max_time else None
        self._attention_at = 1
        self._started = time.monotonic()
        self._began_at = -1
        self._save_seconds = 0.0
        self._signalled = False
        self._evaluation_owed = False  # of a step that may be saved: it failed, or a stop came meanwhile
        self._places: list[tuple[int, int]] = []
        self._share: Any = None
        self._trained: tuple[int, int] | None = None  # epoch and phase of the last step; the position is one further
        self._untold: list[Event] | None = []
        self._last: Record = {}
        self._clock = Clock(0)
        self.observers = Observers([])
        self.control = Control(
            self.session.output_dir / "control", self.ranks.is_main, self._signals, self.ranks.world_size == 1,
            self._attend_now, self._say_status,
        )  # fmt: skip
        if self._asked_to_stop is not None:
            self.control.stop(self._asked_to_stop)
            self._asked_to_stop = None

    def _start(self) -> None:
        """Restore, then tell the observers."""
        with self._signals.preparing():
            restored = self.session.restore(self.tell)
        self.control.begin()
        if restored is not None:
            self._take_progress(restored)
            if self.config.init_from:
                self.tell(Event("note", f"init_from: not used, the run goes on from {self.session.resumed_from}"))
        elif self.config.init_from:
            run_folder.load_weights(self.models, Path(self.config.init_from))
        if self.ranks.is_main:
            self.session.write_about()
        session, baselines = self.session, {}
        if self.ranks.is_main:
            with session.reports("baselines", self.tell):
                baselines = dict(self.task.baselines())
        run = Run(
            output_dir=session.output_dir,
            task=self.task,
            config=session.described,
            models=self.models,
            total_steps=self.plan.total_steps,
            start_step=self.position.step,
            world_size=self.ranks.world_size,
            device="cpu" if session.device.type == "cpu" else str(session.device),
            precision=session.accelerator.mixed_precision,
            resumed_from=str(session.resumed_from) if restored else None,
            baselines=baselines,
        )
        self._tell_observers(run)
        best = self.selection.best
        if restored and best:
            if best["step"] == self.position.step and not session.is_marked_best(self.position.step):
                session.mark_best(self.position.step, self._about(), self.tell)  # killed just before it was
            session.mend_best_link(int(best["step"]), self.tell)
        self._check_evaluation()
        untold, self._untold = self._untold, None
        for event in [*session.notes, *(untold or ())]:
            self.tell(event)
        if not self._done():
            self._say_phase()
        self._clock = Clock(self.position.step)
        self.save_every.last_time = time.monotonic()
        self._began_at = self.position.step
        self._plan_attention(0.0)
        if self.control.stop_reason is not None:
            self._attend_now()

    def _tell_observers(self, run: Run) -> None:
        """The observers' start, with which a person's mistakes come to light on rank 0 and must end all ranks."""
        problem = ""
        if self.ranks.is_main:
            try:
                self.observers = Observers([*self.session.build_observers(self.tell), *self._extra_observers])
                self.observers.tell("on_start", run)
            except UserError as error:
                problem = str(error)
        if problem := self.ranks.from_main(problem):
            raise UserError(problem)

    def _finish(self, reason: str) -> Result:
        done, step = self._done(), self.position.step
        outcome = "completed" if done else "stopped"
        if done:
            self.session.export(self.session.output_dir / "model", self._about(), self.tell)
        saved = step in (self.session.last_saved, self._began_at)
        if not saved:
            last = self.session.last_saved
            kept = "there is no checkpoint" if last is None else f"the last checkpoint is of step {last}"
            reason = "; ".join(filter(None, [reason, f"step {step} is NOT SAVED, {kept}"]))
        if done and self.selection.history and self.selection.best is None:
            name = self.config.metric_for_best_model
            self.tell(Event("warning", f"no evaluation gave a finite {name}, so there is no best model"))
        self.observers.tell("on_end", outcome, self._status() | {"reason": reason})
        self.ranks.all_agree(True)  # nobody leaves before rank 0 has written everything
        metrics = {k: v for k, v in self.selection.last().items() if k != "step"}
        return Result(
            outcome,
            reason,
            self.position.step,
            self.session.output_dir,
            metrics,
            self.selection.best,
            self._signalled and not done,
            saved,
        )

    def _crashed(self, error: BaseException) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        text = "interrupted" if interrupted else f"{type(error).__name__}: {error}".splitlines()[0]
        if not isinstance(error, LostRankError):  # which says so itself
            text += f"; {what_is_kept(self.session.last_saved)}"
        outcome = "stopped" if isinstance(error, waiting.StoppedError) else "crashed"
        outcome = "lost" if self.session.lost_folder() else outcome
        self.observers.tell("on_end", outcome, self._status() | {"reason": scrub(text)})

    def tell(self, event: Event) -> None:
        """An event to the observers; while the run is being set up, kept until they are there."""
        if self._untold is not None:
            self._untold.append(event)
        else:
            self.observers.tell("on_event", event)

    def _say_phase(self) -> None:
        phases, position = self.plan.phases, self.position
        if len(phases) == 1:
            return
        phase, how_long = phases[position.phase], "to the end"
        if phase.length is not None:
            epochs = phase.length.unit == "ep"
            done = position.epoch - position.phase_epoch if epochs else position.step - position.phase_step
            how_long = f"{phase.length.count:,} {'epochs' if epochs else 'steps'}"
            how_long += f", {done:,} of them done" if done else ""
        self.tell(Event("note", f"phase {position.phase + 1} of {len(phases)}: {phase.name}, {how_long}"))

    def _tell_once(self, news: list[Event]) -> None:
        """What the ranks found in their data; a file that all of them looked at is told of once."""
        found = {event.title: event for events in self.ranks.gather(news) for event in events}
        for event in found.values():
            self.tell(event)

    # -- state -------------------------------------------------------------------------------------------------------

    def _progress(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors, as JSON."""
        position = {name: getattr(self.position, name) for name in Position.__slots__}
        return {
            "version": 1,
            "position": position,
            "interval": self.interval.state(),
            "selection": self.selection.state(),
            "skipped_in_row": self.skips.in_a_row,
            "stepper": self.session.stepper.state(),
            "phases": self._phases_so_far(),
            "evaluation_owed_after": self._trained if self._evaluation_owed else None,
            "world_size": self.ranks.world_size,
            "data": self.session.data,
        }

    def _take_progress(self, progress: dict[str, Any]) -> None:
        self.position = Position(**progress["position"])
        self.plan.locate(self.position)
        for i, (old, new) in enumerate(zip(progress.get("phases", []), self._phases_so_far(), strict=False)):
            if old != new:
                self.tell(Event("warning", f"phase {i} is {new} now, but what has been trained of it was {old}"))
        self._trained = progress.get("evaluation_owed_after")
        self._evaluation_owed = self._trained is not None
        self.interval.restore(progress["interval"])
        self.selection.restore(progress["selection"])
        self.skips.in_a_row = progress["skipped_in_row"]
        self.session.stepper.restore(progress["stepper"])
        if self.selection.last().get("step") == self.position.step:
            self.ended = self.selection.early_stop()  # unless today's patience or target is another

    def _phases_so_far(self) -> list[str]:
        """The phases that have begun, as "NAME for 30 ep"."""
        begun = self.plan.phases[: self.position.phase + 1]
        return [f"{phase.name} for {phase.length.count} {phase.length.unit}" if phase.length else phase.name
                for phase in begun]  # fmt: skip

    def _where(self, kind: str) -> Record:
        epoch, phase = self._trained or (self.position.epoch, self._phase_trained())
        return {
            "kind": kind,
            "step": self.position.step,
            "epoch": epoch,
            "phase": self.plan.phases[phase].name,
            "wall_time": time.time(),
        }

    def _phase_trained(self) -> int:
        """Of the last step; the position is one further."""
        return self._trained[1] if self._trained else min(self.position.phase, len(self.plan.phases) - 1)

    def _about(self) -> dict[str, Any]:
        step, epoch = self.position.step, self.position.epoch
        return {"step": step, "epoch": epoch, "metrics": self.selection.last(), "seed": self.config.seed}

    def _status(self) -> Record:
        total = self.plan.total_steps
        rates = self._clock.rates(self.position.step, total)
        return {**self._last, **self._where("status"), **rates, "total_steps": total, "best": self.selection.best,
                "last_checkpoint_step": self.session.last_saved}  # fmt: skip

    def _tick(self) -> None:
        if self.ranks.is_main:
            self.observers.tell("on_tick", self._status())

    def _say_status(self) -> None:
        from accel_train.tracking.status import describe

        saved = self.session.last_saved
        more = {"task": self.task.task_name(), "state": "running"}
        if saved is not None:
            more["last_checkpoint"] = str(self.session.checkpoints.path(saved))
        print(describe(self._status() | more), flush=True)

    def _is_stopping(self) -> bool:
        return self.control.stop_reason is not None

    def _attend_now(self) -> None:
        """A signal or a typed word came: with one process there is nobody to agree with."""
        if self.ranks.world_size == 1:
            self._attention_at = 0
