"""However a global batch is cut into ranks and micro-batches, the same run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.processes import run
from support.runs import config, distance, records, samples
from support.toy_gans import Gan

from accel_train import keyed

CUTS = {  # ranks, settings
    "a quarter at a time": (1, {"micro_batch_size": 2}),
    "ragged micro-batches": (1, {"micro_batch_size": 3}),
    "two ranks": (2, {}),
    "two ranks, ragged micro-batches": (2, {"micro_batch_size": 3}),
}
TASKS = {
    "short last batch": ("Toy", {"items": 50}, {}),
    "a rank without items": ("Toy", {"items": 49}, {}),
    "ragged, a rank without items": ("Ragged", {"items": 49}, {}),
    "buffers, a rank without items": ("Statistics", {"items": 49}, {}),
    "fewer items than ranks": ("Ragged", {"items": 13}, {"global_batch_size": 1}),
    "critic and generator": ("Gan", {"items": 49}, {"max_grad_norm": 0.5}),
}


def job(folder, task, steps=50, **more):
    name, arguments, settings = TASKS[task]
    return dict(
        task=name, task_args=arguments | {"float64": more.pop("float64", True)}, **more.pop("job", {}),
        config=config(folder, **({"max_steps": steps, "eval_steps": 13} | settings | more)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run on one process in one piece, by task and precision."""
    made = {}

    def get(task, **more):
        if (key := (task, str(more))) not in made:
            folder = tmp_path_factory.mktemp("alone")
            made[key] = folder, run(job(folder, task, **more))
        return made[key]

    return get


def same_records(one, other, tolerance):
    assert len(one) == len(other) > 3
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], float):
                assert math.isclose(a[name], b[name], rel_tol=tolerance, abs_tol=tolerance), (a["step"], name)
            else:
                assert a[name] == b[name]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cut", CUTS)
def test_weights_history_and_samples(tmp_path, alone, task, cut):
    ranks, settings = CUTS[cut]
    folder, reference = alone(task)
    results = run(job(tmp_path, task, **settings), ranks)
    assert [r["error"] for r in results] == [None] * ranks
    assert samples(results) == samples(reference)
    assert len(samples(results)) == 50
    for result in results:
        assert distance(result["weights"], reference[0]["weights"]) < 1e-9
        assert result["weights"].keys() and all(np.isfinite(w).all() for w in result["weights"].values())
    same_records(records(tmp_path), records(folder), 1e-9)
    rates = [[r["lr"] for r in records(f) if r["kind"] == "train"] for f in (tmp_path, folder)]
    assert rates[0] == rates[1]


@pytest.mark.parametrize("task", ["ragged, a rank without items", "critic and generator"])
@pytest.mark.parametrize("cut", CUTS)
def test_gradients_in_float32(tmp_path, alone, task, cut):
    """With a rate of zero the weights stay, so every step's gradient is of the same weights."""
    ranks, settings = CUTS[cut]
    still = dict(float64=False, learning_rate=0.0, job={"gradients": True}, steps=14)
    _, (reference,) = alone(task, **still)
    for result in run(job(tmp_path, task, **still, **settings), ranks):
        assert len(result["gradients"]) == len(reference["gradients"]) >= 14
        for got, wanted in zip(result["gradients"], reference["gradients"], strict=True):
            assert np.linalg.norm(got - wanted) < 1e-6 * np.linalg.norm(wanted)
        assert result["norms"] == pytest.approx(reference["norms"], rel=1e-6)
        assert result["updates"] == reference["updates"]


def test_three_ranks(tmp_path, alone):
    folder, reference = alone("ragged, a rank without items")
    results = run(job(tmp_path, "ragged, a rank without items", micro_batch_size=2), 3)
    assert samples(results) == samples(reference)
    for result in results:
        assert distance(result["weights"], reference[0]["weights"]) < 1e-9
    same_records(records(tmp_path), records(folder), 1e-9)


def test_learning_rates_on_two_ranks(tmp_path, alone):
    """A schedule counts global steps, not those of every rank."""
    settings = dict(lr_scheduler_type="cosine", warmup_steps=6, logging_steps=1, steps=20)
    folder, _ = alone("short last batch", **settings)
    run(job(tmp_path, "short last batch", **settings), 2)
    one, two = ([r["lr"] for r in records(f) if r["kind"] == "train"] for f in (folder, tmp_path))
    assert one == two and len(one) == 20 and one[0] == 0.0 and max(one) == 0.01 and one[-1] < 1e-3


@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3}], ids=["whole", "micro-batches"])
def test_a_gan_is_the_loop_one_would_write_by_hand(tmp_path, settings):
    """Independent of the stepper: own gradients, zeroed before every update, own SGD."""
    arguments = dict(max_steps=6, max_grad_norm=None, optimizer={"class_path": "SGD"}, learning_rate=0.1, **settings)
    run_it = {"task": "Gan", "task_args": {"float64": True}, "gradients": True, "config": config(tmp_path, **arguments)}
    (result,) = run(run_it)
    task = Gan(float64=True)
    source = task.build_data("train", 8, 0)
    torch.manual_seed(keyed.key(0, "weights") >> 1)
    models = task.build_model()
    wanted = []
    for step in range(6):
        batch = {name: torch.from_numpy(value) for name, value in source.batch(0, step, 0, 1).items()}
        for objective in task.objectives():
            for _ in range(objective.repeats):
                totals = {"items": torch.tensor(float(len(batch["index"])))}
                params = list(models[objective.name].parameters())
                loss = task.loss_step(models, batch, totals, objective).value
                gradients = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
                wanted.append(torch.cat([g.flatten() for g in gradients]).numpy())
                with torch.no_grad():
                    for p, g in zip(params, gradients, strict=True):
                        p -= 0.1 * g
    assert len(result["gradients"]) == len(wanted) == 18
    for i, (got, right) in enumerate(zip(result["gradients"], wanted, strict=True)):
        assert np.abs(got - right).max() < 1e-12, f"update {i}"
