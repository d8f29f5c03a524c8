"""Data that people bring obey the laws of all data: cuts change nothing, a stopped run goes on bit for bit."""

from __future__ import annotations

import pytest
from support.laws import assert_cuts_change_nothing
from support.processes import run
from support.runs import assert_same_run, config

DATA = [{}, {"streams": 1}, {"streams": 3}]


@pytest.mark.parametrize("data", DATA, ids=str)
def test_cuts_change_nothing(tmp_path, data):
    assert_cuts_change_nothing(
        lambda folder, **settings: {
            "task": "Brought", "task_args": {"float64": True, **data}, "config": config(folder, **settings),
        },
        tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("data", DATA, ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data, ranks):
    def train(folder, stop_at=None, **settings):
        job = {"task": "Brought", "task_args": {"dropout": 0.2, **data}, "config": config(folder, **settings)}
        results = run(job | {"stop_at": stop_at and {"step": stop_at}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks

    train(tmp_path / "whole")
    for stop in (1, 7, 12, None):
        train(tmp_path / "pieces", stop, num_workers=2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_worker_processes(tmp_path):
    for folder, settings in (("loop", {"num_workers": 0}), ("processes", {"num_workers": 1, "worker_type": "process"})):
        (result,) = run({"task": "Brought", "config": config(tmp_path / folder, eval_steps=0, **settings)})
        assert result["error"] is None
    assert_same_run(tmp_path / "processes", tmp_path / "loop")


def test_another_number_of_streams_is_other_data(tmp_path):
    for streams, settings in ((2, {"max_steps": 3}), (3, {"max_steps": 5})):
        job = {"task": "Brought", "task_args": {"streams": streams}}
        (result,) = run(job | {"config": config(tmp_path, allow_changed_config=True, **settings)})
    assert result["error"][0] == "UserError" and "there were 2 streams and are 3 now" in result["error"][1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_of_streams_too_short_for_the_ranks(tmp_path, ranks):
    """One held-out item: two ranks have nothing to evaluate."""
    job = {"task": "Brought", "task_args": {"streams": 3, "float64": True, "held_out": 1}}
    results = run(job | {"config": config(tmp_path / str(ranks), max_steps=2, eval_steps=1)}, ranks)
    assert [r["error"] for r in results] == [None] * ranks
    (whole,) = run(job | {"config": config(tmp_path / "whole", max_steps=2, eval_steps=1)})
    assert results[0]["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-9)
    job["task_args"]["held_out"] = 0
    (result, *_) = run(job | {"config": config(tmp_path / f"none-{ranks}")}, ranks)
    assert result["error"][0] in ("UserError", "DataError") and "empty" in result["error"][1]
