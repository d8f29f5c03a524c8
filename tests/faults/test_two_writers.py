"""One run folder, one writer: a second start, a start after kill -9, orphans of a launcher, a run taken for dead."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
from support.long_run import arguments, job, logged
from support.processes import Child, Team, launch, run, wait_for
from support.runs import assert_same_run, damaged, steps_saved

from accel_train import cli
from accel_train.run import checkpoint
from accel_train.run import lock as run_lock
from accel_train.run.lock import NAME, look
from accel_train.train.control import request
from accel_train.train.evaluation import Evaluator
from accel_train.train.saving import Saver


def contents(folder: Path) -> dict[str, bytes]:
    """All but what the living run may be writing just now."""
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != NAME}


@contextlib.contextmanager
def held_up(pid: int):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_second_is_refused_and_the_first_unharmed(tmp_path, whole, ranks, capsys):
    team = Team(ranks)
    try:
        members = team.start(job(tmp_path, slow=0.01)) if ranks > 1 else [Child(job(tmp_path, slow=0.01))]
        wait_for(lambda: logged(tmp_path))
        request(tmp_path, "save")  # to the first one
        with held_up(members[0].pid):  # not even then; nor may anything be tidied away
            before = contents(tmp_path)
            assert cli.main(arguments(tmp_path, 0.0)) == 2
            assert contents(tmp_path) == before
        says = capsys.readouterr().err
        assert says.count("\n") == 1 and f"process {members[0].pid} on" in says
        results = [member.result() for member in members]
    finally:
        team.close()
    assert {result["outcome"] for result in results} == {"completed"}
    assert not (tmp_path / NAME).exists() and not (tmp_path / "control" / "save").exists()
    assert_same_run(tmp_path, whole(ranks))


@pytest.mark.parametrize("choice", ["auto", "never"])
def test_two_ranks_are_both_refused(tmp_path, choice):
    child = Child(job(tmp_path, slow=0.02))
    wait_for(lambda: logged(tmp_path, 1))
    with held_up(child.pid):
        before = contents(tmp_path)
        results = run(job(tmp_path, resume_from_checkpoint=choice), 2)
        assert contents(tmp_path) == before
    child.kill()
    assert {result["error"] for result in results} == {("UserError", results[0]["error"][1])}
    assert "another run is alive" in results[0]["error"][1]


def test_after_a_kill_it_goes_on_and_says_so(tmp_path, whole, capsys):
    child = Child(job(tmp_path, slow=0.01))
    wait_for(lambda: steps_saved(tmp_path))
    child.kill()
    assert cli.main(["status", str(tmp_path)]) == 0
    assert "killed" in capsys.readouterr().out.splitlines()[0]
    assert cli.main(["inspect", str(tmp_path)]) == 0
    assert "killed" in capsys.readouterr().out.splitlines()[0]
    assert cli.main(["stop", str(tmp_path)]) == 0
    assert f"is not running (killed: process {child.pid} on" in capsys.readouterr().out
    (result,) = run(job(tmp_path))
    assert result["outcome"] == "completed"
    assert [kind for kind, title in result["events"] if f"was in use by process {child.pid}" in title] == ["note"]
    assert_same_run(tmp_path, whole(1))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_launcher_is_killed(tmp_path, whole, processes):
    """Its orphans save and stop; a scheduler's next start waits for that and goes on."""
    launcher = launch(processes, *arguments(tmp_path, 0.01))
    wait_for(lambda: logged(tmp_path))
    orphan = look(tmp_path)
    assert orphan is not None
    launcher.kill()
    results = run(job(tmp_path), processes)
    assert {result["outcome"] for result in results} == {"completed"}
    assert min(results[0]["samples"]) > 1, "the orphan saved where it stopped"
    launcher.communicate(timeout=30)  # until all that wrote to its pipe have ended
    wait_for(lambda: orphan.alive() is False)
    assert damaged(tmp_path) == []
    assert_same_run(tmp_path, whole(processes))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_was_taken_for_dead_writes_no_more(tmp_path, ranks):
    """Suspended for an hour, as seen from another machine."""
    team = Team(ranks)
    try:
        members = team.start(job(tmp_path, slow=0.01)) if ranks > 1 else [Child(job(tmp_path, slow=0.01))]
        wait_for(lambda: logged(tmp_path))
        with held_up(members[0].pid):
            other = dataclasses.replace(run_lock.Holder.here(), host="node7", machine="elsewhere")
            (tmp_path / NAME).write_text(other.text())
            before = contents(tmp_path)
        results = [member.result() for member in members]
    finally:
        team.close()
    for result in results:
        kind, says = result["error"]
        assert kind == "LockLostError" and "on node7, since" in says and "\n" not in says
    assert contents(tmp_path) == before and (tmp_path / NAME).read_text() == other.text()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Evaluator, "evaluate"),
        (Saver, "_non_finite_weights"),  # before a checkpoint is begun
        (checkpoint.CheckpointFolder, "begin"),  # before it is committed
        (Saver, "save"),  # before the best model is exported
    ],
)
def test_also_between_two_writes(tmp_path, owner, name, monkeypatch):
    before: dict[str, bytes] = {}
    other = dataclasses.replace(run_lock.Holder.here(), host="node7", machine="elsewhere")
    real = getattr(owner, name)

    def losing(*arguments):
        answer = real(*arguments)
        (tmp_path / NAME).write_text(other.text())
        before.update(contents(tmp_path))
        return answer

    monkeypatch.setattr(owner, name, losing)
    (result,) = run(job(tmp_path, max_steps=10, eval_steps=5))
    assert result["error"] is not None and result["error"][0] == "LockLostError"
    written = [path for path, data in contents(tmp_path).items() if before.get(path) != data]
    assert [path for path in written if "/.writing-" not in path] == []
    assert (tmp_path / NAME).read_text() == other.text()


def test_the_exit_code_of_a_run_that_was_taken_for_dead(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Saver, "lost_folder", lambda self: "it is another run's now")
    assert cli.main(arguments(tmp_path, 0.0)) == 1
    assert capsys.readouterr().err == "accel-train: training failed: it is another run's now\n"


@pytest.mark.parametrize("ending", ["completed", "stopped", "crash", "UserError", "diverged"])
def test_the_lock_is_given_back(tmp_path, ending):
    more = {
        "stopped": {"stop_at": {"step": 5}},
        "crash": {"faults": {"crash": {"steps": [5]}}},
        "diverged": {"faults": {"non_finite": {"kind": "nan loss"}}},
    }.get(ending, {})
    settings = {"init_from": "nowhere"} if ending == "UserError" else {"non_finite": "raise"}
    (result,) = run(job(tmp_path, max_steps=10, **settings) | more)
    assert result["outcome"] == (ending if ending in ("completed", "stopped") else None)
    assert not [name for name in os.listdir(tmp_path) if "lock" in name]


def test_asking_a_run_that_prepares(tmp_path, capsys):
    """Its status is still that of the session before."""
    run(job(tmp_path) | {"stop_at": {"step": 20}})
    lock = run_lock.take(tmp_path)
    try:
        assert cli.main(["stop", str(tmp_path)]) == 0
        assert "asked" in capsys.readouterr().out
    finally:
        lock.release()
    status = json.loads((tmp_path / "status.json").read_text())
    (tmp_path / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert cli.main(["stop", str(tmp_path)]) == 0
    assert "is not running (ended: without a word" in capsys.readouterr().out
