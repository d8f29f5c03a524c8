"""W&B, MLflow, Comet and the other trackers that accelerate knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from accel_train.tracking import Observer, Record, Run
from accel_train.tracking.records import scalars

if TYPE_CHECKING:
    from accelerate import Accelerator


class AccelerateTrackers(Observer):
    """Hands records to the trackers an ``Accelerator(log_with=...)`` was made with. Ending them is left to its owner.

    Args:
        accelerator: the one of the run.
        project_name: what the trackers file the run under. Default: WANDB_PROJECT, or the name of the task.
        init_kwargs: further arguments by tracker, such as ``{"wandb": {"tags": ["pilot"]}}``.
    """

    def __init__(
        self, accelerator: Accelerator, project_name: str | None = None, init_kwargs: dict[str, Any] | None = None
    ):
        self.accelerator = accelerator
        self.project_name = project_name
        self.init_kwargs = init_kwargs or {}

    def on_start(self, run: Run) -> None:
        project = self.project_name or os.environ.get("WANDB_PROJECT") or run.task.task_name()
        self.accelerator.init_trackers(project, config=flatten(run.config), init_kwargs=self.init_kwargs)

    def on_log(self, record: Record) -> None:
        self.accelerator.log(scalars(record), step=int(record["step"]))

    def on_evaluate(self, record: Record, figures: dict[str, Any]) -> None:
        self.accelerator.log(scalars({**record, "kind": "eval"}), step=int(record["step"]))


def flatten(config: Any, prefix: str = "") -> dict[str, str | int | float | bool]:
    """A nested config as one level with dotted names: all that every tracker understands."""
    if isinstance(config, Mapping) and config:
        children = [(str(key), value) for key, value in config.items()]
    elif isinstance(config, list | tuple) and config:
        children = [(str(index), value) for index, value in enumerate(config)]
    elif prefix:
        return {prefix: config if isinstance(config, str | int | float | bool) else str(config)}
    else:
        return {}
    flat: dict[str, str | int | float | bool] = {}
    for name, value in children:
        flat |= flatten(value, f"{prefix}.{name}" if prefix else name)
    return flat
