"""The network on records that are longer than a window: as they arrive, as a program of its own, and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.model import TCN, Block, CausalConv1d, ChannelNorm, physical

LONGEST = 100
"""Samples of a chunk that are computed at once: 1 ms at 100 kHz."""
TOLERANCE = 1e-5
"""Between a program's logits and the model's, relative for those above 1."""


class Stream:
    """A batch of shots that arrive together, a chunk at a time: logits as of ``TCN.forward_all``, so from sample R - 1
    on those of the windows.

    Args:
        model: weights as they are now, on the device where they are.
        shots: how many (B).
        scale, offset: float [B, C] (or [C]) that make what arrives physical; by default it is.
        longest: samples that are computed at once; a longer chunk is cut.

    Attributes:
        seen: samples so far. Logits mean something once it has reached ``receptive_field``.
    """

    def __init__(
        self,
        model: TCN,
        shots: int = 1,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
        longest: int = LONGEST,
    ) -> None:
        self.program = StreamStep(model, longest)
        self.scale, self.offset = scale, offset
        self.seen, self.rings = self.program.beginning(shots)

    @torch.no_grad()
    def step(self, chunk: Tensor) -> Tensor:
        """[B, C, n] of any type and n >= 1 to logits float [B, n]."""
        logits: list[Tensor] = []
        for piece in chunk.split(self.program.longest, dim=-1):
            piece = physical(piece.to(self.program.mean.dtype), self.scale, self.offset)
            found, self.seen, self.rings = self.program(piece, self.seen, self.rings)
            logits.append(found)
        return torch.cat(logits, -1)


class StreamStep(nn.Module):
    """From new samples, and what each layer remembers, to logits: a frozen copy of a ``TCN``, without dropout.

    A layer remembers its latest inputs in a ring, time before channels. Each tap of each new output is then a row to be
    copied, and the convolution one matrix product, in which nearly all the time is spent. Nothing else of a ring is
    touched, however long it is.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: TCN, longest: int = LONGEST) -> None:
        super().__init__()
        self.longest, self.channels = longest, model.channels
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.blocks = nn.ModuleList(_StreamBlock(block, longest) for block in blocks)
        self.rings = [(block.conv1.reach + longest, inputs)
                      for block in blocks for inputs in (block.conv1.inputs, block.conv2.inputs)]  # fmt: skip
        self.out = Linear(model.out.weight.squeeze(2), model.out.bias)
        self.register_buffer("mean", model.mean.clone())
        self.register_buffer("std", model.std.clone())

    def beginning(self, shots: int) -> tuple[Tensor, list[Tensor]]:
        """Nothing seen yet: number of samples so far, int64 scalar, and float rings [shots, length, inputs], all 0."""
        seen = torch.zeros((), dtype=torch.int64, device=self.mean.device)
        return seen, [self.mean.new_zeros(shots, *ring) for ring in self.rings]

    def forward(self, chunk: Tensor, seen: Tensor, rings: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Logits float [B, n], the number of samples after these, and the rings, which have been written into.

        Args:
            chunk: physical signals, float [B, C, n], n from 1 to ``longest``.
            seen, rings: what the last call has returned, or ``beginning``.
        """
        h = ((chunk - self.mean[:, None]) / self.std[:, None]).transpose(1, 2).contiguous()
        now = seen + torch.arange(chunk.shape[2], device=chunk.device)
        for i, block in enumerate(self.blocks):
            h = block(h, now, rings[2 * i], rings[2 * i + 1])
        return self.out(h).squeeze(2), seen + chunk.shape[2], rings


class _StreamBlock(nn.Module):
    """A ``Block``; both of its rings have the same length, so a row is found once for both."""

    back: Tensor

    def __init__(self, block: Block, longest: int) -> None:
        super().__init__()
        conv, device = block.conv1, block.conv1.bias.device
        self.length = conv.reach + longest
        self.register_buffer("back", torch.arange(conv.reach, -1, -conv.dilation, device=device))
        self.conv1, self.conv2 = _StreamConv(block.conv1, block.norm1), _StreamConv(block.conv2, block.norm2)
        skip = block.skip
        self.skip = Linear(skip.weight.squeeze(2), skip.bias) if isinstance(skip, nn.Conv1d) else nn.Identity()

    def forward(self, x: Tensor, now: Tensor, ring1: Tensor, ring2: Tensor) -> Tensor:
        """Samples number ``now`` (int64 [n]) of what goes into the block, [B, n, inputs], to [B, n, outputs]."""
        at, rows = now % self.length, ((now[:, None] - self.back) % self.length).flatten()
        inner = self.conv1(x, at, rows, ring1)
        return F.relu(self.conv2(inner, at, rows, ring2) + self.skip(x))


class _StreamConv(nn.Module):
    """A ``CausalConv1d``, its normalisation and the ReLU."""

    def __init__(self, conv: CausalConv1d, norm: nn.Module) -> None:
        super().__init__()
        self.linear = Linear(conv.kernel().transpose(1, 2).flatten(1), conv.bias)
        self.norm = deepcopy(norm)

    def forward(self, x: Tensor, at: Tensor, rows: Tensor, ring: Tensor) -> Tensor:
        """[B, n, inputs] to [B, n, outputs]: x goes into the rows ``at`` of the ring, taps come from ``rows``."""
        ring.index_copy_(1, at, x)
        h = self.linear(ring.index_select(1, rows).reshape(x.shape[0], x.shape[1], -1))
        return F.relu(nn.LayerNorm.forward(self.norm, h) if isinstance(self.norm, ChannelNorm) else h)


class Linear(nn.Module):
    """A linear map [B, n, inputs] to [B, n, outputs] that is not trained, made without a random draw. Its weight lies
    as the product reads it, [inputs, outputs], which is a tenth faster."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        assert bias is not None
        self.register_buffer("weight", weight.detach().t().clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, 1), self.weight).unflatten(0, x.shape[:2])


def write_program(model: TCN, folder: Path, longest: int = LONGEST) -> None:
    """``stream.pt2``, ``StreamStep`` for any number of shots and 1 to ``longest`` samples, and ``stream.json``, which
    says how it is called. Its ``example_inputs`` end with a beginning for two shots.

    It is loaded again and compared with the model on a record in chunks of many lengths.

    Raises:
        UserError: its logits differ by more than ``TOLERANCE``.
    """
    model = model.cpu().eval()
    step = StreamStep(model, longest)
    shots, samples = torch.export.Dim("shots", min=1), torch.export.Dim("samples", min=1, max=longest)
    example = (torch.zeros(2, model.channels, min(2, longest)), *step.beginning(2))
    rings = [{0: shots} for _ in example[2]]
    program = torch.export.export(step, example, dynamic_shapes=({0: shots, 2: samples}, None, rings))
    torch.export.save(program, folder / "stream.pt2")
    _compare(torch.export.load(folder / "stream.pt2").module(), model, step)
    meaning = {
        "arguments": ["chunk: physical signals, float32 [shots, channels, samples]",
                      "seen: number of samples so far, int64 scalar, at first 0",
                      "rings: a list of float32 [shots, *ring], at first 0; written into"],
        "results": ["logits float32 [shots, samples]", "seen", "rings"],
        "channels": model.channels, "longest_chunk": longest, "rings": [list(ring.shape[1:]) for ring in example[2]],
        "receptive_field": model.receptive_field,
    }  # fmt: skip
    (folder / "stream.json").write_text(json.dumps(meaning, indent=2) + "\n")


def _compare(program: Callable[..., Any], model: TCN, step: StreamStep) -> None:
    draw = torch.Generator().manual_seed(0)
    length = model.receptive_field + 3 * step.longest
    record = torch.randn(3, model.channels, length, generator=draw) * model.std[:, None] + model.mean[:, None]
    state, found, first = step.beginning(3), [], 0
    with torch.no_grad():
        while first < length:
            n = int(torch.randint(1, step.longest + 1, (), generator=draw))
            logits, *state = program(record[..., first : first + n], *state)
            found.append(logits)
            first += n
        expected = model.forward_all(record)
    worst = ((torch.cat(found, 1) - expected).abs() / expected.abs().clamp(min=1)).max().item()
    if not worst <= TOLERANCE:
        raise UserError(f"export: stream.pt2 differs from the model by {worst:.2g}")


@torch.no_grad()
def overlap_save(
    model: TCN,
    read: Callable[[int, int], NDArray[Any]],
    first: int,
    last: int,
    nsub: int,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
) -> NDArray[np.float32]:
    """Logits of the samples first + R - 1 to last - 1 of a shot, [last - first - R + 1], window by window.

    Windows overlap by R - 1; the last one is as long as the others and ends with the shot, so that one shape is all
    that a device sees.

    Args:
        model: in evaluation mode.
        read: stored signals [C, n] of the samples from its first argument to before its second.
        nsub: samples of a window, at least R.
        scale, offset: float [C], as in ``TCN.standardise``.

    Raises:
        DataError: fewer samples than the receptive field.
    """
    assert not model.training, "dropout"
    total = last - first - model.receptive_field + 1
    if total < 1:
        raise DataError(
            f"tcn: samples {first} to {last} are fewer than the receptive field of {model.receptive_field}; no output "
            "sees all it needs"
        )
    window = min(nsub, last - first)
    valid = window - model.receptive_field + 1
    found = np.empty(total, np.float32)
    for start in range(0, total, max(valid, 1)):
        start = min(start, total - valid)
        x = torch.tensor(read(first + start, first + start + window))[None].to(
            model.mean.device
        )  # a copy: it may be mapped
        found[start : start + valid] = model(x, scale, offset)[0].float().cpu().numpy()
    return found
