"""kill -9 at any moment: the next start resumes by itself, and the end is bit for bit the same."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from support.processes import Child, run
from support.runs import assert_same_run, config, damaged, steps_saved


def job(folder, **more):
    settings = dict(max_steps=400, eval_steps=25, logging_steps=10, save_steps=3, save_total_limit=2)
    arguments = {"dropout": 0.2, "slow": 0.001}
    return {"task_args": arguments, "config": config(folder, **settings | more), "disk": {"slow": 0.008}}


def writing(folder: Path) -> list[Path]:
    return [path for path in (folder / "checkpoints").glob(".writing-0*") if path.is_dir()]


def kill_often(folder: Path, kills: int, **more) -> int:
    """Start and kill so many times; returns how many died inside a save."""
    chance, inside, first = random.Random(kills), 0, False
    for number in range(kills):
        child = Child(job(folder, **more))
        before = steps_saved(folder)
        end = time.monotonic() + 20
        while steps_saved(folder) == before and child.alive() and time.monotonic() < end:
            time.sleep(0.002)  # so that every life gets somewhere
        assert child.alive(), f"the run ended before kill {number}"
        if number % 3:  # inside a save
            time.sleep(chance.random() * 0.02)
            while not writing(folder) and child.alive():
                time.sleep(0.0005)
            time.sleep(chance.random() * 0.04)
        else:
            time.sleep(chance.random() * 0.1)
        child.kill()
        inside += bool(writing(folder))
        first = first or bool(before)
        assert damaged(folder) == []
        assert steps_saved(folder) or not first, "no checkpoint is left"
    return inside


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(job(folder) | {"disk": None})
    return folder


@pytest.mark.parametrize(("beside", "kills"), [(True, 10), (False, 5)])
def test_fifteen_times(tmp_path, whole, beside, kills):
    """With one checkpoint kept, the hardest case: there is never none."""
    settings = dict(save_total_limit=1, save_in_background=beside)
    assert kill_often(tmp_path, kills, **settings) >= kills // 2
    (result,) = run(job(tmp_path, **settings) | {"disk": None})
    assert result["outcome"] == "completed"
    assert_same_run(tmp_path, whole)
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "beside"), [(2, False), (1, True)])
def test_a_hundred_times(tmp_path, limit, beside):
    longer = dict(max_steps=1600, save_total_limit=limit, save_in_background=beside)
    assert kill_often(tmp_path / "killed", 100, **longer) >= 50
    for folder in ("killed", "whole"):
        run(job(tmp_path / folder, **longer) | {"disk": None})
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("method", ["save", "mark_best", "export"])
def test_around_the_best_model(tmp_path, method):
    """Killed with the checkpoint of the best model written but not the best model itself."""
    settings = config(tmp_path / "whole", eval_steps=3)
    (reference,) = run({"config": settings})
    best = reference["best"]["step"]
    mine = {"config": config(tmp_path / "killed", eval_steps=3)}
    die = {"method": method, "step": tmp_path / "killed/model" if method == "export" else best}
    child = Child(mine | {"die_in": die})
    child.process.join(30)
    assert child.process.exitcode == -9
    assert run(mine)[0]["outcome"] == "completed"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert (tmp_path / "killed/checkpoints/best").resolve().name == f"step-{best:09d}"
