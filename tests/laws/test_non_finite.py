"""A value that is not finite, on any one rank, costs all ranks the same update, and never reaches a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from support import toy_gans
from support.processes import run
from support.runs import config, damaged, records, steps_saved

from accel_train.run.weights import read_weights

KINDS = ["nan loss", "inf loss", "nan gradient"]


def job(folder, steps, kind="nan loss", rank=0, task="Toy", **settings):
    faults = {"non_finite": {"steps": steps, "kind": kind, "rank": rank}}
    return {"task": task, "task_args": {"items": 49}, "faults": faults, "config": config(folder, **settings)}


def same_and_finite(results):
    for result in results:
        for name, weight in result["weights"].items():
            assert np.isfinite(weight).all() and (weight == results[0]["weights"][name]).all(), name


def checkpoints_are_finite(folder):
    assert steps_saved(folder) and not damaged(folder)
    for step in steps_saved(folder):
        tensors = read_weights(folder / "checkpoints" / f"step-{step:09d}", ["model"])["model"]
        assert tensors and all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("ranks", "rank", "settings"),
    [(1, 0, {"micro_batch_size": 3}), (2, 0, {}), (2, 1, {"micro_batch_size": 2})],
    ids=["alone, cut", "rank 0 of 2", "rank 1 of 2, cut"],
)
def test_the_update_is_skipped_everywhere(tmp_path, kind, settings, ranks, rank):
    results = run(job(tmp_path, [4, 9], kind, rank, **settings), ranks)
    for result in results:
        assert (result["error"], result["outcome"]) == (None, "completed")
        assert [step for step, _ in result["updates"]] == [s for s in range(1, 25) if s not in (4, 9)]
    same_and_finite(results)
    checkpoints_are_finite(tmp_path)
    titles = [title for category, title in results[0]["events"] if category == "warning"]
    assert len(titles) == 2
    first = results[0]["samples"][4] if ranks == 1 else results[0]["samples"][4] + results[1]["samples"][4]
    assert (
        titles[0].startswith("step 4:") and "epoch 0, batch 3" in titles[0] and f"{first[0]}, {first[1]}," in titles[0]
    )
    assert ("grad_norm" if kind == "nan gradient" else "loss") in titles[0].split("not finite")[0]


@pytest.mark.parametrize("objective", ["critic", "generator"])
def test_only_the_objective_that_failed_is_skipped(tmp_path, objective, monkeypatch):
    real = toy_gans.spoil
    monkeypatch.setattr(toy_gans, "spoil", lambda value: value)
    gan = toy_gans.Gan.loss_step

    def loss_step(self, models, batch, totals, chosen):
        loss = gan(self, models, batch, totals, chosen)
        return loss._replace(value=real(loss.value)) if chosen.name == objective else loss

    monkeypatch.setattr(toy_gans.Gan, "loss_step", loss_step)
    results = run(job(tmp_path, [4], task="Gan"))
    assert results[0]["error"] is None
    left = [name for step, name in results[0]["updates"] if step == 4]
    assert left == (["generator"] if objective == "critic" else ["critic", "critic"])
    assert f"{objective!r}" in results[0]["events"][0][1]
    same_and_finite(results)


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_raise(tmp_path, ranks, rank):
    results = run(job(tmp_path, [9], rank=rank, non_finite="raise", save_steps=4), ranks)
    for result in results:
        kind, text = result["error"]
        assert kind == "NonFiniteError" and "step 9" in text and "loss" in text and "batch 1" in text
    same_and_finite(results)
    checkpoints_are_finite(tmp_path)
    # mended, it goes on from the last checkpoint
    (again, *_) = run(job(tmp_path, [], rank=rank, non_finite="raise", save_steps=4), ranks)
    assert again["outcome"] == "completed" and min(again["samples"]) == 9


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_too_many_in_a_row(tmp_path, ranks, rank):
    """Three in a row are allowed here, also several times; the fourth ends the run."""
    results = run(job(tmp_path, [5, 7, 8, 9], rank=rank, max_skipped_steps=3), ranks)
    assert {r["outcome"] for r in results} == {"completed"}
    results = run(job(tmp_path / "b", range(9, 25), rank=rank, max_skipped_steps=3, save_steps=4), ranks)
    for result in results:
        kind, text = result["error"]
        assert kind == "NonFiniteError" and "step 12" in text and "4 in a row" in text
    same_and_finite(results)
    checkpoints_are_finite(tmp_path / "b")


def test_the_count_survives_a_resume(tmp_path):
    endless = job(tmp_path, range(9, 25), max_skipped_steps=5)
    run(endless | {"stop_at": {"step": 11}})
    (result,) = run(endless)
    assert result["error"][0] == "NonFiniteError" and "step 14" in result["error"][1]
    checkpoints_are_finite(tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, ranks):
    """Whatever made them so: the last good checkpoint stays the last one."""
    for result in run(job(tmp_path, [], save_steps=4, eval_steps=0) | {"poison_at": 7}, ranks):
        assert result["error"][0] == "NonFiniteError" and "last checkpoint is of step 4" in result["error"][1]
    assert steps_saved(tmp_path) == [4]
    checkpoints_are_finite(tmp_path)


def test_skipped_updates_are_counted_in_the_log(tmp_path):
    run(job(tmp_path, [4, 9, 10]))
    skipped = {r["step"]: r.get("skipped", 0) for r in records(tmp_path) if r["kind"] == "train"}
    assert skipped == {5: 1, 10: 2, 15: 0, 20: 0, 24: 0}
