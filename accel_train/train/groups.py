"""What is trained together: models, their objectives, one optimiser, one schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.task import Objective
from accel_train.train.averages import Average
from accel_train.train.optim import Built, ParameterGroup
from accel_train.train.reduction import Reduction
from accel_train.train.schedules import Schedule
from accel_train.train.step_module import StepModule


@dataclass
class Group:
    """Objectives that train the same models share one wrapped module, optimiser, schedule and scaler."""

    name: str
    objectives: tuple[Objective, ...]
    module: nn.Module
    local: StepModule  # the same without the wrapper that reduces gradients
    names: list[str]  # of what is trained
    params: list[nn.Parameter]
    built: Built
    parameter_groups: list[ParameterGroup]  # none where all parameters are alike
    schedule: Schedule
    reduction: Reduction | None  # of gradients over ranks, by DDP
    buffers: list[Tensor]  # what the models remember besides parameters, such as running statistics
    read_only: list[nn.Parameter]  # of other models: the loss passes through them and must leave nothing there
    scaler: torch.amp.GradScaler | None = None
    average: Average | None = None
    reduces_after: bool = False  # not in the last backward, but by one that adds nothing
    lr: float = field(default=math.nan)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.built.optimizer

    def set_lr(self, lr: float) -> None:
        if lr != self.lr:
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = lr * param_group.get("lr_factor", 1.0)
            self.lr = lr

    def clip(self, max_norm: float | None) -> Tensor:
        """The norm of the gradient before, over all ranks. None clips nothing."""
        if max_norm:
            norm = nn.utils.clip_grad_norm_(self.params, max_norm)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore

    def apply(self, norm: Tensor) -> Tensor:
        """Let the optimiser step if the gradient is finite, and say whether it is, where possible without reading."""
        optimizer, scaler, finite = self.optimizer, self.scaler, torch.isfinite(norm)
        if scaler is not None:  # it looks for non-finite gradients itself and adapts its scale
            scaler.step(optimizer)
            scaler.update()
        elif norm.device.type != "cpu" and getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale = None  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
            optimizer.step()
        elif finite.item():  # on a GPU, without a fused kernel, this waits for the device
            optimizer.step()
        return finite


def group_objectives(
    objectives: Sequence[Objective], model_names: Sequence[str]
) -> dict[tuple[str, ...], list[Objective]]:
    """Objectives by the models they train. Refuses unknown names and groups that overlap without being equal."""
    groups: dict[tuple[str, ...], list[Objective]] = {}
    for objective in objectives:
        trains = tuple(objective.trains) or tuple(model_names)
        for name in trains:
            if name not in model_names:
                raise UserError(
                    f"objective {objective.name!r} trains {name!r}, but the models are {', '.join(model_names)}"
                )
        groups.setdefault(tuple(sorted(trains)), []).append(objective)
    seen: dict[str, tuple[str, ...]] = {}
    for trains, members in groups.items():
        for name in trains:
            if name in seen:
                raise UserError(
                    f"objective {members[0].name!r} trains {trains} and another trains {seen[name]}: objectives must "
                    "train the same models or none in common, since a shared parameter would be reduced twice"
                )
            seen[name] = trains
    return groups


def communicate(models: dict[str, nn.Module]) -> bool:
    """Whether ranks wait for each other in a forward pass, so that every one must make equally many: torch's
    ``SyncBatchNorm`` does, and a module that says so by an attribute ``communicates``."""
    modules = (module for model in models.values() for module in model.modules())
    return any(isinstance(m, nn.SyncBatchNorm) or getattr(m, "communicates", False) for m in modules)


def remembered(models: nn.Module) -> list[Tensor]:
    """Buffers that are saved and may change in training. A module whose own never do says so by an attribute
    ``constant_buffers``."""
    kept = models.state_dict(keep_vars=True)
    constant = {
        id(buffer)
        for module in models.modules()
        if getattr(module, "constant_buffers", False)
        for buffer in module.buffers(recurse=False)
    }
    return [buffer for name, buffer in models.named_buffers() if name in kept and id(buffer) not in constant]
