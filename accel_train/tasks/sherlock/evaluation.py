"""What an evaluation adds up, and the metrics that the sums give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from accel_train.sums import Correlation
from accel_train.tasks.sherlock.losses import TaskFMRILoss, fmri_rows, term_masks, term_rows

MEAN = "mean/"
"""What stands before the sums of a model that gives the training mean, or the training frequency of each code."""
AT_ONCE = 8192
"""Voxels whose moments are taken together: they take eight times the memory of the volumes in float64."""


def evaluation_sums(
    made: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    code_logs: Mapping[str, Tensor],
    loss_type: TaskFMRILoss,
    fmri_variance: Tensor | float,
    subjects: int,
) -> dict[str, Tensor]:
    """Sums over the TRs of a batch: ``loss/TERM`` and ``mean/TERM`` float64 [2] (of the loss, and how many),
    ``spatial`` float64 [2] (Pearson's coefficient over voxels, and how many), ``voxels`` float64 [subjects, V, 6], the
    moments of predicted and measured BOLD over time.

    Args:
        made: of ``Autoencoder.forward``.
        targets: of ``Autoencoder.targets``.
        batch: as the model gets it, with ``fmri`` and ``measured``.
        code_logs: by modality of codes, log of their training frequency [codebooks, codes].
        loss_type, fmri_variance: of the brain, as for ``term_rows``.
        subjects: how many; ``subject`` is below, or negative, which counts as 0.
    """
    masks = term_masks(batch, list(targets))
    measured = batch["measured"]
    terms = term_rows(made, targets, batch["fmri"], measured, loss_type, fmri_variance)
    nothing = {"fmri": torch.zeros_like(made["fmri"])} | {
        name: code_logs[name][:, None].expand(*made[name].shape) if name in code_logs else torch.zeros_like(target)
        for name, target in targets.items()
    }
    means = term_rows(nothing, targets, batch["fmri"], measured, loss_type, fmri_variance)
    sums = {f"loss/{name}": _sum(terms[name], mask) for name, mask in masks.items()}
    sums |= {f"{MEAN}{name}": _sum(means[name], mask) for name, mask in masks.items()}
    fmri = batch["fmri"].to(made["fmri"].dtype)
    sums["spatial"] = _sum(1 - fmri_rows(made["fmri"], fmri, "correlation"), measured)
    subject = batch["subject"].clamp(0)[:, None].expand_as(measured)[measured]
    some = zip(made["fmri"][measured].split(AT_ONCE, 1), fmri[measured].split(AT_ONCE, 1), strict=True)
    sums["voxels"] = torch.cat([Correlation.sums(x, y, by=(subject, subjects)) for x, y in some], 1)
    return sums


def _sum(rows: Tensor, mask: Tensor) -> Tensor:
    return torch.stack([(rows.double() * mask).sum(), mask.sum().double()])


def metrics_of(
    sums: Mapping[str, Tensor],
    weights: Mapping[str, float],
    rois: Mapping[str, Any] | None = None,
    new: Sequence[int] = (),
) -> dict[str, float]:
    """Metrics by name.

    ``loss``: the terms, weighted as in training. ``fmri`` and each modality: its loss, in units of the training
    variance (codes: of the log of their number). ``MODALITY_over_mean``: divided by what the training mean (codes:
    their training frequency) loses on the same TRs; below 1 is better than that. ``share_TERM``: of the loss.
    ``fmri_r``: Pearson's coefficient over time of each voxel and subject, mean over all where it exists;
    ``fmri_r_median``; ``fmri_r_ROI``; ``fmri_r_undefined``: the share of voxels that have none, since measured or
    predicted BOLD never changes. ``fmri_correlation``: that over voxels of each volume, mean over volumes, as the guide
    has it; it also rewards what all volumes have in common.

    Args:
        sums: added-up ``evaluation_sums``.
        weights: of the terms, 0 for one that is only shown.
        rois: columns of each, by name.
        new: subjects that were not in training; ``fmri_r_new_subjects`` is of them, and all other r are of the rest.
    """
    losses = {name: _mean(sums[f"loss/{name}"]) for name in weights}
    counted = {name: weights[name] * loss for name, loss in losses.items() if sums[f"loss/{name}"][1] > 0}
    total = sum(counted.values())
    metrics = {"loss": total, **losses}
    for name in weights:
        if name != "fmri":
            mean = _mean(sums[f"{MEAN}{name}"])
            metrics[f"{name}_over_mean"] = losses[name] / mean if mean else math.nan
        metrics[f"share_{name}"] = counted.get(name, 0.0) / total if total else math.nan
    r = Correlation(sums["voxels"]).pearson
    seen = sums["voxels"][:, 0, 0] > 0  # subjects of this split
    trained = seen.clone()
    trained[list(new)] = False
    if (seen & ~trained).any():
        metrics["fmri_r_new_subjects"] = _mean_of(r[seen & ~trained])
    r = r[trained]
    metrics["fmri_r"], metrics["fmri_r_median"] = _mean_of(r), _median_of(r)
    metrics["fmri_r_undefined"] = float(r.isnan().double().mean()) if r.numel() else math.nan
    metrics |= {f"fmri_r_{name}": _mean_of(r[:, columns]) for name, columns in (rois or {}).items()}
    metrics["fmri_correlation"] = _mean(sums["spatial"])
    return metrics


def _mean(sum_and_count: Tensor) -> float:
    total, count = sum_and_count.tolist()
    return total / count if count else math.nan


def _mean_of(r: Tensor) -> float:
    found = r[~r.isnan()]
    return float(found.mean()) if found.numel() else math.nan


def _median_of(r: Tensor) -> float:
    found = r[~r.isnan()]
    return float(found.median()) if found.numel() else math.nan


def largest_share(parts: Mapping[str, float]) -> tuple[str, float] | None:
    """The weighted term that is most of the loss, and its share; None unless there are two or more."""
    counted = {name: part for name, part in parts.items() if part > 0}
    if len(counted) < 2:
        return None
    name = max(counted, key=lambda each: counted[each])
    return name, counted[name] / sum(counted.values())


def summary_of(metrics: Mapping[str, float], modalities: Sequence[str]) -> str:
    """What a person reads of it."""
    if "fmri_r" not in metrics:
        return ""
    rois = {name.removeprefix("fmri_r_"): value for name, value in metrics.items() if name.startswith("fmri_r_")}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in rois.items() if name not in ("median", "undefined"))
    lines = [
        f"brain: r over time {metrics['fmri_r']:.3f} (median {metrics['fmri_r_median']:.3f}) over voxels and subjects"
        + (f"; {shown}" if shown else "")
    ]
    if metrics["fmri_r_undefined"] > 0:
        lines.append(f"{metrics['fmri_r_undefined']:.1%} of the voxels never change, and have no r")
    lines.append(
        "reconstruction, relative to the training mean (1): "
        + ", ".join(f"{name} {metrics[f'{name}_over_mean']:.3f}" for name in modalities)
    )
    return "\n".join(lines)
