"""The loop.

    restore the newest checkpoint that verifies, or start
    for share in loader(position):                        # this rank's share of global batch `step`, read ahead
        for objective in phase(position), repeated:
            totals -> shares backward -> clip -> if finite: optimiser step
        position += 1
        if position.step >= next sync:                    # one integer compare
            one all-reduce (logged sums, votes) -> log, evaluate, checkpoint, stop

``run`` reads in that order. Between two synchronisation points the host asks nothing of the device or of other ranks.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from accel_train.data.loader import Share, batches_of
from accel_train.errors import (
    EvaluationError,
    NonFiniteError,
    OtherRankError,
    UserError,
    brief,
    exit_code_of,
    what_is_kept,
)
from accel_train.run import weights
from accel_train.system import waiting
from accel_train.system.secrets import scrub
from accel_train.system.signals import Signals
from accel_train.system.watchdog import ATTENDING, COMPUTING, ENDING, EVALUATING, READING, REPORTING, SAVING
from accel_train.system.whereabouts import here
from accel_train.task import Event
from accel_train.tracking.observer import Observer
from accel_train.train import resuming, validation
from accel_train.train.agenda import Agenda
from accel_train.train.clock import Clock
from accel_train.train.control import Control
from accel_train.train.digests import Digests
from accel_train.train.probes import Probes
from accel_train.train.profiling import Profiler
from accel_train.train.reporter import Reporter
from accel_train.train.result import Result
from accel_train.train.saving import Saver
from accel_train.train.scalars import Votes
from accel_train.train.session import Session
from accel_train.train.state import RunState
from accel_train.train.step import AbandonedError
from accel_train.train.watch import Watch
from accel_train.train.world import telling_of_lost_ranks

Update = tuple[str, dict[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Step:
    """What one step was on this rank, as ``on_step`` hears of it, before anything is agreed with other ranks. To read
    a tensor waits for the device.

    Args:
        number: from 1.
        batch: this rank's share of the global batch, as it was trained on; None if that was empty. With ``reduction:
            fixed``, a list with that of each of its parts.
        updates: (objective, this rank's shares of the loss and its terms, global norm of the gradient before clipping)
            for every update, in order. A norm that is not finite: no rank has updated anything. With ``reduction:
            fixed``, rank 0 has the whole loss and terms.
    """

    number: int
    epoch: int
    batch: Share
    updates: list[Update]


class Loop:
    """One run, from the checkpoint it goes on from to its result.

    Args:
        further: observers beside those the config asks for.
        on_step: called after every step, on every rank.
        until: ends after this step, of which it saves nothing: a replay (``replay``), which only ``further`` observe.
    """

    def __init__(
        self,
        session: Session,
        signals: Signals,
        further: Iterable[Observer] = (),
        on_step: Callable[[Step], None] | None = None,
        until: int | None = None,
    ) -> None:
        self.session, self.config, self.ranks, self.emit = session, session.config, session.ranks, session.emit
        self.plan, self.observers = session.plan, session.observers
        self.saver = Saver(session)
        self.state = RunState(session)
        self.reporter = Reporter(session, self.saver, self.state)
        self.probes = Probes(session)
        self.digests = Digests(session)
        self.profiler = Profiler(session)
        self.agenda = Agenda(self.config, self.plan, self.probes, until)
        self._signals, self._further, self._on_step = signals, further, on_step
        self.watch = Watch(
            session, signals, lambda why: self.control.stop(why, as_by_signal=True),
            lambda why: self.reporter.end("crashed", f"{why}; {what_is_kept(self.saver.last_saved)}"),
        )  # fmt: skip
        self.control = Control(
            session.output_dir / "control", self.ranks.is_main, signals, self.ranks.world_size == 1,
            self._sync_now, self.reporter.print_status, self._time_is_up, self.watch.tick,
        )  # fmt: skip
        self._began_at = -1
        self._signalled = False
        self._batches_done: list[tuple[int, int]] = []  # (epoch, batch) of the steps since the last sync
        self._share: Share = None  # of the last step

    def run(self) -> Result:
        """To the end, or until someone stops it."""
        with self.control:
            try:
                with telling_of_lost_ranks(self.saver.last_words):
                    self._start()
                    gc.collect()
                    gc.freeze()  # what exists now stays: the collector need not look through every library again
                    reason = self._train()
                    self.profiler.close()
                    return self._finish(reason)
            except BaseException as error:
                self._crashed(error)
                raise
            finally:
                gc.unfreeze()
                self.watch.end()
                self.saver.close()

    def is_stopping(self) -> bool:
        return self.control.stop_reason is not None

    def _train(self) -> str:
        """All steps. Returns why it ended: "" if the plan is done, else who stopped it."""
        plan, state, position = self.plan, self.state, self.state.position
        if (ended := self._ended_before()) is not None or (ended := self.agenda.arrived(position)):
            return ended
        batches = self.session.loader.batches(position, self.config.num_train_epochs)
        while True:
            self.profiler.at(position.step)
            here.at(READING, position.step + 1)
            waiting_since = time.perf_counter()
            try:
                found = next(batches, None)
            except Exception as error:
                return self._stop_short(error)
            epoch, number, share = found or (self.config.num_train_epochs or 0, 0, None)
            plan.begin_epoch(position, epoch)
            if plan.finished(position):  # data that only now knows where its last epoch ended
                return self._sync() or state.ended
            state.clock.waited += time.perf_counter() - waiting_since
            updates: list[Update] = []
            try:
                self._update(share, updates)
            except AbandonedError:
                return self._stop_short(None)
            except Exception as error:
                if self.ranks.world_size > 1 or updates or self.session.stepper.updating:
                    raise  # the weights are of no whole step
                return self._stop_short(error)
            state.clock.items += sum(map(self.session.task.size, batches_of(share)))
            self._batches_done.append((epoch, number))
            self._share, state.trained = share, (epoch, position.phase)
            plan.advance(position)
            if self._on_step is not None:
                with self.session.reports("on_step", self.emit):
                    self._on_step(Step(position.step, epoch, share, updates))
            if position.step >= self.agenda.sync_at:
                reason = self._sync()
                if reason or state.done():
                    return reason or state.ended

    def _update(self, share: Share, updates: list[Update]) -> None:
        """All objectives of the phase on one batch, each as often as it wants; what was done is added to ``updates``,
        so that it is known if one of them fails."""
        stepper, position = self.session.stepper, self.state.position
        step = position.step
        self.digests.begin(step + 1)
        for objective in self.plan.phases[position.phase].objectives:
            group = stepper.groups[objective.name]
            group.set_lr(group.schedule(step, self.state.best_model.history))
            for repeat in range(objective.repeats):
                current = replace(objective, step=step, epoch=position.epoch, repeat=repeat)
                here.at(COMPUTING)
                values, norm = stepper.step(current, share)
                updates.append((objective.name, values, norm))
                self.state.scalars.add(objective.name, step + 1, values, norm)
        stepper.end_step(step)
        self.digests.end(step + 1)

    def _ended_before(self) -> str | None:
        """Why this run has ended, if it goes on from its last step; it makes up for an evaluation that it owes."""
        state = self.state
        if state.evaluation_owed:
            reason = self._sync()
            return (reason or state.ended) if reason or state.done() else None
        if not state.done():
            return None
        why = state.ended or "its last step is reached"
        how = "to go on, raise its length or patience; to start over, --resume_from_checkpoint=never"
        elsewhere = f"to train its weights on other data, --init_from={self.session.output_dir} and another output_dir"
        self.emit(Event("note", f"this run is complete ({why}); {how}; {elsewhere}"))
        return state.ended

    def _stop_short(self, error: Exception | None) -> str:
        """There is no further step, since its batch did not come: to this rank because of ``error``, or else to another
        one. All save the last whole step. Returns who stopped the run; if nobody did, raises what went wrong."""
        stepper, several = self.session.stepper, self.ranks.world_size > 1
        stopped = self.control.stop_reason is not None and waiting.given_up()
        if error is not None and several:
            if not stepper.can_abandon:
                if stopped:
                    raise waiting.StoppedError(
                        f"stopped ({self.control.stop_reason}) while waiting for data; ranks whose forward passes "
                        f"wait for each other cannot drop a step together, and {what_is_kept(self.saver.last_words())}"
                    ) from None
                raise error
            first = self.plan.phases[self.state.position.phase].objectives[0]
            with contextlib.suppress(AbandonedError):
                stepper.step(replace(first, step=self.state.position.step), None, abandon=True)
        failure = None if stopped else error
        mine = (f"rank {self.ranks.rank}: {brief(failure)}", exit_code_of(failure)) if failure else None
        failures = [each for each in self.ranks.gather(mine) if each]
        reason = ""
        try:
            reason = self._sync(short=True)
        except Exception as problem:
            if failure is None:
                raise
            failure.add_note(f"the last whole step could not be saved: {brief(problem)}")
        if failure is not None:
            raise failure
        if failures:
            raise OtherRankError(*failures[0])
        return reason

    def _sync(self, short: bool = False) -> str:
        """A synchronisation point: everything that is not a step. Every rank comes here after the same steps. Returns
        who stops the run, or "".

        The order is law: agree, log, evaluate, save; then what only reports, and may fail.

        Args:
            short: the run ends here, though nothing was due; only save.
        """
        state, agenda, position = self.state, self.agenda, self.state.position
        here.at(ATTENDING, position.step)
        votes = self._agree()
        if votes.written:
            self._settle()
        if digests := self.digests.take():
            self.observers.call("on_digests", digests)
        finished = self.plan.finished(position)
        phase_changed = position.phase_step == position.step

        here.at(REPORTING)
        if agenda.log_every.due(position) or finished or phase_changed:
            self.reporter.log()

        reason = self._who_stops() if votes.stop else ""
        owed, improved, sums = state.evaluation_owed, False, None
        due = finished or owed or agenda.eval_every.due(position)
        if self.session.eval_loader is not None and due and not short:
            try:
                improved, sums = self._evaluate()
            except waiting.StoppedError:  # on all ranks
                reason = reason or self._who_stops()
        if phase_changed and not finished and not short:
            self.reporter.phase()
        self.reporter.tick()

        awaited = votes.save or short or owed or state.done() or reason or improved
        due = awaited or votes.save_by_clock or agenda.save_every.due(position)
        if due and position.step > 0:  # a run that was stopped before its first step has nothing to keep
            self._save(improved, evaluated=sums is not None, wait=bool(awaited))

        here.at(REPORTING)
        if sums is not None and agenda.until is None:
            self.reporter.figures(sums)
        self.probes.run(position.step, batches_of(self._share))
        agenda.plan_sync(position, votes.step_seconds)
        state.clock.resume()
        return "" if state.done() else reason or agenda.arrived(position)

    def _agree(self) -> Votes:
        """One all-reduce makes votes, logged scalars and non-finite steps the same on all ranks; what follows from that
        at once is done."""
        state, session, control, main = self.state, self.session, self.control, self.ranks.is_main
        clock, step = state.clock, state.position.step
        now = clock.pause(step)
        lost = self.saver.lost_folder()
        events = [*session.events(), *session.stepper.take_events()]
        asked_to_save, control.save_requested = control.save_requested, False
        by_clock = self.agenda.save_every.due_by_clock(now) and not self.saver.is_saving()
        votes, bad = state.scalars.exchange(
            Votes(
                events=bool(events),
                stop=control.stop_reason is not None,
                by_signal=control.by_signal,
                save=asked_to_save,
                save_by_clock=main and by_clock,
                written=main and self.saver.is_written(),
                items=clock.items,
                waited=clock.waited if main else 0.0,
                step_seconds=clock.seconds_per_step() if main else 0.0,
                lost_folder=bool(lost),
            ),
            here.take_own_seconds(),
        )
        state.stragglers.add(state.scalars.everyone, len(self._batches_done))
        if votes.lost_folder:
            self.saver.check_folder()
        self._signalled = votes.by_signal > 0
        state.non_finite.check(self._batches_done, step, bad, session.stepper.scale_is_settling, self.emit)
        self._batches_done = []
        if votes.events:
            self.reporter.emit_once(events)
        clock.read(votes.items, votes.waited)
        return votes

    def _who_stops(self) -> str:
        """All ranks ask this together."""
        asked = [each for each in self.ranks.gather((self.control.stop_reason, self.control.by_signal)) if each[0]]
        self._signalled = self._signalled or any(by_signal for _, by_signal in asked)
        return str(asked[0][0]) if asked else "a request"

    # -- what is done there ------------------------------------------------------------------------------------------

    def _evaluate(self) -> tuple[bool, dict[str, torch.Tensor]]:
        """Evaluate, remember, and say whether this is the best model so far; and the sums that figures are made of."""
        session, state = self.session, self.state
        here.at(EVALUATING)
        state.evaluation_owed = True
        try:
            metrics, sums = validation.measure(session, busy=self.reporter.busy)
            self.saver.lineage.look_at_files(validation=True)
            state.best_model.metric(metrics)
        except (UserError, NonFiniteError, EvaluationError) as error:
            self._save(False)  # the steps are not to blame
            saved = "saved" if self.saver.last_saved == state.position.step else "not saved"
            said = f"step {state.position.step} is {saved}, but its evaluation on the validation data failed: {error}"
            if isinstance(error, EvaluationError) and error.__cause__ is None:  # on another rank
                raise OtherRankError(said, exit_code_of(error)) from None
            raise type(error)(said) from error
        state.evaluation_owed = False
        self.saver.check_folder()  # that may have taken long
        record = state.where("eval") | metrics
        phase = state.phase_trained()
        improved = state.best_model.record(state.position.step, metrics, phase)
        if state.best_model.improved_in_phase and len(self.plan.phases) > 1:
            folder = f"{phase}-{self.plan.phases[phase].name}"
            self.saver.export(session.output_dir / "phases" / folder, state.about())
        state.ended = state.best_model.early_stop()
        self.observers.call("on_evaluate", record)
        return improved, sums

    def _save(self, is_best: bool, evaluated: bool = False, wait: bool = True) -> None:
        """A checkpoint of this step, or a warning. Unless somebody has to ``wait`` for it, it is only begun here."""
        step = self.state.position.step
        self.reporter.busy("saving")
        here.at(SAVING)
        self._settle()
        self.saver.save(step, self.state.progress(), evaluated)
        if wait or not self.config.save_in_background:
            self._settle()
        if is_best:
            self.saver.mark_best(step, self.state.about())

    def _settle(self) -> None:
        """Whatever checkpoint has been begun is on the disk, or known to be lost."""
        if (seconds := self.saver.settle()) is not None:
            self.agenda.saved(seconds)
            if warning := self.agenda.too_slow(self.state.clock.seconds_per_step()):
                self.emit(Event("warning", warning))

    # -- beginning and end -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Restore, then start the observers."""
        with self._signals.preparing():
            restored = resuming.restore(self.saver)
        self.control.begin()
        if restored is not None:
            self.state.restore(restored)
            if self.config.init_from:
                self.emit(Event("note", f"init_from: not used, the run goes on from {self.saver.resumed_from}"))
        elif self.config.init_from:
            weights.load_weights(self.session.models, Path(self.config.init_from))
            self.saver.lineage.begin_with(Path(self.config.init_from))
        session, state = self.session, self.state
        self.watch.begin(state.position.step + 1)
        state.stragglers.hosts = self.watch.hosts
        self.reporter.start(self._further, resumed=restored is not None, alone=self.agenda.until is not None)
        for event in resuming.what_to_say(self.saver, self.state) if restored else ():
            self.emit(event)
        best = state.best_model.best
        if restored and best:
            if best["step"] == state.position.step and not self.saver.is_marked_best(state.position.step):
                self.saver.mark_best(state.position.step, state.about())  # killed just before it was
            self.saver.mend_best_link(int(best["step"]))
        if not state.done():
            self.reporter.busy("trying out the evaluation")
            validation.try_out(session, state.best_model)
        if not state.done():
            self.reporter.phase()
        state.clock = Clock(state.position.step)
        self.agenda.begin_saving_by_clock()
        self._began_at = state.position.step
        self.agenda.plan_sync(state.position, 0.0)
        if self.control.stop_reason is not None:
            self._sync_now()

    def _finish(self, reason: str) -> Result:
        done, step = self.state.done(), self.state.position.step
        outcome = "completed" if done else "stopped"
        here.at(ENDING)
        if done:
            self.saver.export(self.session.output_dir / "model", self.state.about())
        saved = step in (self.saver.last_saved, self._began_at)
        if not saved:
            unsaved = f"step {step} is NOT SAVED, {what_is_kept(self.saver.last_saved)}"
            reason = "; ".join(filter(None, [reason, unsaved]))
        if done and self.state.best_model.history and self.state.best_model.best is None:
            name = self.config.metric_for_best_model
            self.emit(Event("warning", f"no evaluation gave a finite {name}, so there is no best model"))
        self.reporter.end(outcome, reason)
        self.ranks.all_agree(True)  # nobody leaves before rank 0 has written everything
        metrics = {k: v for k, v in self.state.best_model.last().items() if k != "step"}
        return Result(
            outcome, reason, step, self.session.output_dir, metrics, self.state.best_model.best,
            self._signalled and not done, saved,
        )  # fmt: skip

    def _crashed(self, error: BaseException) -> None:
        stopped, kept = isinstance(error, waiting.StoppedError), what_is_kept(self.saver.last_words())
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        text = str(error) if stopped else text.splitlines()[0]
        if kept not in text:
            text += f"; {kept}"
        outcome = "stopped" if stopped else "crashed"
        outcome = "lost" if self.saver.lost_folder() else outcome
        self.reporter.end(outcome, scrub(text))

    def _time_is_up(self) -> str:
        """Rank 0 looks at its clock, also while the loop waits for data that do not come."""
        return self.agenda.time_is_up(self.state.clock.seconds_per_step()) if self.ranks.is_main else ""

    def _sync_now(self) -> None:
        """A signal or a typed word came: with one process there is nobody to agree with."""
        if self.ranks.world_size == 1:
            self.agenda.at_once()
