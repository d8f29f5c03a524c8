"""From a film to the brain and back: modalities to a latent, the latent to voxels and, through a lag, to BOLD; the
latent, or the voxels themselves, back to the modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel_train.errors import UserError
from accel_train.tasks.sherlock.architecture import Modality, Sizes
from accel_train.tasks.sherlock.lag import Lag, LagKind
from accel_train.tasks.sherlock.parts import CodeShares, Decoder, Dense, Encoder, Fusion, OverTime, Scale, VoxelHead

Bottleneck = Literal["latent", "voxels"]


class Autoencoder(nn.Module):
    """Stimulus to latent to BOLD, and back to the stimulus.

    Args:
        modalities: what the stimulus is made of, at least one.
        voxels: V.
        sizes: every width.
        lags: L, TRs of stimulus before a volume that it may depend on.
        tr_s: from one volume to the next, s.
        lag: a fixed response (hrf), or one learned for each voxel (fir).
        bottleneck: what the decoder reads: the latent, or the activity of the voxels.
        subjects, subject_rank: how many have a part of their own in the voxel head, and its rank.
        time_layers, heads, causal: of a transformer over the TRs of an item; 0 layers: each TR for itself.
        dropout: of features.
        checkpointing: keep only what goes into encoders and decoder, and compute the rest again for the backward pass.

    Attributes:
        fmri_variance: of measured BOLD in training, the unit of its loss.

    Raises:
        UserError: no modality, or a latent that the heads do not divide.
    """

    constant_buffers = True
    fmri_variance: Tensor
    _no_split_modules = ("Encoder", "Dense", "Fusion", "TransformerEncoderLayer", "VoxelHead", "Decoder")  # for FSDP

    def __init__(
        self,
        modalities: Sequence[Modality],
        voxels: int,
        sizes: Sizes,
        lags: int,
        tr_s: float = 1.5,
        lag: LagKind = "hrf",
        bottleneck: Bottleneck = "latent",
        subjects: int = 0,
        subject_rank: int = 0,
        time_layers: int = 0,
        heads: int = 4,
        causal: bool = True,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not modalities:
            raise UserError("sherlock: the data have none of the modalities that were asked for")
        if time_layers and sizes.latent % heads:
            raise UserError(f"sherlock: a latent of {sizes.latent} cannot be shared out among {heads} heads")
        self.modalities = {modality.name: modality for modality in modalities}
        self.voxels, self.lags, self.checkpointing = voxels, lags, checkpointing
        self.through_voxels = bottleneck == "voxels"
        self.scales = nn.ModuleDict({m.name: Scale(m) for m in modalities if m.kind != "codes"})
        self.shares = nn.ModuleDict({m.name: CodeShares(m) for m in modalities if m.kind == "codes"})
        self.encoders = nn.ModuleDict({m.name: Encoder(m, sizes, dropout) for m in modalities})
        width = sum(sizes.branch(m.kind).encoder[-1] for m in modalities)
        self.fusion = Fusion(width, sizes, dropout)
        self.over_time = OverTime(sizes.latent, time_layers, heads, causal, dropout) if time_layers else None
        self.register_buffer("fmri_variance", torch.ones(()))
        self.features = Dense(sizes.latent, sizes.voxels, sizes.activation, dropout)
        self.head = VoxelHead(sizes.voxels[-1] if sizes.voxels else sizes.latent, voxels, subjects, subject_rank)
        self.baseline = nn.Parameter(torch.zeros(voxels))  # of BOLD, behind the lag
        self.lag = Lag(lag, voxels, tr_s, lags)
        self.decoder = Decoder(modalities, voxels if self.through_voxels else sizes.latent, sizes, dropout)

    def set_statistics(self, name: str, statistics: Mapping[str, Tensor]) -> None:
        """Keep what a modality is standardised with.

        Args:
            name: of the modality.
            statistics: ``mean`` [*shape] and ``var`` [], above 0, that of all numbers; of codes ``counts`` [codebooks,
                codes].

        Raises:
            UserError: another number of values, or a stimulus that never changes.
        """
        if name in self.shares:
            return cast(CodeShares, self.shares[name]).set(name, statistics["counts"])
        cast(Scale, self.scales[name]).set(name, statistics["mean"], float(statistics["var"]))

    def set_known_subjects(self, subjects: Sequence[int]) -> None:
        """Which are in the training data; all others are predicted by what subjects share."""
        self.head.known[list(subjects)] = True

    def code_logs(self) -> dict[str, Tensor]:
        """By modality of codes: log of the training frequency [codebooks, codes]."""
        return {name: cast(CodeShares, shares).logs for name, shares in self.shares.items()}

    def forward(
        self,
        batch: Mapping[str, Tensor],
        keep_modality: Tensor | None = None,
        keep_subject: Tensor | None = None,
        lesion: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What the model makes of a batch.

        Args:
            batch: ``stimulus/NAME`` [B, L + W, *shape] as stored; ``present`` bool [B, L + W], whether there is a
                stimulus at all; ``available`` bool [B, M], whether the modality exists in this run; ``subject`` int64
                [B], negative for none.
            keep_modality: bool [B, M], False where it is withheld from the encoder; None keeps all.
            keep_subject: bool [B], False for the head that all subjects share; None keeps all.
            lesion: bool [V], voxels whose activity is set to zero.

        Returns:
            latent [B, L + W, latent], which is not lagged; fmri [B, W, V]; for each modality what ``Decoder`` gives of
            the TRs of the volumes [B, W, ...], and as ``target/NAME`` what it should give: standardised [B, W,
            features], or codes [B, W, codebooks, frames]; and with ``bottleneck: voxels``, or a lag per voxel, neural
            [B, W, V].
        """
        stimulus = {name: self.standardise(name, batch[f"stimulus/{name}"]) for name in self.modalities}
        latent = self.encode(stimulus, batch, keep_modality)
        made = self.to_brain(latent, batch["subject"], keep_subject, lesion)
        read = made["neural"] if self.through_voxels else latent[:, self.lags :]
        targets = {f"target/{name}": values[:, self.lags :] for name, values in stimulus.items()}
        return {"latent": latent, **made, **self._run(self.decoder, read), **targets}

    def encode(
        self, stimulus: Mapping[str, Tensor], batch: Mapping[str, Tensor], keep_modality: Tensor | None = None
    ) -> Tensor:
        """The latent [B, L + W, latent] of what ``standardise`` gives of each modality."""
        available, present = batch["available"], batch["present"]
        keep = torch.ones_like(available) if keep_modality is None else keep_modality
        seen = [
            self._run(self.encoders[name], stimulus[name], available[:, m, None] & present, keep[:, m, None])
            for m, name in enumerate(self.modalities)
        ]
        latent = self.fusion(torch.cat(seen, -1))
        return latent if self.over_time is None else self.over_time(latent)

    def to_brain(
        self, latent: Tensor, subject: Tensor, keep: Tensor | None = None, lesion: Tensor | None = None
    ) -> dict[str, Tensor]:
        """fmri [B, W, V] of a latent [B, L + W, latent]; and neural [B, W, V] where the decoder reads it, or each voxel
        has a lag of its own."""
        features, lag, own = self.features(latent), self.lag, slice(self.lags, None)
        if lag.per_voxel:
            activity = self.head(features, subject, keep)
            made = {"fmri": lag(activity), "neural": activity[:, own]}
        else:  # a filter that all voxels share may come before the widest layer, which then sees W volumes, not L + W
            made = {"fmri": self.head(lag(features), subject, keep)}
            if self.through_voxels:
                made["neural"] = self.head(features[:, own], subject, keep)
        made["fmri"] = made["fmri"] + self.baseline
        return made if lesion is None else {name: values * ~lesion for name, values in made.items()}

    def decode_bold(self, bold: Tensor, lesion: Tensor | None = None) -> dict[str, Tensor]:
        """The modalities [B, W, ...] from measured BOLD [B, W + L, V]: of each volume and the L after it, by the
        matched filter of the lag.

        Raises:
            UserError: the decoder reads the latent.
        """
        if not self.through_voxels:
            raise UserError(
                "sherlock: this model decodes its latent; to decode the brain, train with bottleneck=voxels"
            )
        neural = self.lag.back(bold - self.baseline)
        return self.decoder(neural if lesion is None else neural * ~lesion)

    def standardise(self, name: str, x: Tensor) -> Tensor:
        """Stored [B, T, *shape] to standardised [B, T, features]; codes stay as they are."""
        shape = self.modalities[name].shape
        if tuple(x.shape[2:]) != shape:
            raise UserError(f"{name}: TRs of shape {tuple(x.shape[2:])} in the data, and {shape} in the model")
        return self.scales[name](x) if name in self.scales else x

    def in_units(self, name: str, made: Tensor) -> Tensor:
        """What the decoder gave, in the unit of the stimulus, [B, W, *shape]; of codes, the likeliest."""
        if name not in self.scales:
            return made.argmax(-1)
        return cast(Scale, self.scales[name]).back(made).unflatten(-1, self.modalities[name].shape)

    def _run(self, part: nn.Module, *inputs: Tensor) -> Any:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)
