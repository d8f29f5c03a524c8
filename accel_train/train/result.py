"""What a run came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_train.tracking.jsonl import histories


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

    @property
    def history(self) -> dict[str, Any]:
        return histories(self.output_dir / "metrics.jsonl")

    def plot(self, *names: str) -> Any:
        """A matplotlib figure of these histories (default: every loss)."""
        from accel_train.tracking.plot import plot_history

        return plot_history(self.history, names)
