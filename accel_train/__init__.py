"""accel_train: training runs that are a function of (config, seed, data) alone."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_train.arguments import Range
    from accel_train.commands.inspect import inspect
    from accel_train.config.schema import OptimizerConfig, PhaseConfig, TrainConfig
    from accel_train.data.adapters import from_dataset, from_iterable, from_load_dataset
    from accel_train.data.source import IndexedSource
    from accel_train.run.weights import load_exported
    from accel_train.task import BatchSource, Event, Loss, Objective, Task
    from accel_train.tracking.observer import Observer
    from accel_train.train.measuring import evaluate_run
    from accel_train.train.trainer import Trainer

_WHERE = {
    "Task": "task", "Objective": "task", "Loss": "task", "Event": "task",
    "BatchSource": "task", "IndexedSource": "data.source", "from_dataset": "data.adapters",
    "from_iterable": "data.adapters", "from_load_dataset": "data.adapters", "Observer": "tracking.observer",
    "TrainConfig": "config.schema", "PhaseConfig": "config.schema", "OptimizerConfig": "config.schema",
    "evaluate_run": "train.measuring", "inspect": "commands.inspect",
    "Trainer": "train.trainer", "load_exported": "run.weights", "Range": "arguments",
}  # fmt: skip

__all__ = [
    "BatchSource", "Event", "IndexedSource", "Loss", "Objective", "Observer", "OptimizerConfig", "PhaseConfig", "Range",
    "Task", "TrainConfig", "Trainer", "evaluate_run", "from_dataset", "from_iterable", "from_load_dataset", "inspect",
    "load_exported",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imported when first asked for, so that the command line answers without loading torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("accel_train")
    if name not in _WHERE:
        raise AttributeError(f"module 'accel_train' has no attribute {name!r}")
    return getattr(importlib.import_module(f"accel_train.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])


if "ipykernel" in sys.modules:
    # Libraries below import tqdm, which is loud in a notebook without widgets; none of its bars is shown here.
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")
        importlib.import_module("tqdm.auto")
