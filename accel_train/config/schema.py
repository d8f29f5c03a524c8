"""The typed config: what may be set, in which range, and what of it makes another run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal, get_args, get_type_hints

from accel_train.config.convert import LARGE, build, check_range
from accel_train.errors import UserError
from accel_train.plan import Duration
from accel_train.system.expansion import expand

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
        log_last_values: log lines also have the values of the last step of their interval, as last/NAME.
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
    log_last_values: bool = False
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
    "check_contract", "log_last_values",
}  # fmt: skip
"""What may differ on resume (it is said aloud). Everything else (data, model, seed, global batch) makes another run."""
