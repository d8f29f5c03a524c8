"""What watches a run. Observers live on rank 0, are called by the loop, and never change what is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.errors import UserError, brief
from accel_train.run.reports import FAILURES
from accel_train.task import Event

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.task import Task

Record = dict[str, Any]
"""One line of ``metrics.jsonl``: plain numbers and strings. ``kind`` is "train" or "eval" ("own": what an observer has
added, which no hook for records is given); ``step``, ``epoch`` and
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
    observers: Observers | None = field(default=None, repr=False)  # who hears of what is added

    def add(self, name: str, value: Any, step: int) -> None:
        """Put something of one's own into the logs, from ``on_start`` on and before ``on_end``, on rank 0.

        Args:
            name: a slash makes groups in TensorBoard.
            value: a number (TensorBoard, trackers, ``metrics.jsonl``), a text (TensorBoard, ``metrics.jsonl``), an
                image (TensorBoard, W&B: an array [height, width] or [height, width, 3 or 4], uint8, or floats from 0
                to 1) or a matplotlib figure (TensorBoard, W&B).
            step: steps done, such as ``record["step"]``.

        Raises:
            UserError: a name or value that no log can hold, or no run is there.
        """
        if self.observers is None or not self.observers.listening:
            raise UserError(f"{name!r} cannot be added: the logs are open from on_start to on_end")
        self.observers.add(name, own_value(name, value), int(step))


def own_value(name: str, value: Any) -> Any:
    """A float, a text, an array or a figure. Raises UserError if it is none of these."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or name in ("kind", "step", "wall_time"):
        raise UserError(f"{name!r} cannot be the name of something added to the logs")
    if getattr(value, "shape", None) == () or (isinstance(value, Real) and not isinstance(value, bool)):
        return float(value)
    if isinstance(value, str) or hasattr(value, "savefig"):
        return value
    import numpy as np

    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.dtype.kind not in "uf" or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise UserError(
            f"{name!r} is neither a number, a text, a figure nor an image [height, width] or [height, width, 3] of "
            f"uint8 or floats: {type(value).__name__} {array.dtype} {array.shape}"
        )
    return array


class Observer:
    """What listens to a run: derive from this, and give an instance to ``Trainer(observers=[...])``.

    All hooks are optional. To stop the run, call ``Trainer.request_stop``; to log something of one's own, ``run.add``.
    Whatever a hook raises, training goes on: after an error of the operating system (a full disk, a reader who left)
    the observer is asked again next time, after any other it is dropped, and both are said once. Only a ``UserError``
    in ``on_start`` ends the run, before its first step.
    """

    shows_images: bool = False
    """Whether ``on_add`` does something with images and figures."""

    def on_start(self, run: Run) -> None:
        """``run`` is worth keeping: it has the models, and takes what an observer adds."""

    def on_tick(self, status: Record) -> None:
        """Every control interval (about twice a second): step, epoch, phase, loss, rates, ETA, last checkpoint."""

    def on_busy(self, what: str) -> None:
        """What the run does while it does not train, such as "evaluating 3/16"; often, so only remember or show it."""

    def on_log(self, record: Record) -> None: ...

    def on_digests(self, records: list[Record]) -> None:
        """Every ``digest_steps``, read at the synchronisation point: ``step``, and by group of models the digests (16
        hexadecimal digits) of its gradient and of its weights."""

    def on_evaluate(self, record: Record) -> None:
        """The metrics. The models have the weights that are trained, also where averages of them were evaluated."""

    def on_histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """Every ``histogram_steps``: what the task shows of a batch, by name, where it lives; the weights are there."""

    def on_save(self, step: int, path: Path) -> None: ...

    def on_figures(self, step: int, figures: dict[str, Any]) -> None:
        """The task's figures by name, drawn when an evaluation is saved: after the last step, and before as long as
        drawing takes a fiftieth of the time at most."""

    def on_add(self, step: int, name: str, value: Any) -> None:
        """Something that an observer has added with ``run.add``: a float, a text, an array or a figure."""

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
        self.listening = False
        self._said_no_images = False

    def start(self, observers: Iterable[Observer], run: Run) -> None:
        """From now on these are called. Raises UserError if one of them cannot do what it was asked for."""
        self.active, self.listening, run.observers = list(observers), True, self
        self.call("on_start", run)

    def add(self, name: str, value: Any, step: int) -> None:
        """What ``Run.add`` was given, to all of them."""
        is_image = not isinstance(value, float | str)
        if is_image and not self._said_no_images and not any(observer.shows_images for observer in self.active):
            self._said_no_images = True
            self.emit(Event("note", f"no log shows the image {name!r}: report_to has neither tensorboard nor wandb"))
        self.call("on_add", step, name, value)

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
        """A hook of all of them."""
        if hook == "on_end":  # those of the library come first, and close their files
            self.listening = False
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
