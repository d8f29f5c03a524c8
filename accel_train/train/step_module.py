"""What DDP, FSDP and autocast wrap: the models that a group trains, with the loss inside."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel_train import contract
from accel_train.errors import UserError
from accel_train.task import Batch, Loss, Objective, Task


def unsay_that_all_are_used(device: torch.device) -> None:
    """DDP says once per process, past Python's warnings, that looking for unused parameters may be in vain. It is meant
    here. All ranks must call it."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        trial = nn.parallel.DistributedDataParallel(nn.Linear(1, 1).to(device), find_unused_parameters=True)
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            trial(torch.zeros(1, 1, device=device))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


class StepModule(nn.Module):
    """The models a group trains, with the loss inside ``forward``, where DDP and autocast see it.

    ``anchor`` is a zero that every loss reaches where ranks reduce gradients: DDP waits for each of them, also for one
    that has no items or whose loss reaches no parameter, and a parameter that nobody's loss reaches keeps no gradient.
    It is neither optimised nor saved. Its own gradient is 0, or NaN if a loss was not finite.
    """

    anchor: nn.Parameter | None

    def __init__(
        self, task: Task, models: dict[str, nn.Module], trains: Sequence[str], several: bool, sharded: bool
    ) -> None:
        super().__init__()
        self.trained = nn.ModuleDict({name: models[name] for name in trains})
        self.task = task
        self.models = models  # a plain dict: models that are only read are not registered here
        self.several = several  # ranks
        self._no_split_modules = _parts(self.trained)  # where accelerate looks for them
        like = next((p for p in self.trained.parameters() if p.requires_grad and p.is_floating_point()), torch.zeros(1))
        zero = torch.zeros((), dtype=like.dtype, device=like.device)  # like them, so that they are reduced together
        self.anchor = None if sharded else nn.Parameter(zero)

    def forward(
        self, batch: Batch | None, totals: dict[str, Tensor] | None, objective: Objective, has_outputs: bool = False
    ) -> Any:
        """The share of the loss, with ``totals``; without them, the batch and what ``forward_step`` makes of it.

        Args:
            batch: None: this rank has none, and only joins the others.
            has_outputs: what ``forward_step`` makes is in the batch already.
        """
        if batch is not None and not has_outputs:
            batch = contract.forwarded(self.task, self.models, batch, objective)
        if totals is None:
            return batch
        if batch is None:  # nothing to contribute, but the other ranks wait
            assert self.anchor is not None
            return Loss(self.anchor * 0)
        # Terms come without gradient: DDP would wait for parameters that they reach and the value does not.
        value, terms = contract.loss_of(self.task, self.task.loss_step(self.models, batch, totals, objective))
        if self.anchor is not None and (self.several or not value.requires_grad):
            value = value + (self.anchor * 0).to(value.dtype)
        elif not value.requires_grad:
            raise UserError(f"{type(self.task).__name__}.loss_step: FSDP needs a loss with a gradient, in every share")
        return Loss(value, terms)

    def take_poison(self) -> Tensor | None:
        """The gradient of the anchor, and forget it: 0, or NaN if a loss on any rank was not finite."""
        if self.anchor is None or self.anchor.grad is None:
            return None
        poison, self.anchor.grad = self.anchor.grad, None
        return poison

    def _save_to_state_dict(self, *_: Any, **__: Any) -> None:
        """The anchor, all that is here besides the models, is in no checkpoint."""

    def _load_from_state_dict(self, *_: Any, **__: Any) -> None:
        """Nor expected in one."""


def _parts(models: nn.Module) -> list[str]:
    """Names of the classes whose modules FSDP gathers one by one, as the models have them (``_no_split_modules``, the
    attribute of Hugging Face's models, which may name more than there are)."""
    named = {name for module in models.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return sorted(named & {type(module).__name__ for module in models.modules()})
