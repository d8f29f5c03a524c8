"""The typed config: what may be set. docs/config.md is made of it by scripts/config_reference.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from accel_train.arguments import Range
from accel_train.config.setting import Checked, setting
from accel_train.errors import UserError
from accel_train.plan import Durations, Steps

Length = int | str
"""A number of steps, or a duration: "1000st", "30ep", "2h"."""

AlertKind = Literal["start", "stop", "crash", "hang", "status", "milestone", "anomaly", "cycle", "warning"]


@dataclass
class OptimizerConfig(Checked):
    """An optimiser."""

    class_path: str = setting("AdamW", "any importable optimiser class; the names in torch.optim need no module.")
    init_args: dict[str, Any] = setting(dict, "its own arguments, without the learning rate.")
    learning_rate: float | None = setting(None, "replaces the top-level one for this optimiser.", Range(0))
    no_weight_decay: list[str] = setting(
        list, "patterns of names of parameters that do not decay, such as ['*.bias', '*norm*']."
    )
    lr_factors: dict[str, float] = setting(
        dict,
        "pattern of names of parameters to what their learning rate is multiplied by, such as {'*.body.*': 0.1}; the "
        "first one that matches counts.",
    )


@dataclass
class PhaseConfig(Checked):
    """A stretch of training."""

    objectives: list[str] = setting(
        list, "names of the task's objectives to run on every batch, in order; empty means all."
    )
    length: Length | None = setting(None, "steps or epochs; only the last phase may leave it out.", Durations())
    repeat: int = setting(
        1,
        "the phase so many times in a row (with a list of phases, repeat the whole list by writing it out).",
        Range(1),
    )


@dataclass
class WebhookConfig(Checked):
    """Alerts to a Discord-compatible webhook, whose URL is in an environment variable or a file, never here."""

    kinds: list[AlertKind] = setting(
        lambda: [kind for kind in get_args(AlertKind) if kind != "warning"], "which alerts to send."
    )
    status_steps: int = setting(500, "a status message every so many steps; 0 for none.", Range(0))
    milestones: int = setting(0, "a milestone message at each multiple of so many steps; 0 for none.", Range(0))
    url_env: str = setting("ACCEL_TRAIN_WEBHOOK_URL", "name of the environment variable that holds the URL.")
    url_file: str | None = setting(None, "a file that holds the URL, if the variable is not set.")


@dataclass
class TrainConfig(Checked):
    """Everything about a run but its task: see docs/config.md, or ``accel-train train --help``.

    Raises:
        UserError: a value is of the wrong type or out of range, or two do not go together; the message says which.
    """

    output_dir: str = setting("", "the run folder; empty means runs/TASK.", heading="the run")
    seed: int = setting(0, "of the initial weights, the order of the data and all noise.", Range(0), identity=True)
    max_steps: int | None = setting(None, "length of the run in steps (global batches).", Range(1))
    num_train_epochs: int | None = setting(
        None, "length of the run in epochs; the shorter of the two ends it.", Range(1)
    )
    phases: list[PhaseConfig] = setting(list, "which objectives run when; empty means all of them until the end.")

    global_batch_size: int = setting(
        64, "items of one optimiser step over all ranks together.", Range(1), identity=True, heading="data"
    )
    per_device_batch_size: int | None = setting(
        None,
        "instead of global_batch_size: items per rank, so that the run depends on their number.",
        Range(1),
        identity=True,
    )
    micro_batch_size: int | None = setting(
        None, "at most so many items at once through the model on a rank; changes memory, not results.", Range(1)
    )
    memory_guard: bool = setting(
        True, "after an out-of-memory error on any rank, halve the micro-batch on all and repeat the step."
    )
    num_workers: int = setting(1, "batches are read ahead by so many workers; 0 reads them in the loop.", Range(0))
    worker_type: Literal["thread", "process"] = setting(
        "thread", "thread for readers that release the GIL, process for Python-heavy ones."
    )

    learning_rate: float = setting(
        1e-3, "peak rate of every optimiser that does not set its own.", Range(0), heading="optimisation"
    )
    optimizer: OptimizerConfig = setting(OptimizerConfig, "the optimiser of every group of models.")
    optimizers: dict[str, OptimizerConfig] = setting(dict, "optimisers by objective name, where they differ.")
    lr_scheduler_type: str = setting(
        "constant",
        "constant, linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt, step or plateau; or the path of a "
        "function of base, steps_done, done (0 to 1) and its options, or of a scheduler class of torch.",
    )
    lr_scheduler_kwargs: dict[str, Any] = setting(dict, "options of the schedule, such as min_lr.")
    warmup_steps: Length = setting(0, 'linear warm-up, in steps or epochs ("5ep"); 0 for none.', Durations(zero=True))
    warmup_start_factor: float = setting(0.0, "the fraction of the rate at which warm-up starts.", Range(0, 1))
    max_grad_norm: float | None = setting(
        1.0, "clip the global L2 norm of the gradient; null for no clipping.", Range(0)
    )

    ema_decay: float | None = setting(
        None,
        "evaluate and export exponential moving averages of the weights with this decay per step, such as 0.999 (less "
        "in the beginning); null for the weights themselves.",
        Range(0, 1),
    )
    swa_start: Length | None = setting(
        None,
        "evaluate and export plain means of the weights over all steps from this one (or epoch) on; null for the "
        "weights themselves.",
        Durations(zero=True),
    )

    mixed_precision: Literal["no", "bf16", "fp16"] | None = setting(
        None, "no, bf16 or fp16; null takes what accelerate launch says.", heading="numerics"
    )
    torch_compile: str | dict[str, str] | None = setting(
        None,
        'a mode of torch.compile ("default", "reduce-overhead", ...) for every model that can be compiled, or modes by '
        "model name; null for none.",
    )
    check_contract: bool = setting(
        True, "see once, at every objective's first batch, whether the task's shares add up when that is cut."
    )
    deterministic: bool = setting(False, "only deterministic kernels, for bitwise repeats on a GPU; slower.")
    reduction: Literal["ordinary", "fixed"] = setting(
        "ordinary",
        "fixed cuts every global batch into reduction_parts parts, computes each alone and adds them in one order: the "
        "same bits on any number of processes; slower, and not for FSDP, streams or SyncBatchNorm.",
        identity=True,
    )
    reduction_parts: int = setting(
        8,
        "into how many parts reduction: fixed cuts; at most so many processes. More parts are smaller, and slower.",
        Range(1),
        identity=True,
    )
    non_finite: Literal["skip", "raise"] = setting(
        "skip", "what to do about a non-finite loss or gradient: skip the update, or raise."
    )
    max_skipped_steps: int = setting(10, "raise after so many skipped updates in a row.", Range(0))

    logging_steps: Length = setting(
        50,
        'one log line (means over the interval) every so many steps, or epochs ("1ep").',
        Durations(),
        heading="log, evaluation, checkpoints",
    )
    log_last_values: bool = setting(
        False, "log lines also have the values of the last step of their interval, as last/NAME."
    )
    digest_steps: int = setting(
        100,
        "64 bits each of gradients and weights every so many steps, in digests.jsonl (80 bytes a line for one model), "
        "by which accel-train diff finds where two runs part; 0 for none. Not under FSDP.",
        Range(0),
    )
    eval_steps: Length | None = setting(
        None, 'evaluate every so often ("1ep"); null only at the end, 0 never.', Durations(zero=True)
    )
    limit_eval_batches: int | None = setting(
        None, "evaluate only so many of the first batches of the validation data; null for all of them.", Range(1)
    )
    save_steps: Length | None = setting(
        500,
        'write a checkpoint every so often ("30min" counts wall time); null only at the end.',
        Durations(clock=True, zero=True),
    )
    save_in_background: bool = setting(
        True, "train on while a checkpoint is written; takes host memory for a copy of weights and optimizer."
    )
    save_total_limit: int | None = setting(
        3, "keep the newest so many checkpoints, beside the best one; null keeps all.", Range(1)
    )
    save_keep_every: int | None = setting(
        None, "keep a checkpoint at each multiple of so many steps for ever.", Range(1)
    )
    checkpoint_mirror: str | None = setting(
        None,
        "copy checkpoints, and what else is needed to go on, to this directory or URL (any that fsspec can write to "
        "and remove from), in a folder named like the run, beside the training; a start goes on from the newest whole "
        "one on either side. A failure is said and never ends the run.",
    )

    metric_for_best_model: str = setting(
        "loss", "evaluation metric that decides the best model.", heading="the best model, early stopping"
    )
    greater_is_better: bool = setting(False, "whether more of it is better.")
    early_stopping_patience: int | None = setting(
        None, "stop after so many evaluations without improvement; null for never.", Range(1)
    )
    early_stopping_threshold: float = setting(0.0, "what counts as an improvement.", Range(0))
    early_stopping_target: float | None = setting(None, "stop as soon as the metric is as good as this.")

    max_time: str | None = setting(
        None,
        'stop in time to have saved by then ("24h").',
        Durations(steps=False, clock=True),
        heading="stopping and resuming",
    )
    requeue_exit_code: int = setting(
        0, "exit code after a stop by signal or for the end of a SLURM job, for what requeues on it.", Range(0, 255)
    )
    hang_warning: str | None = setting(
        "5min",
        "say which rank stands still, and where, after so long without a sign of progress (six times as long in an "
        "evaluation, a save and the first step); stacks go to RUN/hangs. null for no watchdog.",
        Durations(steps=False, clock=True),
    )
    hang_timeout: str | None = setting(
        None,
        'then, after so long ("30min"), stop and save if that is still possible, and end the program with '
        "requeue_exit_code; null for never.",
        Durations(steps=False, clock=True),
    )
    resume_from_checkpoint: str = setting("auto", "auto (the newest whole checkpoint of output_dir), never, or a path.")
    allow_changed_config: bool = setting(False, "resume even if the config says that it is another run.")
    allow_changed_data: bool = setting(
        False, "resume even if files, items or their content are not those of before, be they trained or evaluated on."
    )
    init_from: str | None = setting(None, "take only the weights from this checkpoint or model folder.")

    report_to: list[str] = setting(
        lambda: ["tensorboard"], "tensorboard, and what accelerate knows (wandb, ...).", heading="tracking"
    )
    histogram_steps: int = setting(
        0,
        "TensorBoard histograms of the weights, and of what the task shows of a training batch, every so many steps; "
        "0 for none.",
        Range(0),
    )
    monitor_steps: int = setting(
        0, "let the task look at a training batch for anomalies every so many steps; 0 for never.", Range(0)
    )
    profile_steps: str | None = setting(
        None, 'where the time of these steps goes, such as "10:15", as a trace for Perfetto in RUN/profile.', Steps()
    )
    report_first_batch: bool = setting(
        False, "say names, shapes, ranges and a digest of rank 0's first batch when a session begins."
    )
    tb_sync_to: str | None = setting(
        None,
        "copy TensorBoard's files to this directory or URL (any that fsspec can write to), in a folder named like the "
        "run. A failure is said once and never ends the run.",
    )
    tb_sync_interval: float = setting(
        60.0, "seconds between two such copies; the last one is made when the run ends.", Range(0.1, 86400)
    )
    webhook: WebhookConfig = setting(WebhookConfig, "alerts to a Discord-compatible webhook.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tb_sync_to", "checkpoint_mirror"):  # the config is written into the run folder
            if re.search("://[^/]*@", getattr(self, name) or ""):
                raise UserError(f"{name}: a URL with a user or password in it is not taken; use the store's own login")
        if re.match("(https?|pelican|osdf)://", self.checkpoint_mirror or ""):
            raise UserError("checkpoint_mirror: behind https:// and pelican:// files can be neither removed nor safely "
                            "replaced; give a directory or a store of objects (s3://, gs://)")  # fmt: skip
        for name in ("output_dir", "resume_from_checkpoint", "init_from"):
            if "://" in (value := getattr(self, name) or ""):
                raise UserError(f"{name}: {value} is a URL; this must be a folder of this machine")
        if self.ema_decay == 1:
            raise UserError("ema_decay: 1 would never forget; a plain mean is swa_start")
        if self.ema_decay is not None and self.swa_start is not None:
            raise UserError("ema_decay and swa_start: give one of them; weights are averaged in one way")
        if self.reduction == "fixed":
            self._check_fixed()
        for i, phase in enumerate(self.phases):
            if phase.length is None and (i + 1 < len(self.phases) or phase.repeat > 1):
                raise UserError(f"phases[{i}].length: only the last phase may run until the end")

    def _check_fixed(self) -> None:
        if self.per_device_batch_size is not None:
            raise UserError("reduction: fixed makes the number of processes change nothing, and per_device_batch_size "
                            "makes it change the run; give global_batch_size")  # fmt: skip
        items, parts = self.global_batch_size, self.reduction_parts
        size = -(-items // parts)
        if self.micro_batch_size is not None and self.micro_batch_size < size:
            raise UserError(
                f"micro_batch_size: with reduction: fixed a part of {items:,} / {parts} = {size:,} items goes through "
                f"the models at once, more than {self.micro_batch_size:,}; raise reduction_parts to "
                f"{-(-items // self.micro_batch_size):,}"
            )
