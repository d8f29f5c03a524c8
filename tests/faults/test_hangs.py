"""A rank that stands still: it is named, its stacks are written, and in the end it is ended and goes on bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

import psutil
from support.processes import Child, Team, run, wait_for
from support.runs import assert_same_run, config, damaged, steps_saved

from accel_train.train import watch, world
from accel_train.train.watch import _leave

SETTINGS = dict(max_steps=24, eval_steps=0, logging_steps=5, save_steps=6, requeue_exit_code=75)
WATCHED = dict(hang_warning="0.5s", hang_timeout="1s")


def job(folder, faults=None, **more):
    return {"config": config(folder, **SETTINGS | more), "faults": faults or {}, "program": True}


def events(folder, kind):
    file = folder / "events.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["title"] for line in lines if line["kind"] == kind]


def watchdogs(pid=None):
    return [each for each in psutil.Process(pid).children() if "watchdog.py" in " ".join(shown(each, "cmdline") or [])]


def shown(process, what):
    """None if it is gone by now."""
    with contextlib.suppress(psutil.Error):
        return getattr(process, what)()


def test_a_rank_that_holds_its_interpreter(tmp_path):
    """So that no thread of it can look; the other one waits for it, and neither can save."""
    folder, hang = tmp_path / "run", {"mark": str(tmp_path / "hangs"), "rank": 1, "steps": [14], "holding": True}
    team = Team(2)
    try:
        members = team.start(job(folder, {"hang": hang}, **WATCHED))
        for member in members:
            member.process.join(60)
        assert [member.process.exitcode for member in members] == [75, -9]
    finally:
        team.close()
    (session,) = (folder / "hangs").iterdir()
    (said,) = events(folder, "hang")
    assert said.startswith("rank 1 on ") and "has been reading data of step 15 for" in said
    assert "; the others wait, computing step 15; stacks are in " in said and said.endswith(str(session))
    stacks = {rank: (session / f"rank-{rank}.txt").read_text() for rank in (0, 1)}
    assert "in never_returns" in stacks[1] and "in all_reduce" in stacks[0] and "Thread" in stacks[0]
    assert "rank 1" in json.loads((folder / "status.json").read_text())["reason"]
    assert damaged(folder) == [] and steps_saved(folder)[-1] == 12
    assert {result["outcome"] for result in run(job(folder), 2)} == {"completed"}
    run(job(tmp_path / "whole"), 2)
    assert_same_run(folder, tmp_path / "whole")


def test_data_that_do_not_come(tmp_path):
    """Waiting ends as if a scheduler had asked, so the last whole step is saved."""
    child = Child(job(tmp_path, {"stall": {"mark": str(tmp_path / "stalled"), "steps": [13]}}, **WATCHED))
    result = child.result()
    child.kill()
    assert (result["error"], result["outcome"], result["step"]) == (None, "stopped", 13)
    assert result["by_signal"] and "hang_timeout: this run has been reading data of step 14" in result["reason"]
    assert damaged(tmp_path) == [] and steps_saved(tmp_path)[-1] == 13
    assert "in unread" in next(tmp_path.glob("hangs/*/rank-0.txt")).read_text()


def test_what_goes_on_in_time(tmp_path):
    """It is said that it stood still, and nothing else happens."""
    said = lambda: events(tmp_path / "run", "hang")  # noqa: E731
    (result,) = run(job(tmp_path / "run", {"slow data": {"steps": [13], "until": said}}, hang_warning="0.3s"))
    assert result["outcome"] == "completed" and len(said()) == 1
    line, *stacks = next((tmp_path / "run").glob("hangs/*/rank-0.txt")).read_text().splitlines()
    assert any("in unread" in each for each in stacks) and "has been reading data of step 14" in line
    run(job(tmp_path / "whole"))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_no_watchdog_outlives_its_rank(tmp_path, monkeypatch):
    child = Child(job(tmp_path / "killed", max_steps=100_000, hang_warning="5s"))
    (watchdog,) = wait_for(lambda: watchdogs(child.pid), 30)
    child.kill()
    gone = lambda: shown(watchdog, "status") in (None, psutil.STATUS_ZOMBIE)  # noqa: E731
    wait_for(gone, 30, "the end of the watchdog of a rank that was killed")
    monkeypatch.setattr(watch, "START_S", 0.0)
    slow = {"slow data": {"steps": [3], "until": watchdogs}}
    for faults, error in ((slow, None), (slow | {"crash": {"steps": [9]}}, "RuntimeError")):
        began = []
        monkeypatch.setattr(watch, "_leave", lambda *given, began=began: began.append(_leave(*given)))
        (result,) = run(job(tmp_path / f"{error}", faults, hang_warning="1h"))
        assert (result["error"] or [None])[0] == error and len(began) == 1 and watchdogs() == []
        assert not (tmp_path / f"{error}" / "hangs").exists()


def test_nccl_is_asked_to_remember(monkeypatch):
    """Unless somebody has asked it already; a watchdog then knows where."""
    for name in ("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_NCCL_TRACE_BUFFER_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world.flight_recorder(3) == ("", "")
    monkeypatch.setattr(world.os, "environ", dict(os.environ))
    world._begin_flight_record()
    pipe, dump = world.flight_recorder(3)
    assert pipe.endswith("/pipe-3.pipe") and dump.endswith("/dump-3") and os.path.isdir(os.path.dirname(pipe))
    world._begin_flight_record()
    assert world.flight_recorder(3) == (pipe, dump)


def test_a_watchdog_that_cannot_be_started_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "START_S", 0.0)

    def refuse(*arguments, **named):
        raise OSError(11, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    said = lambda: any("the watchdog cannot be started" in title for title in events(tmp_path, "warning"))  # noqa: E731
    (result,) = run(job(tmp_path, {"slow data": {"steps": [13], "until": said}}, hang_warning="1h"))
    assert result["outcome"] == "completed" and said()
