"""What watches a run. Observers live on rank 0, are called by the loop, and never change what is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.errors import UserError, brief
from accel_train.run.reports import FAILURES
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
    parallel: str = ""  # how several processes train one model: DDP or FSDP2
    device: str = "cpu"
    precision: str = "no"
    resumed_from: str | None = None
    baselines: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)  # bytes of each rank, by what it is for


class Observer:
    """Ten hooks, all optional. Whatever one raises, training goes on: after an error of the operating system (a full
    disk, a reader who left) the observer is asked again next time, after any other it is dropped, and both are said
    once. Only a ``UserError`` in ``on_start`` ends the run, before its first step."""

    def on_start(self, run: Run) -> None: ...

    def on_tick(self, status: Record) -> None:
        """Every control interval (about twice a second): step, epoch, phase, loss, rates, ETA, last checkpoint."""

    def on_busy(self, what: str) -> None:
        """What the run does while it does not train, such as "evaluating 3/16"; often, so only remember or show it."""

    def on_log(self, record: Record) -> None: ...

    def on_evaluate(self, record: Record) -> None: ...

    def on_histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """Every ``histogram_steps``: what the task shows of a batch, by name, where it lives; the weights are there."""

    def on_save(self, step: int, path: Path) -> None: ...

    def on_figures(self, step: int, figures: dict[str, Any]) -> None:
        """The task's figures by name, drawn when the last step is evaluated and saved."""

    def on_event(self, event: Event) -> None: ...

    def on_end(self, outcome: str, status: Record) -> None:
        """``outcome``: "completed", "stopped" (with the reason in ``status["reason"]``), "crashed", or "lost": the run
        folder is another run's by now, and nothing may be written there."""


class Observers:
    """Calls every observer in turn. One that fails costs a warning and at most itself, since a log must not end a run.
    Events are kept until the observers know the run."""

    def __init__(self) -> None:
        self.active: list[Observer] = []
        self._failing: list[Observer] = []
        self._early: list[Event] | None = []

    def start(self, observers: Iterable[Observer], run: Run) -> None:
        """From now on these are called. Raises UserError if one of them cannot do what it was asked for."""
        self.active = list(observers)
        self.call("on_start", run)

    def begin_events(self) -> None:
        """Emit what has happened so far, and from now on everything at once."""
        early, self._early = self._early, None
        for event in early or ():
            self.emit(event)

    def emit(self, event: Event) -> None:
        """An event to all of them."""
        if self._early is not None:
            self._early.append(event)
        else:
            self.call("on_event", event)

    def call(self, hook: str, *arguments: Any) -> None:
        for observer in list(self.active):
            try:
                getattr(observer, hook)(*arguments)
            except FAILURES as error:
                if hook == "on_start" and isinstance(error, UserError):
                    raise
                self._failed(observer, error)

    def _failed(self, observer: Observer, error: BaseException) -> None:
        what = "is tried again"
        if not isinstance(error, OSError):
            what = "is switched off"
            self.active.remove(observer)
        elif observer in self._failing:
            return
        self._failing.append(observer)
        self.call("on_event", Event("warning", f"{type(observer).__name__} failed and {what}: {brief(error)}"))
