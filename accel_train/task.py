"""The contract: what a training task says about itself. Everything else is the loop's business.

A task never sees a device, a rank, a precision policy or a checkpoint. It builds data, builds models, and turns one
micro-batch into *its share* of the loss of the whole global batch. Shares add up, so however a batch is cut into ranks
and micro-batches, the gradient is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from accel_train.arguments import check_arguments
from accel_train.system.secrets import scrub, scrub_tree

if TYPE_CHECKING:
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
    """

    name: str = "loss"
    trains: tuple[str, ...] = ()
    repeats: int = 1
    repeat: int = 0


class Loss(NamedTuple):
    """What a loss step returns: this micro-batch's *share* of the global loss.

    value: scalar tensor, differentiated.
    terms: scalar tensors for the log. They are shares too: summed over micro-batches and ranks they give the value for
        the whole global batch.
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
        """What tells these data from others, as JSON: a checkpoint keeps it, and a resume with other data is refused.
        Empty: nobody knows."""
        return {}

    def describe(self, epoch: int, step: int) -> str:
        """Which items global batch ``step`` holds, for error messages."""
        return f"epoch {epoch}, batch {step}"


class Task:
    """Base class of every task. Override the first three methods; the rest have sensible defaults."""

    name: str = ""
    """Short name, used for the run folder. Empty: the class name without ``Task``, in lower case."""

    movable: tuple[str, ...] = ()
    """Constructor arguments that may differ on resume without making it another run (a data folder that moved)."""

    file_types: tuple[str, ...] = ()
    """What a static method ``describe_files(files, **options)`` can describe to a person: endings of data files, or
    names of files by which a folder of data is known."""

    recommended: ClassVar[dict[str, Any]] = {}
    """Settings of the run (fields of ``TrainConfig``) where the task does better with others than the defaults."""

    one_forward: bool = False
    """``totals`` runs the models. Where the batch is not cut it is then called with gradients, and may leave in the
    batch (a copy for this step) what ``loss_step`` would compute again."""

    logs_last: bool = False
    """Log lines also have the values of the last step of their interval, as ``last/NAME``."""

    communicates: bool = False
    """The models talk to other ranks in their forward pass, so every rank must make equally many."""

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

    # -- the three a task must have --------------------------------------------------------------------------------

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        """The data of "train", "validation" or "test" in global batches of ``batch_size``; None if there is none."""
        raise NotImplementedError

    def build_model(self) -> nn.Module | dict[str, nn.Module]:
        """The model, or several by name. Called under the run's seed, so the initial weights are a function of it."""
        raise NotImplementedError

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        """This micro-batch's share of the global loss: a sum over its items, divided by statistics in ``totals``."""
        raise NotImplementedError

    # -- defaults --------------------------------------------------------------------------------------------------

    def objectives(self) -> Sequence[Objective]:
        """All losses this task knows. Phases choose among them by name; the default phase runs all of them in order."""
        return (Objective(),)

    def phases(self) -> Sequence[Mapping[str, Any]]:
        """The phases of a run whose config has none, in the same form: ``{"objectives": [...], "length": "30ep"}``."""
        return ()

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Tensor]:
        """This micro-batch's part of the sums over the global batch that the loss divides by. Default: item count."""
        import torch

        first = next(value for value in batch.values() if isinstance(value, torch.Tensor))
        return {"items": torch.tensor(float(self.size(batch)), device=first.device)}

    def size(self, batch: Batch) -> int:
        """How many items a batch holds; what ``micro_batch_size`` counts and throughput is given in."""
        return len(next(iter(batch.values())))

    def not_compiled(self) -> dict[str, str]:
        """Models that ``torch_compile`` must leave alone, and why."""
        return {}

    def split(self, batch: Batch, limit: int) -> list[Batch]:
        """Cut a batch into micro-batches of at most ``limit`` items each. Must lose nothing."""
        n = self.size(batch)
        if n <= limit:
            return [batch]
        return [{k: v[i : i + limit] for k, v in batch.items()} for i in range(0, n, limit)]

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Statistics of one evaluation batch that may be summed over batches and ranks."""
        raise NotImplementedError

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Metrics from the summed statistics. ``loss`` should be among them; it decides the best model by default."""
        raise NotImplementedError

    def baselines(self) -> dict[str, float]:
        """Known floors and trivial baselines by metric or term name, printed beside the values."""
        return {}

    def summary(self, metrics: dict[str, float]) -> str:
        """The metrics as a person reads them, printed after the last evaluation and by ``accel-train evaluate``.
        Default: nothing beyond the log line."""
        return ""

    def predict_data(self, split: str, batch_size: int) -> BatchSource | None:
        """The items of a split in order, for ``predict_step``; None (the default): this task predicts nothing."""
        return None

    def predict_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Outputs by name, one row per item: what ``accel-train evaluate`` writes, a file for each name."""
        raise NotImplementedError

    def describe_predictions(self, split: str) -> dict[str, Any]:
        """What whoever reads the predictions must know of their rows, as plain data."""
        return {}

    def histories(self, lists: dict[str, list]) -> dict[str, list]:
        """Further plain lists for ``metrics.json``, made of those that are there."""
        return {}

    def monitor(self, models: dict[str, nn.Module], batch: Batch) -> Iterable[Event]:
        """Look at a training batch every ``monitor_steps`` (no gradient, eval mode); return what deserves an alert."""
        return ()

    def histograms(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        """Distributions for TensorBoard by name, of a training batch every ``histogram_steps`` (rank 0's share; no
        gradient, eval mode, generators untouched). Every element counts; default none."""
        return {}

    def figures(self, metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
        """matplotlib figures by name, made after the last evaluation and by ``accel-train evaluate``."""
        return {}

    def export(self, states: dict[str, dict[str, Tensor]], folder: Any) -> None:
        """Write what else is needed to use the models (their state dicts by name) elsewhere. Default: nothing more."""

    def export_programs(self, models: dict[str, nn.Module], folder: Any) -> list[str]:
        """Write the models as programs that run without this package (``accel-train export``); the files' names."""
        return []

    @classmethod
    def task_name(cls) -> str:
        return cls.name or cls.__name__.removesuffix("Task").lower()
