"""The run folder, while a run has it: its checkpoints, its exported models, and what it says of the run."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from accel_train.errors import LockLostError, NonFiniteError, UserError, brief, what_is_kept
from accel_train.run import folder as run_folder
from accel_train.run import late, weights
from accel_train.run import lock as run_lock
from accel_train.run import mirror as run_mirror
from accel_train.run.checkpoint import PROGRESS, CheckpointFolder
from accel_train.system import waiting
from accel_train.system.waiting import StoppedError
from accel_train.system.writing import writing
from accel_train.task import Event
from accel_train.train import averages, snapshot
from accel_train.train.lineage import Lineage
from accel_train.train.session import Session


class Saver:
    """Writes what counts; every rank has one and makes the same calls.

    ``last_saved`` is the step of the newest checkpoint in this folder, if there is one; ``resumed_from`` the checkpoint
    that this run went on from.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.output_dir, self.ranks, self.emit = session, session.output_dir, session.ranks, session.emit
        config = session.config
        self.checkpoints = CheckpointFolder(
            session.output_dir / "checkpoints", config.save_total_limit, config.save_keep_every
        )
        self.mirror: run_mirror.Mirror | None = None  # rank 0 alone uses it
        if config.checkpoint_mirror:
            parts = (self.checkpoints, lambda: self.lineage.made, self.emit, self.lost_folder)
            self.mirror = run_mirror.Mirror(config.checkpoint_mirror, self.output_dir, *parts)
        self.last_saved: int | None = None
        self.resumed_from: Path | None = None
        self.lineage = Lineage(session)
        self._warned: set[str] = set()
        self._snapshots = snapshot.Snapshots(copies=config.save_in_background)
        self._on_its_way: _OnItsWay | None = None
        self._lock: run_lock.RunLock | None = None  # held by rank 0 for all ranks
        session.accelerator.register_load_state_pre_hook(weights.load_whole_states)

    @contextlib.contextmanager
    def folder_to_itself(self, stopping: Callable[[], bool]) -> Generator[None]:
        """Nothing is written into the run folder before this run has it, and not while another one does."""
        try:
            problem: Exception | None = None
            if self.ranks.is_main:
                try:
                    run_folder.check_names(self.output_dir)
                    self._lock = run_lock.take(self.output_dir, stopping)
                except (UserError, StoppedError) as error:
                    problem = error
                except OSError as error:
                    problem = UserError(f"output_dir: {self.output_dir} cannot be used: {brief(error)}")
            if (problem := self.ranks.from_main(problem)) is not None:
                raise problem
            if self._lock is not None and (before := self._lock.taken_from) is not None:
                self.emit(Event("note", f"{self.output_dir} was in use by {before}, which is no longer alive"))
            yield
        finally:
            if self._lock is not None:
                self._lock.release()

    def lost_folder(self) -> str:
        """Why this run must write nothing more, on rank 0; else empty."""
        return self._lock.lost() if self._lock is not None else ""

    def check_folder(self) -> None:
        """Before anything is written that counts; every rank must call it."""
        if lost := self.ranks.from_main(self.lost_folder()):
            raise LockLostError(lost)

    def write_about(self) -> None:
        with writing("output_dir", self.output_dir):
            self._write_about()

    def _write_about(self) -> None:
        run_folder.write_config(self.output_dir / "config.yaml", self.session.described)
        about = run_folder.environment(self.session.config.seed, self.ranks.world_size, str(self.session.device))
        path = self.output_dir / "environment.json"
        about["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
        if self.resumed_from is not None:  # then the run is as old as its first session, if that can be known
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                about["started"] = json.loads(path.read_text())["started"]
        run_folder.write_json(path, about)

    def export(self, folder: Path, info: dict[str, Any]) -> None:
        """The models as a folder of their own, or a warning. Every rank must call it, since weights may be spread over
        them; rank 0 writes."""
        self.check_folder()
        with averages.in_place(self.session.stepper.averages):
            self._export(folder, info)

    def _export(self, folder: Path, info: dict[str, Any]) -> None:
        states = {name: weights.whole_state(model, self.ranks.is_main) for name, model in self.session.models.items()}
        error = ""
        if self.ranks.is_main:
            try:
                weights.export_models(folder, states, self.session.described, info, self.lineage.at(info["step"]))
            except Exception as problem:  # a full disk comes as OSError or SafetensorError
                error = brief(problem)
        if error := self.ranks.from_main(error):
            same = self.last_saved == info["step"]
            where = ". The checkpoint has the same weights" if same else ""
            self.emit(Event("warning", f"{folder} NOT WRITTEN: {error}{where}"))

    def mark_best(self, step: int, info: dict[str, Any]) -> None:
        self.export(self.output_dir / "best", info)
        if self.ranks.is_main and self.last_saved == step:  # a checkpoint that did not fit cannot be linked
            self._tidily("the best checkpoint could not be marked", lambda: self.checkpoints.link("best", step))
            self._tidily("old checkpoints could not be removed", self.checkpoints.prune)

    def is_marked_best(self, step: int) -> bool:
        return self.ranks.from_main(self.checkpoints.linked("best") == step)

    def mend_best_link(self, step: int) -> None:
        """A copy may have lost the link, and the best checkpoint must not be taken for an old one."""
        if self.ranks.is_main and self.checkpoints.path(step).is_dir() and self.checkpoints.linked("best") != step:
            self._tidily("the best checkpoint could not be marked", lambda: self.checkpoints.link("best", step))

    def _tidily(self, otherwise: str, do: Callable[[], object]) -> None:
        """Do what is convenient but not needed, such as links; a failure is a warning, once for each message."""
        for warning in _tried(otherwise, do):
            self._warn_once(warning)

    def _warn_once(self, warning: str) -> None:
        if self.ranks.is_main and warning not in self._warned:
            self._warned.add(warning)
            self.emit(Event("warning", warning))

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, step: int, progress: dict[str, Any], again: bool = False) -> None:
        """Begin a checkpoint of this step, which ``settle`` ends; every rank must call it, none being on its way.

        Args:
            again: even if the step is saved already, since there is more to keep of it.
        """
        if self.last_saved == step and not again:
            return
        started = time.monotonic()
        if self.session.is_sharded and (name := self._non_finite_pieces()):
            raise self._not_finite(step, name)
        self.check_folder()
        self.lineage.look_at_files()
        other = self.lineage.share_contents()
        states: snapshot.States = {}
        sizes: dict[str, int] = {}
        error = self._begin(step)
        if not error:
            try:
                states = self._write_now(step, progress)
                sizes = late.sizes_in(self.checkpoints.temporary(step)) if self.session.is_sharded else {}
            except Exception as problem:  # a full disk comes as OSError, RuntimeError or SafetensorError
                error = brief(problem)
        self.check_folder()
        error, written = _of_all(self.ranks.gather((error, sizes)))
        work: Future[_Outcome] | None = None
        if self.ranks.is_main and not error:
            work = waiting.in_thread(lambda: self._write(step, started, states, written), f"saving step {step}")
        self._on_its_way = _OnItsWay(step, error, work)
        if other is not None:
            raise other

    def _begin(self, step: int) -> str:
        """The folder exists before any rank writes into it; says what is wrong with it."""
        error = ""
        if self.ranks.is_main:
            try:
                self.checkpoints.begin(step)
            except OSError as problem:
                error = brief(problem)
        return self.ranks.from_main(error)

    def _write_now(self, step: int, progress: dict[str, Any]) -> snapshot.States:
        """Little, unless models are spread over the ranks; returns what is left to be written by rank 0."""
        session, main, folder = self.session, self.ranks.is_main, self.checkpoints.temporary(step)
        states: snapshot.States = {}
        if session.is_sharded:  # all ranks gather together
            session.accelerator.save_state(str(folder))
            averaged = averages.whole_averages(session.stepper.averages)
            if averaged and main:
                states[weights.AVERAGES] = {name: value.to("cpu", copy=True) for name, value in averaged.items()}
        elif main:  # all that others have is generators
            snapshot.write_rest(session.accelerator, folder)
            states = self._snapshots.take(session.accelerator, session.stepper.averages)
        if main:
            run_folder.write_json(folder / PROGRESS, progress)
            self.lineage.write(folder, step)
        return states

    def _write(self, step: int, started: float, states: snapshot.States, written: dict[str, int]) -> _Outcome:
        """On rank 0, beside the loop unless that waits for it.

        Args:
            started: of ``time.monotonic``.
            written: by other ranks; bytes of files that this one may see late.
        """
        if name := self._non_finite_weights(states):
            raise self._not_finite(step, name)
        folder = self.checkpoints.temporary(step)
        snapshot.write(folder, states)
        run_folder.write_config(folder / "config.yaml", self.session.described)
        with waiting.to_the_end():
            late.await_files(folder, written)
        if lost := self.lost_folder():
            raise LockLostError(lost)
        self.checkpoints.commit(step)
        return _Outcome(warned=self._once_durable(step), seconds=time.monotonic() - started)

    def _once_durable(self, step: int) -> list[str]:
        """A checkpoint is whole and on the disk, whatever happens now: what follows from that, in the thread that wrote
        it. Returns what to warn of."""
        return [
            *_tried("the link latest could not be set", lambda: self.checkpoints.link("latest", step)),
            *_tried("old checkpoints could not be removed", self.checkpoints.prune),
        ]

    def is_written(self) -> bool:
        """Whether ``settle`` would not wait; False also if nothing is on its way. Rank 0 knows."""
        return self._on_its_way is not None and self._on_its_way.is_done()

    def is_saving(self) -> bool:
        return self._on_its_way is not None

    def settle(self) -> float | None:
        """Wait for the checkpoint that is on its way; every rank must call it. Returns how many seconds it took; None,
        with a warning, if it is lost, and None if there was none.

        Raises:
            NonFiniteError: its weights were not finite.
        """
        if self._on_its_way is None:
            return None
        outcome = self.ranks.from_main(self._on_its_way.outcome())
        if outcome.error:
            self.check_folder()
        return self._learn(outcome)

    def last_words(self) -> int | None:
        """``last_saved``, after what this rank still writes. Other ranks may be gone: who does not write asks none of
        them, and looks at what is on the disk."""
        coming = self._on_its_way
        if coming is None:
            return self.last_saved
        if self.ranks.is_main:
            outcome = coming.outcome()
            try:
                if not self.lost_folder():  # else nothing more is written there, not even a warning
                    self._learn(outcome)
            except NonFiniteError as error:
                self.emit(Event("warning", str(error)))
        elif self.checkpoints.path(coming.step).is_dir():
            self._on_its_way, self.last_saved = None, coming.step
        return self.last_saved

    def _learn(self, outcome: _Outcome) -> float | None:
        assert self._on_its_way is not None
        step, before = self._on_its_way.step, self.last_saved
        self._on_its_way = None
        for warning in outcome.warned:
            self._warn_once(warning)
        if not outcome.error:
            self.last_saved = step
            self.session.observers.call("on_save", step, self.checkpoints.path(step))
            return outcome.seconds
        if self.ranks.is_main:
            self.checkpoints.abandon(step)
        if isinstance(outcome.error, NonFiniteError):
            raise outcome.error
        if self.ranks.is_main:
            self.emit(Event("warning", f"CHECKPOINT OF STEP {step} NOT SAVED: {outcome.error}; {what_is_kept(before)}"))
        return None

    def _non_finite_weights(self, states: snapshot.States) -> str:
        """The first parameter with a NaN or an infinity. Buffers may hold what they like, such as masks of -inf."""
        names = {f"{m}.{name}" for m, model in self.session.models.items() for name, _ in model.named_parameters()}
        models = [state for file, state in states.items() if file.startswith("model")]
        saved = ((key.removeprefix("trained."), value) for state in models for key, value in state.items())
        return next((name for name, value in saved if name in names and not _all_finite(value)), "")

    def _non_finite_pieces(self) -> str:
        """The same of a model that is spread over the ranks."""
        named = ((f"{m}.{name}", p) for m, model in self.session.models.items() for name, p in model.named_parameters())
        mine = ((name, p.to_local() if hasattr(p, "to_local") else p) for name, p in named)  # type: ignore[operator]
        found = [name for name, p in mine if not _all_finite(p)]
        return "" if self.ranks.all_agree(not found) else next(n for n in self.ranks.gather("".join(found[:1])) if n)

    def _not_finite(self, step: int, name: str) -> NonFiniteError:
        return NonFiniteError(f"step {step}: the weights {name} are not finite; {what_is_kept(self.last_saved)}")

    def close(self) -> None:
        """Finish the trackers, and what is being written while the folder is ours; the process group stays, for a
        further run in this process."""
        self.last_words()
        for tracker in self.session.accelerator.trackers:
            with self.session.reports(tracker.name, self.emit):
                tracker.finish()


class _Outcome(NamedTuple):
    """What has become of a checkpoint: what went wrong, what to warn of, and how many seconds it took."""

    error: str | NonFiniteError = ""
    warned: Sequence[str] = ()
    seconds: float = 0.0


@dataclass
class _OnItsWay:
    """A checkpoint that has been begun; on rank 0, ``work`` writes it unless there was an ``error`` on some rank."""

    step: int
    error: str
    work: Future[_Outcome] | None

    def is_done(self) -> bool:
        return bool(self.error) or (self.work is not None and self.work.done())

    def outcome(self) -> _Outcome:
        """Waits; on rank 0."""
        try:
            return self.work.result() if self.work is not None else _Outcome(self.error)
        except NonFiniteError as problem:
            return _Outcome(problem)
        except Exception as problem:  # a full disk comes as OSError, RuntimeError or SafetensorError
            return _Outcome(brief(problem))


def _of_all(gathered: list[tuple[str, dict[str, int]]]) -> tuple[str, dict[str, int]]:
    """The first error of the ranks, and the sizes of all their files."""
    error = next((error for error, _ in gathered if error), "")
    return error, {name: size for _, sizes in gathered for name, size in sizes.items()}


def _tried(otherwise: str, do: Callable[[], object]) -> list[str]:
    """What to warn of if that fails."""
    try:
        do()
    except OSError as problem:
        return [f"{otherwise}: {brief(problem)}"]
    return []


def _all_finite(values: torch.Tensor) -> bool:
    """The extremes are NaN if anything is; they are found six times as fast as ``isfinite`` of everything."""
    if values.is_complex():
        values = torch.view_as_real(values)
    if not values.is_floating_point() or not values.numel():
        return True
    return all(torch.isfinite(extreme) for extreme in torch.aminmax(values.detach()))
