"""Data that do not come, or cannot be read: a stop is obeyed all the same, and the last whole step is kept."""

from __future__ import annotations

import os
import signal

import pytest
from support.processes import Child, Team, run, wait_for
from support.runs import assert_same_run, config, damaged, steps_saved

from accel_train import cli
from accel_train.train.control import request
from accel_train.train.loop import Loop

SETTINGS = dict(max_steps=24, eval_steps=6, logging_steps=5, save_steps=None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    made = {}

    def get(ranks, task="Toy"):
        if (ranks, task) not in made:
            made[ranks, task] = tmp_path_factory.mktemp("whole")
            run(job(made[ranks, task], task), ranks)
        return made[ranks, task]

    return get


def job(folder, task="Toy", **faults):
    evaluates = {"eval_steps": 0} if task in ("Gan", "Unending") else {}
    return {"task": task, "config": config(folder, **SETTINGS | evaluates), "faults": faults}


def stall(folder, **where):
    return {"mark": str(folder / "stalled"), **where}


def goes_on(folder, whole, step, ranks=1, task="Toy"):
    """Saved at that step, and bit for bit the same in the end."""
    assert damaged(folder) == [] and steps_saved(folder)[-1] == step
    results = run(job(folder, task), ranks)
    assert {result["outcome"] for result in results} == {"completed"}
    assert_same_run(folder, whole(ranks, task))


def start(folder, ranks, job):
    """The ranks, as soon as one of them waits for data."""
    team = Team(ranks)
    members = team.start(job) if ranks > 1 else [Child(job)]
    wait_for(lambda: (folder / "stalled").exists())
    return members


def results_of(members):
    results = [member.result(20) for member in members]
    for member in members:
        member.kill()
    return results


@pytest.mark.parametrize("ask", ["SIGTERM", "SIGHUP", "file"])
def test_a_stop_while_waiting_for_data(tmp_path, whole, ask):
    members = start(tmp_path, 1, job(tmp_path, stall=stall(tmp_path, steps=[13])))
    if ask == "file":
        assert cli.main(["stop", str(tmp_path)]) == 0
    else:
        os.kill(members[0].pid, getattr(signal, ask))
    (result,) = results_of(members)
    assert (result["error"], result["outcome"], result["step"]) == (None, "stopped", 13)
    assert result["reason"] == {"file": "accel-train stop"}.get(ask, ask) and result["by_signal"] is (ask != "file")
    goes_on(tmp_path, whole, 13)


def test_before_the_first_step(tmp_path, whole):
    """There is nothing to save."""
    members = start(tmp_path, 1, job(tmp_path, stall=stall(tmp_path)))
    os.kill(members[0].pid, signal.SIGTERM)
    (result,) = results_of(members)
    assert (result["outcome"], result["step"]) == ("stopped", 0) and steps_saved(tmp_path) == []
    run(job(tmp_path))
    assert_same_run(tmp_path, whole(1))


def test_what_is_asked_of_the_task_before_the_first_step(tmp_path):
    members = start(tmp_path, 1, job(tmp_path, stall=stall(tmp_path, split="baselines")))
    os.kill(members[0].pid, signal.SIGTERM)
    (result,) = results_of(members)
    assert (result["error"], result["outcome"], result["step"]) == (None, "stopped", 0)
    assert [title for _, title in result["events"]] == ["baselines left out, since the run is to stop"]
    assert not (tmp_path / "errors").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_stop_while_the_validation_data_are_tried(tmp_path, whole, ranks):
    members = start(tmp_path, ranks, job(tmp_path, stall=stall(tmp_path, split="validation", rank=ranks - 1)))
    assert cli.main(["stop", str(tmp_path)]) == 0
    for result in results_of(members):
        assert (result["error"], result["outcome"], result["step"]) == (None, "stopped", 0)
        assert result["reason"] == "accel-train stop"
    run(job(tmp_path), ranks)
    assert_same_run(tmp_path, whole(ranks))


def test_time_is_up_while_waiting_for_data(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(Loop, "_time_is_up", lambda loop: "max_time" * (tmp_path / "stalled").exists())
    (result,) = run(job(tmp_path, stall=stall(tmp_path, steps=[13])))
    assert (result["outcome"], result["reason"], result["step"]) == ("stopped", "max_time", 13)
    assert result["by_signal"] is False
    monkeypatch.undo()
    goes_on(tmp_path, whole, 13)


@pytest.mark.parametrize("task, asked", [("Toy", 0), ("Toy", 1), ("Toy", None), ("Ragged", 0), ("Gan", 0)])
def test_one_rank_waits_for_data(tmp_path, whole, task, asked):
    """The others have begun the step: all of them drop it. One of them is asked to stop, or the one without data, or
    there is a file."""
    members = start(tmp_path, 2, job(tmp_path, task, stall=stall(tmp_path, rank=1, steps=[13])))
    if asked is None:
        request(tmp_path, "stop")
    else:
        os.kill(members[asked].pid, signal.SIGTERM)
    results = results_of(members)
    for result in results:
        assert (result["error"], result["outcome"], result["step"]) == (None, "stopped", 13)
        assert result["reason"] == ("accel-train stop" if asked is None else "SIGTERM")
        assert result["by_signal"] is (asked is not None)
    goes_on(tmp_path, whole, 13, 2, task)


def test_all_ranks_wait_from_the_beginning(tmp_path, whole):
    """None of them can say what is summed in a step."""
    members = start(tmp_path, 2, job(tmp_path, "Ragged", stall=stall(tmp_path)))
    os.kill(members[1].pid, signal.SIGTERM)
    assert [(r["error"], r["outcome"], r["step"]) for r in results_of(members)] == [(None, "stopped", 0)] * 2


def test_ranks_that_cannot_drop_a_step_together(tmp_path, whole):
    """Where forwards of ranks wait for each other, the others are in one already: the last checkpoint counts."""
    communicating = job(tmp_path, "Communicating", stall=stall(tmp_path, rank=1, steps=[13]))
    communicating["config"] |= {"save_steps": 6}
    members = start(tmp_path, 2, communicating | {"leave": True})
    wait_for(lambda: steps_saved(tmp_path)[-1:] == [12])
    os.kill(members[1].pid, signal.SIGTERM)
    without, other = [member.result(20)["error"] for member in reversed(members)]
    assert without[0] == "StoppedError" and "SIGTERM" in without[1] and "last checkpoint is of step 12" in without[1]
    assert other[0] == "LostRankError" and "last checkpoint is of step 12" in other[1]
    assert (tmp_path / "status.json").read_text().count("last checkpoint is of step 12") == 1
    goes_on(tmp_path, whole, 12, 2, "Communicating")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("step", [12, 24])
def test_a_stop_while_evaluating(tmp_path, whole, ranks, step):
    """The evaluation is made up for when the run goes on, and a run is not complete without its last one."""
    where = stall(tmp_path, split="validation", steps=[step], rank=ranks - 1)
    members = start(tmp_path, ranks, job(tmp_path, stall=where))
    os.kill(members[0].pid, signal.SIGTERM)
    for result in results_of(members):
        assert (result["error"], result["outcome"], result["step"]) == (None, "stopped", step)
    goes_on(tmp_path, whole, step, ranks)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert run(job(tmp_path), ranks)[0]["outcome"] == "completed"
    assert (tmp_path / "metrics.jsonl").read_bytes() == before, "evaluated once more"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("task", ["Toy", "Gan"])
def test_data_that_fail(tmp_path, whole, ranks, task):
    results = run_team(tmp_path, ranks, job(tmp_path, task, **{"bad data": {"rank": ranks - 1, "steps": [13]}}))
    assert results[-1]["error"][0] == "DataError" and "injected: nothing to read" in results[-1]["error"][1]
    for result in results[:-1]:
        assert result["error"][0] == "OtherRankError" and "rank 1: DataError: injected" in result["error"][1]
    assert "the last checkpoint is of step 13" in (tmp_path / "status.json").read_text()
    goes_on(tmp_path, whole, 13, ranks, task)


def run_team(folder, ranks, job):
    team = Team(ranks)
    try:
        return [member.result(20) for member in team.start(job)] if ranks > 1 else run(job)
    finally:
        team.close()


def test_a_task_that_fails_in_a_step(tmp_path, whole):
    (result,) = run(job(tmp_path, crash={"steps": [14]}))
    assert result["error"] == ("RuntimeError", "injected crash")
    goes_on(tmp_path, whole, 13)


def test_a_task_that_fails_in_the_middle_of_a_step(tmp_path):
    """The critic has been updated: these weights are of no step."""
    (result,) = run(job(tmp_path, "Gan", crash={"steps": [14], "objective": "generator"}))
    assert result["error"] == ("RuntimeError", "injected crash") and steps_saved(tmp_path) == []


@pytest.mark.parametrize("fault", ["stall", "bad data"])
def test_a_stream_of_unknown_length(tmp_path, whole, fault):
    where = stall(tmp_path, rank=1, steps=[13])
    if fault == "stall":
        members = start(tmp_path, 2, job(tmp_path, "Unending", stall=where))
        os.kill(members[0].pid, signal.SIGTERM)
        assert [result["outcome"] for result in results_of(members)] == ["stopped"] * 2
    else:
        results = run_team(tmp_path, 2, job(tmp_path, "Unending", **{"bad data": where}))
        assert [result["error"][0] for result in results] == ["OtherRankError", "DataError"]
    goes_on(tmp_path, whole, 13, 2, "Unending")
