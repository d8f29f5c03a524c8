"""One step of a run with open eyes: which items it had, what each of them did to the loss, where a NaN began.

The run is replayed from its newest checkpoint before that step; nothing need have been logged for it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel_train import contract
from accel_train.data import loader
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.plan import Position
from accel_train.run.checkpoint import read_progress
from accel_train.run.weights import load_weights
from accel_train.task import Batch, Objective, Task
from accel_train.train.additivity import eager, untouched
from accel_train.train.groups import Group
from accel_train.train.loop import Loop
from accel_train.train.replay import replayed
from accel_train.train.session import Session
from accel_train.train.sharding import is_sharded
from accel_train.train.shares import Share, Suspect, Update, by_share, by_value, suspects
from accel_train.train.verifying import Recorded
from accel_train.train.world import start_accelerate

Weights = dict[str, Tensor]
"""Parameters and buffers, by model and name."""
FEW = 8
"""Numbers of a total that say how large an item is; more of them, such as a matrix of moments, are no size."""


@dataclass
class Moment:
    """A step of a run, before it was made.

    Attributes:
        step: its number, from 1; ``checkpoint`` the step that it was replayed from (0: the seed).
        models: by name, on the device, with the weights before the step.
        batch: this rank's share of the global batch, on the device; None if that was empty. With ``reduction: fixed``,
            a list with that of each of its parts.
        parts: the same as batches of one item each, with their ``names``.
        later: the step of the newest weights, under which items have a share as well; 0: the run has none of after
            this step.
        updates: what the step did, in order. ``totals`` and ``shares`` are those of the first one.
        suspects: items that stand out from the others, on any rank, and by what; often there is none.
    """

    step: int
    epoch: int
    checkpoint: int
    task: Task
    models: dict[str, nn.Module]
    batch: loader.Share
    parts: list[Batch]
    names: list[str]
    later: int = 0
    updates: list[Update] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)

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
    if is_sharded(start_accelerate(replace(config, output_dir="", report_to=[]))):
        raise UserError("step: not under FSDP, where no rank has whole weights; replay it on one device")
    newest, _ = recorded.checkpoints.newest_verified() if newest else (None, [])
    with replayed(task, config, recorded.checkpoints.path(begin) if begin else None, step - 1) as loop:
        if loop.state.position.step != step - 1 or loop.state.done():
            raise UserError(f"step {step}: the run ended before it, at step {loop.state.position.step}")
        return _look(loop, begin, newest)


def _look(loop: Loop, begin: int, newest: Path | None) -> Moment:
    session, position = loop.session, loop.state.position
    epoch, batch, parts, names = next_batch(loop)
    moment = Moment(position.step + 1, epoch, begin, session.task, session.models, batch, parts, names)
    later = read_progress(newest)["position"]["step"] if newest is not None else 0
    moment.later = later if later > moment.step else 0
    weights = _saved(session, newest) if newest is not None and moment.later else None
    before = _copied(session.models)
    for objective in next_updates(loop):
        moment.updates.append(_update(session, moment, objective, weights))
    _put(session.models, before)
    moment.suspects = _suspects(session, moment)
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


def _tensors(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for name, model in models.items()
            for key, tensor in [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip


def _copied(models: dict[str, nn.Module]) -> Weights:
    return {key: tensor.detach().clone() for key, tensor in _tensors(models).items()}


@torch.no_grad()
def _put(models: dict[str, nn.Module], weights: Weights) -> None:
    for key, tensor in _tensors(models).items():
        tensor.copy_(weights[key])


def _saved(session: Session, checkpoint: Path) -> Weights:
    """Those of a checkpoint; models that no phase trains are not in it, and are as they were built."""
    trained = {name: session.models[name] for group in session.stepper.each_group() for name in group.local.trained}
    with untouched(session.models):
        load_weights(trained, checkpoint)
        return _copied(session.models)


def _update(session: Session, moment: Moment, objective: Objective, newest: Weights | None) -> Update:
    """Shares by item with the weights as they are, and with the newest ones; then the update itself, watched."""
    stepper, ranks, group = session.stepper, session.ranks, session.stepper.groups[objective.name]
    with untouched(session.models), eager(session.models):
        totals, shares = _shares(session, moment, group, objective)
    if newest is not None:
        with untouched(session.models), eager(session.models):
            _put(session.models, newest)
            later = [{"loss": each.loss, **each.terms} for each in _shares(session, moment, group, objective)[1]]
        shares = [replace(share, later=values) for share, values in zip(shares, later, strict=True)]
    norms: dict[str, float] = {}
    stepper.on_gradients = lambda reduced: norms.update(_norms(reduced))
    try:
        with _first_non_finite(session.models) as found:
            values, norm = stepper.step(objective, moment.batch)
    finally:
        stepper.on_gradients = None
    losses = ranks.gather(float(values["loss"]) if "loss" in values else 0.0)
    everywhere = [share for of_rank in ranks.gather(shares) for share in of_rank]
    first = next((name for name in ranks.gather("".join(found[:1])) if name), "")
    return Update(objective, totals, everywhere, math.fsum(losses) if all(map(math.isfinite, losses)) else math.nan,
                  float(norm), norms, first)  # fmt: skip


def _shares(
    session: Session, moment: Moment, group: Group, objective: Objective
) -> tuple[dict[str, Tensor], list[Share]]:
    """Totals of the whole batch, and the shares of this rank's items, with the weights that the models have."""
    stepper, task = session.stepper, session.task
    micro = [piece for batch in loader.batches_of(moment.batch)
             for piece in task.split(batch, stepper.micro_batch_size or task.size(batch))]  # fmt: skip
    stepper.seed_generators(objective)
    totals = stepper.totals.of(group.local, objective, micro, False)
    shares = []
    for name, part in zip(moment.names, moment.parts, strict=True):
        stepper.seed_generators(objective)
        shares.append(_share(session, group, objective, totals, part, name))
    return totals, shares


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
    sizes = [number for value in own.values() if value.numel() <= FEW for number in value.double().flatten().tolist()]
    return Share(name, float(loss.value.detach()), terms, _is_finite(looked_at), sizes=sizes)


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


def _suspects(session: Session, moment: Moment) -> list[Suspect]:
    """Over the values of all ranks, and the shares of all updates. Every rank must call it."""
    parts = moment.parts
    fields = [name for name, value in parts[0].items() if isinstance(value, Tensor)] if parts else []
    sizes = {
        name: [float(part[name].abs().max()) if part[name].numel() else 0.0 for part in parts]
        for name in fields if parts[0][name].is_floating_point()
    }  # fmt: skip
    everywhere = session.ranks.gather((moment.names, sizes))
    names = [name for of_rank, _ in everywhere for name in of_rank]
    spoilt = {share.name for update in moment.updates for share in update.shares if not share.finite}
    reasons = [reason for update in moment.updates for reason in by_share(update, moment.later)]
    for field_ in dict.fromkeys(name for _, of_rank in everywhere for name in of_rank):
        found = [size for of_rank, of_fields in everywhere for size in of_fields.get(field_, [0.0] * len(of_rank))]
        reasons += by_value(field_, names, found, spoilt)
    return suspects(reasons)


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
