"""The typed config: what may be set, how it is read from YAML and the command line, and how two configs differ."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from accel_train.config.convert import (
    LARGE,
    Typed,
    build,
    check_range,
    hints_of,
    load_mapping,
    loads_or_text,
    refuse_unknown,
)
from accel_train.errors import UserError
from accel_train.plan import Duration
from accel_train.registry import TASKS, find
from accel_train.system.expansion import Expanded, expand, refuse_incomplete
from accel_train.system.secrets import scrub_tree

Length = int | str
"""A number of steps, or a duration: "1000st", "30ep", "2h"."""

AlertKind = Literal["start", "stop", "crash", "status", "milestone", "anomaly", "cycle", "warning"]


class _Checked:
    """A dataclass whose values have the types of its fields, however it is made."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, value in vars(self).items():
            setattr(self, name, build(hints[name], expand(value), name))


@dataclass
class OptimizerConfig(_Checked):
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
class PhaseConfig(_Checked):
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
class WebhookConfig(_Checked):
    """Alerts to a Discord-compatible webhook. The URL is read from an environment variable or a file, never from here.

    Args:
        kinds: which alerts to send.
        status_steps: a status message every so many steps; 0 for none.
        milestones: a milestone message at each multiple of so many steps; 0 for none.
        url_env: name of the environment variable that holds the URL.
        url_file: a file that holds the URL, if the variable is not set.
    """

    kinds: list[AlertKind] = field(default_factory=lambda: [kind for kind in get_args(AlertKind) if kind != "warning"])
    status_steps: int = 500
    milestones: int = 0
    url_env: str = "ACCEL_TRAIN_WEBHOOK_URL"
    url_file: str | None = None


@dataclass
class TrainConfig(_Checked):
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
        torch_compile: a mode of torch.compile ("default", "reduce-overhead", ...) for every model that can be compiled,
            or modes by model name; null for none.
        check_contract: see once, at every objective's first batch, whether the task's shares add up when that is cut.
        deterministic: only deterministic kernels, for bitwise repeats on a GPU; slower.
        non_finite: what to do about a non-finite loss or gradient: skip the update, or raise.
        max_skipped_steps: raise after so many skipped updates in a row.
        logging_steps: one log line (means over the interval) every so many steps, or epochs ("1ep").
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
        allow_changed_data: resume even if files or items are not those of before.
        init_from: take only the weights from this checkpoint or model folder.
        report_to: tensorboard, and what accelerate knows (wandb, ...).
        histogram_steps: TensorBoard histograms of the weights, and of what the task shows of a training batch, every so
            many steps; 0 for none.
        monitor_steps: let the task look at a training batch for anomalies every so many steps; 0 for never.
        report_first_batch: say names, shapes, ranges and a digest of rank 0's first batch when a session begins.
        tb_sync_to: copy TensorBoard's files to this directory or URL (any that fsspec can write to), in a folder named
            like the run. A failure is said once and never ends the run.
        tb_sync_interval: seconds between two such copies; the last one is made when the run ends.
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
    torch_compile: str | dict[str, str] | None = None
    check_contract: bool = True
    deterministic: bool = False
    non_finite: Literal["skip", "raise"] = "skip"
    max_skipped_steps: int = 10
    logging_steps: Length = 50
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
    allow_changed_data: bool = False
    init_from: str | None = None
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    histogram_steps: int = 0
    monitor_steps: int = 0
    report_first_batch: bool = False
    tb_sync_to: str | None = None
    tb_sync_interval: float = 60.0
    webhook: WebhookConfig = field(default_factory=WebhookConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (least, most) in _RANGES.items():
            check_range(name, attrgetter(name)(self), least, most)
        for name, optimizer in self.optimizers.items():
            check_range(f"optimizers.{name}.learning_rate", optimizer.learning_rate, 0, LARGE)
        if self.logging_steps in (0, "0"):
            raise UserError("logging_steps: 0 is out of range, must be at least 1")
        for name in ("warmup_steps", "eval_steps", "save_steps", "logging_steps"):
            value = getattr(self, name)
            if value not in (None, 0, "0") and Duration.parse(value, name).unit == "s" and name != "save_steps":
                raise UserError(f"{name}: {value} is wall time, on which a run must not depend; give steps or epochs")
        if self.max_time is not None and Duration.parse(self.max_time, "max_time").unit != "s":
            raise UserError(f"max_time: {self.max_time} is not wall time; write 90s, 30min, 2h or 1d")
        if re.search("://[^/]*@", self.tb_sync_to or ""):  # the config is written into the run folder
            raise UserError("tb_sync_to: a URL with a user or password in it is not taken; use the store's own login")
        for i, phase in enumerate(self.phases):
            check_range(f"phases[{i}].repeat", phase.repeat, 1, LARGE)
            if phase.length is None and (i + 1 < len(self.phases) or phase.repeat > 1):
                raise UserError(f"phases[{i}].length: only the last phase may run until the end")
            if phase.length is not None and Duration.parse(phase.length, f"phases[{i}].length").unit == "s":
                raise UserError(f"phases[{i}].length: give steps or epochs, not wall time")


_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys((
        "max_steps", "num_train_epochs", "global_batch_size", "per_device_batch_size", "micro_batch_size",
        "save_total_limit", "save_keep_every", "early_stopping_patience",
    ), (1, LARGE)),
    **dict.fromkeys((
        "seed", "num_workers", "learning_rate", "optimizer.learning_rate", "max_grad_norm", "max_skipped_steps",
        "early_stopping_threshold", "histogram_steps", "monitor_steps", "webhook.status_steps", "webhook.milestones",
    ), (0, LARGE)),
    "warmup_start_factor": (0, 1),
    "requeue_exit_code": (0, 255),
    "tb_sync_interval": (0.1, 86400),
}  # fmt: skip


MAY_CHANGE = {
    "output_dir", "max_steps", "num_train_epochs", "micro_batch_size", "memory_guard", "num_workers", "worker_type",
    "logging_steps", "eval_steps", "save_steps", "save_total_limit", "save_keep_every", "early_stopping_patience",
    "early_stopping_threshold", "early_stopping_target", "max_time", "requeue_exit_code", "resume_from_checkpoint",
    "allow_changed_config", "allow_changed_data", "init_from", "report_to", "histogram_steps", "monitor_steps",
    "webhook", "torch_compile", "non_finite", "max_skipped_steps", "deterministic", "metric_for_best_model",
    "greater_is_better", "phases",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_start_factor", "max_grad_norm",
    "mixed_precision", "optimizer", "optimizers", "report_first_batch", "tb_sync_to", "tb_sync_interval",
    "check_contract",
}  # fmt: skip
"""What may differ on resume (it is said aloud). Everything else (data, model, seed, global batch) makes another run."""


def to_dict(task: Any, config: TrainConfig) -> dict[str, Any]:
    """Plain data from which the run can be rebuilt: what ``config.yaml`` holds. ``***`` stands where secrets were."""
    return scrub_tree({"task": _task_node(task), **plain(dataclasses.asdict(config))})


def refuse_unusable(task: Any, config: TrainConfig | None = None) -> None:
    """A UserError if a secret was taken out of these settings and not given again, or a variable in them is not set."""
    refuse_incomplete({"task": _task_node(task), **(plain(dataclasses.asdict(config)) if config else {})})


def _task_node(task: Any) -> dict[str, Any]:
    cls = type(task)
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": plain(task.init_args)}


def plain(value: Any) -> Any:
    """As YAML and JSON have it: lists for tuples and sets, names for enums, text for paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(sub) for name, sub in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(sub) for sub in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Expanded):
        return value.written
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, sub in tree.items() for k, v in flatten(sub, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): tree}


def differences(old: dict[str, Any], new: dict[str, Any], movable: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """What changed on resume: (harmless or deliberate, what makes it another run), as lines ``key: old -> new``."""
    before, after = flatten(old), flatten(new)
    free, identity = [], []
    for name in sorted(before.keys() | after.keys()):
        if expand(before.get(name)) != expand(after.get(name)):
            line = f"{name}: {before.get(name)} -> {after.get(name)}"
            first, *rest = name.split(".")
            may = first in MAY_CHANGE or (rest[:1] == ["init_args"] and rest[1:2] and rest[1] in movable)
            (free if may else identity).append(line)
    return free, identity


# -- reading ---------------------------------------------------------------------------------------------------------


def parse(arguments: list[str]) -> tuple[Any, TrainConfig]:
    """The task and config that a command line describes. Raises UserError with one line on anything wrong."""
    tree = read(arguments)
    refuse_incomplete(tree)
    return _made_of(tree)


def _made_of(tree: dict[str, Any]) -> tuple[Any, TrainConfig]:
    node = tree.pop("task", None)
    if node is None:
        raise UserError("task: missing; give --task=NAME or a YAML file that names it (accel-train tasks lists them)")
    elsewhere = {name: f"task.init_args.{name}" for name in arguments_of(task_class(node))[0]}
    refuse_unknown(tree, [f.name for f in dataclasses.fields(TrainConfig)], elsewhere=elsewhere)
    config = settings_for(task_class(node), tree)
    return build_task(node), config


def settings_for(task: type, given: dict[str, Any]) -> TrainConfig:
    """What was given, and for the rest what the task recommends."""
    return build(TrainConfig, expand(merged(task.recommended, given)))


def load(folder: Path, given: Sequence[str] = ()) -> tuple[Any, TrainConfig]:
    """The task and config of a run folder or checkpoint, with options over them. Secrets in it may be missing."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no config.yaml there; is it a run folder?")
    return _made_of(read(["--config", str(path), *given]))


def read(arguments: list[str]) -> dict[str, Any]:
    """One tree of everything given: the files in their order, then the options. Nothing is checked yet.

    Another class drops the ``init_args`` of the one before it, wherever on the command line it stands.
    """
    given = list(_pairs(arguments))
    tree: dict[str, Any] = {}
    for key, path in given:
        if key == "config":
            _merge(tree, _read_file(Path(path).expanduser()))
    for key, text in sorted(given, key=lambda pair: pair[0] != "task" and not pair[0].endswith("class_path")):
        if key != "config":
            value = loads_or_text(text)
            if key == "task" and not isinstance(value, dict):
                key = "task.class_path"
            *parents, last = key.split(".")
            node = tree
            for name in parents:
                inner = node.get(name)
                if isinstance(inner, str):  # a class by its name alone
                    inner = {"class_path": inner}
                node[name] = inner if isinstance(inner, dict) else {}
                node = node[name]
            _drop_stale(node, {last: text})
            node[last] = value if isinstance(value, (dict, list)) else Typed(text)
    return tree


def _pairs(arguments: list[str]) -> Iterator[tuple[str, str]]:
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if not key.startswith("--"):
            raise UserError(f"{argument}: expected --KEY=VALUE (a YAML file is given as --config FILE)")
        if not equals:
            following = next(rest, "--")
            if following.startswith("--"):
                raise UserError(f"{key}: expected a value, as in {key}=VALUE")
            value = following
        yield key[2:], value


def _read_file(path: Path) -> dict[str, Any]:
    tree = load_mapping(path, "--config")
    if isinstance(tree.get("task"), str):
        tree["task"] = {"class_path": tree["task"]}
    return tree


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A tree of settings with another one over it."""
    tree = copy.deepcopy(old)
    _merge(tree, new)
    return tree


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    _drop_stale(old, new)
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            _merge(old[name], value)
        else:
            old[name] = value


def _drop_stale(old: dict[str, Any], new: dict[str, Any]) -> None:
    if "class_path" in old and "class_path" in new:
        before, after = (TASKS.get(name, (name,))[0] for name in (str(old["class_path"]), str(new["class_path"])))
        if before != after:
            old.pop("init_args", None)


# -- tasks -----------------------------------------------------------------------------------------------------------


def build_task(node: dict[str, Any]) -> Any:
    """A task from its ``class_path`` and ``init_args``."""
    cls = task_class(node)
    known, open_ended = arguments_of(cls)
    given = expand(node.get("init_args") or {})
    if not isinstance(given, dict):
        raise UserError(f"task.init_args: expected {{...}}, got {given!r}")
    if not open_ended:
        refuse_unknown(given, known, "task.init_args.")
    for name, argument in known.items():
        if argument.default is inspect.Parameter.empty and name not in given:
            raise UserError(f"task.init_args.{name}: missing; {cls.__name__} needs it")
    hints = {name: argument.annotation for name, argument in known.items()}
    return cls(**{name: build(hints.get(name, Any), value, f"task.init_args.{name}") for name, value in given.items()})


def task_class(node: Any) -> type:
    if not isinstance(node, dict) or not isinstance(node.get("class_path"), str):
        raise UserError(f"task: expected a name, or class_path and init_args, got {node!r}")
    refuse_unknown(node, ["class_path", "init_args"], "task.")
    return find(node["class_path"])


def arguments_of(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """(Arguments of the constructor by name, whether it takes any others); ``**kwargs`` are those of the base class."""
    known: dict[str, inspect.Parameter] = {}
    open_ended = False
    for base in cls.__mro__[:-1]:
        if "__init__" in vars(base):
            init = vars(base)["__init__"]
            hints = hints_of(init)
            parameters = list(inspect.signature(init).parameters.values())[1:]
            for p in parameters:
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                    known.setdefault(p.name, p.replace(annotation=hints.get(p.name, Any)))
            open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
            if not open_ended:
                break
    return known, open_ended
