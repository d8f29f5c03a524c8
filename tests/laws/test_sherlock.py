"""The laws for sherlock: terms with masks of their own, modalities and subjects that are withheld by key."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import assert_same_run, config

BATCH = 6
DROPOUT = {"modality_dropout": 0.4, "subject_dropout": 0.4}


def job(folder, arguments=None, **settings):
    settings = dict(global_batch_size=BATCH, max_steps=10, learning_rate=1e-2, max_grad_norm=None, seed=3) | settings
    settings |= {"warmup_steps": 0}
    return {"task": "Brains", "task_args": DROPOUT | (arguments or {}), "config": config(folder, **settings)}


def samples(results):
    """The items of every step, whichever rank had them."""
    steps = sorted({step for result in results for step in result["samples"]})
    return {step: sorted(sum((result["samples"].get(step, []) for result in results), [])) for step in steps}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"fmri_loss_type": "correlation", "lag": "fir", "bottleneck": "voxels"},
        {"fmri_loss_type": "mae", "time_layers": 1, "heads": 2, "window_trs": 7},
    ],
    ids=["plain", "through voxels", "over time"],
)
def test_ranks_and_cuts_change_nothing(tmp_path, arguments):
    arguments = {"float64": True} | arguments
    plain = {"optimizer": {"class_path": "SGD"}}
    (whole,) = run(job(tmp_path / "1", arguments, **plain) | {"gradients": True})
    assert whole["error"] is None
    for ranks, settings in ((1, {"micro_batch_size": 2}), (2, {}), (3, {"micro_batch_size": 1})):
        folder = tmp_path / f"{ranks}-{len(settings)}"
        results = run(job(folder, arguments, **plain, **settings) | {"gradients": True}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        assert samples(results) == samples([whole])
        for mine, its in zip(results[0]["gradients"], whole["gradients"], strict=True):
            assert abs(mine - its).max() <= 1e-9 * abs(its).max()
        for name, value in whole["metrics"].items():
            assert results[0]["metrics"][name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, workers):
    settings = {"num_workers": workers}
    arguments = {"dropout": 0.1}
    run(job(tmp_path / "whole", arguments, **settings))
    for step in (3, 7):
        run(job(tmp_path / "run", arguments, **settings) | {"stop_at": {"step": step}})
    run(job(tmp_path / "run", arguments, **settings))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
