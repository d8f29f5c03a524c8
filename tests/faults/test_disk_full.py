"""No space left in the middle of a save: the run goes on, says so, and keeps what it had."""

from __future__ import annotations

import pytest
from support.faults import DISK_PLACES
from support.processes import run
from support.runs import assert_same_run, config, damaged, steps_saved, weights_files

SETTINGS = dict(save_steps=4, eval_steps=0, save_total_limit=None)


def one_failed(folder, results, whole):
    for result in results:
        assert (result["error"], result["outcome"]) == (None, "completed")
    loud = [title for kind, title in results[0]["events"] if kind == "warning" and "NOT SAVED" in title]
    assert len(loud) == 1 and "STEP 16" in loud[0] and "step 12" in loud[0]
    assert damaged(folder) == [] and steps_saved(folder) == [4, 8, 12, 20, 24]
    assert not list((folder / "checkpoints").glob(".writing*"))
    assert weights_files(folder) == weights_files(whole)


@pytest.mark.parametrize("place", ["size limit", *(place for place in DISK_PLACES if place != "best model")])
def test_one_process(tmp_path, place):
    run({"config": config(tmp_path / "whole", **SETTINGS)})
    disk = {"place": place, "steps": [16]}
    results = run({"config": config(tmp_path / "full", **SETTINGS), "disk": disk})
    one_failed(tmp_path / "full", results, tmp_path / "whole")


@pytest.mark.parametrize(("place", "rank"), [("size limit", 0), ("optimizer", 0), ("manifest", 0), ("folder", 0)])
def test_one_of_two_ranks(tmp_path, place, rank):
    run({"config": config(tmp_path / "whole", **SETTINGS)}, 2)
    disk = {"place": place, "steps": [16], "rank": rank}
    results = run({"config": config(tmp_path / "full", **SETTINGS), "disk": disk}, 2)
    one_failed(tmp_path / "full", results, tmp_path / "whole")


def test_stopped_while_the_disk_is_full(tmp_path):
    """What can still be done is done: the last whole checkpoint is resumed from."""
    run({"config": config(tmp_path / "whole", **SETTINGS)})
    job = {"config": config(tmp_path / "full", **SETTINGS)}
    run(job | {"disk": {"place": "weights", "steps": [12, 13, 14]}, "stop_at": {"step": 14}})
    assert steps_saved(tmp_path / "full") == [4, 8]
    (result,) = run(job)
    assert min(result["samples"]) == 9
    assert_same_run(tmp_path / "full", tmp_path / "whole")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_best_model_does_not_fit(tmp_path, ranks):
    """Its checkpoint is written, its export is not: said aloud, and training goes on."""
    (reference, *_) = run({"config": config(tmp_path / "whole", eval_steps=3)}, ranks)
    best = reference["best"]["step"]
    disk = {"place": "best model", "steps": [best]}
    results = run({"config": config(tmp_path / "full", eval_steps=3), "disk": disk}, ranks)
    assert [r["error"] for r in results] == [None] * ranks
    warnings = [title for kind, title in results[0]["events"] if kind == "warning"]
    assert any("best" in title.lower() and "space" in title for title in warnings)
