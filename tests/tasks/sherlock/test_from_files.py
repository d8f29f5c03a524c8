"""From files as a lab has them to a trained network that is evaluated: the parts fit together."""

from __future__ import annotations

import json

import numpy as np
import pytest

from accel_train import Trainer
from accel_train.cli import main
from accel_train.tasks.sherlock import SherlockTask

TRS = {"part1": 70, "part2": 60, "part3": 50}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two viewers in training, one who is held out."""
    folder = tmp_path_factory.mktemp("film")
    raw, out = folder / "raw", folder / "data"
    SherlockTask.synth(raw, seed=1, size=3, trs=tuple(TRS.values()))
    movies, sounds = ([f"{raw}/stim_{run}.{end}" for run in TRS] for end in ("mp4", "wav"))
    assert main([
        "sherlock", "preprocess", f"--out={out}", "--fmri", f"{raw}/fmri", "--runs",
        *(f"{run}={n}" for run, n in TRS.items()), "--video", *movies, "--audio", *sounds, "--annotations",
        f"{raw}/annotations.xlsx", "--rois", f"{raw}/rois.nii.gz", "--frame_size=16x9", "--text_dim=32",
        "--held_out_subjects", "s3", "--gap=5",
    ]) == 0  # fmt: skip
    return out


@pytest.mark.parametrize("target", ["per_subject", "average"])
def test_a_run_on_preprocessed_files(data, tmp_path, target):
    task = SherlockTask(
        str(data), window_trs=10, lags=8, target=target, latent=8, encoder_widths=[8], fusion_widths=[16],
        decoder_widths=[16],
    )  # fmt: skip
    run = tmp_path / "run"
    result = Trainer(
        task, output_dir=str(run), max_steps=4, global_batch_size=4, warmup_steps=0, logging_steps=2, eval_steps=2,
        report_to=[],
    ).fit()  # fmt: skip
    assert result.outcome == "completed" and {"fmri_r_visual", "fmri_r_null", "text_over_mean"} <= set(result.metrics)
    assert main(["evaluate", str(run), "--split=test"]) == 0
    metrics = json.loads((run / "evaluation" / "evaluation.json").read_text())["metrics"]
    assert ("fmri_r_new_subjects" in metrics) == (target == "per_subject")
    items = task.items("test")
    assert len(items) == (3 if target == "per_subject" else 1) * TRS["part3"] / 10
    predicted = np.load(run / "evaluation" / "predictions" / "fmri.npy", mmap_mode="r")
    assert predicted.shape == (len(items), 10, task.prepared.voxels)
