"""What a network writes for the report is what it makes, and what it makes with a part withheld or silenced."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.small_tasks import Brains

from accel_train.tasks.sherlock.outputs import outputs
from accel_train.tasks.sherlock.reconstruction import errors

NAMES = ["video", "audio", "tokens", "text"]


def built(**options):
    task = Brains(float64=True, **options)
    torch.manual_seed(0)
    model = task.build_model(task.build_data("train", 8, 0)).eval()
    batch = task.items("validation").read(np.arange(5))
    return model, {name: torch.from_numpy(np.asarray(values)) for name, values in batch.items()}, task.prepared.rois


@pytest.mark.parametrize("bottleneck", ["latent", "voxels"])
def test_names_and_shapes(bottleneck: str):
    model, batch, rois = built(bottleneck=bottleneck)
    with torch.no_grad():
        found = outputs(model, batch, rois)
    lesions = {f"{name}_lesion_{roi}" for name in NAMES for roi in rois} if bottleneck == "voxels" else set()
    assert set(found) == {"fmri", *NAMES, *(f"fmri_without_{name}" for name in NAMES), *lesions}
    assert found["fmri_without_text"].shape == found["fmri"].shape == batch["fmri"].shape
    for name in NAMES:
        assert found[name].shape == batch[f"stimulus/{name}"][:, model.lags :].shape
    assert all(values.dtype == torch.float32 for values in found.values())


def test_a_modality_that_is_withheld_has_no_say():
    model, batch, rois = built()
    other = batch | {"stimulus/audio": batch["stimulus/audio"] + 7}
    with torch.no_grad():
        one, two = outputs(model, batch, rois), outputs(model, other, rois)
    assert not torch.equal(one["fmri"], two["fmri"])
    assert torch.equal(one["fmri_without_audio"], two["fmri_without_audio"])
    assert not torch.equal(one["fmri_without_video"], two["fmri_without_video"])


def test_errors_of_lesions_are_those_of_the_report():
    """Without any voxels the decoder gives the same for each TR."""
    model, batch, _ = built(bottleneck="voxels")
    with torch.no_grad():
        found = outputs(model, batch, {"everywhere": np.arange(model.voxels), "nowhere": np.zeros(0, np.int64)})
        nothing = model(batch, lesion=torch.ones(model.voxels, dtype=torch.bool))
        for name in NAMES:
            true = batch[f"stimulus/{name}"][:, model.lags :].flatten(0, 1).numpy()
            same = model.in_units(name, nothing[name]).flatten(0, 1)
            assert (same == same[:1]).all()
            for roi, made in (("everywhere", same), ("nowhere", found[name].flatten(0, 1))):
                wanted = errors(made.numpy(), true, np.zeros(1))[:, 0]
                np.testing.assert_allclose(found[f"{name}_lesion_{roi}"].flatten(), wanted, rtol=1e-4, atol=1e-5)
