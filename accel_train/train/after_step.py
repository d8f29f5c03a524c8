"""What a task does between two steps: its hook, and what that freezes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from accel_train import keyed
from accel_train.data.draws import generators
from accel_train.errors import UserError
from accel_train.task import Task
from accel_train.train.groups import Group


class AfterStep:
    """Calls ``Task.after_step``, if the task has one of its own.

    Args:
        seed: of the run. Whatever the hook draws from global generators is the same on all ranks.
    """

    def __init__(self, task: Task, models: dict[str, nn.Module], seed: int) -> None:
        self.task, self.models, self.seed = task, models, seed
        self._is_there = getattr(task.after_step, "__func__", None) is not Task.after_step
        self._fixed: dict[str, nn.Parameter] | None = None  # what no optimiser has, by name

    def __call__(self, step: int, groups: Sequence[Group], sharded: bool) -> None:
        """After so many steps. Raises UserError if parameters were frozen or set free in a way that cannot work."""
        if not self._is_there:
            return
        if self._fixed is None:
            self._fixed = self._find_fixed(groups)
        with generators(keyed.key(self.seed, "after_step", step)), torch.no_grad():
            self.task.after_step(self.models, step)
        freed = next((name for name, p in self._fixed.items() if p.requires_grad), None)
        where = f"{type(self.task).__name__}.after_step (step {step})"
        if freed is not None:
            raise UserError(
                f"{where}: {freed} was frozen when the models were built, so no optimizer has it; leave it free there, "
                "and detach in loss_step what comes of it for as long as objective.step says"
            )
        if sharded and (frozen := frozen_in(groups)):
            raise UserError(
                f"{where}: FSDP cannot freeze {frozen[0]} on the way; detach in loss_step what comes of it, from the "
                "objective.step that you mean"
            )

    def _find_fixed(self, groups: Sequence[Group]) -> dict[str, nn.Parameter]:
        trained = {id(p) for group in groups for p in group.params}
        named = ((f"{m}.{name}", p) for m, model in self.models.items() for name, p in model.named_parameters())
        return {name: p for name, p in named if not p.requires_grad and id(p) not in trained}


def frozen_in(groups: Sequence[Group]) -> list[str]:
    """Names of what an optimiser has and does not move at the moment: a checkpoint must know."""
    return [name for group in groups for name, p in zip(group.names, group.params, strict=True) if not p.requires_grad]


def freeze(groups: Sequence[Group], names: Sequence[str]) -> None:
    """These, and nothing else of what an optimiser has."""
    for group in groups:
        for name, p in zip(group.names, group.params, strict=True):
            p.requires_grad_(name not in names)
