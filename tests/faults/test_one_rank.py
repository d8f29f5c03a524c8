"""What happens on one rank only: a vote ends all on the same step, a crash or a death leaves nobody waiting."""

from __future__ import annotations

import time

import pytest
from support.processes import Team, launch, run
from support.runs import assert_same_run, config, damaged, steps_saved

SETTINGS = dict(save_steps=6, eval_steps=0, max_steps=40)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_asked_for_on_one_rank(tmp_path, rank):
    run({"config": config(tmp_path / "whole", **SETTINGS)}, 2)
    job = {"config": config(tmp_path / "run", **SETTINGS)}
    results = run(job | {"stop_at": {"step": 13, "rank": rank, "at_once": False}}, 2)
    assert {r["outcome"] for r in results} == {"stopped"}
    steps = {r["step"] for r in results}
    assert len(steps) == 1 and 13 <= min(steps) < 40
    assert steps_saved(tmp_path / "run")[-1] in steps
    assert all(r["reason"] for r in results)
    run(job, 2)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("fault", ["crash", "die"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_ends(tmp_path, fault, rank):
    run({"config": config(tmp_path / "whole", **SETTINGS)}, 2)
    job = {"config": config(tmp_path / "run", **SETTINGS)}
    team, began = Team(2), time.monotonic()
    try:
        members = team.start(job | {"leave": True, "faults": {fault: {"rank": rank, "steps": [15]}}})
        for member in members:
            member.process.join(60)
            assert not member.alive(), "it hangs"
        assert all(member.process.exitcode != 0 for member in members)
        survivor = members[1 - rank].result(1)
    finally:
        team.close()
    assert time.monotonic() - began < 60
    assert survivor["error"][0] == "LostRankError" and survivor["outcome"] is None
    kept = steps_saved(tmp_path / "run")[-1]
    assert kept == 12 or (kept == 6 and (rank, fault) == (0, "die")), "only who writes may take one with it"
    assert "another rank has died or left" in survivor["error"][1] and f"is of step {kept}" in survivor["error"][1]
    assert damaged(tmp_path / "run") == []
    results = run(job, 2)
    assert {(r["outcome"], min(r["samples"])) for r in results} == {("completed", kept + 1)}
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_disk_that_is_full_at_the_start(tmp_path):
    """Rank 0 alone writes: all of them hear of it."""
    disk = {"place": "progress", "steps": [0], "rank": 0}
    results = run({"config": config(tmp_path / "run", **SETTINGS), "disk": disk}, 2)
    assert {result["error"] for result in results} == {results[0]["error"]}
    assert results[0]["error"][0] == "UserError" and "No space left" in results[0]["error"][1]


@pytest.mark.slow
def test_what_only_one_rank_meets_is_said_once(tmp_path):
    running = launch(2, "train", "--task=support.toys.WrongOnOneRank", f"--output_dir={tmp_path}", "--max_steps=5")
    output, _ = running.communicate(timeout=60)
    assert running.returncode and output.count("accel-train: error: only rank 1 cannot read this") == 1
    assert output.count("another rank has died or left") <= 1
