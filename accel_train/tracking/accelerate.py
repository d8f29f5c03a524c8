"""W&B, MLflow, Comet and the other trackers that accelerate knows."""

from __future__ import annotations

import contextlib
import netrc
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from accel_train.errors import UserError, brief
from accel_train.run.figures import pixels
from accel_train.run.reports import FAILURES, Reports
from accel_train.system.writing import write_atomic
from accel_train.task import Event
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import scalars

if TYPE_CHECKING:
    from accelerate import Accelerator


class AccelerateTrackers(Observer):
    """Hands records to the trackers an ``Accelerator(log_with=...)`` was made with. Ending them is left to its owner.

    They file the run under WANDB_PROJECT, or the name of the task. W&B and Trackio go on with the run that they had
    when training is resumed: ``tracker_id`` in the run folder says which one that is.

    Args:
        emit: takes the warnings about what is not tracked, or not where it was meant to be.
    """

    _wandb: list[Any] = []

    def __init__(self, accelerator: Accelerator, emit: Callable[[Event], None] = lambda event: None) -> None:
        self.accelerator, self.emit = accelerator, emit

    def on_start(self, run: Run) -> None:
        names = [str(tracker) for tracker in self.accelerator.log_with]
        project = os.environ.get("WANDB_PROJECT") or run.task.task_name()
        config = flatten({**run.config, "run_folder": str(run.output_dir.resolve())})
        options = _options(run) if {"wandb", "trackio"} & set(names) else {}
        if "wandb" in names and not _wandb_may_start():
            options["wandb"]["mode"] = "offline"
            self.emit(Event("warning", "report_to: wandb is not logged in, so this run is kept in ./wandb; wandb login "
                                       "and then wandb sync upload it"))  # fmt: skip
        try:
            self.accelerator.init_trackers(project, config, options)
        except FAILURES as error:
            self._end_what_started()
            why = f"report_to: {', '.join(names)} cannot start: {brief(error)}"
            if run.resumed_from is None:
                raise UserError(why) from error
            self.emit(Event("warning", f"{why}; the run goes on without"))
        self._reports = Reports(run.output_dir)
        self._wandb = [tracker for tracker in self.accelerator.trackers if tracker.name == "wandb"]
        self.shows_images = bool(self._wandb)

    def on_log(self, record: Record) -> None:
        self.accelerator.log(scalars(record), step=int(record["step"]))

    def on_evaluate(self, record: Record) -> None:
        self.accelerator.log(scalars({**record, "kind": "eval"}), step=int(record["step"]))

    def on_figures(self, step: int, figures: dict[str, Any]) -> None:
        for name, figure in figures.items():
            self._log_image(step, f"figures/{name}", figure)

    def on_add(self, step: int, name: str, value: Any) -> None:
        if isinstance(value, float):
            self.accelerator.log({name: value}, step=step)
        elif not isinstance(value, str):
            self._log_image(step, name, value)

    def _log_image(self, step: int, name: str, image: Any) -> None:
        """To W&B alone: each of the others means something else by an image."""
        for tracker in self._wandb:
            with self._reports(name.replace("/", "-"), self.emit):
                tracker.log_images({name: [pixels(image) if hasattr(image, "savefig") else image]}, step=step)

    def _end_what_started(self) -> None:
        for tracker in self.accelerator.trackers:
            with contextlib.suppress(*FAILURES):  # those that did not start cannot end either
                tracker.finish()
        self.accelerator.trackers.clear()


def _options(run: Run) -> dict[str, dict[str, Any]]:
    """By which a tracker knows the run again: W&B by an id, Trackio by its name."""
    path, name = run.output_dir / "tracker_id", run.output_dir.resolve().name
    own = ""
    if run.resumed_from is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):  # none was tracked until now
            own = path.read_text().strip()
    if not re.fullmatch(r"[0-9a-f]{8}", own):
        own = uuid.uuid4().hex[:8]
        write_atomic(path, own + "\n")
    return {
        "wandb": {
            "name": os.environ.get("WANDB_NAME") or name,
            "id": os.environ.get("WANDB_RUN_ID") or own,
            "resume": "allow",
        },
        "trackio": {"name": f"{name}-{own}", "resume": "allow"},
    }


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
