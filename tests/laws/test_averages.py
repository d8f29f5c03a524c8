"""Averages of the weights: what they are, on any cut and through interruptions; and that training does not notice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.processes import run
from support.runs import assert_same_run, config, records, steps_saved
from support.toy_gans import Gan
from support.toys import Toy

from accel_train import Trainer
from accel_train.train.measuring import evaluate_run

EMA = {"ema_decay": 0.8}
SWA = {"swa_start": "2ep"}  # of 7 steps


def trained(folder, task=None, **settings):
    """The weights after every step, and which of the updates were finite: one process, no probe."""
    seen = []

    def note(step):
        models = trainer.models
        weights = {f"{m}.{k}": v.double().numpy().copy() for m in models for k, v in models[m].state_dict().items()}
        seen.append((weights, {name: bool(norm.isfinite()) for name, _, norm in step.updates}))

    trainer = Trainer(task or Toy(float64=True), on_step=note, **config(folder, **settings))
    trainer.fit()
    return seen


def by_hand(steps, decay=None, start=0):
    """One number after the other. ``steps``: (weights, made) of each."""
    average, n = None, 0
    for weights, made in steps[start:]:
        if made:
            fraction = 1 / (1 + n) if decay is None else max(1 - decay, 9 / (9 + n))
            old = weights if average is None else average
            average, n = {k: old[k] + fraction * (weights[k] - old[k]) for k in weights}, n + 1
    return average


def exported(folder, name="model"):
    files = (folder / name).glob("*.safetensors")
    return {f"{file.stem}.{k}": v.double().numpy() for file in files for k, v in load_file(file).items()}


def assert_close(one, other, tolerance=1e-8):
    """The fraction by which they move is a float32."""
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("settings", "arguments"), [(EMA, {"decay": 0.8}), (SWA, {"start": 14})], ids=["ema", "swa"])
def test_they_are_what_one_would_compute_by_hand(tmp_path, settings, arguments):
    steps = [(weights, made["loss"]) for weights, made in trained(tmp_path, max_steps=24, **settings)]
    assert_close(exported(tmp_path), by_hand(steps, **arguments))
    checkpoint = tmp_path / "checkpoints" / "latest"
    raw = {k.removeprefix("trained."): v.numpy() for k, v in load_file(checkpoint / "model.safetensors").items()}
    assert_close(raw, steps[-1][0], 0)
    # what is measured is what is exported, also of a checkpoint
    logged = {r["step"]: r["loss"] for r in records(tmp_path) if r["kind"] == "eval"}
    for what in ("best", "latest"):
        found = evaluate_run(tmp_path, checkpoint=what, out=tmp_path / "out", trust=True).metrics
        step = json.loads((tmp_path / "out" / "evaluation.json").read_text())["step"]
        assert found["loss"] == pytest.approx(logged[step], rel=1e-12)


def test_training_does_not_notice(tmp_path):
    plain = trained(tmp_path / "plain")
    for name, settings in {"ema": EMA, "swa": SWA}.items():
        for (weights, _), (others, _) in zip(trained(tmp_path / name, **settings), plain, strict=True):
            assert_close(weights, others, 0)


def test_before_they_begin_the_weights_are_evaluated(tmp_path):
    steps = trained(tmp_path, max_steps=12, swa_start=20)
    assert_close(exported(tmp_path), steps[-1][0], 0)
    assert not (tmp_path / "checkpoints" / "latest" / "averages.safetensors").exists()


def test_each_group_has_its_own_once_per_step(tmp_path):
    """The critic is updated several times on every batch."""
    steps = trained(tmp_path, Gan(float64=True), max_steps=9, eval_steps=0, **EMA)
    assert_close(exported(tmp_path), by_hand([(weights, True) for weights, _ in steps], 0.8))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("scale", [None, 8.0], ids=["", "scaled"])
def test_an_update_that_was_skipped_is_no_step_of_theirs(tmp_path, ranks, scale):
    bad = [1, 4, 5]
    job = {"task": "Toy", "task_args": {"float64": True}, "config": config(tmp_path / "bad", max_steps=8, **EMA),
           "faults": {"non_finite": {"steps": bad, "kind": "nan loss", "rank": ranks - 1}}}  # fmt: skip
    results = run(job | ({"loss_scale": scale} if scale else {}), ranks)
    assert [r["error"] for r in results] == [None] * ranks
    state = load_file(tmp_path / "bad" / "checkpoints" / "latest" / "averages.safetensors")
    assert state["updates/model"] == 8 - len(bad)


CUTS = {
    "micro-batches": (1, {"micro_batch_size": 3}),
    "two ranks": (2, {}),
    "two ranks, micro-batches": (2, {"micro_batch_size": 2}),
    "three ranks": (3, {}),
}


@pytest.mark.parametrize(("task", "averaging"), [("Toy", EMA), ("Toy", SWA), ("Gan", EMA)])
def test_cuts_change_nothing(tmp_path, task, averaging):
    def job(name, **settings):
        return {
            "task": task, "task_args": {"items": 49, "float64": True},
            "config": config(tmp_path / name, **averaging, **settings),
        }  # fmt: skip

    run(job("whole"))
    for name, (ranks, settings) in CUTS.items():
        assert [r["error"] for r in run(job(name, **settings), ranks)] == [None] * ranks
        assert_close(exported(tmp_path / name), exported(tmp_path / "whole"), 1e-9)
        for one, other in zip(records(tmp_path / name), records(tmp_path / "whole"), strict=True):
            assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-9)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("task", "averaging"), [("Toy", EMA), ("Toy", SWA), ("Gan", EMA)])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, ranks, task, averaging):
    more = {"task_args": {"dropout": 0.2}} if task == "Toy" else {}
    run({"task": task, "config": config(tmp_path / "whole", **averaging)} | more, ranks)
    for stop in (3, 14, 16, None):  # also before a plain mean begins, and just when it does
        job = {"task": task, "config": config(tmp_path / "pieces", **averaging), "stop_at": stop and {"step": stop}}
        assert [r["error"] for r in run(job | more, ranks)] == [None] * ranks
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
    one, other = ((tmp_path / name / "checkpoints" / "latest").resolve() for name in ("pieces", "whole"))
    assert (one / "averages.safetensors").read_bytes() == (other / "averages.safetensors").read_bytes()


def test_they_may_be_asked_for_in_the_middle(tmp_path):
    """And begin there; the weights of before are those of a run without."""
    trained(tmp_path, max_steps=10)
    steps = trained(tmp_path, max_steps=24, **EMA)
    assert len(steps) == 14
    assert_close(exported(tmp_path), by_hand([(weights, True) for weights, _ in steps], 0.8))
    assert steps_saved(tmp_path)[-1] == 24


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_weights_are_averaged_in_float32(tmp_path, dtype):
    class Short(Toy):
        def build_model(self):
            return super().build_model().to(dtype)

        def _error(self, models, batch, power=2):
            return super()._error({"model": lambda x: models["model"](x.to(dtype)).float()}, batch, power)

    steps = trained(tmp_path, Short(), max_steps=20, **EMA)
    kept = load_file(tmp_path / "checkpoints" / "latest" / "averages.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float32}
    mine = {name: value.double().numpy() for name, value in kept.items() if not name.startswith("updates")}
    assert_close(mine, by_hand([(weights, True) for weights, _ in steps], 0.8), 1e-6)
    assert load_file(tmp_path / "model" / "model.safetensors")["0.weight"].dtype == dtype


def test_weights_to_begin_with_are_the_averages_of_the_other_run(tmp_path):
    trained(tmp_path / "one", **EMA)
    ends = [tmp_path / "one" / "model", tmp_path / "one"]
    for i, start in enumerate(ends):
        (first, *_) = trained(tmp_path / str(i), max_steps=1, init_from=str(start), learning_rate=0.0)
        assert_close(first[0], exported(tmp_path / "one"), 0)
