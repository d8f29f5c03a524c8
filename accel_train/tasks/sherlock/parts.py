"""Parts of the network: dense blocks, an encoder per modality, the voxel head, the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from accel_train.errors import UserError
from accel_train.tasks.sherlock.architecture import Modality, Sizes

Activation = Literal["gelu", "relu"]


def activation_of(name: Activation) -> nn.Module:
    return nn.GELU() if name == "gelu" else nn.ReLU()


class Dense(nn.Sequential):
    """Blocks of a linear map, layer normalisation, activation and dropout; nothing for no widths."""

    def __init__(self, inputs: int, widths: Sequence[int], activation: Activation, dropout: float) -> None:
        blocks = [
            nn.Sequential(nn.Linear(before, width), nn.LayerNorm(width), activation_of(activation), nn.Dropout(dropout))
            for before, width in zip([inputs, *widths], widths, strict=False)
        ]
        super().__init__(*blocks)


def last(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A layer whose outputs begin near zero: the mean of standardised data, so that every loss begins near 1."""
    linear = nn.Linear(inputs, outputs, bias)
    nn.init.normal_(linear.weight, std=0.1 / math.sqrt(inputs))
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


class Scale(nn.Module):
    """Standardises a modality by the mean of each of its numbers and by one deviation for all of them."""

    constant_buffers = True
    mean: Tensor
    deviation: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(modality.features))
        self.register_buffer("deviation", torch.ones(()))

    def set(self, name: str, mean: Tensor, variance: float) -> None:
        """Raises UserError for another number of values, or a modality that never changes."""
        if mean.numel() != self.mean.numel():
            raise UserError(f"{name}: statistics of {mean.numel():,} numbers for a TR of {self.mean.numel():,}")
        if not (mean.isfinite().all() and 0 < variance < math.inf):
            raise UserError(f"{name}: its variance in training is {variance:g}; what never changes explains nothing")
        self.mean.copy_(mean.flatten())
        self.deviation.fill_(math.sqrt(variance))

    def forward(self, x: Tensor) -> Tensor:
        """As stored [B, T, *shape], of any type, to standardised [B, T, features] in the type of the statistics."""
        return (x.flatten(2) - self.mean).div_(self.deviation)

    def back(self, z: Tensor) -> Tensor:
        """Standardised [..., features] in the unit of the stimulus."""
        return z * self.deviation + self.mean


class CodeShares(nn.Module):
    """How often each code of each codebook comes in training: what a reconstruction must be better than."""

    constant_buffers = True
    logs: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        self.register_buffer("logs", torch.zeros(modality.shape[0], modality.codes))

    def set(self, name: str, counts: Tensor) -> None:
        """Logarithms of the shares, one more of each code counted, so that one that is new in a test is possible."""
        if counts.shape != self.logs.shape:
            raise UserError(f"{name}: counts of {tuple(counts.shape)} codes, and {tuple(self.logs.shape)} in the model")
        self.logs.copy_((counts.double() + 1).log() - (counts.double() + 1).sum(1, keepdim=True).log())


class Codes(nn.Module):
    """Codes [N, codebooks, frames] as embeddings [N, codebooks * frames * width], a table for each codebook."""

    def __init__(self, modality: Modality, width: int) -> None:
        super().__init__()
        self.codes, self.books = modality.codes, modality.shape[0]
        self.table = nn.Embedding(self.books * self.codes, width)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.arange(self.books, device=x.device)[:, None] * self.codes
        return self.table(x.long() + first).flatten(1)


class Convolutions(nn.Module):
    """Standardised numbers [N, features] of a TR through convolutions over its picture, or over its mels.

    The frames of a TR, and the colours of each, are channels. Normalisation is over all that one TR has.
    """

    def __init__(self, modality: Modality, channels: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self.shape, self.pictures = modality.shape, modality.kind == "frames"
        frames, *space = modality.shape
        space, before = (space[:-1], frames * space[-1]) if self.pictures else (space, frames)
        layers: list[nn.Module] = []
        convolution = nn.Conv2d if self.pictures else nn.Conv1d
        for width in channels:
            layers += [
                convolution(before, width, 3, 2, 1), nn.GroupNorm(1, width), activation_of(activation)
            ]  # fmt: skip
            before, space = width, [-(-n // 2) for n in space]
        self.layers, self.features = nn.Sequential(*layers), before * math.prod(space)

    def forward(self, z: Tensor) -> Tensor:
        z = z.unflatten(1, self.shape)
        if self.pictures:
            z = z.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return self.layers(z).flatten(1)


class Encoder(nn.Module):
    """One modality, TR by TR, to what it gives to the fusion; with a stand-in where there is none, and another one
    where it was dropped, which are learned and thus neither zeros nor each other."""

    def __init__(self, modality: Modality, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        branch, features = sizes.branch(modality.kind), modality.features
        widths, activation = branch.encoder, sizes.activation
        first: list[nn.Module] = []
        if modality.kind == "codes":
            first.append(Codes(modality, sizes.code_width))
            features *= sizes.code_width
        self.skip = nn.Linear(features, widths[-1]) if sizes.skip and modality.kind != "codes" else None
        if branch.convolutions and modality.kind in ("frames", "mel"):
            convolutions = Convolutions(modality, branch.convolutions, activation)
            first += [convolutions, nn.Linear(convolutions.features, widths[0]), activation_of(activation)]
            features, widths = widths[0], widths[1:]
        self.layers = nn.Sequential(*first, Dense(features, widths, activation, dropout))
        self.absent = nn.Parameter(torch.randn(branch.encoder[-1]))
        self.dropped = nn.Parameter(torch.randn(branch.encoder[-1]))

    def forward(self, x: Tensor, there: Tensor, kept: Tensor) -> Tensor:
        """Codes [B, T, *shape], or standardised [B, T, features], to [B, T, width].

        Args:
            there: bool [B, T], whether the modality exists.
            kept: bool [B, 1], whether the item may see it.
        """
        flat = x.flatten(0, 1)
        seen = self.layers(flat)
        seen = (seen if self.skip is None else seen + self.skip(flat)).unflatten(0, x.shape[:2])
        given = torch.where(kept[..., None], seen, self.dropped.to(seen.dtype))
        return torch.where(there[..., None], given, self.absent.to(seen.dtype))


class Fusion(nn.Module):
    """All modalities of a TR to its latent."""

    def __init__(self, inputs: int, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.layers = Dense(inputs, sizes.fusion, sizes.activation, dropout)
        self.out = nn.Linear(sizes.fusion[-1] if sizes.fusion else inputs, sizes.latent)
        self.skip = nn.Linear(inputs, sizes.latent) if sizes.skip and sizes.fusion else None
        self.norm = nn.LayerNorm(sizes.latent) if sizes.latent_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, inputs] to [B, T, latent]."""
        z = self.out(self.layers(x))
        return self.norm(z if self.skip is None else z + self.skip(x))


class OverTime(nn.Module):
    """A small transformer over the TRs of an item, [B, T, latent]; each sees itself and, if ``causal``, earlier ones
    alone. It begins as the identity."""

    def __init__(self, latent: int, layers: int, heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        self.causal = causal
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                latent, heads, 4 * latent, dropout, "gelu", batch_first=True, norm_first=True
            ) for _ in range(layers)
        )  # fmt: skip
        self.out = nn.Linear(latent, latent)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, z: Tensor) -> Tensor:
        n = z.shape[1]
        hidden = torch.ones(n, n, dtype=torch.bool, device=z.device).triu(1) if self.causal else None
        h = z + _positions(n, z.shape[2], z)
        for layer in self.layers:
            h = layer(h, src_mask=hidden, is_causal=self.causal)
        return z + self.out(h)


def _positions(n: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of the place in the window (Vaswani et al., arXiv 1706.03762), [n, width]."""
    place = torch.arange(n, device=like.device, dtype=like.dtype)[:, None]
    rate = 10_000 ** (-torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    return torch.stack([(place * rate).sin(), (place * rate).cos()], -1).flatten(1)[:, :width]


class VoxelHead(nn.Module):
    """Features of a TR to voxels: a linear map that all subjects share, and one of low rank for each.

    n_v = w_v u + sum_r a_vr (b_r u), with a shared and b of the subject. An unknown subject, and one that was dropped,
    has the shared part alone.

    Args:
        width: of the features u.
        voxels: V.
        subjects: how many; 0 for no parts of their own.
        rank: of these.
    """

    constant_buffers = True
    known: Tensor

    def __init__(self, width: int, voxels: int, subjects: int, rank: int) -> None:
        super().__init__()
        self.shared = last(width, voxels, bias=False)
        self.register_buffer("known", torch.zeros(subjects, dtype=torch.bool))
        self.to_rank = nn.Parameter(torch.randn(subjects, width, rank) / math.sqrt(width)) if subjects * rank else None
        self.to_voxels = last(rank, voxels, bias=False) if subjects * rank else None

    def forward(self, u: Tensor, subject: Tensor, keep: Tensor | None = None) -> Tensor:
        """Activity [B, T, V] of features [B, T, width].

        Args:
            subject: int64 [B], negative for none.
            keep: bool [B], False for the shared part alone; None keeps all.
        """
        activity = self.shared(u)
        if self.to_rank is None or self.to_voxels is None:
            return activity
        which = subject.clamp(0)
        own = self.known[which] & (subject >= 0)
        own = own if keep is None else own & keep
        low = torch.einsum("bth,bhr->btr", u, self.to_rank[which].to(u.dtype))
        return activity + self.to_voxels(low * own[:, None, None])


class Decoder(nn.Module):
    """The latent, or the voxels, of a TR back to every modality at the same TR."""

    def __init__(self, modalities: Sequence[Modality], inputs: int, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.trunk = Dense(inputs, sizes.decoder, sizes.activation, dropout)
        width = sizes.decoder[-1] if sizes.decoder else inputs
        self.branches, self.out = nn.ModuleDict(), nn.ModuleDict()
        self.shapes = {m.name: (*m.shape, m.codes) if m.kind == "codes" else (m.features,) for m in modalities}
        for modality in modalities:
            widths, outputs = sizes.branch(modality.kind).decoder, math.prod(self.shapes[modality.name])
            self.branches[modality.name] = Dense(width, widths, sizes.activation, dropout)
            self.out[modality.name] = last(widths[-1] if widths else width, outputs)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[B, T, inputs] to standardised numbers [B, T, features] of each modality, or to logits [B, T, codebooks,
        frames, codes]."""
        trunk = self.trunk(x)
        made = {name: self.out[name](branch(trunk)) for name, branch in self.branches.items()}
        return {name: values.unflatten(-1, self.shapes[name]) for name, values in made.items()}
