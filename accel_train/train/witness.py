"""One step of a replay in digests: what went into it, through every module, and out of it; and how two of them differ.

Only numbers are kept, so that two sides, which need not fit into memory together, can be held beside each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from accel_train.train.digests import digest
from accel_train.train.groups import Group
from accel_train.train.looking import next_batch, next_updates, watched
from accel_train.train.loop import Loop

Digests = dict[str, int]
"""By name."""


class Passed(NamedTuple):
    """A forward pass of a module."""

    module: str
    kind: str
    given: int
    made: int


@dataclass
class UpdateSeen:
    """One update. ``options``: of the optimiser, by group of parameters, as ``0.lr``."""

    name: str
    passed: list[Passed] = field(default_factory=list)
    shares: list[dict[str, float]] = field(default_factory=list)  # of the loss and its terms, by rank
    gradients: Digests = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    weights: Digests = field(default_factory=dict)


@dataclass
class StepSeen:
    """A step. ``weights`` and ``optimizers`` are those before it, ``after`` the weights when all is done; ``items`` are
    (name, digests of what they hold) over all ranks."""

    weights: Digests
    optimizers: Digests
    items: list[tuple[str, Digests]]
    updates: list[UpdateSeen]
    after: Digests = field(default_factory=dict)


class Parting(NamedTuple):
    """Where two steps differ first.

    Args:
        kind: weights, optimizer (both before the step), rows, module, loss, gradient or update.
        text: for a person.
    """

    kind: str
    text: str


def witness(loop: Loop) -> StepSeen:
    """Make the step that a replay stands before. Every rank must call it."""
    session, ranks, step = loop.session, loop.ranks, loop.state.position.step
    stepper = session.stepper
    _, batch, parts, names = next_batch(loop)
    mine = [(name, {key: _of(value) for key, value in part.items()}) for name, part in zip(names, parts, strict=True)]
    items = [item for of_rank in ranks.gather(mine) for item in of_rank]
    seen = StepSeen(_of_models(session.models), _of_optimizers(stepper.each_group()), items, [])
    for objective in next_updates(loop):
        group = stepper.groups[objective.name]
        now = UpdateSeen(objective.name + (f" {objective.repeat + 1}" if objective.repeats > 1 else ""))
        stepper.on_gradients = lambda reduced, now=now: now.gradients.update(
            (name, _of(p.grad)) for name, p in zip(reduced.names, reduced.params, strict=True) if p.grad is not None
        )
        try:
            with _passing(session.models) as passed:
                values, _ = stepper.step(objective, batch)
        finally:
            stepper.on_gradients = None
        now.passed = [each for of_rank in ranks.gather(passed) for each in of_rank]
        now.shares = ranks.gather({name: float(value) for name, value in values.items()})
        now.options, now.weights = _options(group), _of_models(session.models)
        seen.updates.append(now)
    stepper.end_step(step)
    seen.after = _of_models(session.models)
    return seen


def _of(value: Any) -> int:
    """A digest of the tensors in a value; of what is none, its text."""
    found = list(_tensors_in(value))
    return int(digest(found)) if len(found) == 1 else hash_of([int(digest([each])) for each in found])


def hash_of(numbers: list[int]) -> int:
    return int(digest([torch.tensor(numbers, dtype=torch.int64)]))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, Mapping):
        yield from (tensor for each in value.values() for tensor in _tensors_in(each))
    elif isinstance(value, (list, tuple)):
        yield from (tensor for each in value for tensor in _tensors_in(each))
    elif value is not None:
        yield torch.frombuffer(bytearray(repr(value).encode() or b" "), dtype=torch.uint8)


def _of_models(models: dict[str, nn.Module]) -> Digests:
    return {f"{name}.{key}": _of(tensor) for name, model in models.items()
            for key, tensor in [*model.named_parameters(), *model.named_buffers()]}  # fmt: skip


def _of_optimizers(groups: Iterable[Group]) -> Digests:
    return {f"{key} of {group.name}.{name}": _of(value) for group in groups
            for name, p in zip(group.names, group.params, strict=True)
            for key, value in group.optimizer.state.get(p, {}).items()}  # fmt: skip


def _options(group: Group) -> dict[str, Any]:
    """A tensor, such as a rate on the device, as a number."""
    found = {f"{i}.{key}" if i else key: value for i, each in enumerate(group.optimizer.param_groups)
             for key, value in each.items() if key != "params"}  # fmt: skip
    return {key: value.item() if isinstance(value, Tensor) else value for key, value in found.items()}


@contextlib.contextmanager
def _passing(models: dict[str, nn.Module]) -> Generator[list[Passed]]:
    """Inside, every forward pass of every module, in the order in which they end."""
    found: list[Passed] = []

    def saw(name: str, module: nn.Module, given: Any, made: Any) -> None:
        found.append(Passed(name, type(module).__name__, _of(given), _of(made)))

    with watched(models, saw):
        yield found


# -- two sides -------------------------------------------------------------------------------------------------------


def first_difference(a: StepSeen, b: StepSeen) -> Parting | None:
    """In the order in which one thing follows from the other. None: the same."""
    if names := _unequal(a.weights, b.weights):
        return Parting("weights", f"the weights before it differ already: {_listed(names)}")
    if names := _unequal(a.optimizers, b.optimizers):
        return Parting("optimizer", f"the optimiser before it differs already: {_listed(names)}")
    if text := _in_items(a.items, b.items):
        return Parting("rows", text)
    for one, other in zip(a.updates, b.updates, strict=False):
        if found := _in_update(one, other, f"{one.name}: " if len(a.updates) > 1 else ""):
            return found
    if len(a.updates) != len(b.updates):
        return Parting("update", f"A makes {len(a.updates)} updates in it and B {len(b.updates)}")
    if names := _unequal(a.after, b.after):
        return Parting("update", f"what comes after the optimiser (after_step) differs: {_listed(names)}")
    return None


def _in_items(a: list[tuple[str, Digests]], b: list[tuple[str, Digests]]) -> str:
    names, others = [name for name, _ in a], [name for name, _ in b]
    if set(names) != set(others):
        only = [name for name in names if name not in set(others)], [name for name in others if name not in set(names)]
        return (
            f"other rows in the batch: {_listed(only[0]) or 'none'} in A only, {_listed(only[1]) or 'none'} in B only"
        )
    if names != others:
        return "the same rows in the batch, in another order"
    for (name, one), (_, other) in zip(a, b, strict=True):
        if keys := _unequal(one, other):
            count = sum(x != y for x, y in zip(a, b, strict=True))
            more = f"; and so have {count - 1} more of the {len(a)} rows of the batch" if count > 1 else ""
            return f"{name} has other values ({_listed(keys)}){more}"
    return ""


def _in_update(a: UpdateSeen, b: UpdateSeen, where: str) -> Parting | None:
    for one, other in zip(a.passed, b.passed, strict=False):
        if one == other:
            continue
        named = f"{one.module} ({one.kind})"
        if (one.module, one.kind) != (other.module, other.kind):
            return Parting("module", f"{where}A calls {named}, and B {other.module} ({other.kind})")
        if one.given != other.given:
            return Parting("module", f"{where}{named} is given other inputs, and nothing before it made another output")
        return Parting("module", f"{where}{named} makes other outputs of the same inputs")
    if len(a.passed) != len(b.passed):
        return Parting("module", f"{where}A calls {len(a.passed)} modules, and B {len(b.passed)}")
    if repr(a.shares) != repr(b.shares):
        one, other = a.shares[0].get("loss"), b.shares[0].get("loss")
        return Parting(
            "loss", f"{where}the same outputs of all modules, and another loss: {one!r} in A, {other!r} in B"
        )
    if names := _unequal(a.gradients, b.gradients):
        return Parting("gradient", f"{where}the same loss, and other gradients: {_listed(names)}")
    if changed := _unequal(a.weights, b.weights):
        said = [
            f"{key} is {a.options.get(key)} in A and {b.options.get(key)} in B"
            for key in sorted(a.options.keys() | b.options.keys())
            if repr(a.options.get(key)) != repr(b.options.get(key))
        ]
        said = said or [f"the options of the optimisers are equal (clipping, or their code); {_listed(changed)}"]
        return Parting("update", f"{where}the same gradients, and another update: {'; '.join(said)}")
    return None


def _unequal(a: Digests, b: Digests) -> list[str]:
    return [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]


def _listed(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
