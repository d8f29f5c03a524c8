"""A parameter that nobody's loss reaches stays as it is: no weight decay, no momentum, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from support.processes import run
from support.runs import config, distance

CUTS = [(1, None), (1, 3), (2, None), (2, 1), (3, 2)]
DECAY = {"optimizer": {"init_args": {"weight_decay": 0.3}}, "eval_steps": 0}


def weights(tmp_path, task: str, ranks: int, micro: int | None, **settings):
    """24 steps; those of two items leave a third rank without any."""
    more = {name: settings.pop(name) for name in ("faults", "loss_scale") if name in settings}
    settings = DECAY | {"micro_batch_size": micro} | settings
    folder = tmp_path / f"{ranks}-{micro}-{settings.get('max_steps')}"
    job = {"task": task, "task_args": {"float64": True}, "config": config(folder, **settings)} | more
    results = run(job, ranks)
    assert [r["error"] for r in results] == [None] * ranks
    for result in results[1:]:
        assert distance(result["weights"], results[0]["weights"]) == 0.0
    return results[0]


@pytest.mark.parametrize(("ranks", "micro"), CUTS, ids=str)
def test_the_same_weights_however_the_batch_is_cut(tmp_path, ranks, micro):
    start = weights(tmp_path, "Unreached", 1, None, max_steps=1, learning_rate=0.0)["weights"]
    whole = weights(tmp_path, "Unreached", 1, None)["weights"]
    found = weights(tmp_path / "cut", "Unreached", ranks, micro)["weights"]
    assert np.array_equal(found["model.spare.weight"], start["model.spare.weight"])
    assert not np.array_equal(found["model.expert.weight"], start["model.expert.weight"])
    assert distance(found, whole) < 1e-9


@pytest.mark.parametrize(("ranks", "scale"), [(1, None), (2, None), (2, 8.0)])
def test_a_loss_that_reaches_nothing_moves_nothing(tmp_path, ranks, scale):
    faults = {"faults": {"detached": {"steps": list(range(2, 25, 2))}}} | ({"loss_scale": scale} if scale else {})
    result = weights(tmp_path, "Silent", ranks, None, **faults)
    whole = weights(tmp_path / "whole", "Silent", 1, None, **faults)
    assert distance(result["weights"], whole["weights"]) < 1e-9
    moved = [step for step, objective in result["updates"] if objective == "generator"]
    assert moved == list(range(1, 24, 2))


@pytest.mark.parametrize("scale", [None, 8.0])
def test_a_share_that_reaches_nothing_but_is_not_finite_stops_the_update(tmp_path, scale):
    there = {"rank": 1, "steps": [4, 9]}
    faults = {"faults": {"detached": there, "non_finite": there | {"kind": "nan loss"}}}
    result = weights(tmp_path, "Silent", 2, None, **faults | ({"loss_scale": scale} if scale else {}))
    moved = [step for step, objective in result["updates"] if objective == "generator"]
    assert moved == [step for step in range(1, 25) if step not in (4, 9)]


@pytest.mark.parametrize("guard", [True, False])
def test_reentrant_checkpointing(tmp_path, guard):
    """DDP cannot see which parameters such a graph reaches: found out in the first step, and reduced after it."""
    whole = weights(tmp_path / "whole", "Checkpointed", 1, None)
    found = weights(tmp_path, "Checkpointed", 2, 2, memory_guard=guard)
    assert distance(found["weights"], whole["weights"]) < 1e-9
