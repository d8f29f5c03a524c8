"""What a run is made of: accelerate, data, models, plan and run folder, built from the config, saved and restored."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from accel_train import contract, keyed
from accel_train.config.convert import build
from accel_train.config.plain import refuse_unusable, to_dict
from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig
from accel_train.data.draws import generators
from accel_train.data.loader import Loader
from accel_train.errors import LockLostError, NonFiniteError, UserError, brief, suggest, what_is_kept
from accel_train.plan import Duration, Phase, Plan
from accel_train.run import folder as run_folder
from accel_train.run import lock as run_lock
from accel_train.run import weights
from accel_train.run.checkpoint import PROGRESS, CheckpointFolder
from accel_train.run.reports import Reports
from accel_train.system.waiting import StoppedError
from accel_train.system.writing import writing
from accel_train.task import BatchSource, Event, Objective, Task
from accel_train.train.optim import Schedule
from accel_train.train.step import Stepper, group_objectives
from accel_train.train.world import Ranks, start_accelerate

Tell = Callable[[Event], None]


class Session:
    """The parts of a run on this rank. Building one moves models to the device but restores nothing yet."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.task, self.config = task, config
        refuse_unusable(task, config)
        self.output_dir = run_dir(task, config)
        self.accelerator = start_accelerate(dataclasses.replace(config, output_dir=str(self.output_dir)))
        self.device: torch.device = self.accelerator.device
        self.ranks = Ranks(self.accelerator)
        self.global_batch_size = config.global_batch_size
        if config.per_device_batch_size is not None:
            self.global_batch_size = config.per_device_batch_size * self.ranks.world_size
        self.described = to_dict(task, config) | {
            "global_batch_size": self.global_batch_size,  # as it came out, for resuming and evaluating
            "mixed_precision": self.accelerator.mixed_precision,
        }

        contract.require(task, "build_data", "build_model", "loss_step")
        self.source = self._source("train")
        self.data = self.source.fingerprint() if self.ranks.is_main else {}
        eval_source = contract.source_of(task, "validation", self.global_batch_size, config.seed)
        torch.manual_seed(keyed.key(config.seed, "weights") >> 1)
        with generators(keyed.key(config.seed, "weights")):  # those of numpy and Python too
            self.models = contract.models_of(task, self.source)
        contract.refuse_sparse(self.models)
        self.objectives = contract.objectives_of(task)
        self.plan = self._plan()
        self.notes: list[Event] = []
        self.stepper = self._stepper()
        self.loader = self._loader(self.source)
        self.eval_loader = None
        if eval_source is not None and config.eval_steps != 0:
            contract.require(task, "eval_step", "eval_metrics")
            self.eval_loader = self._loader(eval_source, "the validation data")
        self._check_evaluations()

        self.checkpoints = CheckpointFolder(
            self.output_dir / "checkpoints", config.save_total_limit, config.save_keep_every
        )
        self._told: set[str] = set()
        self.reports = Reports(self.output_dir, self.ranks.rank)
        self.accelerator.register_save_state_pre_hook(weights.save_whole_states)
        self.accelerator.register_load_state_pre_hook(weights.load_whole_states)
        self.last_saved: int | None = None
        self.resumed_from: Path | None = None
        self._lock: run_lock.RunLock | None = None  # held by rank 0 for all ranks

    # -- building ----------------------------------------------------------------------------------------------------

    def _source(self, split: str) -> BatchSource:
        source = contract.source_of(self.task, split, self.global_batch_size, self.config.seed)
        if source is None:
            raise UserError(f"{self.task.task_name()}: there is no {split} data")
        return source

    def _loader(self, source: BatchSource, name: str = "the data set") -> Loader:
        config, ranks = self.config, self.ranks
        return Loader(
            source, self.device, ranks.rank, ranks.world_size, config.num_workers, config.worker_type,
            seed=config.seed, all_agree=ranks.all_agree, name=name,
        )  # fmt: skip

    def events(self) -> list[Event]:
        """What readers found, since the last call, that whoever watches the run should hear of."""
        loaders = [self.loader, *([self.eval_loader] if self.eval_loader is not None else [])]
        return [event for loader in loaders for event in loader.events()]

    def _plan(self) -> Plan:
        phases = []
        wanted = self.config.phases or [build(PhaseConfig, dict(phase), "phases") for phase in self.task.phases()]
        for i, phase in enumerate(wanted):
            for name in phase.objectives:
                if name not in self.objectives:
                    hint = suggest(name, self.objectives)
                    raise UserError(
                        f"phases[{i}].objectives: unknown {name!r}{hint}; there are {', '.join(self.objectives)}"
                    )
            chosen = tuple(self.objectives[n] for n in phase.objectives) or tuple(self.objectives.values())
            length = Duration.parse(phase.length, f"phases[{i}].length") if phase.length is not None else None
            name = "+".join(o.name for o in chosen)
            phases += [Phase(chosen, length, name)] * phase.repeat
        if not phases:
            phases = [Phase(tuple(self.objectives.values()), None, "+".join(self.objectives))]
        return Plan(phases, self.source.steps, self.config.max_steps, self.config.num_train_epochs)

    def _stepper(self) -> Stepper:
        config = self.config
        for name in config.optimizers:
            if name not in self.objectives:
                raise UserError(f"optimizers: unknown objective {name!r}{suggest(name, self.objectives)}")
        for model in self.models.values():
            model.to(self.device)
        self._compile()
        stepper = Stepper(
            self.task, self.models, self.accelerator, self.ranks, config.seed,
            config.max_grad_norm, config.micro_batch_size, config.memory_guard, config.check_contract,
        )  # fmt: skip
        used = {objective.name for phase in self.plan.phases for objective in phase.objectives}
        used_objectives = [objective for objective in self.objectives.values() if objective.name in used]
        for trains, members in group_objectives(used_objectives, list(self.models)).items():
            optimizer = self._optimizer(members)
            schedule = Schedule(
                config.lr_scheduler_type,
                config.learning_rate if optimizer.learning_rate is None else optimizer.learning_rate,
                self.plan.total_steps,
                self._warmup_steps(),
                config.warmup_start_factor,
                **({"mode": "max"} if config.greater_is_better and config.lr_scheduler_type == "plateau" else {}),
                **config.lr_scheduler_kwargs,
            )
            stepper.add_group(trains, members, dataclasses.asdict(optimizer), schedule)
        return stepper

    def _compile(self) -> None:
        """In place, so that no parameter changes its name."""
        wanted, cannot = self.config.torch_compile, {}
        for objective in self.objectives.values():
            if objective.not_compiled:
                cannot |= dict.fromkeys(objective.trains or self.models, objective.not_compiled)
        if isinstance(wanted, dict):
            for name in wanted:
                if name not in self.models:
                    hint = suggest(name, self.models)
                    raise UserError(f"torch_compile: unknown model {name!r}{hint}; there are {', '.join(self.models)}")
                if name in cannot and wanted[name] != "off":
                    raise UserError(f"torch_compile.{name}: {cannot[name]}")
            modes = wanted
        else:
            modes = {name: wanted for name in self.models if wanted and name not in cannot}
            self.notes += [Event("note", f"{name} is not compiled: {why}") for name, why in cannot.items() if wanted]
        for name, mode in modes.items():
            if mode not in (None, "off"):
                try:
                    self.models[name].compile(mode=None if mode == "default" else mode)
                except RuntimeError as error:
                    raise UserError(f"torch_compile: {error}") from None

    def _optimizer(self, members: list[Objective]) -> OptimizerConfig:
        chosen = [self.config.optimizers[o.name] for o in members if o.name in self.config.optimizers]
        if len(chosen) > 1:
            names = ", ".join(o.name for o in members)
            raise UserError(f"optimizers: {names} train the same models and share one optimizer; set one of them only")
        return chosen[0] if chosen else self.config.optimizer

    def _warmup_steps(self) -> int:
        text = self.config.warmup_steps
        if text in (0, "0"):
            return 0
        length = Duration.parse(text, "warmup_steps")
        if length.unit == "st":
            return length.count
        in_epoch = [self.source.steps(epoch) for epoch in range(length.count)]
        if None in in_epoch:
            raise UserError("warmup_steps: this data has no epochs; give steps")
        return sum(n for n in in_epoch if n is not None)

    def _check_evaluations(self) -> None:
        """Settings that only mean something if there are evaluations on the way."""
        config = self.config
        asked = {
            "early_stopping_patience": config.early_stopping_patience is not None,
            "early_stopping_target": config.early_stopping_target is not None,
            "lr_scheduler_type=plateau": config.lr_scheduler_type == "plateau",
        }
        for name, wanted in asked.items():
            if wanted and (self.eval_loader is None or config.eval_steps is None):
                what = "this task has no validation data" if config.eval_steps else "give eval_steps"
                raise UserError(f"{name} looks at evaluations during training, and there would be none: {what}")

    # -- the run folder ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def folder_to_itself(self, stopping: Callable[[], bool], tell: Tell) -> Iterator[None]:
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
                tell(Event("note", f"{self.output_dir} was in use by {before}, which is no longer alive"))
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
        run_folder.write_config(self.output_dir / "config.yaml", self.described)
        about = run_folder.environment(self.config.seed, self.ranks.world_size, str(self.device))
        path = self.output_dir / "environment.json"
        about["started"] = datetime.now().astimezone().isoformat(timespec="seconds")
        if self.resumed_from is not None:  # then the run is as old as its first session, if that can be known
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                about["started"] = json.loads(path.read_text())["started"]
        run_folder.write_json(path, about)

    def export(self, folder: Path, info: dict[str, Any], tell: Tell) -> None:
        """The models as a folder of their own, or a warning. Every rank must call it, since weights may be spread over
        them; rank 0 writes."""
        self.check_folder()
        states = {name: weights.whole_state(model) for name, model in self.models.items()}
        error = ""
        if self.ranks.is_main:
            try:
                weights.export_models(folder, states, self.described, info)
            except Exception as problem:  # a full disk comes as OSError or SafetensorError
                error = brief(problem)
        if error := self.ranks.from_main(error):
            same = self.last_saved == info["step"]
            where = ". The checkpoint has the same weights" if same else ""
            tell(Event("warning", f"{folder} NOT WRITTEN: {error}{where}"))

    def mark_best(self, step: int, info: dict[str, Any], tell: Tell) -> None:
        self.export(self.output_dir / "best", info, tell)
        if self.ranks.is_main and self.last_saved == step:  # a checkpoint that did not fit cannot be linked
            self._tidily("the best checkpoint could not be marked", lambda: self.checkpoints.link("best", step), tell)
            self._tidily("old checkpoints could not be removed", self.checkpoints.prune, tell)

    def is_marked_best(self, step: int) -> bool:
        return self.ranks.from_main(self.checkpoints.linked("best") == step)

    def mend_best_link(self, step: int, tell: Tell) -> None:
        """A copy may have lost the link, and the best checkpoint must not be taken for an old one."""
        if self.ranks.is_main and self.checkpoints.path(step).is_dir() and self.checkpoints.linked("best") != step:
            self._tidily("the best checkpoint could not be marked", lambda: self.checkpoints.link("best", step), tell)

    def _tidily(self, otherwise: str, do: Callable[[], object], tell: Tell) -> None:
        """Do what is convenient but not needed, such as links; a failure is a warning, once for each message."""
        try:
            do()
        except OSError as problem:
            warning = f"{otherwise}: {brief(problem)}"
            if warning not in self._told:
                self._told.add(warning)
                tell(Event("warning", warning))

    def save(self, step: int, progress: dict[str, Any], tell: Tell, again: bool = False) -> None:
        """A whole checkpoint of this step, or none and a warning; every rank must call it. ``again``: there is more to
        tell of the step than when it was saved, if it was."""
        if self.last_saved == step and not again:
            return
        if name := self._non_finite_weights():
            raise NonFiniteError(f"step {step}: the weights {name} are not finite; {what_is_kept(self.last_saved)}")
        self.check_folder()
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
                self.accelerator.save_state(str(folder))
                if self.ranks.is_main:
                    run_folder.write_json(folder / PROGRESS, progress)
                    run_folder.write_config(folder / "config.yaml", self.described)
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
                tell(Event("warning", f"CHECKPOINT OF STEP {step} NOT SAVED: {errors[0]}; {kept}"))
            return
        self.last_saved = step
        if self.ranks.is_main:
            self._tidily("the link latest could not be set", lambda: self.checkpoints.link("latest", step), tell)
            self._tidily("old checkpoints could not be removed", self.checkpoints.prune, tell)

    def _non_finite_weights(self) -> str:
        """The first parameter with a NaN or an infinity, on any rank. Buffers may hold what they like, such as masks
        of -inf."""
        named = ((f"{m}.{name}", p) for m, model in self.models.items() for name, p in model.named_parameters())
        whole = ((name, p.full_tensor() if hasattr(p, "full_tensor") else p) for name, p in named)  # type: ignore[operator]
        found = [name for name, p in whole if not torch.isfinite(p).all()]
        return "" if self.ranks.all_agree(not found) else next(n for n in self.ranks.gather("".join(found[:1])) if n)

    def close(self, tell: Tell) -> None:
        """Finish the trackers; the process group stays, for a further run in this process."""
        for tracker in self.accelerator.trackers:
            with self.reports(tracker.name, tell):
                tracker.finish()


def run_dir(task: Task, config: TrainConfig) -> Path:
    return Path(config.output_dir or Path("runs") / task.task_name())
