"""Losses: of measured against predicted BOLD, of the stimulus against its reconstruction, and both together.

The modules at the end are the guide's, for a training loop of one's own: means over a batch, as it has them. The task
uses the sums at the beginning, each in the unit of its training variance, so that what predicts the mean has 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel_train.errors import UserError

FMRILoss = Literal["mse", "mae", "correlation", "cosine"]
TaskFMRILoss = FMRILoss | Literal["temporal_correlation"]
MEAN_ABSOLUTE = math.sqrt(2 / math.pi)
"""The mean absolute value of standardised normal data: ``mae`` is in units of it."""


# -- what the task sums ------------------------------------------------------------------------------------------------


def fmri_rows(predicted: Tensor, measured: Tensor, loss_type: FMRILoss) -> Tensor:
    """The loss of each volume: [..., V] to [...].

    mse, mae: mean over the voxels. correlation: 1 - Pearson's coefficient over the voxels. cosine: 1 - the cosine of
    the angle between both, without centring: what the guide calls correlation.
    """
    if loss_type == "mse":
        return (predicted - measured).square().mean(-1)
    if loss_type == "mae":
        return (predicted - measured).abs().mean(-1)
    if loss_type == "correlation":
        predicted = predicted - predicted.mean(-1, keepdim=True)
        measured = measured - measured.mean(-1, keepdim=True)
    return 1 - F.cosine_similarity(predicted, measured, dim=-1)


def over_time_rows(predicted: Tensor, measured: Tensor, there: Tensor) -> Tensor:
    """1 - Pearson's coefficient over the volumes of a window, mean over the voxels, as the loss of each volume of the
    window: [B, W, V] and bool [B, W], which volumes count, to [B, W]. A voxel that does not change (by less than 1e-4)
    has no correlation, and loses 1."""
    weight = there[..., None].to(predicted.dtype)
    count = weight.sum(1, keepdim=True).clamp(min=1)
    x, y = ((each - (each * weight).sum(1, keepdim=True) / count) * weight for each in (predicted, measured))
    variances = ((each.square().sum(1) / count[:, 0]).clamp(min=1e-8) for each in (x, y))
    r = (x * y).sum(1) / count[:, 0] / torch.stack([*variances]).prod(0).sqrt()
    return (1 - r.mean(-1, keepdim=True)).expand(there.shape)


def code_rows(logits: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of codes [B, W, ...] under logits [B, W, ..., codes], over the log of their number: [B, W]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    each = F.cross_entropy(logits.flatten(0, -2), codes.long().flatten(), reduction="none")
    return each.view(codes.shape).flatten(2).mean(-1) / math.log(logits.shape[-1])


def term_rows(
    made: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    fmri: Tensor,
    measured: Tensor,
    loss_type: TaskFMRILoss,
    fmri_variance: Tensor | float = 1.0,
) -> dict[str, Tensor]:
    """The loss of each TR by term, [B, W] each: ``fmri``, in units of its training variance (mse) or of what the mean
    absolute value then is of normal data (mae); and each modality that ``targets`` have. ``measured`` bool [B, W]."""
    unit = {"mse": fmri_variance, "mae": MEAN_ABSOLUTE * fmri_variance**0.5}.get(loss_type, 1.0)
    predicted = made["fmri"]
    fmri = fmri.to(torch.promote_types(predicted.dtype, fmri.dtype))
    if loss_type == "temporal_correlation":
        rows = {"fmri": over_time_rows(predicted, fmri, measured)}
    else:
        rows = {"fmri": fmri_rows(predicted, fmri, loss_type) / unit}
    for name, target in targets.items():
        if target.is_floating_point():
            rows[name] = (made[name] - target).square().mean(-1)
        else:
            rows[name] = code_rows(made[name], target)
    return rows


def term_masks(batch: Mapping[str, Tensor], modalities: list[str]) -> dict[str, Tensor]:
    """bool [B, W] by term: which TRs count. Volumes that were measured; TRs in which the modality exists, also if it
    was withheld from the encoder."""
    volumes = batch["measured"].shape[1]
    present = batch["present"][:, -volumes:]
    return {"fmri": batch["measured"]} | {
        name: batch["available"][:, m, None] & present for m, name in enumerate(modalities)
    }


# -- the guide's -------------------------------------------------------------------------------------------------------


class ReconstructionLoss(nn.Module):
    """Weighted sum of the mean squared errors of video, audio and text.

    Args:
        video_weight, audio_weight, text_weight: of the terms.
        reduction: over all numbers, ``mean`` or ``sum``.
    """

    def __init__(
        self,
        video_weight: float = 1.0,
        audio_weight: float = 1.0,
        text_weight: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.weights = {"video": video_weight, "audio": audio_weight, "text": text_weight}
        self.reduction = reduction

    def forward(
        self,
        video_recon: Tensor,
        video_target: Tensor,
        audio_recon: Tensor,
        audio_target: Tensor,
        text_recon: Tensor,
        text_target: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum; and by name the errors themselves, ``video_loss``, ``audio_loss`` and ``text_loss``, and
        the sum, ``reconstruction_loss``.

        Raises:
            UserError: shapes that differ, or targets that are codes, which are no numbers to come near to.
        """
        pairs = {"video": (video_recon, video_target), "audio": (audio_recon, audio_target),
                 "text": (text_recon, text_target)}  # fmt: skip
        errors = {name: self._error(name, *pair) for name, pair in pairs.items()}
        total = torch.stack([self.weights[name] * error for name, error in errors.items()]).sum()
        return total, {f"{name}_loss": error for name, error in errors.items()} | {"reconstruction_loss": total}

    def _error(self, name: str, made: Tensor, target: Tensor) -> Tensor:
        _check_shapes(name, made, target)
        if not target.is_floating_point():
            raise UserError(
                f"{name}: the target is {str(target.dtype).removeprefix('torch.')}. If these are codes, their distance "
                "means nothing, and SherlockTask trains them by cross-entropy; give numbers as float"
            )
        return F.mse_loss(made, target, reduction=self.reduction)


class FMRIMatchingLoss(nn.Module):
    """Distance of predicted and measured volumes.

    Args:
        loss_type: as for ``fmri_rows``. The guide's ``correlation`` is ``cosine`` here.
        reduction: ``mean`` or ``sum``, over voxels and volumes (mse, mae) or volumes.

    Raises:
        UserError: another loss_type.
    """

    def __init__(self, loss_type: FMRILoss = "mse", reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if loss_type not in get_args(FMRILoss):
            raise UserError(f"loss_type: {loss_type!r} is none of {', '.join(get_args(FMRILoss))}")
        self.loss_type: FMRILoss = loss_type
        self.reduction = reduction

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """A scalar, of volumes [B, V]."""
        _check_shapes("fmri", predicted, target)
        rows = fmri_rows(predicted, target, self.loss_type)
        if self.reduction == "mean":
            return rows.mean()
        return rows.sum() * (predicted.shape[-1] if self.loss_type in ("mse", "mae") else 1)


class CombinedAutoEncoderLoss(nn.Module):
    """Reconstruction and brain matching, weighted.

    Args:
        reconstruction_weight, fmri_weight: of the two.
        video_weight, audio_weight, text_weight: within the first.
        fmri_loss_type: as for ``FMRIMatchingLoss``.
    """

    def __init__(
        self,
        reconstruction_weight: float = 1.0,
        fmri_weight: float = 1.0,
        video_weight: float = 1.0,
        audio_weight: float = 1.0,
        text_weight: float = 1.0,
        fmri_loss_type: FMRILoss = "mse",
    ) -> None:
        super().__init__()
        self.reconstruction_weight, self.fmri_weight = reconstruction_weight, fmri_weight
        self.reconstruction = ReconstructionLoss(video_weight, audio_weight, text_weight)
        self.fmri = FMRIMatchingLoss(fmri_loss_type)

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        video_target: Tensor,
        audio_target: Tensor,
        text_target: Tensor,
        fmri_target: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and by name its terms: those of ``ReconstructionLoss``, ``fmri_loss`` and ``total_loss``.

        Args:
            outputs: ``video_recon``, ``audio_recon``, ``text_recon`` and ``predicted_fmri``, or ``video``, ``audio``,
                ``text`` and ``fmri``, as ``Autoencoder`` names them.
            fmri_target: None leaves the term out.

        Raises:
            UserError: an output is missing, or of another shape than its target.
        """
        recon = [_output(outputs, f"{name}_recon", name) for name in ("video", "audio", "text")]
        total, terms = self.reconstruction(
            recon[0], video_target, recon[1], audio_target, recon[2], text_target
        )  # fmt: skip
        total = self.reconstruction_weight * total
        if fmri_target is not None:
            terms["fmri_loss"] = self.fmri(_output(outputs, "predicted_fmri", "fmri"), fmri_target)
            total = total + self.fmri_weight * terms["fmri_loss"]
        return total, terms | {"total_loss": total}


def _output(outputs: Mapping[str, Any], *names: str) -> Tensor:
    for name in names:
        if name in outputs:
            return outputs[name]
    raise UserError(f"outputs: neither {' nor '.join(names)} is there, but {', '.join(outputs) or 'nothing'}")


def _check_shapes(name: str, made: Tensor, target: Tensor) -> None:
    if made.shape != target.shape:
        raise UserError(f"{name}: predicted {tuple(made.shape)} and target {tuple(target.shape)} differ in shape")
