"""Out of memory on any rank: all halve the micro-batch, repeat the step, and the run is the same."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import config, distance, samples


def job(folder, task="Ragged", **more):
    arguments = {"items": 49, "float64": True}
    return {"task": task, "task_args": arguments, "config": config(folder, **more.pop("settings", {})), **more}


@pytest.mark.parametrize("task", ["Ragged", "Gan"])
@pytest.mark.parametrize(
    ("ranks", "oom"),
    [
        (1, {"above": 3}),
        (2, {"above": 2}),
        (2, {"above": 2, "rank": 1}),
        (2, {"above": 1, "rank": 0, "steps": [9, 10]}),
    ],
    ids=["one process", "both ranks", "rank 1 only", "rank 0 in the middle"],
)
def test_the_run_completes_and_is_the_same(tmp_path, task, ranks, oom):
    reference = run(job(tmp_path / "fine", task), ranks)
    results = run(job(tmp_path / "tight", task, faults={"oom": oom}), ranks)
    assert sum(r["ooms"] for r in results) > 0
    for result in results:
        assert result["error"] is None
        assert result["micro_batch_size"] <= oom["above"]
        assert result["micro_batch_size"] == results[0]["micro_batch_size"]
        assert distance(result["weights"], reference[0]["weights"]) < 1e-12
    assert samples(results) == samples(reference)
    assert results[0]["updates"] == reference[0]["updates"]


def test_a_resumed_run_remembers_what_fits(tmp_path):
    reference = run(job(tmp_path / "fine"))
    tight = job(tmp_path / "tight", faults={"oom": {"above": 3}})
    run(tight | {"stop_at": {"step": 5}})
    (result,) = run(tight)
    assert result["ooms"] == 0 and result["micro_batch_size"] == 2
    assert distance(result["weights"], reference[0]["weights"]) < 1e-12


@pytest.mark.parametrize("ranks", [1, 2])
def test_one_item_that_does_not_fit(tmp_path, ranks):
    for result in run(job(tmp_path, faults={"oom": {"above": 0, "rank": ranks - 1}}), ranks):
        kind, text = result["error"]
        assert kind == "UserError" and "out of memory" in text and "one item" in text


def test_without_the_guard_it_is_an_ordinary_error(tmp_path):
    (result,) = run(job(tmp_path, faults={"oom": {"above": 3}}, settings={"memory_guard": False}))
    assert result["error"][0] == "OutOfMemoryError"
