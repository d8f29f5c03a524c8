"""Data that people bring obey the laws of all data: cuts change nothing, a stopped run goes on bit for bit."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from support.laws import assert_cuts_change_nothing
from support.processes import run
from support.runs import assert_same_run, config, samples
from support.toys import Numbers

DATA = [{}, {"streams": 1}, {"streams": 3}]


@pytest.mark.parametrize("data", DATA, ids=str)
def test_cuts_change_nothing(tmp_path, data):
    assert_cuts_change_nothing(
        lambda folder, **settings: {
            "task": "Brought", "task_args": {"float64": True, **data}, "config": config(folder, **settings),
        },
        tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("data", DATA, ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, data, ranks):
    def train(folder, stop_at=None, **settings):
        job = {"task": "Brought", "task_args": {"dropout": 0.2, **data}, "config": config(folder, **settings)}
        results = run(job | {"stop_at": stop_at and {"step": stop_at}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks

    train(tmp_path / "whole")
    for stop in (1, 7, 12, None):
        train(tmp_path / "pieces", stop, num_workers=2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_worker_processes(tmp_path):
    for folder, settings in (("loop", {"num_workers": 0}), ("processes", {"num_workers": 1, "worker_type": "process"})):
        (result,) = run({"task": "Brought", "config": config(tmp_path / folder, eval_steps=0, **settings)})
        assert result["error"] is None
    assert_same_run(tmp_path / "processes", tmp_path / "loop")


def test_another_number_of_streams_is_other_data(tmp_path):
    for streams, settings in ((2, {"max_steps": 3}), (3, {"max_steps": 5})):
        job = {"task": "Brought", "task_args": {"streams": streams}}
        (result,) = run(job | {"config": config(tmp_path, allow_changed_config=True, **settings)})
    assert result["error"][0] == "UserError" and "there were 2 streams and are 3 now" in result["error"][1]


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_of_streams_too_short_for_the_ranks(tmp_path, ranks):
    """One held-out item: two ranks have nothing to evaluate."""
    job = {"task": "Brought", "task_args": {"streams": 3, "float64": True, "held_out": 1}}
    results = run(job | {"config": config(tmp_path / str(ranks), max_steps=2, eval_steps=1)}, ranks)
    assert [r["error"] for r in results] == [None] * ranks
    (whole,) = run(job | {"config": config(tmp_path / "whole", max_steps=2, eval_steps=1)})
    assert results[0]["metrics"]["loss"] == pytest.approx(whole["metrics"]["loss"], rel=1e-9)
    job["task_args"]["held_out"] = 0
    (result, *_) = run(job | {"config": config(tmp_path / f"none-{ranks}")}, ranks)
    assert result["error"][0] in ("UserError", "DataError") and "empty" in result["error"][1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Arguments of ``load_dataset``: three files of unequal length to train on, one held out."""
    folder, names = tmp_path_factory.mktemp("files"), {"train": [], "validation": []}
    for i, (begin, end) in enumerate([(0, 5), (5, 33), (33, 50), (50, 61)]):
        rows = Numbers(end, "files", float64=True).read(np.arange(begin, end))
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{i}.parquet")
        names["train" if i < 3 else "validation"].append(str(folder / f"{i}.parquet"))
    return {"path": "parquet", "data_files": names}


@pytest.mark.parametrize("more", [{}, {"streaming": False}], ids=["streamed", "cached"])
def test_cuts_change_nothing_in_what_a_config_names(tmp_path, files, more, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    made = {"float64": True, "data": files | more | ({"cache_dir": str(tmp_path / "cache")} if more else {})}
    few = {"max_steps": 14, "eval_steps": 14}  # two epochs
    assert_cuts_change_nothing(
        lambda folder, **settings: {"task": "Loaded", "task_args": made, "config": config(folder, **few, **settings)},
        tmp_path,
    )


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_streamed_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, files, ranks):
    def train(folder, stop_at=None, **settings):
        job = {"task": "Loaded", "task_args": {"dropout": 0.2, "data": files}, "config": config(folder, **settings)}
        results = run(job | {"stop_at": stop_at and {"step": stop_at}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        return samples(results)

    whole, pieces = train(tmp_path / "whole"), {}
    for stop in (5, 12, None):
        pieces |= train(tmp_path / "pieces", stop, num_workers=2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
    assert pieces == whole
    epochs = sorted(item for items in whole.values() for item in items)
    assert set(epochs) == set(range(50)) and whole[1] != list(range(8))
