"""Metrics of rows that are put together on rank 0: the same on any cut, and nothing stays behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.processes import run
from support.runs import assert_same_run, config, records
from support.toys import Ranked, Toy

from accel_train import Trainer
from accel_train.errors import UserError
from accel_train.train.gathering import Gathering
from accel_train.train.measuring import evaluate_run

BEST = {"metric_for_best_model": "auc", "greater_is_better": True}


def job(folder, **settings):
    return {"task": "Ranked", "task_args": {"float64": True}, "config": config(folder, **BEST | settings)}


def evaluations(folder):
    return [(r["step"], r["auc"], r["rows"]) for r in records(folder) if r["kind"] == "eval"]


def left_behind(folder):
    return [path.name for path in folder.rglob(".gathered*")]


CUTS = [(1, {"micro_batch_size": 3}), (2, {}), (3, {"micro_batch_size": 1})]


def test_any_cut_has_the_same_rows(tmp_path):
    run(job(tmp_path / "whole"))
    whole = evaluations(tmp_path / "whole")
    assert len(whole) == 4 and all(0 < auc < 1 and rows == 21 for _, auc, rows in whole)
    for i, (ranks, settings) in enumerate(CUTS):
        results = run(job(tmp_path / str(i), **settings), ranks)
        assert [r["error"] for r in results] == [None] * ranks
        np.testing.assert_allclose(evaluations(tmp_path / str(i)), whole, rtol=1e-12)
        assert len({result["metrics"]["auc"] for result in results}) == 1
    assert left_behind(tmp_path) == []


def test_the_command_finds_the_same(tmp_path):
    Trainer(Ranked(float64=True), **config(tmp_path, **BEST)).fit()
    found = evaluate_run(tmp_path, checkpoint="latest", out=tmp_path / "out", trust=True).metrics
    assert found["auc"] == evaluations(tmp_path)[-1][1] and left_behind(tmp_path) == []


def test_training_does_not_notice(tmp_path):
    for name, task in (("plain", Toy(dropout=0.2)), ("gathered", Ranked(dropout=0.2))):
        Trainer(task, **config(tmp_path / name)).fit()
    plain, gathered = (tmp_path / name / "model" / "model.safetensors" for name in ("plain", "gathered"))
    assert plain.read_bytes() == gathered.read_bytes()


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_error_on_the_first_rank_is_one_on_all(tmp_path, ranks):
    results = run(job(tmp_path) | {"task_args": {"fails": True}}, ranks)
    assert all("its evaluation on the validation data failed" in r["error"][1] for r in results)
    assert "rank 0 cannot" in results[0]["error"][1] and left_behind(tmp_path) == []


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    for name, stops in (("whole", [None]), ("pieces", [6, 13, None])):
        for stop in stops:
            run(job(tmp_path / name) | {"stop_at": stop and {"step": stop}}, 2)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


WRONG = {
    "a dict of names to tensors": lambda batch: batch["y"],
    "a tensor with a row for each of": lambda batch: {"y": batch["y"][:-1]},
    "rows of all batches must be alike": lambda batch: {"y": torch.ones(len(batch["y"]), len(batch["y"]))},
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_rows_are_refused_in_a_line(tmp_path, said):
    class Wrong(Ranked):
        def eval_gather(self, models, batch):
            return WRONG[said](batch)

        def eval_step(self, models, batch):
            return Toy.eval_step(self, models, batch)

        def eval_gathered(self, arrays):
            return {"auc": 0.5}

    with pytest.raises(UserError, match=said):
        Trainer(Wrong(), **config(tmp_path, **BEST, max_steps=6)).fit()


def test_a_name_that_is_taken(tmp_path):
    class Twice(Ranked):
        def eval_gathered(self, arrays):
            return {"loss": 1.0}

    with pytest.raises(UserError, match="eval_gathered: the name 'loss' is"):
        Trainer(Twice(), **config(tmp_path)).fit()


def test_rows_of_any_type_and_of_none(tmp_path):
    class One:
        rank, world_size, is_main = 0, 1, True

        def gather(self, value):
            return [value]

    with Gathering(tmp_path, One()) as gathering:
        for batch in range(3):
            gathering.append(
                batch, {"flag": np.array([True, False]), "none": np.zeros((2, 0)), "z": np.full(2, batch + 1j)}
            )
        gathering.close()
        arrays = gathering.arrays()
        assert arrays["flag"].tolist() == [True, False] * 3 and arrays["none"].shape == (6, 0)
        assert arrays["z"].tolist() == [1j, 1j, 1 + 1j, 1 + 1j, 2 + 1j, 2 + 1j]
        arrays["flag"][0] = False  # a copy
        assert left_behind(tmp_path)
    assert not left_behind(tmp_path)
