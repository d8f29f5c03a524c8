"""One step of a run with open eyes: which items it had, what each of them did to the loss, where a NaN began.

The run is replayed from its newest checkpoint before that step; nothing need have been logged for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from accel_train import contract
from accel_train.data import loader
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.plan import Position
from accel_train.task import Batch, Objective, Task
from accel_train.train.additivity import eager, untouched
from accel_train.train.groups import Group
from accel_train.train.loop import Loop
from accel_train.train.replay import replayed
from accel_train.train.session import Session
from accel_train.train.verifying import Recorded

FAR = 100.0
"""Times the median: what is beyond that is unusual."""


@dataclass(frozen=True)
class Share:
    """What one item adds to the loss of its batch.

    Args:
        name: which item it is: file, row group and row; shot; frame; else its number.
        loss: with the totals of the whole batch, so that the shares of all items add up to the loss.
        terms: the same of the terms in the log.
        finite: loss, terms, and what the item adds to the totals.
    """

    name: str
    loss: float
    terms: dict[str, float]
    finite: bool = True


@dataclass(frozen=True)
class Update:
    """One update of a step: an objective may be repeated, and a phase may have several.

    Args:
        totals: sums over the whole batch, on all ranks.
        shares: of every item, over all ranks, in the order of the ranks and of their micro-batches.
        loss: of the update as it was made, over all ranks. With drop-out the shares do not add up to it, since an item
            alone draws other masks.
        norm: of the gradient before clipping. Not finite: nothing was updated.
        norms: the same by module that has parameters of its own, such as "model.encoder.0".
        first_non_finite: the first module, in the order of the forward pass, with an output that is not finite; "" if
            there is none.
    """

    objective: Objective
    totals: dict[str, Tensor]
    shares: list[Share]
    loss: float
    norm: float
    norms: dict[str, float]
    first_non_finite: str

    def outstanding(self, count: int = 10, term: str = "") -> list[Share]:
        """The items that stand out most: what is not finite first, then by how far the share is from the median; of the
        loss, or of a term in the log."""
        size = {id(each): each.terms[term] if term else each.loss for each in self.shares}
        usual = median([value for value in size.values() if math.isfinite(value)] or [0.0])
        return sorted(self.shares, key=lambda each: (each.finite, -abs(size[id(each)] - usual)))[:count]


@dataclass
class Moment:
    """A step of a run, before it was made.

    Attributes:
        step: its number, from 1; ``checkpoint`` the step that it was replayed from (0: the seed).
        models: by name, on the device, with the weights before the step.
        batch: this rank's share of the global batch, on the device; None if that was empty.
        parts: the same as batches of one item each, with their ``names``.
        unusual: items with a value far beyond those of the others, on any rank, which a loss need not notice.
        updates: what the step did, in order. ``totals`` and ``shares`` are those of the first one.
    """

    step: int
    epoch: int
    checkpoint: int
    task: Task
    models: dict[str, nn.Module]
    batch: Batch | None
    parts: list[Batch]
    names: list[str]
    unusual: list[str] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)

    @property
    def totals(self) -> dict[str, Tensor]:
        return self.updates[0].totals

    @property
    def shares(self) -> list[Share]:
        return self.updates[0].shares


def look(run: Path | str, step: int, given: Sequence[str] = (), trust: bool = False) -> Moment:
    """Replay a run to the beginning of this step and make it with open eyes. Every rank must call it; nothing in the
    run folder is changed.

    Args:
        step: from 1; at most one further than the last step that is known.
        given: options over its config, as for ``train``: data that have moved.
        trust: also import a task that is in no installed package.

    Raises:
        UserError: there is no such step, or it cannot be looked at.
    """
    recorded = Recorded(Path(run), given, trust)
    newest = max([*recorded.steps, recorded.logged])
    if not 1 <= step <= newest + 1:
        raise UserError(f"step {step}: {run} has steps 1 to {newest}, and the next one can be looked at, too")
    begin = max((each for each in recorded.steps if each < step), default=0)
    task, config = recorded.config_at(step)
    with replayed(task, config, recorded.checkpoints.path(begin) if begin else None, step - 1) as loop:
        if loop.state.position.step != step - 1 or loop.state.done():
            raise UserError(f"step {step}: the run ended before it, at step {loop.state.position.step}")
        if loop.session.is_sharded:
            raise UserError("step: not under FSDP, where no rank has whole weights; replay it on one device")
        return _look(loop, begin)


def _look(loop: Loop, begin: int) -> Moment:
    session, position = loop.session, loop.state.position
    stepper, task = session.stepper, session.task
    epoch, batch, parts, names = next_batch(loop)
    if isinstance(batch, list):
        raise UserError(f"step {position.step + 1}: cannot be looked at, not with reduction: fixed, whose batch is in "
                        "parts; `accel-train verify` is for both")  # fmt: skip
    moment = Moment(position.step + 1, epoch, begin, task, session.models, batch, parts, names)
    moment.unusual = [line for of_rank in session.ranks.gather(_unusual(names, parts)) for line in of_rank]
    before = {name: _copied(model) for name, model in session.models.items()}
    for objective in next_updates(loop):
        moment.updates.append(_update(session, moment, stepper.groups[objective.name], objective))
    with torch.no_grad():
        for name, model in session.models.items():
            for key, tensor in _tensors(model).items():
                tensor.copy_(before[name][key])
    return moment


def next_batch(loop: Loop) -> tuple[int, loader.Share, list[Batch], list[str]]:
    """Of the step that a replay stands before: its epoch, this rank's share of the batch, the same as batches of one
    item each, and their names."""
    session, position = loop.session, loop.state.position
    with contextlib.closing(session.loader.batches(position, session.config.num_train_epochs)) as batches:  # type: ignore
        epoch, number, share = next(batches)
    session.plan.begin_epoch(position, epoch)
    items = [item for batch in loader.batches_of(share) for item in session.task.split(batch, 1)]
    return epoch, share, items, _names(session, items, position, number)


def next_updates(loop: Loop) -> Iterator[Objective]:
    """What that step does, in order, with the learning rate set for each."""
    stepper, position = loop.session.stepper, loop.state.position
    for objective in loop.plan.phases[position.phase].objectives:
        objective = replace(objective, step=position.step, epoch=position.epoch)
        group = stepper.groups[objective.name]
        group.set_lr(group.schedule(position.step, loop.state.best_model.history))
        for repeat in range(objective.repeats):
            yield replace(objective, repeat=repeat)


def _named_modules(models: dict[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """All of them, by names such as "model.encoder.0"."""
    for name, model in models.items():
        for path, module in model.named_modules():
            yield f"{name}.{path}" if path else name, module


@contextlib.contextmanager
def watched(models: dict[str, nn.Module], saw: Callable[[str, nn.Module, Any, Any], None]) -> Generator[None]:
    """Inside, after every forward pass of every module: its name, itself, [arguments, named ones], what it made."""

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(
            lambda module, given, more, made: saw(name, module, [given, more], made), with_kwargs=True
        )

    handles = [watch(name, module) for name, module in _named_modules(models)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in _tensors(model).items()}


def _update(session: Session, moment: Moment, group: Group, objective: Objective) -> Update:
    """Shares by item with the weights as they are, then the update itself, watched."""
    stepper, task, batch = session.stepper, session.task, moment.batch
    micro = [] if batch is None else task.split(batch, stepper.micro_batch_size or task.size(batch))
    stepper.seed_generators(objective)
    totals = stepper.totals.of(group.local, objective, micro, False)
    shares = []
    with untouched(session.models), eager(session.models):
        for name, part in zip(moment.names, moment.parts, strict=True):
            stepper.seed_generators(objective)
            shares.append(_share(session, group, objective, totals, part, name))
    norms: dict[str, float] = {}
    stepper.on_gradients = lambda reduced: norms.update(_norms(reduced))
    try:
        with _first_non_finite(session.models) as found:
            values, norm = stepper.step(objective, batch)
    finally:
        stepper.on_gradients = None
    ranks = session.ranks
    losses = ranks.gather(float(values["loss"]) if "loss" in values else 0.0)
    everywhere = [share for of_rank in ranks.gather(shares) for share in of_rank]
    first = next((name for name in ranks.gather("".join(found[:1])) if name), "")
    return Update(objective, totals, everywhere, math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan,
                  float(norm), norms, first)  # fmt: skip


def _share(
    session: Session, group: Group, objective: Objective, totals: dict[str, Tensor], part: Batch, name: str
) -> Share:
    """The losses run inside the step module, where autocast sees them; a penalty on a gradient needs one, too."""
    part = group.local(part, None, objective)  # with what forward_step makes of it
    with torch.no_grad():
        own = contract.sums_of(session.task, "totals", session.task.totals(session.models, part, objective),
                               session.device)  # fmt: skip
    loss = group.local(part, totals, objective, True)
    terms = {term: float(share) for term, share in loss.terms.items()}
    # where the totals are not finite no share is, and what an item adds to them says whose fault it is
    looked_at = [loss.value, *loss.terms.values()] if _is_finite(totals) else own
    return Share(name, float(loss.value.detach()), terms, _is_finite(looked_at))


def _is_finite(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, Tensor) or bool(torch.isfinite(value).all())


def _norms(group: Group) -> dict[str, float]:
    """By module, in order; what was not reached has no gradient and is left out."""
    squares: dict[str, list[float]] = {}
    for name, parameter in zip(group.names, group.params, strict=True):
        if parameter.grad is not None:
            squares.setdefault(name.rpartition(".")[0], []).append(float(parameter.grad.double().square().sum()))
    return {name: math.sqrt(sum(each)) if all(map(math.isfinite, each)) else math.nan for name, each in squares.items()}


@contextlib.contextmanager
def _first_non_finite(models: dict[str, nn.Module]) -> Generator[list[str]]:
    """Inside, the modules whose output is not finite, in the order of the forward pass."""
    found: list[str] = []

    def saw(name: str, module: nn.Module, given: Any, made: Any) -> None:
        if not found and not _is_finite(made):
            inputs = "which it was given" if not _is_finite(given) else "of finite inputs"
            found.append(f"{name} ({type(module).__name__}), {inputs}")

    with watched(models, saw):
        yield found


def _unusual(names: list[str], parts: list[Batch]) -> list[str]:
    """By the largest number of each field, beside that of the median item."""
    found = []
    fields = [name for name, value in parts[0].items() if isinstance(value, Tensor)] if parts else []
    for field_ in (name for name in fields if parts[0][name].is_floating_point()):
        sizes = [float(part[field_].abs().max()) if part[field_].numel() else 0.0 for part in parts]
        usual = median([size for size in sizes if math.isfinite(size)] or [0.0])
        found += [
            f"{name}: {field_} reaches {size:.4g}, {size / usual:,.0f} times the median item"
            for name, size in zip(names, sizes, strict=True)
            if usual > 0 and FAR * usual < size < math.inf
        ]
    return found


def _names(session: Session, parts: list[Batch], position: Position, number: int) -> list[str]:
    """Of the items, as the source calls them; else by their numbers in the data, else in the batch."""
    source, task, ranks = session.source, session.task, session.ranks
    found = [source.item_names(part) for part in parts]
    if all(len(each) == 1 for each in found):
        return [name for (name,) in found]
    if isinstance(source, IndexedSource) and type(task).split is Task.split:
        own = [(ranks.rank, ranks.world_size)]
        if session.parts is not None:
            own = [(part, session.parts.count) for part in session.parts.own]
        return [f"item {item}" for place in own for item in source.share(position.epoch, number, *place).tolist()]
    return [f"rank {ranks.rank}, item {i} of its share" for i in range(len(parts))]
