"""What a network makes of the items of a split, for ``accel-train sherlock report``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from accel_train.tasks.sherlock.model import Autoencoder

LESIONS = 20
"""Regions that are silenced at most, the largest ones: each costs a pass through the network."""


def outputs(model: Autoencoder, batch: Mapping[str, Tensor], rois: Mapping[str, Any]) -> dict[str, Tensor]:
    """Float32, by name:

    fmri [B, W, V]: predicted BOLD. fmri_without_MODALITY: the same if that is withheld, where there are several.
    MODALITY [B, W, *shape]: made again, in the unit of the stimulus; of codes the likeliest.
    MODALITY_lesion_REGION [B, W]: the error of that if the voxels of a region are silenced, with the voxels as the
    bottleneck: squared, mean over the numbers of a TR; of codes the share that is wrong.

    Args:
        rois: the columns of each region.
    """
    names, made = list(model.modalities), model(batch)
    found = {"fmri": made["fmri"]} | {name: model.in_units(name, made[name]) for name in names}
    for m, name in enumerate(names if len(names) > 1 else []):
        keep = torch.ones_like(batch["available"])
        keep[:, m] = False
        found[f"fmri_without_{name}"] = model(batch, keep)["fmri"]
    if model.through_voxels:
        for roi in sorted(rois, key=lambda each: -len(rois[each]))[:LESIONS]:
            lesion = torch.zeros(model.voxels, dtype=torch.bool, device=made["fmri"].device)
            lesion[torch.as_tensor(rois[roi], device=lesion.device)] = True
            lesioned = model(batch, lesion=lesion)
            found |= {f"{name}_lesion_{roi}": _error(model, name, lesioned[name], batch) for name in names}
    return {name: values.float() for name, values in found.items()}


def _error(model: Autoencoder, name: str, made: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """[B, W]."""
    again, true = model.in_units(name, made), batch[f"stimulus/{name}"][:, model.lags :]
    each = (again != true) if name not in model.scales else (again - true.to(again.dtype)).square()
    return each.to(torch.float32).flatten(2).mean(2)
