"""The run folder, while a run has it: its checkpoints, its exported models, and what it says of the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from accel_train.errors import LockLostError, NonFiniteError, UserError, brief, what_is_kept
from accel_train.run import folder as run_folder
from accel_train.run import lock as run_lock
from accel_train.run import mirror as run_mirror
from accel_train.run import weights
from accel_train.run.checkpoint import PROGRESS, CheckpointFolder
from accel_train.system.waiting import StoppedError
from accel_train.system.writing import writing
from accel_train.task import Event
from accel_train.train import averages
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
        self._lock: run_lock.RunLock | None = None  # held by rank 0 for all ranks
        session.accelerator.register_save_state_pre_hook(weights.save_whole_states)
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
        try:
            do()
        except OSError as problem:
            warning = f"{otherwise}: {brief(problem)}"
            if warning not in self._warned:
                self._warned.add(warning)
                self.emit(Event("warning", warning))

    def save(self, step: int, progress: dict[str, Any], again: bool = False) -> None:
        """A whole checkpoint of this step, or none and a warning; every rank must call it. ``again``: even if the
        step is saved already, since there is more to keep of it."""
        if self.last_saved == step and not again:
            return
        if name := self._non_finite_weights():
            raise NonFiniteError(f"step {step}: the weights {name} are not finite; {what_is_kept(self.last_saved)}")
        self.check_folder()
        other = self.lineage.share_contents()
        self._save(step, progress)
        if other is not None:
            raise other

    def _save(self, step: int, progress: dict[str, Any]) -> None:
        error = ""
        try:
            folder = self.checkpoints.begin(step) if self.ranks.is_main else self.checkpoints.temporary(step)
            self.ranks.all_agree(True)  # the folder exists before any rank writes into it
        except OSError as problem:
            error = brief(problem)
            folder = self.checkpoints.temporary(step)
            self.ranks.all_agree(False)
        if not error:
            try:
                self.session.accelerator.save_state(str(folder))
                averages.save(self.session.stepper.averages, folder, self.ranks.is_main)
                if self.ranks.is_main:
                    run_folder.write_json(folder / PROGRESS, progress)
                    self.lineage.write(folder, step)
                    run_folder.write_config(folder / "config.yaml", self.session.described)
            except Exception as problem:  # a full disk comes as OSError, RuntimeError or SafetensorError
                error = brief(problem)
        self.check_folder()
        if self.ranks.all_agree(not error) and self.ranks.is_main:
            try:
                self.checkpoints.commit(step)
            except OSError as problem:
                error = brief(problem)
        errors = [e for e in self.ranks.gather(error) if e]
        if errors:
            if self.ranks.is_main:
                self.checkpoints.abandon(step)
                kept = what_is_kept(self.last_saved)
                self.emit(Event("warning", f"CHECKPOINT OF STEP {step} NOT SAVED: {errors[0]}; {kept}"))
            return
        self.last_saved = step
        if self.ranks.is_main:
            self._tidily("the link latest could not be set", lambda: self.checkpoints.link("latest", step))
            self._tidily("old checkpoints could not be removed", self.checkpoints.prune)

    def _non_finite_weights(self) -> str:
        """The first parameter with a NaN or an infinity, on any rank. Buffers may hold what they like, such as masks
        of -inf."""
        named = ((f"{m}.{name}", p) for m, model in self.session.models.items() for name, p in model.named_parameters())
        mine = ((name, p.to_local() if hasattr(p, "to_local") else p) for name, p in named)  # type: ignore[operator]
        found = [name for name, p in mine if not torch.isfinite(p).all()]
        return "" if self.ranks.all_agree(not found) else next(n for n in self.ranks.gather("".join(found[:1])) if n)

    def close(self) -> None:
        """Finish the trackers; the process group stays, for a further run in this process."""
        for tracker in self.session.accelerator.trackers:
            with self.session.reports(tracker.name, self.emit):
                tracker.finish()
