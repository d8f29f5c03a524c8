"""The typed config: what may be set, how it is read from YAML and the command line, and how two configs differ."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from accel_train.errors import UserError
from accel_train.progress import Duration

Length = int | str
"""A number of steps, or a duration: "1000st", "30ep", "2h"."""


@dataclass
class OptimizerConfig:
    """An optimiser.

    Args:
        class_path: any importable optimiser class; the names in torch.optim need no module.
        init_args: its own arguments, without the learning rate.
        learning_rate: replaces the top-level one for this optimiser.
    """

    class_path: str = "AdamW"
    init_args: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None


@dataclass
class PhaseConfig:
    """A stretch of training.

    Args:
        objectives: names of the task's objectives to run on every batch, in order; empty means all.
        length: steps or epochs; only the last phase may leave it out.
        repeat: the phase so many times in a row (with a list of phases, repeat the whole list by writing it out).
    """

    objectives: list[str] = field(default_factory=list)
    length: Length | None = None
    repeat: int = 1


@dataclass
class WebhookConfig:
    """Alerts to a Discord-compatible webhook. The URL is read from an environment variable or a file, never from here.

    Args:
        kinds: which alerts to send.
        status_steps: a status message every so many steps; 0 for none.
        milestones: a milestone message at each multiple of so many steps; 0 for none.
        url_env: name of the environment variable that holds the URL.
        url_file: a file that holds the URL, if the variable is not set.
    """

    kinds: list[str] = field(default_factory=lambda: ["start", "stop", "crash", "status", "milestone", "anomaly", "cycle"])
    status_steps: int = 500
    milestones: int = 0
    url_env: str = "ACCEL_TRAIN_WEBHOOK_URL"
    url_file: str | None = None


@dataclass
class TrainConfig:
    """Everything about a run but its task.

    Args:
        output_dir: the run folder; empty means runs/TASK.
        seed: of the weights, the order and all noise.
        max_steps: length of the run in steps (global batches).
        num_train_epochs: length of the run in epochs; the shorter of the two ends it.
        phases: which objectives run when; empty means all of them until the end.
        global_batch_size: items of one optimiser step over all ranks together.
        per_device_batch_size: instead of global_batch_size: items per rank, so that the run depends on their number.
        micro_batch_size: at most so many items at once through the model on a rank; changes memory, not results.
        memory_guard: halve the micro-batch after an out-of-memory error. With several ranks it costs the overlap of
            communication and backward.
        num_workers: batches are read ahead by so many workers; 0 reads them in the loop.
        worker_type: thread for readers that release the GIL, process for Python-heavy ones.
        learning_rate: peak rate of every optimiser that does not set its own.
        optimizer: the optimiser of every group of models.
        optimizers: optimisers by objective name, where they differ.
        lr_scheduler_type: constant, cosine, linear, step or plateau.
        lr_scheduler_kwargs: its options, such as min_lr.
        warmup_steps: linear warm-up, in steps or epochs ("5ep"); 0 for none.
        warmup_start_factor: the fraction of the rate at which warm-up starts.
        max_grad_norm: clip the global L2 norm of the gradient; null for no clipping.
        mixed_precision: no, bf16 or fp16; null takes what accelerate launch says.
        torch_compile: a mode of torch.compile for the models ("default", "reduce-overhead", ...); null for none.
        deterministic: only deterministic kernels, for bitwise repeats on a GPU; slower.
        non_finite: what to do about a non-finite loss or gradient: skip the update, or raise.
        max_skipped_steps: raise after so many skipped updates in a row.
        logging_steps: one log line (means over the interval) every so many steps.
        eval_steps: evaluate every so often ("1ep"); null only at the end. 0 never.
        save_steps: write a checkpoint every so often ("30min" counts wall time); null only at the end.
        save_total_limit: keep the newest so many checkpoints, beside the best one; null keeps all.
        save_keep_every: keep a checkpoint at each multiple of so many steps for ever.
        metric_for_best_model: evaluation metric that decides the best model.
        greater_is_better: whether more of it is better.
        early_stopping_patience: stop after so many evaluations without improvement; null for never.
        early_stopping_threshold: what counts as an improvement.
        early_stopping_target: stop as soon as the metric is as good as this.
        max_time: stop in time to have saved by then ("24h").
        requeue_exit_code: exit code after a stop by signal, for schedulers that requeue on it.
        resume_from_checkpoint: auto (the newest whole checkpoint of output_dir), never, or a path.
        allow_changed_config: resume even if the config says that it is another run.
        init_from: take only the weights from this checkpoint or model folder.
        report_to: tensorboard, and what accelerate knows (wandb, ...).
        histogram_steps: TensorBoard histograms of the weights every so many steps; 0 for none.
        monitor_steps: let the task look at a training batch for anomalies every so many steps; 0 for never.
        webhook: alerts.
    """

    output_dir: str = ""
    seed: int = 0
    max_steps: int | None = None
    num_train_epochs: int | None = None
    phases: list[PhaseConfig] = field(default_factory=list)
    global_batch_size: int = 64
    per_device_batch_size: int | None = None
    micro_batch_size: int | None = None
    memory_guard: bool = True
    num_workers: int = 1
    worker_type: Literal["thread", "process"] = "thread"
    learning_rate: float = 1e-3
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    optimizers: dict[str, OptimizerConfig] = field(default_factory=dict)
    lr_scheduler_type: str = "constant"
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    warmup_steps: Length = 0
    warmup_start_factor: float = 0.0
    max_grad_norm: float | None = 1.0
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    torch_compile: str | None = None
    deterministic: bool = False
    non_finite: Literal["skip", "raise"] = "skip"
    max_skipped_steps: int = 10
    logging_steps: int = 50
    eval_steps: Length | None = None
    save_steps: Length | None = 500
    save_total_limit: int | None = 3
    save_keep_every: int | None = None
    metric_for_best_model: str = "loss"
    greater_is_better: bool = False
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    early_stopping_target: float | None = None
    max_time: str | None = None
    requeue_exit_code: int = 0
    resume_from_checkpoint: str = "auto"
    allow_changed_config: bool = False
    init_from: str | None = None
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    histogram_steps: int = 0
    monitor_steps: int = 0
    webhook: WebhookConfig = field(default_factory=WebhookConfig)

    def __post_init__(self) -> None:
        """Ranges and lengths; types are checked by whoever parses."""
        self.phases = [_as(PhaseConfig, p) for p in self.phases]
        self.optimizer = _as(OptimizerConfig, self.optimizer)
        self.optimizers = {name: _as(OptimizerConfig, o) for name, o in self.optimizers.items()}
        self.webhook = _as(WebhookConfig, self.webhook)
        for name in ("max_steps", "num_train_epochs", "global_batch_size", "per_device_batch_size", "micro_batch_size",
                     "logging_steps", "save_total_limit", "save_keep_every", "early_stopping_patience"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is out of range, must be at least 1")
        for name in ("num_workers", "max_skipped_steps", "histogram_steps", "monitor_steps", "learning_rate", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}: {getattr(self, name)} is out of range, must not be negative")
        if self.max_grad_norm is not None and self.max_grad_norm < 0:
            raise UserError(f"max_grad_norm: {self.max_grad_norm} is out of range; null means no clipping")
        for name in ("warmup_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value not in (None, 0, "0") and Duration.parse(value, name).unit == "s" and name != "save_steps":
                raise UserError(f"{name}: {value} is wall time; give steps or epochs, so that the run does not depend on it")
        if self.max_time is not None and Duration.parse(self.max_time, "max_time").unit != "s":
            raise UserError(f"max_time: {self.max_time} is not wall time; write 90s, 30min, 2h or 1d")
        for i, phase in enumerate(self.phases):
            if phase.length is None and (i + 1 < len(self.phases) or phase.repeat > 1):
                raise UserError(f"phases[{i}].length: only the last phase may run until the end")
            if phase.length is not None and Duration.parse(phase.length, f"phases[{i}].length").unit == "s":
                raise UserError(f"phases[{i}].length: give steps or epochs, not wall time")


def _as(cls: type, value: Any) -> Any:
    return cls(**value) if isinstance(value, dict) else value


MAY_CHANGE = {
    "output_dir", "max_steps", "num_train_epochs", "micro_batch_size", "memory_guard", "num_workers", "worker_type",
    "logging_steps", "eval_steps", "save_steps", "save_total_limit", "save_keep_every", "early_stopping_patience",
    "early_stopping_threshold", "early_stopping_target", "max_time", "requeue_exit_code", "resume_from_checkpoint",
    "allow_changed_config", "init_from", "report_to", "histogram_steps", "monitor_steps", "webhook", "torch_compile",
    "non_finite", "max_skipped_steps", "deterministic", "metric_for_best_model", "greater_is_better", "phases",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_start_factor", "max_grad_norm",
    "mixed_precision", "optimizer", "optimizers",
}  # fmt: skip
"""What may differ on resume (it is said aloud). Everything else (data, model, seed, global batch) makes another run."""


def to_dict(task: Any, config: TrainConfig) -> dict[str, Any]:
    """Plain data from which the run can be rebuilt: what ``config.yaml`` holds."""
    cls = type(task)
    task_config = {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": plain(task.init_args)}
    return {"task": task_config, **plain(dataclasses.asdict(config))}


def plain(value: Any) -> Any:
    """As JSON has it: lists for tuples, strings for paths and enums."""
    return json.loads(json.dumps(value, default=str))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, sub in tree.items() for k, v in flatten(sub, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): tree}


def differences(old: dict[str, Any], new: dict[str, Any], movable: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """What changed on resume: (harmless or deliberate, what makes it another run), as lines ``key: old -> new``."""
    before, after = flatten(old), flatten(new)
    free, identity = [], []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            line = f"{name}: {before.get(name)} -> {after.get(name)}"
            first, *rest = name.split(".")
            may = first in MAY_CHANGE or (rest[:1] == ["init_args"] and rest[1:2] and rest[1] in movable)
            (free if may else identity).append(line)
    return free, identity


# -- reading ---------------------------------------------------------------------------------------------------------


def parser() -> Any:
    """A jsonargparse parser for ``--config FILE``, ``--task``, ``--task.init_args.*`` and every field of TrainConfig."""
    import jsonargparse

    from accel_train.task import Task

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise UserError(_one_line(message, self))

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    built = Parser(prog="accel-train train", description=(TrainConfig.__doc__ or "").splitlines()[0])
    built.add_argument("--config", action=jsonargparse.ActionConfigFile, help="a YAML file; later options override it")
    built.add_subclass_arguments(Task, "task", required=True, help="the task: a name from `accel-train tasks`, or a class")
    built.add_class_arguments(TrainConfig)
    return built


def parse(arguments: list[str]) -> tuple[Any, TrainConfig]:
    """The task and config that a command line describes. Raises UserError with one line on anything wrong."""
    from accel_train.tasks import expand_arguments

    built = parser()
    try:
        parsed = built.parse_args(expand_arguments(arguments))
        instantiated = built.instantiate(parsed)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(_one_line(str(error), built)) from error
    values = vars(instantiated)
    task = values.pop("task")
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    return task, TrainConfig(**{k: v for k, v in values.items() if k in names})


def load(folder: Path) -> tuple[Any, TrainConfig]:
    """The task and config of a run folder or checkpoint."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no config.yaml there; is it a run folder?")
    return parse(["--config", str(path)])


def _one_line(message: str, built: Any) -> str:
    """jsonargparse's message without its usage text, with the nearest known key or task."""
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    text = " ".join(lines)
    known = [a.dest for a in built._actions if a.dest]
    import re

    wrong = re.search(r"unrecognized arguments?: --([\w.\-]+)", text) or re.search(r"option '([\w.]+)'", text)
    wrong = wrong or re.search(r'[Kk]ey "?\'?([\w.]+)', text)
    if wrong and "mean" not in text:
        word = wrong[1].split("=")[0]
        options = known + _task_options(text)
        near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
        near = near or difflib.get_close_matches(word.rpartition(".")[2], options, n=1, cutoff=0.6)
        if near and near[0] != word:
            text += f" (did you mean {near[0]}?)"
    return text


def _task_options(text: str) -> list[str]:
    """Constructor arguments of the built-in tasks, for suggestions."""
    from accel_train.tasks import arguments_of_all_tasks

    return arguments_of_all_tasks()
