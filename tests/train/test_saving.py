"""Saving beside the loop: the same files, nobody waits, and a checkpoint counts when it is on the disk."""

from __future__ import annotations

import time

import pytest
import torch
from accelerate import Accelerator
from support.faults import FAULTS
from support.processes import run
from support.runs import config, damaged, steps_saved

from accel_train.config.schema import TrainConfig
from accel_train.run.checkpoint import MANIFEST, CheckpointFolder
from accel_train.train import saving, snapshot
from accel_train.train.agenda import Agenda
from accel_train.train.snapshot import Snapshots

SETTINGS = dict(save_steps=4, eval_steps=0, save_total_limit=None)


def job(folder, **settings):
    return {"task_args": {"dropout": 0.2}, "config": config(folder, **SETTINGS | settings)}


@pytest.fixture
def slow(monkeypatch):
    """The checkpoint of step 4 is not there before the loop is two steps further; which steps ``latest`` then meant."""
    real, latest = CheckpointFolder.commit, []

    def commit(self, step):
        end = time.monotonic() + 20
        while step == 4 and FAULTS["this_step"] < 6 and time.monotonic() < end:
            time.sleep(0.001)
        latest.append(self.linked("latest"))
        return real(self, step)

    monkeypatch.setattr(CheckpointFolder, "commit", commit)
    return latest


def test_the_same_files_as_without(tmp_path):
    for name, beside in (("beside", True), ("awaited", False)):
        run(job(tmp_path / name, save_in_background=beside, ema_decay=0.9))
    assert steps_saved(tmp_path / "beside") == steps_saved(tmp_path / "awaited") == [4, 8, 12, 16, 20, 24]
    for step in steps_saved(tmp_path / "beside"):
        one, other = (tmp_path / name / f"checkpoints/step-{step:09d}" for name in ("beside", "awaited"))
        files = {path.name for path in one.iterdir()}
        assert files == {path.name for path in other.iterdir()} and "averages.safetensors" in files
        for name in files - {MANIFEST, "config.yaml"}:  # which name the folder
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_nobody_waits_and_latest_moves_when_it_is_there(tmp_path, slow):
    (result,) = run(job(tmp_path))
    assert result["outcome"] == "completed" and slow == [None, 4, 8, 12, 16, 20]
    assert damaged(tmp_path) == [] and steps_saved(tmp_path) == [4, 8, 12, 16, 20, 24]


def test_an_error_meanwhile_costs_no_checkpoint(tmp_path, slow):
    (result,) = run(job(tmp_path) | {"faults": {"crash": {"steps": [6]}}})
    assert result["error"][1] == "injected crash" and steps_saved(tmp_path)[0] == 4
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


@pytest.mark.parametrize("full", [False, True])
def test_an_error_in_the_middle_of_a_step_meanwhile(tmp_path, slow, full):
    """Nothing more is saved, but what is on its way is waited for, and what becomes of it is said."""
    crash = {"crash": {"steps": [6], "objective": "generator"}}
    disk = {"place": "manifest", "steps": [4]} if full else None
    (result,) = run({"task": "Gan", "config": config(tmp_path, **SETTINGS), "faults": crash, "disk": disk})
    assert result["error"] == ("RuntimeError", "injected crash") and slow == [None]
    said = [title for kind, title in result["events"] if kind == "warning"]
    assert len(said) == full and all("STEP 4 NOT SAVED: OSError" in title for title in said)
    assert steps_saved(tmp_path) == ([] if full else [4])
    assert ("step-000000004" in (tmp_path / "status.json").read_text()) is not full
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


def test_a_best_model_waits_for_its_checkpoint(tmp_path):
    (result,) = run(job(tmp_path, eval_steps=3))
    assert CheckpointFolder(tmp_path / "checkpoints").linked("best") == result["best"]["step"]


def test_a_snapshot_stays_as_it_is_and_its_memory_is_used_again():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    shared = torch.arange(6.0)
    optimizer.state[model.weight] |= {"view": shared[2:4], "whole": shared, "turned": torch.ones(2, 3).t()}
    accelerator = Accelerator(cpu=True)
    accelerator._models, accelerator._optimizers = [model], [optimizer]
    snapshots = Snapshots(copies=True)
    first = snapshots.take(accelerator, [])
    before = model.weight.detach().clone()
    state = first["optimizer.bin"]["state"][0]
    assert state["view"].untyped_storage().data_ptr() == state["whole"].untyped_storage().data_ptr()
    assert state["turned"].stride() == (1, 3) and state["view"].tolist() == [2.0, 3.0]
    with torch.no_grad():
        model.weight += 1
        shared += 1
    assert torch.equal(first["model.safetensors"]["weight"], before) and state["whole"][0] == 0
    second = snapshots.take(accelerator, [])
    assert torch.equal(second["model.safetensors"]["weight"], before + 1)
    for name in ("weight", "bias"):
        assert second["model.safetensors"][name].data_ptr() == first["model.safetensors"][name].data_ptr()


def test_memory_that_cannot_be_pinned():
    """There is no GPU, or none of that memory is left."""
    assert snapshot._buffer(3, pinned=True).nbytes == 3


def test_a_warning_where_steps_and_saves_take_too_long(monkeypatch):
    def agenda(**settings):
        return Agenda(TrainConfig(**settings), plan=None, probes=None)  # pyright: ignore[reportArgumentType]

    quick = agenda(max_time="10min")
    quick.saved(100.0)
    assert quick.too_slow(1.0) == "" and quick.time_is_up(1.0) == ""
    quick.saved(150.0)
    assert "max_time: to finish the last steps and save may take 304 s" in quick.too_slow(1.0)
    assert quick.too_slow(1.0) == "", "said once"
    quick.saved(300.0)
    assert quick.time_is_up(1.0) == "max_time"
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 3600))
    job = agenda()
    job.saved(100.0)
    assert "--signal=B:USR1@234" in job.too_slow(1.0) and job.time_is_up(1.0) == ""
    assert job.time_is_up(900.0) == "SLURM_JOB_END_TIME"
    for wrong in ("soon", "0", str(time.time() - 60)):
        monkeypatch.setenv("SLURM_JOB_END_TIME", wrong)
        assert agenda().time_is_up(1e9) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_what_is_not_finite_is_found(dtype):
    values = torch.ones(70, dtype=dtype)
    assert saving._all_finite(values) and saving._all_finite(values[:0])
    for bad in (float("nan"), float("inf"), -float("inf")):
        values[50] = bad
        assert not saving._all_finite(values)
