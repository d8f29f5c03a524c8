"""status.json: always whole, never too often, and readable for a person."""

import json
import os
from datetime import UTC, datetime

import numpy as np
import pytest

from accel_train.task import Task
from accel_train.tracking.observer import Run
from accel_train.tracking.status import Status, describe


class ToyTask(Task):
    """Only its name is needed."""


def start(folder, **changes) -> Status:
    observer = Status()
    observer.on_start(
        Run(**({"output_dir": folder, "task": ToyTask(), "config": {}, "models": {}, "total_steps": 100} | changes))
    )
    return observer


def read(folder) -> dict:
    assert [p.name for p in folder.iterdir()] == ["status.json"], "no temporary files stay"
    return json.loads((folder / "status.json").read_text())


def test_written_at_the_start(tmp_path):
    start(tmp_path, start_step=40, resumed_from="checkpoints/step-000000040")
    status = read(tmp_path)
    updated = datetime.fromisoformat(status.pop("updated"))
    assert abs((datetime.now(UTC) - updated).total_seconds()) < 5
    assert status.pop("host")
    assert status == {
        "task": "toy", "total_steps": 100, "state": "running", "pid": os.getpid(), "step": 40,
        "last_checkpoint": "checkpoints/step-000000040", "last_eval": None,
    }  # fmt: skip


def test_ticks_are_written_once_per_interval(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("accel_train.tracking.status.time.monotonic", lambda: now)
    observer = start(tmp_path)
    seen = []
    for step in range(1, 25):  # half a second each
        now = step / 2
        observer.on_tick({"step": step, "loss": 0.5})
        seen.append(read(tmp_path)["step"])
    assert sorted(set(seen)) == [0, 10, 20]


def test_evaluations_checkpoints_and_the_end_are_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("accel_train.tracking.status.INTERVAL_S", 1000.0)
    observer = start(tmp_path)
    observer.on_tick({"step": 3, "loss": np.float32("nan"), "last_checkpoint": None})
    observer.on_evaluate({"kind": "eval", "step": 3, "loss": 0.5, "accuracy": float("inf")})
    status = read(tmp_path)
    assert (status["step"], status["loss"], status["non_finite"]) == (3, None, ["loss"])
    assert status["last_eval"] == {"step": 3, "loss": 0.5, "accuracy": None, "non_finite": ["accuracy"]}
    observer.on_save(3, tmp_path / "checkpoints" / "step-000000003")
    assert read(tmp_path)["last_checkpoint"].endswith("step-000000003")
    observer.on_end("stopped", {"reason": "time limit"})
    status = read(tmp_path)
    assert (status["state"], status["reason"], status["step"]) == ("stopped", "time limit", 3)


def test_a_write_that_fails_leaves_the_old_status(tmp_path, monkeypatch):
    monkeypatch.setattr("accel_train.tracking.status.INTERVAL_S", 0.0)
    observer = start(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        observer.on_tick({"step": 9})
    assert read(tmp_path)["step"] == 0


STATUS = {
    "task": "toy", "state": "running", "step": 12_000, "total_steps": 50_000, "epoch": 2, "phase": "main",
    "loss": 0.4712, "items_per_s": 1894.2, "step_s": 0.2, "wait_s": 0.01, "eta_s": 11520.0,
    "last_checkpoint": "runs/a/step-000010000",
    "last_eval": {"step": 10_000, "loss": 0.5, "accuracy": 0.91}, "pid": 17, "host": "node1",
    "updated": "2025-01-01T10:00:00+00:00",
}  # fmt: skip


def test_describe():
    assert describe(STATUS, now=datetime(2025, 1, 1, 10, 0, 3, tzinfo=UTC)).splitlines() == [
        "toy: running, step 12,000 of 50,000 (24.0%), epoch 2, phase main",
        "loss 0.4712, 1,894 items/s, wait 5%, ETA 3h12m",
        "last evaluation, step 10,000: loss 0.5000, accuracy 0.9100",
        "last checkpoint: runs/a/step-000010000",
        "updated 3s ago by process 17 on node1",
    ]


def test_describe_doubts_a_run_that_fell_silent_but_not_one_that_ended():
    later = datetime(2025, 1, 1, 12, tzinfo=UTC)
    assert describe(STATUS, now=later).splitlines()[-1] == (
        "updated 2h00m ago by process 17 on node1; since then it evaluates, or it was killed"
    )
    ended = describe({**STATUS, "state": "stopped", "reason": "SIGTERM"}, now=later).splitlines()
    assert ended[0].endswith("phase main (SIGTERM)") and ended[-1] == "updated 2h00m ago by process 17 on node1"


def test_describe_with_little_to_say(tmp_path):
    assert describe({}) == "run: unknown"
    assert describe({"state": "running", "step": 5, "total_steps": None, "loss": None}) == "run: running, step 5"
    start(tmp_path)
    assert describe(read(tmp_path)).startswith("toy: running, step 0 of 100 (0.0%)\nupdated 0s ago by process")
