"""What a run is made of: accelerate, data, models, optimisers and plan, built from the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accel_train import contract, keyed
from accel_train.classes import unfindable
from accel_train.config.convert import build
from accel_train.config.plain import refuse_unusable, to_dict
from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig
from accel_train.data.draws import generators
from accel_train.data.fingerprint import unknown
from accel_train.data.loader import Loader
from accel_train.data.part_loader import PartLoader
from accel_train.errors import UserError, suggest
from accel_train.plan import Duration, Phase, Plan
from accel_train.run.reports import Reports
from accel_train.system import memory
from accel_train.task import BatchSource, Event, Objective, Task
from accel_train.tracking.observer import Observers
from accel_train.train import sharding
from accel_train.train.averages import Averaging
from accel_train.train.fixed import FixedStepper
from accel_train.train.groups import group_objectives
from accel_train.train.parts import loader_for, parts_of
from accel_train.train.schedules import Schedule
from accel_train.train.step import Stepper
from accel_train.train.world import Ranks, has_mps, launched_for_gpus, start_accelerate


class Session:
    """The parts of a run on this rank. Building one moves models to the device but restores nothing yet."""

    def __init__(self, task: Task, config: TrainConfig) -> None:
        self.task, self.config = task, config
        self.observers = Observers()
        self.emit = self.observers.emit  # an event to whoever watches the run, now or once they are there
        refuse_unusable(task, config)
        memory.keep_freed()
        self.output_dir = run_dir(task, config)
        if why := unfindable(type(task)):
            self.emit(Event("note", f"{type(task).__name__} {why}, where evaluate, export and load_exported of another "
                                    "process cannot find it: put it into a file and import it from there"))  # fmt: skip
        self.accelerator = start_accelerate(dataclasses.replace(config, output_dir=str(self.output_dir)))
        self.device: torch.device = self.accelerator.device
        self.ranks = Ranks(self.accelerator)
        if self.device.type == "cpu" and launched_for_gpus():
            why = "accelerate was launched for GPUs (use_cpu: false) and there is none here"
            how = "this trains on the CPU, and shards nothing; accelerate_configs/cpu.yaml is for that"
            self.emit(Event("warning", f"{why}: {how}"))
        if has_mps():
            why = "this trains on the CPU: the GPU of a Mac (mps) has no float64, which sums over ranks are in"
            self.emit(Event("note", why))
        self.is_sharded = sharding.is_sharded(self.accelerator)
        self.parts = parts_of(config, self.ranks)
        if self.parts is not None and self.is_sharded:
            raise UserError(
                "reduction: fixed cannot have FSDP; take DDP (another launch config), or reduction: ordinary"
            )
        self.reports = Reports(self.output_dir, self.ranks.rank)
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
        self.contents = self.source.content_hashes()
        eval_source = contract.source_of(task, "validation", self.global_batch_size, config.seed)
        self._watch(eval_source)
        self.models = self._models()
        contract.refuse_sparse(self.models)
        self.objectives = contract.objectives_of(task)
        self.plan = self._plan()
        self.stepper = self._stepper()
        self.loader = self._loader(self.source, "the data set", self.ranks.all_agree)
        self.eval_loader = None
        if eval_source is not None and config.eval_steps != 0:
            contract.require(task, "eval_step", "eval_metrics")
            self.eval_loader = self._loader(eval_source, "the validation data")
        self._check_evaluations()

    # -- building ----------------------------------------------------------------------------------------------------

    def _watch(self, validation: BatchSource | None) -> None:
        """What is known of the validation data; from now on the content of all data is looked at."""
        here = validation is not None
        self.validation: dict[str, Any] = validation.fingerprint() if here and self.ranks.is_main else {}
        self.validation_contents = validation.content_hashes() if here else None
        if self.validation_contents is self.contents:  # of one data set for both
            self.validation_contents = None
        for contents, of in ((self.contents, ""), (self.validation_contents, "validation data")):
            if contents is not None:
                contents.watch(of, self.config.allow_changed_data)
        if self.ranks.is_main:
            lines = unknown(self.source, self.data) + (unknown(validation, self.validation) if here else [])
            for line in dict.fromkeys(lines):
                self.emit(Event("note", line))

    def _source(self, split: str) -> BatchSource:
        source = contract.source_of(self.task, split, self.global_batch_size, self.config.seed)
        if source is None:
            raise UserError(f"{self.task.task_name()}: there is no {split} data")
        return source

    def _models(self) -> dict[str, nn.Module]:
        def build() -> dict[str, nn.Module]:
            return contract.models_of(self.task, self.source)

        key = keyed.key(self.config.seed, "weights")
        torch.manual_seed(key >> 1)
        if self.is_sharded:
            return sharding.built_on_main(build, self.ranks, key)
        with generators(key):  # those of numpy and Python too
            return build()

    def _loader(
        self, source: BatchSource, name: str, all_agree: Callable[[bool], bool] | None = None
    ) -> Loader | PartLoader:
        options = {"all_agree": all_agree, "name": name}
        return loader_for(source, self.device, self.ranks, self.parts, self.config, **options)

    def events(self) -> list[Event]:
        """What readers found, since the last call, that whoever watches the run should hear of."""
        loaders = [self.loader, *([self.eval_loader] if self.eval_loader is not None else [])]
        other = [line for contents in (self.contents, self.validation_contents) if contents is not None
                 for line in contents.found_other()]  # fmt: skip
        more = f" ({len(other) - 1:,} more such blocks)" if len(other) > 1 else ""
        changed = [Event("warning", f"going on with changed data: {other[0]}{more}")] if other else []
        return [*changed, *(event for loader in loaders for event in loader.events())]

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
        if not self.is_sharded:  # else a whole model may be too large for the device
            for model in self.models.values():
                model.to(self.device)
        self._compile()
        options = (
            self.task, self.models, self.accelerator, self.ranks, config.seed,
            config.max_grad_norm, config.micro_batch_size, config.memory_guard, config.check_contract,
            self._averaging(),
        )  # fmt: skip
        stepper = (
            Stepper(*options) if self.parts is None
            else FixedStepper(self.parts, self.parts.largest(self.global_batch_size), *options)
        )  # fmt: skip
        used = {objective.name for phase in self.plan.phases for objective in phase.objectives}
        used_objectives = [objective for objective in self.objectives.values() if objective.name in used]
        mode = {"mode": "max"} if config.greater_is_better and config.lr_scheduler_type == "plateau" else {}
        trained = set[str]()
        for trains, members in group_objectives(used_objectives, list(self.models)).items():
            optimizer = self._optimizer(members)
            schedule = Schedule(
                config.lr_scheduler_type,
                config.learning_rate if optimizer.learning_rate is None else optimizer.learning_rate,
                self.plan.total_steps,
                self._steps("warmup_steps"),
                config.warmup_start_factor,
                mode | config.lr_scheduler_kwargs,
            )
            stepper.add_group(trains, members, dataclasses.asdict(optimizer), schedule)
            trained |= set(trains)
        if self.is_sharded:
            others = [model for name, model in self.models.items() if name not in trained]
            sharding.complete(others, self.ranks, self.device)
        return stepper

    def _compile(self) -> None:
        """Compile in place, so that no parameter changes its name."""
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
            for name, why in cannot.items() if wanted else ():
                self.emit(Event("note", f"{name} is not compiled: {why}"))
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

    def _averaging(self) -> Averaging | None:
        if self.config.ema_decay is not None:
            return Averaging(self.config.ema_decay)
        return Averaging(1.0, self._steps("swa_start")) if self.config.swa_start is not None else None

    def _steps(self, setting: str) -> int:
        """A setting that is a length, in steps."""
        text = getattr(self.config, setting)
        if text in (0, "0"):
            return 0
        length = Duration.parse(text, setting)
        if length.unit == "st":
            return length.count
        in_epoch = [self.source.steps(epoch) for epoch in range(length.count)]
        if None in in_epoch:
            raise UserError(f"{setting}: this data has no epochs; give steps")
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


def run_dir(task: Task, config: TrainConfig) -> Path:
    return Path(config.output_dir or Path("runs") / task.task_name())
