"""A parameter that nobody's loss reaches stays as it is: no weight decay, no momentum, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from support import config, distance, run

CUTS = [(1, None, True), (1, 3, True), (2, None, True), (2, None, False), (2, 1, True), (2, 1, False), (3, 2, False)]
DECAY = {"optimizer": {"init_args": {"weight_decay": 0.3}}, "eval_steps": 0}


def weights(tmp_path, task: str, ranks: int, micro: int | None, guard: bool, **settings):
    """24 steps; those of two items leave a third rank without any."""
    settings = DECAY | {"micro_batch_size": micro, "memory_guard": guard} | settings
    folder = tmp_path / f"{ranks}-{micro}-{guard}-{settings.get('max_steps')}"
    job = {"task": task, "task_args": {"float64": True}, "config": config(folder, **settings)}
    results = run(job, ranks)
    assert [r["error"] for r in results] == [None] * ranks
    for result in results[1:]:
        assert distance(result["weights"], results[0]["weights"]) == 0.0
    return results[0]


@pytest.mark.parametrize(("ranks", "micro", "guard"), CUTS, ids=str)
def test_the_same_weights_however_the_batch_is_cut(tmp_path, ranks, micro, guard):
    start = weights(tmp_path, "Unreached", 1, None, True, max_steps=1, learning_rate=0.0)["weights"]
    whole = weights(tmp_path, "Unreached", 1, None, True)["weights"]
    found = weights(tmp_path / "cut", "Unreached", ranks, micro, guard)["weights"]
    assert np.array_equal(found["model.spare.weight"], start["model.spare.weight"])
    assert not np.array_equal(found["model.expert.weight"], start["model.expert.weight"])
    assert distance(found, whole) < 1e-9


@pytest.mark.parametrize(("ranks", "guard"), [(1, True), (2, True), (2, False)])
def test_a_loss_that_reaches_nothing_moves_nothing(tmp_path, ranks, guard):
    result = weights(tmp_path, "Silent", ranks, None, guard)
    whole = weights(tmp_path / "whole", "Silent", 1, None, True)
    assert distance(result["weights"], whole["weights"]) < 1e-9
    moved = [step for step, objective in result["updates"] if objective == "generator"]
    assert moved == list(range(1, 24, 2))
