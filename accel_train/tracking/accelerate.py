"""W&B, MLflow, Comet and the other trackers that accelerate knows."""

from __future__ import annotations

import contextlib
import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accel_train.errors import UserError, brief
from accel_train.run.reports import FAILURES
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import scalars

if TYPE_CHECKING:
    from accelerate import Accelerator


class AccelerateTrackers(Observer):
    """Hands records to the trackers an ``Accelerator(log_with=...)`` was made with. Ending them is left to its owner.

    They file the run under WANDB_PROJECT, or the name of the task.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def on_start(self, run: Run) -> None:
        names = [str(tracker) for tracker in self.accelerator.log_with]
        if "wandb" in names and not _wandb_may_start():
            raise UserError("report_to: wandb is not logged in; run wandb login, or set WANDB_API_KEY, or "
                            "WANDB_MODE=offline to upload later with wandb sync")  # fmt: skip
        project = os.environ.get("WANDB_PROJECT") or run.task.task_name()
        try:
            self.accelerator.init_trackers(project, config=flatten(run.config))
        except FAILURES as error:
            self._end_what_started()
            raise UserError(f"report_to: {', '.join(names)} cannot start: {brief(error)}") from error

    def on_log(self, record: Record) -> None:
        self.accelerator.log(scalars(record), step=int(record["step"]))

    def on_evaluate(self, record: Record) -> None:
        self.accelerator.log(scalars({**record, "kind": "eval"}), step=int(record["step"]))

    def on_add(self, step: int, name: str, value: Any) -> None:
        if isinstance(value, float):
            self.accelerator.log({name: value}, step=step)

    def _end_what_started(self) -> None:
        for tracker in self.accelerator.trackers:
            with contextlib.suppress(*FAILURES):  # those that did not start cannot end either
                tracker.finish()
        self.accelerator.trackers.clear()


def _wandb_may_start() -> bool:
    """Whether wandb would begin without asking at the terminal, where a run listens itself. Asks no server."""
    given = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_ANONYMOUS")
    if os.environ.get("WANDB_MODE", "online") != "online" or any(os.environ.get(name) for name in given):
        return True
    with contextlib.suppress(OSError):  # by "wandb offline"
        if re.search(r"^mode\s*=\s*(offline|disabled)", Path("wandb/settings").read_text(), re.M):
            return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for place in filter(None, places):
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(Path(place).expanduser()).authenticators(host):
                return True
    return False


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
