"""The laws for tcn: stratified batches of windows, a balanced loss, logits of windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.laws import assert_cuts_change_nothing
from support.processes import kill_at_checkpoints, run
from support.runs import assert_same_run, config
from support.small_tasks import Disruptions

from accel_train.tasks.tcn.model import physical

BATCH = 6


def job(folder, arguments=None, **settings):
    settings = dict(global_batch_size=BATCH, max_steps=10, learning_rate=1e-2, max_grad_norm=None, seed=3) | settings
    return {"task": "Disruptions", "task_args": arguments or {}, "config": config(folder, **settings)}


@pytest.mark.parametrize(
    ("balance", "channel_dropout"), [("batch", 0.0), ("batch", 0.8), ("dataset", 0.0), ("none", 0.0)]
)
def test_ranks_and_cuts_change_nothing(tmp_path, balance, channel_dropout):
    arguments = {"float64": True, "balance": balance, "channel_dropout": channel_dropout}
    assert_cuts_change_nothing(lambda folder, **settings: job(folder, arguments, **settings), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, workers):
    arguments, settings = {"channel_dropout": 0.8}, {"num_workers": workers}
    run(job(tmp_path / "whole", arguments, **settings))
    for step in (3, 7):
        run(job(tmp_path / "run", arguments, **settings) | {"stop_at": {"step": step}})
    run(job(tmp_path / "run", arguments, **settings))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_killed(tmp_path):
    """Wherever SIGKILL strikes, with readers ahead, in the middle of an epoch."""
    arguments, settings = {"channel_dropout": 0.8}, {"num_workers": 2, "max_steps": 25, "save_steps": 2}
    run(job(tmp_path / "whole", arguments, **settings))
    kill_at_checkpoints(job(tmp_path / "killed", arguments, **settings))
    run(job(tmp_path / "killed", arguments, **settings))
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_channel_drop_out_is_of_training_alone():
    """Another in each epoch, cut among ranks as the windows are; evaluation sees all channels."""
    task = Disruptions(channel_dropout=0.8)
    train, validation = (task.build_data(split, BATCH, 3) for split in ("train", "validation"))
    whole, again = (train.batch(epoch, 1, 0, 1)["kept"] for epoch in (0, 1))
    assert whole.shape == (BATCH, 3) and not whole.all() and (whole != again).any()
    np.testing.assert_array_equal(np.concatenate([train.batch(0, 1, rank, 4)["kept"] for rank in range(4)]), whole)
    assert "kept" not in validation.batch(0, 0, 0, 1)
    assert "kept" not in Disruptions().build_data("train", BATCH, 3).batch(0, 0, 0, 1)


def test_a_dropped_channel_is_as_if_it_were_at_its_mean():
    task = Disruptions(float64=True)
    batch = {
        name: torch.as_tensor(value) for name, value in task.build_data("train", BATCH, 3).batch(0, 0, 0, 1).items()
    }
    model = task.build_model(None)
    model.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]))
    kept = torch.arange(BATCH)[:, None] % 3 != torch.arange(3)
    silent = torch.where(kept[..., None], physical(batch["x"], batch["scale"], batch["offset"]), model.mean[:, None])
    torch.testing.assert_close(model(batch["x"], batch["scale"], batch["offset"], kept), model(silent))
