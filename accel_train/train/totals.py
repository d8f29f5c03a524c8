"""The sums that a loss is divided by, over the whole global batch: one small all-reduce, none on one process."""

from __future__ import annotations

import math
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from accel_train import contract
from accel_train.task import Batch, Objective, Task
from accel_train.train.world import Ranks


class Totals:
    """What ``Task.totals`` gives, summed over micro-batches and ranks."""

    def __init__(self, task: Task, models: dict[str, nn.Module], ranks: Ranks, device: torch.device) -> None:
        self.task, self.models, self.ranks, self.device = task, models, ranks, device
        self.forwards = type(task).forward_step is not Task.forward_step
        self._counts_items = type(task).totals is Task.totals
        self._like: dict[str, dict[str, tuple[Any, ...]]] = {}  # by objective: shape and type of each
        self._item_counts: dict[int, Tensor] = {}

    def of(self, module: nn.Module, objective: Objective, micro_batches: list[Batch], once: bool) -> dict[str, Tensor]:
        """The totals of a step, the same on every rank.

        Args:
            module: runs the models, where the totals need their outputs (``forward_step``).
            micro_batches: of this rank. With ``once``, there is one, and the outputs are left in its place with their
                gradients, for the loss.

        Raises:
            OutOfMemoryError: after the other ranks have got what they wait for.
        """
        if self.ranks.world_size == 1:
            return self.of_this_rank(module, objective, micro_batches, once)
        try:
            totals = self.of_this_rank(module, objective, micro_batches, once)
        except torch.OutOfMemoryError as error:
            self.join_without(objective, error)
            raise
        return self._of_all_ranks(totals, objective)

    def join_without(self, objective: Objective, error: torch.OutOfMemoryError) -> None:
        """Give the other ranks what they wait for, since this one will not get as far as to totals of its own."""
        traceback.clear_frames(error.__traceback__)  # what fills the memory is there
        if self.ranks.world_size > 1:
            self._of_all_ranks({}, objective)

    def of_this_rank(
        self, module: nn.Module, objective: Objective, micro_batches: list[Batch], once: bool
    ) -> dict[str, Tensor]:
        if self._counts_items:  # nothing but the number of items: no need to ask the task
            return {"items": self._item_count(sum(map(self.task.size, micro_batches)))}
        totals: dict[str, Tensor] = {}
        for i, micro_batch in enumerate(micro_batches):
            if self.forwards:
                with torch.set_grad_enabled(once):
                    micro_batch = module(micro_batch, None, objective)
                if once:
                    micro_batches[i] = micro_batch
            with torch.no_grad():
                parts = self.task.totals(self.models, micro_batch, objective)
            for name, part in contract.sums_of(self.task, "totals", parts, self.device).items():
                totals[name] = totals[name] + part if name in totals else part
        return totals

    def _of_all_ranks(self, totals: dict[str, Tensor], objective: Objective) -> dict[str, Tensor]:
        like = self._like.get(objective.name)
        if like is None:  # a rank without items learns from the others what is summed
            mine = {name: (tuple(t.shape), t.dtype) for name, t in totals.items()}
            like = next((names for names in self.ranks.gather(mine) if names), {})
            if not like:  # no rank has items: they all abandon the step
                return totals
            self._like[objective.name] = like
        parts = [
            totals[name].double().reshape(-1).to(self.device)
            if name in totals
            else torch.zeros(math.prod(shape), dtype=torch.float64, device=self.device)
            for name, (shape, _) in like.items()
        ]
        flat = self.ranks.sum(torch.cat(parts))
        cut = flat.split([part.numel() for part in parts])
        return {
            name: part.reshape(shape).to(dtype) for part, (name, (shape, dtype)) in zip(cut, like.items(), strict=True)
        }

    def _item_count(self, count: int) -> Tensor:
        """On the device already, since the same few numbers come again and again. Filled there: a copy would wait."""
        if count not in self._item_counts:
            self._item_counts[count] = torch.full((), float(count), device=self.device)
        return self._item_counts[count]
