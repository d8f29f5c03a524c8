"""Normalisation of the features of edges and atoms."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from accel_train.tasks.gdynet.choices import Norm


def make_norm(kind: Norm, features: int) -> nn.Module:
    """A layer from (features [..., f], mask [...] or None) to [..., f]; every kind has as many parameters.

    "layer" looks at one row alone, so nothing depends on how a batch is cut. "batch" is what the guide's
    trainer has (docs/tasks/gdynet.md): statistics of the rows that this rank has at once. "sync_batch": of those that
    all ranks have at once.
    """
    return LayerNorm(features) if kind == "layer" else BatchNorm(features, kind == "sync_batch")


class LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(input)


class BatchNorm(nn.Module):
    """``BatchNorm1d`` (eps 1e-5, momentum 0.1) over all rows that the mask keeps, with the names of its state.

    Running statistics are only moved where a gradient is wanted: a forward pass that is repeated counts once.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, sync: bool, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.communicates, self.eps, self.momentum = sync, eps, momentum
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mean, var = self._statistics(x, mask) if self.training else (self.running_mean, self.running_var)
        return ((x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias).to(x.dtype)

    def _statistics(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        keep = rows.new_ones(len(rows), 1) if mask is None else mask.reshape(-1, 1).to(rows.dtype)
        count, total = self._everywhere(torch.cat([keep.sum(0), (rows * keep).sum(0)])).tensor_split([1])
        count = count.clamp(min=1)  # where no atom has a neighbour
        mean = total / count
        # In a second pass: from the sum of squares, a large mean would hide the variance.
        var = self._everywhere(((rows - mean).square() * keep).sum(0)) / count
        if torch.is_grad_enabled():
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
                self.num_batches_tracked.add_(1)
        return mean, var

    def _everywhere(self, value: Tensor) -> Tensor:
        """Summed over those whose rows count."""
        if not (self.communicates and dist.is_initialized()):
            return value
        total = _Sum.apply(value)
        assert isinstance(total, Tensor)
        return total


class _Sum(torch.autograd.Function):
    """The sum over all ranks; each rank's loss depends on it, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad
