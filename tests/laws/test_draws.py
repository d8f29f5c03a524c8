"""A data set that draws from global generators does not disturb dropout, and its own draws are repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from support.faults import FAULTS
from support.processes import run
from support.runs import assert_same_run, config, records, samples

LOADERS = {
    "in the loop": {"num_workers": 0},
    "a thread": {"num_workers": 1},
    "threads": {"num_workers": 2},
}
SLOW = {"dropout": 0.2, "slow_read": 0.0004}


def drawing(folder, stop_at=None, ranks=1, draws="torch", used=True, **settings):
    job = {"task": "Drawing", "task_args": SLOW | {"draws": draws, "used": used}, "config": config(folder, **settings)}
    results = run(job | {"stop_at": stop_at and {"step": stop_at}}, ranks)
    assert results[0]["error"] is None
    return results


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_draws_that_are_thrown_away_change_nothing(tmp_path, loader):
    drawing(tmp_path / "with", used=False, **loader)
    drawing(tmp_path / "without", draws="", **loader)
    assert_same_run(tmp_path / "with", tmp_path / "without")


@pytest.mark.parametrize("draws", ["torch", "numpy", "random"])
def test_augmentation_is_the_same_however_it_is_read_and_wherever_it_stops(tmp_path, draws):
    (result,) = drawing(tmp_path / "whole", draws=draws, num_workers=0)
    notes = [title for kind, title in result["events"] if kind == "note" and "global generator" in title]
    assert [note.partition(" draws from")[0] for note in notes] == ["the data set", "the validation data"]
    for workers in (1, 2):
        drawing(tmp_path / str(workers), draws=draws, num_workers=workers)
        assert_same_run(tmp_path / str(workers), tmp_path / "whole")
    for stop in (3, 11, None):
        drawing(tmp_path / "pieces", stop, draws=draws, num_workers=2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
    drawing(tmp_path / "other", draws=draws, num_workers=0, seed=1)
    assert records(tmp_path / "other") != records(tmp_path / "whole")


def test_processes_augment_alike(tmp_path):
    drawing(tmp_path / "loop", draws="numpy", num_workers=0, eval_steps=0)
    drawing(tmp_path / "processes", draws="numpy", num_workers=1, worker_type="process", eval_steps=0)
    assert_same_run(tmp_path / "processes", tmp_path / "loop")


def test_two_ranks(tmp_path):
    drawing(tmp_path / "whole", ranks=2, draws="numpy", num_workers=0)
    for stop in (9, None):
        drawing(tmp_path / "pieces", stop, ranks=2, draws="numpy", num_workers=2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_data_and_models_may_be_built_by_drawing(tmp_path):
    """Two ranks and a second run divide the items in the same way, and no item is in both parts."""
    job = {"task": "Divided", "config": config(tmp_path / "one")}
    (one,) = run(job)
    trained = {item for items in one["samples"].values() for item in items}
    assert not trained & FAULTS["evaluated"] and len(trained | FAULTS["evaluated"]) == 70
    before = np.random.get_state()[1].tolist()
    run(job | {"config": config(tmp_path / "two")})
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert np.random.get_state()[1].tolist() == before, "whoever calls it in a notebook may draw too"
    assert samples(run(job | {"config": config(tmp_path / "ranks")}, 2)) == one["samples"]
