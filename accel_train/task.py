"""The contract: what a training task says about itself. Everything else is the loop's business.

A task never sees a device, a rank, a precision policy or a checkpoint. It builds data, builds models, and turns one
micro-batch into *its share* of the loss of the whole global batch. Shares add up, so however a batch is cut into ranks
and micro-batches, the gradient is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from accel_train.arguments import check_arguments
from accel_train.errors import UserError
from accel_train.system.secrets import scrub, scrub_tree

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


Batch = dict[str, Any]
"""One batch or micro-batch: names to tensors. Unless a task overrides ``split`` and ``size``, axis 0 is the item."""


@dataclass(frozen=True)
class Objective:
    """One loss, and the models it trains.

    Args:
        name: what logs and phases call it.
        trains: names of the models whose parameters it updates; empty means all of them. Two objectives train either
            the same models (and then share an optimiser) or none in common.
        repeats: optimiser steps of this objective on every batch (a critic's ``5``).
        repeat: set by the loop: which of them this is, for losses that draw noise.
        step: set by the loop: steps of the run that are done, for weights of a loss that change on the way (warm-ups,
            curricula). A model that is compiled should be given it as a tensor, or it is compiled for every number.
        epoch: set by the loop: which epoch this is, from 0.
        not_compiled: why ``torch_compile`` must leave the models it trains alone; empty: it need not.
    """

    name: str = "loss"
    trains: tuple[str, ...] = ()
    repeats: int = 1
    repeat: int = 0
    step: int = 0
    epoch: int = 0
    not_compiled: str = ""


class Loss(NamedTuple):
    """What a loss step returns: this micro-batch's *share* of the global loss.

    Args:
        value: scalar tensor, differentiated.
        terms: scalar tensors for the log. They are shares too: summed over micro-batches and ranks they give the value
            for the whole global batch.
    """

    value: Tensor
    terms: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Event:
    """Something a person would want to hear of. ``kind``: warning, note, anomaly, cycle, or one of the task's own."""

    kind: str
    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """It goes to logs, screens and chats, where no secret belongs."""
        object.__setattr__(self, "title", scrub(self.title))
        object.__setattr__(self, "fields", scrub_tree(self.fields))


class BatchSource:
    """Global batches by position. Subclasses give random access (``batch``) or a sequential scan (``iterate``)."""

    def steps(self, epoch: int) -> int | None:
        """Global batches in this epoch; None if the data never ends or does not know its length."""
        raise NotImplementedError

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        """This rank's share of one global batch, as CPU tensors or numpy arrays; None if its share is empty."""
        raise NotImplementedError

    def iterate(
        self, epoch: int, step: int, rank: int, world_size: int, num_workers: int
    ) -> Iterator[Batch | None] | None:
        """Shares from ``step`` to the end of the epoch, for data that is read in sequence; None: use ``batch``. It may
        read ahead with ``num_workers`` threads of its own (0: not ahead); closing it must end them. There are as many
        as ``steps`` says. If that is None the epoch ends when the data of all ranks have ended, and a rank that ends
        before has empty shares: from a ``step`` beyond its end there is nothing."""
        return None

    def events(self) -> list[Event]:
        """What reading found, since the last call, that whoever watches the run should hear of."""
        return []

    def fingerprint(self) -> dict[str, Any]:
        """What distinguishes these data from others, as JSON: a checkpoint keeps it, and a resume with other data
        is refused. Empty: not known."""
        return {}

    def item_names(self, batch: Batch) -> list[str]:
        """Which items a batch, or a part of one, holds, as a person would look them up: file, row group and row; shot;
        frame. From what the batch carries. Empty: it does not say."""
        return []

    def describe(self, epoch: int, step: int) -> str:
        """Which items global batch ``step`` holds, for error messages."""
        return f"epoch {epoch}, batch {step}"


class Task:
    """Base class of every task. Override the first three methods; the rest have sensible defaults."""

    name: str = ""
    """Short name, used for the run folder. Empty: the class name without ``Task``, in lower case."""

    movable: tuple[str, ...] = ()
    """Constructor arguments that may differ on resume without making it another run (a data folder that moved)."""

    recommended: ClassVar[dict[str, Any]] = {}
    """Settings of the run (fields of ``TrainConfig``) where the task does better with others than the defaults. A
    learning rate here is for the optimiser here: whoever chooses another one must give a rate, too."""

    init_args: dict[str, Any]
    """The arguments this task was constructed with, defaults included; recorded so that the config can rebuild it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Task:
        task = super().__new__(cls)
        signature = inspect.signature(cls)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        task.init_args = dict(bound.arguments)
        for p in signature.parameters.values():
            if p.kind is p.VAR_KEYWORD:
                task.init_args |= task.init_args.pop(p.name)
            elif p.kind is p.VAR_POSITIONAL and task.init_args.pop(p.name):
                raise TypeError(f"{cls.__name__}: give *{p.name} as one list, so that a config can name it")
        check_arguments(cls, task.init_args, "task.init_args.")
        return task

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        """For copies and pickles, which make a task by ``__new__``."""
        return (), self.init_args

    # -- training: the three that a task must have -----------------------------------------------------------------

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        """The data of "train", "validation" or "test" in global batches of ``batch_size``; None if there is none."""
        raise NotImplementedError

    def build_model(self, train: BatchSource | None) -> nn.Module | dict[str, nn.Module]:
        """The model, or several by name. Called under the run's seed, so the initial weights are a function of it.

        Args:
            train: what ``build_data`` made of the training data, for statistics and sizes that the model keeps (in
                buffers, so that they are saved with it); None where weights are loaded that have them.
        """
        raise NotImplementedError

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        """This micro-batch's share of the global loss: a sum over its items, divided by statistics in ``totals``."""
        raise NotImplementedError

    # -- training: where the defaults do not fit -------------------------------------------------------------------

    def objectives(self) -> Sequence[Objective]:
        """All losses this task knows. Phases choose among them by name; the default phase runs all of them in order."""
        return (Objective(),)

    def phases(self) -> Sequence[Mapping[str, Any]]:
        """The phases of a run whose config has none, in the same form: ``{"objectives": [...], "length": "30ep"}``."""
        return ()

    def size(self, batch: Batch) -> int:
        """How many items a batch holds; what ``micro_batch_size`` counts and throughput is given in."""
        return len(next(iter(batch.values())))

    def split(self, batch: Batch, limit: int) -> list[Batch]:
        """Cut a batch into micro-batches of at most ``limit`` items each. Must lose nothing, and change nothing in the
        batch. A batch is cut once for all objectives."""
        n = self.size(batch)
        if n <= limit:
            return [batch]
        return [{k: v[i : i + limit] for k, v in batch.items()} for i in range(0, n, limit)]

    def forward_step(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Tensor]:
        """What ``totals`` needs of the models' outputs, by names that the batch does not have. ``totals`` and
        ``loss_step`` find it in the batch. A batch that is not cut goes through the models once; one that is cut twice:
        without gradients for the totals, then with them for the loss. Default: nothing."""
        return {}

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Any]:
        """This micro-batch's part of the sums over the global batch that the loss divides by: tensors, arrays or
        numbers; ``loss_step`` gets tensors. Default: the number of items."""
        return {"items": float(self.size(batch))}

    def after_step(self, models: dict[str, nn.Module], step: int) -> None:
        """After all objectives have updated their models, without gradients, on every rank the same: change weights,
        buffers or ``requires_grad``, as a function of these and of ``step``, the number of steps done. It comes also
        after an update that was skipped, since only the device may know of that. Averages of the weights are taken
        after it. torch's generators are seeded by the step; a checkpoint keeps what is frozen. Default: nothing."""

    def parameter_options(self, name: str, parameter: nn.Parameter) -> Mapping[str, Any]:
        """In what the optimiser treats this parameter differently from others: its options by name, such as
        ``{"weight_decay": 0.0}``, and ``lr_factor``, by which its learning rate is multiplied. What the config says by
        patterns of names comes first. ``name``: "MODEL.PATH", as in ``model.0.weight``. Default: in nothing."""
        return {}

    # -- evaluation: of the split whose data were built last -------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Any]:
        """Statistics of one evaluation batch that may be summed over batches and ranks: tensors, arrays or numbers."""
        raise NotImplementedError

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Metrics from the summed statistics. ``loss`` should be among them; it decides the best model by default."""
        raise NotImplementedError

    def baselines(self) -> dict[str, float]:
        """Floors and trivial baselines by metric or term name, printed beside the values. Asked for once all data
        are built."""
        return {}

    def summary(self, metrics: dict[str, float]) -> str:
        """The metrics as a person reads them, printed after the last evaluation and by ``accel-train evaluate``.
        Default: nothing beyond the log line."""
        return ""

    def figures(self, metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
        """matplotlib figures by name, made by ``accel-train evaluate``, after the last evaluation of a run, and after
        those before it as long as that takes a fiftieth of the time at most."""
        return {}

    @classmethod
    def task_name(cls) -> str:
        return cls.name or cls.__name__.removesuffix("Task").lower()


# -- what some tasks do besides ----------------------------------------------------------------------------------------
#
# Each is a further base class, or its methods alone: what a task does not have, ``hook`` takes from here.


class Gathers:
    """Metrics that are no sums, from a row per item of the held-out data."""

    def eval_gather(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Rows by name, one per item in order, such as scores and targets. ``eval_step`` comes next and finds them in
        its batch, so that the models need not be called again."""
        raise UserError("a task that gathers rows needs eval_gather(models, batch)")

    def eval_gathered(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """Further metrics of all rows, on rank 0: memory-mapped arrays in the order of the items, whatever the ranks.
        They are gone afterwards."""
        raise UserError("a task with eval_gather needs eval_gathered(arrays) too")


class Predicts:
    """Outputs that ``accel-train evaluate`` writes down, a row per item."""

    def predict_data(self, split: str, batch_size: int) -> BatchSource | None:
        """The items of a split in order; None if there are none."""
        return None

    def predict_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Outputs by name, one row per item: a file for each name."""
        raise UserError("a task with predict_data needs predict_step(models, batch) too")

    def describe_predictions(self, split: str) -> dict[str, Any]:
        """What whoever reads the predictions must know of their rows, as plain data."""
        return {}


class Watches:
    """Looking at one's own training. What is raised here is a warning and costs no run."""

    def monitor(self, models: dict[str, nn.Module], batch: Batch) -> Iterable[Event]:
        """Look at a training batch every ``monitor_steps`` (no gradient, eval mode); return what deserves an alert."""
        return ()

    def histograms(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Distributions for TensorBoard by name, of a training batch every ``histogram_steps`` (rank 0's share; no
        gradient, eval mode, generators untouched). Every element counts."""
        return {}

    def histories(self, lists: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Further plain lists for ``metrics.json``, made of those that are there."""
        return {}


class Exports:
    """Models as programs that run without this package."""

    def export_programs(self, models: dict[str, nn.Module], folder: Path) -> None:
        """Write them, for ``accel-train export``."""


class DataTools:
    """Data with known truth, and data described to a person."""

    file_types: tuple[str, ...] = ()
    """What ``describe_files`` can describe: endings of data files, or names of files by which a folder is known."""

    @staticmethod
    def synth(out: Path, seed: int = 0, size: int | None = None) -> str:
        """Write a small data set into an empty or new folder; returns what to say of it. ``accel-train synth`` passes
        on ``--NAME=VALUE`` for further arguments of the task's own."""
        raise UserError("synth: this task makes its data as it goes and needs none")

    @staticmethod
    def describe_files(files: list[str]) -> str:
        """The text that ``accel-train inspect`` prints of data files."""
        return ""

    def preview(self, batch: Batch) -> str:
        """The first items of a training batch as a person would write them; "": as numbers."""
        return ""


def hook(task: Task | type[Task], group: type, name: str) -> Any:
    """A method or attribute of one of these groups: the task's own, or the default."""
    return getattr(task, name, getattr(group(), name))
