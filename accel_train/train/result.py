"""What a run came to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_train.run.figures import Picture, pictures
from accel_train.system.signals import SIGNALS
from accel_train.tracking import status
from accel_train.tracking.jsonl import histories
from accel_train.train.control import JOB_END
from accel_train.train.measuring import Evaluation, evaluate_run

WHERE = ("step", "epoch", "phase", "wall_time")
"""What a record says of an evaluation besides its metrics."""


@dataclass
class Result:
    """What ``fit`` returns. ``history``: plain lists by name, from the whole run including earlier sessions."""

    outcome: str  # "completed" or "stopped"
    reason: str
    step: int
    output_dir: Path
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] | None = None
    by_signal: bool = False
    saved: bool = True  # there is a whole checkpoint of ``step``, or this session trained nothing

    @classmethod
    def of(cls, folder: Path, saved: bool = True) -> Result:
        """What the last session of a run came to, as its folder says.

        Raises:
            UserError: nothing there says so.
        """
        found, last = status.read(folder), {}
        if (folder / "metrics.jsonl").is_file():
            history = histories(folder / "metrics.jsonl")
            last = {name.removeprefix("eval_"): each[-1] for name, each in history.items() if name.startswith("eval_")}
        reason = found.get("reason") or ""
        return cls(
            found["state"], reason, found["step"], folder, saved=saved, best=found.get("best"),
            metrics={k: math.nan if v is None else v for k, v in last.items() if k not in WHERE},
            by_signal=found["state"] == "stopped" and reason in {JOB_END, *(number.name for number in SIGNALS)},
        )  # fmt: skip

    @property
    def history(self) -> dict[str, Any]:
        return histories(self.output_dir / "metrics.jsonl")

    @property
    def figures(self) -> dict[str, Picture]:
        """The task's figures of the last evaluation that was drawn, by name; Jupyter shows them as pictures."""
        return pictures(self.output_dir / "figures")

    def evaluate(
        self,
        split: str = "validation",
        *,
        checkpoint: str | None = None,
        batch_size: int | None = None,
        out: Path | str | None = None,
    ) -> Evaluation:
        """Metrics and figures of the best model, or another checkpoint; see ``accel_train.evaluate_run``."""
        return evaluate_run(self.output_dir, split, checkpoint=checkpoint, batch_size=batch_size, out=out)

    def plot(self, *names: str) -> Any:
        """A matplotlib figure of these histories (default: every loss), which Jupyter shows as a picture.

        Raises:
            UserError: nothing of that name was logged.
        """
        from accel_train.tracking.plot import plot_history

        return plot_history(self.history, names)
