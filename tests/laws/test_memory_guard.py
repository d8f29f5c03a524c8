"""Out of memory on any rank: all halve the micro-batch, repeat the step, and the run is the same."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import config, distance, samples

SHORT = {"max_steps": 6, "eval_steps": 0, "learning_rate": 1e-4}


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


@pytest.mark.parametrize("place", ["split", "forward", "loss", "backward"])
@pytest.mark.parametrize("where", [{"rank": 1}, {}, {"rank": 0, "steps": [3, 4]}], ids=["rank 1", "both", "later"])
def test_wherever_memory_runs_out_the_others_do_not_wait(tmp_path, place, where):
    """They are in the reduction of totals, or of gradients: of which this rank has sent one of two buckets."""
    reference = run(job(tmp_path / "fine", "Outputs", settings=SHORT), 2)
    tight = job(tmp_path / "tight", "Outputs", faults={"oom": {"above": 2, "place": place, **where}}, settings=SHORT)
    results = run(tight, 2)
    assert sum(r["ooms"] for r in results) > 0
    for result in results:
        assert result["error"] is None and result["micro_batch_size"] <= 2
        assert distance(result["weights"], results[0]["weights"]) == 0
        assert distance(result["weights"], reference[0]["weights"]) < 1e-12
    assert samples(results) == samples(reference)


def test_a_step_has_few_collectives(tmp_path):
    """Totals, one for each bucket of gradients, which parameters were reached, and the vote."""
    for result in run(job(tmp_path, "Outputs", settings=SHORT), 2):
        assert [result["collectives"][step] for step in (2, 3, 4, 5, 6)] == [1 + 2 + 1 + 1] * 5


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
