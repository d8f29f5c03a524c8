"""The laws for sherlock: terms with masks of their own, modalities and subjects that are withheld by key."""

from __future__ import annotations

import pytest
from support.laws import assert_cuts_change_nothing
from support.processes import kill_at_checkpoints, run
from support.runs import assert_same_run, config

BATCH = 6
DROPOUT = {"modality_dropout": 0.4, "subject_dropout": 0.4}


def job(folder, arguments=None, **settings):
    settings = dict(global_batch_size=BATCH, max_steps=10, learning_rate=1e-2, max_grad_norm=None, seed=3) | settings
    settings |= {"warmup_steps": 0}
    return {"task": "Brains", "task_args": DROPOUT | (arguments or {}), "config": config(folder, **settings)}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"fmri_loss_type": "correlation", "lag": "fir", "bottleneck": "voxels"},
        {"fmri_loss_type": "temporal_correlation", "window_trs": 7},
        {"fmri_loss_type": "mae", "time_layers": 1, "heads": 2, "window_trs": 7},
    ],
    ids=["plain", "through voxels", "correlation over time", "over time"],
)
def test_ranks_and_cuts_change_nothing(tmp_path, arguments):
    arguments = {"float64": True} | arguments
    assert_cuts_change_nothing(lambda folder, **settings: job(folder, arguments, **settings), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, workers):
    settings = {"num_workers": workers}
    arguments = {"dropout": 0.1}
    run(job(tmp_path / "whole", arguments, **settings))
    for step in (3, 7):
        run(job(tmp_path / "run", arguments, **settings) | {"stop_at": {"step": step}})
    run(job(tmp_path / "run", arguments, **settings))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_killed(tmp_path):
    """Wherever SIGKILL strikes, in the middle of an epoch."""
    settings = {"num_workers": 2, "max_steps": 20, "save_steps": 2}
    run(job(tmp_path / "whole", {"dropout": 0.1}, **settings))
    kill_at_checkpoints(job(tmp_path / "killed", {"dropout": 0.1}, **settings))
    run(job(tmp_path / "killed", {"dropout": 0.1}, **settings))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
