"""What watches a run. Observers live on rank 0, are called by the loop, and never change what is learned."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.task import Event

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.task import Task

Record = dict[str, Any]
"""One line of ``metrics.jsonl``: plain numbers and strings. ``kind`` is "train" or "eval"; ``step``, ``epoch`` and
``phase`` say when. A train record has ``loss``, the task's terms and ``grad_norm`` (means over the interval), ``lr``
(and ``lr/NAME`` if there are several optimisers), and the clock: ``items_per_s``, ``step_s``, ``wait_s`` (per step),
``eta_s``."""


@dataclass
class Run:
    """What an observer may know of a run when it starts."""

    output_dir: Path
    task: Task
    config: dict[str, Any]
    models: dict[str, nn.Module]
    total_steps: int | None
    start_step: int = 0
    world_size: int = 1
    device: str = "cpu"
    precision: str = "no"
    resumed_from: str | None = None
    baselines: dict[str, float] = field(default_factory=dict)


class Observer:
    """Eight hooks, all optional. An exception in one is reported once and the observer is dropped; training goes on."""

    def on_start(self, run: Run) -> None: ...

    def on_tick(self, status: Record) -> None:
        """Every control interval (about twice a second): step, epoch, phase, loss, rates, ETA, last checkpoint."""

    def on_log(self, record: Record) -> None: ...

    def on_evaluate(self, record: Record, figures: dict[str, Any]) -> None: ...

    def on_histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """Every ``histogram_steps``: what the task shows of a batch, by name, where it lives; the weights are there."""

    def on_save(self, step: int, path: Path) -> None: ...

    def on_event(self, event: Event) -> None: ...

    def on_end(self, outcome: str, status: Record) -> None:
        """``outcome``: "completed", "stopped" (with the reason in ``status["reason"]``), "crashed", or "lost": the run
        folder is another run's by now, and nothing may be written there."""


class Observers:
    """Calls every observer in turn; one that fails is dropped with a word, since a log must not end a run."""

    def __init__(self, observers: list[Observer]) -> None:
        self.active = list(observers)

    def tell(self, hook: str, *arguments: Any) -> None:
        for observer in list(self.active):
            try:
                getattr(observer, hook)(*arguments)
            except Exception as error:
                self.active.remove(observer)
                name = type(observer).__name__
                self.tell(
                    "on_event", Event("warning", f"{name} failed and is switched off: {type(error).__name__}: {error}")
                )
