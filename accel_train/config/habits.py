"""What other trainers call it, and the guides that our tasks replace: one line with the right option or command."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from accel_train.errors import UserError, suggest

_EPOCHS = "the length of a run is --num_train_epochs=... or --max_steps=..."
_BATCH = "--global_batch_size=... is that of all processes, --per_device_batch_size=... of each"
_MEMORY = f"{_BATCH}; what does not fit is cut by --micro_batch_size=..., and the gradients are the same"
_LAUNCH = "accelerate launch --num_processes 2 -m accel_train train ..."
_DEVICE = "a GPU is used where there is one; CUDA_VISIBLE_DEVICES=0 says which, ACCELERATE_USE_CPU=true none, and " + (
    f"several take {_LAUNCH}"
)
_PRECISION = "it is --mixed_precision=bf16 (or fp16, no)"
HABITS = {
    "resume": "the same command goes on where its run stopped; --resume_from_checkpoint=PATH goes on from another "
    "checkpoint, --init_from=PATH begins with its weights alone",
    "mode": "training and evaluation are commands: accel-train train ..., accel-train evaluate RUN",
    "lr": "it is --learning_rate=...",
    "epochs": _EPOCHS,
    "num_epochs": _EPOCHS,
    "batch_size": _BATCH,
    "gradient_accumulation_steps": _MEMORY,
    "grad_accum_steps": _MEMORY,
    "device": _DEVICE,
    "gpus": _DEVICE,
    "no_cuda": _DEVICE,
    "use_cpu": _DEVICE,
    "num_processes": f"the launcher starts processes: {_LAUNCH}",
    "fp16": _PRECISION,
    "bf16": _PRECISION,
    "warmup_ratio": '--warmup_steps=... counts steps, or epochs ("5ep")',
    "logging_dir": "--output_dir=... is the run folder; TensorBoard's files are in RUN/tensorboard",
    "dry_run": "it is the switch --dry_run, without a value, on the command line",
    "print_config": "it is the switch --print_config, without a value, on the command line",
}
"""Name -> what is meant by it here."""

OTHER_NAMES = {
    "weight_decay": "optimizer.init_args.weight_decay", "precision": "mixed_precision",
    "per_device_train_batch_size": "per_device_batch_size", "max_epochs": "num_train_epochs", "steps": "max_steps",
    "scheduler": "lr_scheduler_type", "log_steps": "logging_steps", "patience": "early_stopping_patience",
}  # fmt: skip
"""Name -> the same thing here."""

GDYNET = {"model", "data", "training"}
"""What a config of the GDyNet trainer has on top, and none of ours."""


def refuse_habits(given: Collection[Any], of_task: Collection[str]) -> None:
    """A UserError for the first name that is a habit. An argument of the task that has the name is what was meant,
    but for a mode, which is another thing there."""
    for name in given:
        if name in HABITS and (name not in of_task or name == "mode"):
            raise UserError(f"{name}: no such option; {HABITS[name]}")


def without_value(name: str, known: Collection[str]) -> str:
    """What to say of an option that is given without a value: it may be no option at all."""
    if name in HABITS:
        return f"{name}: no such option; {HABITS[name]}"
    if name.partition(".")[0] not in known:
        return f"{name}: no such option{suggest(name, [*known, *HABITS])}"
    return f"--{name}: expected a value, as in --{name}=VALUE"


def refuse_old_config(tree: dict[str, Any], path: Path) -> None:
    """A UserError for a config of a trainer that a task replaces."""
    if "task" not in tree and tree.keys() >= GDYNET:
        raise UserError(
            f"{path}: a config of the GDyNet trainer; accel-train gdynet convert {path} --out OURS.yaml makes it ours"
        )
