"""A checkpoint of two ranks goes on with one, and back: the same samples in every step, the same weights."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import assert_same_run, config, distance, samples


@pytest.mark.parametrize("task", ["Ragged", "Gan"])
@pytest.mark.parametrize("worlds", [(2, 1), (1, 2), (2, 1, 2), (1, 2, 3)], ids=str)
def test_change_in_the_middle_of_an_epoch(tmp_path, task, worlds):
    job = {"task": task, "task_args": {"items": 49, "float64": True}}
    (reference,) = run(job | {"config": config(tmp_path / "whole")})
    seen = {}
    for ranks, stop in zip(worlds, [*(4, 11)[: len(worlds) - 1], None], strict=True):
        results = run(job | {"config": config(tmp_path / "pieces"), "stop_at": stop and {"step": stop}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        now = samples(results)
        assert not seen.keys() & now.keys()
        seen |= now
    assert seen == samples([reference])
    for epoch in range(3):  # seven steps each: every item once
        items = [i for step, batch in seen.items() if (step - 1) // 7 == epoch for i in batch]
        assert sorted(items) == list(range(49))
    assert distance(results[0]["weights"], reference["weights"]) < 1e-9


def test_back_to_the_first_number_of_ranks_before_anything_happened(tmp_path):
    """Started on two ranks, restarted on one that is stopped at once, and finished on two: still bit for bit."""
    job = {"task_args": {"dropout": 0.2}}
    run(job | {"config": config(tmp_path / "whole")}, 2)
    run(job | {"config": config(tmp_path / "pieces"), "stop_at": {"step": 4}}, 2)
    run(job | {"config": config(tmp_path / "pieces", max_steps=4)}, 1)
    run(job | {"config": config(tmp_path / "pieces")}, 2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
