"""A causal dilated convolutional network (Bai et al., arXiv 1803.01271; on ECEi signals Churchill et al., Phys. Plasmas
27, 062510, 2020): logits of "a disruption is coming" for every step of a record."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel_train.errors import UserError
from accel_train.tasks.tcn.architecture import NORMS, Norm, dilations, receptive_field

DENSE_FROM = 8
"""From this dilation on, a convolution is computed as interleaved dense ones. A rule and no timing, so that two runs of
one config use the same kernels."""


class CausalConv1d(nn.Module):
    """Output t is a weighted sum of the inputs t, t - dilation, ..., t - reach. Nothing is padded.

    Args:
        inputs, outputs: channels.
        kernel_size: taps.
        dilation: steps between two taps.
        weight_norm: kernel g v / |v|, norms per output channel (Salimans and Kingma, arXiv 1602.07868), with parameters
            ``g`` [outputs, 1, 1] and ``v``; else a plain ``weight`` [outputs, inputs, kernel_size]. Both begin as
            ``nn.Conv1d`` does.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, dilation: int, weight_norm: bool) -> None:
        super().__init__()
        self.inputs, self.dilation, self.weight_norm = inputs, dilation, weight_norm
        self.reach = (kernel_size - 1) * dilation
        bound = 1 / math.sqrt(inputs * kernel_size)
        weight = torch.empty(outputs, inputs, kernel_size).uniform_(-bound, bound)
        if weight_norm:
            self.g = nn.Parameter(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
            self.v = nn.Parameter(weight)
        else:
            self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def kernel(self) -> Tensor:
        """[outputs, inputs, kernel_size]; the last tap is that of the same step."""
        if not self.weight_norm:
            return self.weight
        return self.v * (self.g / torch.linalg.vector_norm(self.v, dim=(1, 2), keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, T] to [B, outputs, T - reach]."""
        if self.dilation < DENSE_FROM:
            return F.conv1d(x, self.kernel(), self.bias, dilation=self.dilation)
        return dense_conv1d(x, self.kernel(), self.bias, self.dilation)


def dense_conv1d(x: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """``F.conv1d`` of that dilation as a convolution without one.

    Written row by row into a table of ``dilation`` columns, a record has the taps of an output right above each other:
    a dense convolution down the columns. Zeros before the record fill the first row; no other output sees them.
    """
    steps = x.shape[-1]
    rows = -(-steps // dilation)
    missing = rows * dilation - steps
    table = F.pad(x, (missing, 0)).unflatten(-1, (rows, dilation))
    out = F.conv2d(table, kernel.unsqueeze(-1), bias).flatten(-2)
    return out.narrow(-1, missing, steps - (kernel.shape[-1] - 1) * dilation)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each step, [B, C, T]: it sees no other step."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    """ReLU(x + two times (convolution, normalisation, ReLU, dropout)); x through a linear map where widths differ."""

    def __init__(
        self, inputs: int, outputs: int, kernel_size: int, dilation: int, dropout: float, norm: Norm = "weight"
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv1d(inputs, outputs, kernel_size, dilation, norm == "weight")
        self.conv2 = CausalConv1d(outputs, outputs, kernel_size, dilation, norm == "weight")
        self.norm1 = ChannelNorm(outputs) if norm == "channel" else nn.Identity()
        self.norm2 = ChannelNorm(outputs) if norm == "channel" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, pad: bool = False) -> Tensor:
        """[B, inputs, T] to [B, outputs, T - 2 reach], or to T steps with zeros before the first of each layer."""
        h = x
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            h = conv(F.pad(h, (conv.reach, 0)) if pad else h)
            h = self.dropout(F.relu(norm(h)))
        return F.relu(h + self.skip(x.narrow(-1, x.shape[-1] - h.shape[-1], h.shape[-1])))


def physical(x: Tensor, scale: Tensor | None, offset: Tensor | None) -> Tensor:
    """Stored values [B, C, T] times ``scale`` plus ``offset``, [B, C] or [C] each; None: 1 and 0."""
    x = x if scale is None else x * scale[..., None]
    return x if offset is None else x + offset[..., None]


class TCN(nn.Module):
    """From signals to one logit per step.

    Args:
        channels: signals (C).
        levels: blocks of two convolutions.
        nhid: channels of every block.
        kernel_size: taps of a convolution.
        dilation_base: dilations are its powers (``architecture.dilations``); None: the smallest base that does.
        nrecept_target: receptive field to reach, in steps.
        dropout: of the features after each convolution.
        norm: "weight" (of each kernel), "channel" (over the channels of each step) or "none".
        checkpointing: keep only what goes into each block, and compute the rest again in the backward pass.

    Raises:
        UserError: a normalisation that sees the future, or dilations that leave gaps.
    """

    constant_buffers = True
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int = 160,
        levels: int = 4,
        nhid: int = 80,
        kernel_size: int = 15,
        dilation_base: int | None = None,
        nrecept_target: int = 30_000,
        dropout: float = 0.1,
        norm: Norm = "weight",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise UserError(
                f"tcn: norm {norm!r} is none of {', '.join(NORMS)}. Statistics over time or the batch would show an "
                "output what comes after it"
            )
        self.channels, self.checkpointing = channels, checkpointing
        self.dilations = dilations(levels, kernel_size, dilation_base, nrecept_target)
        self.receptive_field = receptive_field(kernel_size, self.dilations)
        self.blocks = nn.ModuleList(
            Block(nhid if i else channels, nhid, kernel_size, dilation, dropout, norm)
            for i, dilation in enumerate(self.dilations)
        )
        self.out = nn.Conv1d(nhid, 1, 1)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Keep what signals are standardised with: [C] each. A channel that never varied is only centred."""
        if mean.shape != self.mean.shape or std.shape != self.std.shape:
            raise UserError(f"tcn: statistics of {len(mean)} channels for a model of {self.channels}")
        if not (mean.isfinite().all() and std.isfinite().all() and (std >= 0).all()):
            raise UserError("tcn: means and deviations of the channels must be finite numbers; compute them again")
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 0, std, 1.0))

    def standardise(self, x: Tensor, scale: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        """Stored signals [B, C, T] of any type to (x scale + offset - mean) / std, in the type of the statistics."""
        if x.shape[1] != self.channels:
            raise UserError(f"tcn: {x.shape[1]} channels in the data, and {self.channels} in the model")
        return (physical(x.to(self.mean.dtype), scale, offset) - self.mean[:, None]) / self.std[:, None]

    def forward(
        self, x: Tensor, scale: Tensor | None = None, offset: Tensor | None = None, kept: Tensor | None = None
    ) -> Tensor:
        """Logits float [B, T - R + 1] of the steps from R - 1 on, which see R = ``receptive_field`` signals each.

        Args:
            x: signals as stored [B, C, T], T >= R, of any type.
            scale, offset: float [B, C], as in ``standardise``.
            kept: bool [B, C]; the others are at their mean in the whole window.
        """
        if x.shape[-1] < self.receptive_field:
            raise UserError(
                f"tcn: windows of {x.shape[-1]} steps are shorter than the receptive field of {self.receptive_field}; "
                "choose longer windows (nsub) or a smaller nrecept_target"
            )
        x = self.standardise(x, scale, offset)
        return self._logits(x if kept is None else x.masked_fill(~kept[..., None], 0.0), pad=False)

    def forward_all(self, x: Tensor, scale: Tensor | None = None, offset: Tensor | None = None) -> Tensor:
        """Logits float [B, T] of all steps, as ``forward`` from R - 1 on. Those before see zeros where a layer would
        have seen what came before the record, and mean little."""
        return self._logits(self.standardise(x, scale, offset), pad=True)

    def _logits(self, h: Tensor, pad: bool) -> Tensor:
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, pad, use_reentrant=False)
            else:
                h = block(h, pad)
        with torch.autocast(h.device.type, enabled=False):  # half precision has too few logits for a threshold
            return self.out(h.to(self.out.weight.dtype)).squeeze(1)
