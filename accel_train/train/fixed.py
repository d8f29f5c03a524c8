"""A step whose every bit is the same on any number of ranks: each part of the batch goes through the models alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from accel_train.data.loader import Share
from accel_train.errors import UserError
from accel_train.task import Batch, Objective, Task
from accel_train.train.groups import Group, communicate, remembered
from accel_train.train.parts import Gradients, Parts, Tree
from accel_train.train.schedules import Schedule
from accel_train.train.step import AbandonedError, Stepper

Pieces = list[list[Batch]]
"""Of each part of this rank, what goes through the models at once."""
Mark = tuple[Tensor, int] | None
"""A gradient, and how often it had been changed; None: there was none."""


class FixedStepper(Stepper):
    """Takes steps on shares that are lists of parts, see ``parts``. A part finds the generators, and what models
    remember besides parameters (running statistics), as if it were the only one; what part 0 leaves there is kept.

    Args:
        piece: more items of a part than this are cut.
    """

    def __init__(self, parts: Parts, piece: int, task: Task, models: dict[str, nn.Module], *options: Any) -> None:
        super().__init__(task, models, *options)
        self.parts, self.micro_batch_size = parts, piece
        self._piece = piece
        self._tree: Tree[Gradients] = parts.tree()
        self._values: dict[int, dict[str, Tensor]] = {}  # by part
        self._reached_twice: set[str] = set()  # groups with parameters that one backward adds to several times
        self._last_pieces: tuple[Share, Pieces] = (None, [])
        if communicate(models):
            raise UserError("reduction: fixed cannot have a model whose ranks talk to each other in its forward pass "
                            "(SyncBatchNorm, communicates); take another norm, or reduction: ordinary")  # fmt: skip

    def add_group(
        self, trains: tuple[str, ...], objectives: list[Objective], optimizer: dict[str, Any], schedule: Schedule
    ) -> Group:
        group = super().add_group(trains, objectives, optimizer, schedule)
        group.local.several = False
        group.buffers = remembered(nn.ModuleDict(self.models))  # also what other models do while they are only read
        with torch.no_grad():
            self.ranks.broadcast_from_main([*group.params, *group.buffers])
        return group

    def _wrapped(self, module: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(module, evaluation_mode=True)  # mixed precision, and no DDP

    def step(self, objective: Objective, batch: Share, abandon: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """As of every stepper, but that the loss and its terms are those of the whole batch, on rank 0 alone."""
        _, norm = super().step(objective, batch, abandon)
        values = self.parts.sum(self._values, self.device, f"values of {objective.name}")
        return (values if self.ranks.is_main else {}), norm

    def _accumulate(self, group: Group, objective: Objective, batch: Share) -> dict[str, Tensor]:
        """The gradients of each part, in the tree."""
        pieces = self._pieces(batch)
        before = [buffer.clone() for buffer in group.buffers]
        totals = self._totals(group, objective, pieces, before)
        while not self._through(group, objective, pieces, totals, before):
            self._reached_twice.add(group.name)
        return {}

    def _through(
        self, group: Group, objective: Objective, pieces: Pieces, totals: dict[str, Tensor], before: list[Tensor]
    ) -> bool:
        """False: autograd has added to a gradient twice, which is another order than that of the tree."""
        self._tree, self._values = self.parts.tree(), {}
        params, left = self._reduced(group), before
        for couple in self._couples(group, pieces):
            marks: list[Mark] = []
            for part, micro_batches in couple:
                marks = _marks(params)
                self._begin(group, objective, part, before)
                self._values[part] = self._differentiate(group, objective, micro_batches, totals)
                if part == 0:
                    left = [buffer.clone() for buffer in group.buffers]
            if not _added_to_once(params, marks):
                self._forget_gradients()
                return False
            level = len(couple) - 1
            self._tree.put(level, couple[0][0] >> level, _taken(params))
        _put_back(group.buffers, left)
        return True

    def _couples(self, group: Group, pieces: Pieces) -> Iterator[list[tuple[int, list[Batch]]]]:
        """The parts of this rank; together those two whose gradients autograd may add up as it makes them, which spares
        a pass through memory: siblings in the tree, of which the second is not cut."""
        numbered = zip(self.parts.own, pieces, strict=True)
        for couple in (list(parts) for _, parts in groupby(numbered, key=lambda each: each[0] // 2)):
            if len(couple[-1][1]) <= 1 and group.name not in self._reached_twice:
                yield couple
            else:
                yield from ([each] for each in couple)

    def _differentiate(
        self, group: Group, objective: Objective, micro_batches: list[Batch], totals: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Add to the gradients those of one part; its shares of the loss and of the terms."""
        values: dict[str, Tensor] = {}
        for micro_batch in micro_batches:
            loss = group.local(micro_batch, totals, objective)
            self._backward(group, loss.value)
            for name, share in {"loss": loss.value.detach(), **loss.terms}.items():
                values[name] = values[name] + share.double() if name in values else share.double()
        if objective.name not in self._seen:
            self._check_gradients(group)
        return values

    def _totals(self, group: Group, objective: Objective, pieces: Pieces, before: list[Tensor]) -> dict[str, Tensor]:
        found: dict[int, dict[str, Tensor]] = {}
        what = f"totals of {objective.name}"
        try:
            for part, micro_batches in zip(self.parts.own, pieces, strict=True):
                if self.totals.forwards:
                    self._begin(group, objective, part, before)
                if micro_batches:
                    found[part] = self.totals.of_this_rank(group.local, objective, micro_batches, once=False)
        except torch.OutOfMemoryError:
            self.parts.sum({}, self.device, what)  # the other ranks wait for it
            raise
        return self.parts.sum(found, self.device, what)

    def _begin(self, group: Group, objective: Objective, part: int, before: list[Tensor]) -> None:
        self.seed_generators(objective, part)
        _put_back(group.buffers, before)

    def _all_came_through(self, group: Group, cause: RuntimeError | None, abandon: bool) -> bool:
        """If the step can be taken, it is given its gradients. The vote also says which parameters were reached."""
        params, nodes = self._reduced(group), self._tree.nodes
        mine = [any(gradients[i] is not None for _, _, gradients in nodes) for i in range(len(params))]
        out_of_memory, abandoned, *reached = self.ranks.count(cause is not None, abandon, *mine)
        self._tree = self.parts.tree()
        if abandoned:
            raise AbandonedError
        if out_of_memory:
            raise UserError(self.parts.out_of_memory(self._piece)) from cause
        totals = self.parts.finish(nodes, [param.detach() for param in params], [count > 0 for count in reached])
        for param, total in zip(params, totals, strict=True):
            param.grad = total
        return True

    def _reduced(self, group: Group) -> list[nn.Parameter]:
        """With the anchor, whose gradient says that a share was not finite."""
        assert group.local.anchor is not None
        return [*group.params, group.local.anchor]

    def _cut(self, batch: Share) -> list[Batch]:
        return [piece for pieces in self._pieces(batch) for piece in pieces]

    def _pieces(self, share: Share) -> Pieces:
        if share is None:  # this rank abandons the step
            return [[] for _ in self.parts.own]
        assert isinstance(share, list)
        if self._last_pieces[0] is not share:
            cut = [self.task.split(batch, self._piece) if batch is not None else [] for batch in share]
            self._last_pieces = (share, cut)
        return self._last_pieces[1]

    def memory(self) -> dict[str, int]:
        """With the sums of gradients that are alive at once, beside the gradients that are being made."""
        found = super().memory()
        return found | {"partial sums": (self.parts.alive() - 1) * found["gradients"]}


def _marks(params: list[nn.Parameter]) -> list[Mark]:
    return [None if param.grad is None else (param.grad, param.grad._version) for param in params]


def _added_to_once(params: list[nn.Parameter], marks: list[Mark]) -> bool:
    """Since then, each at most: a graph within the graph (reentrant checkpointing) reaches a parameter several times,
    and what it adds first would not be the gradient of a part."""
    return all(
        mark is None or (param.grad is mark[0] and mark[0]._version <= mark[1] + 1)
        for param, mark in zip(params, marks, strict=True)
    )


def _taken(params: list[nn.Parameter]) -> Gradients:
    """The gradients, which the parameters have no longer."""
    found: Gradients = [None if param.grad is None else param.grad.contiguous() for param in params]
    for param in params:
        param.grad = None
    return found


def _put_back(buffers: list[Tensor], values: list[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
