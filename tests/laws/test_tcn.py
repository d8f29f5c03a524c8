"""The laws for tcn: stratified batches of windows, a balanced loss, logits of windows."""

from __future__ import annotations

import pytest
from support.processes import run
from support.runs import assert_same_run, config

BATCH = 6


def job(folder, arguments=None, **settings):
    settings = dict(global_batch_size=BATCH, max_steps=10, learning_rate=1e-2, max_grad_norm=None, seed=3) | settings
    return {"task": "Disruptions", "task_args": arguments or {}, "config": config(folder, **settings)}


def samples(results):
    """The windows of every step, whichever rank had them."""
    steps = sorted({step for result in results for step in result["samples"]})
    return {step: sorted(sum((result["samples"].get(step, []) for result in results), [])) for step in steps}


@pytest.mark.parametrize("balance", ["batch", "dataset", "none"])
def test_ranks_and_cuts_change_nothing(tmp_path, balance):
    arguments = {"float64": True, "balance": balance}
    plain = {"optimizer": {"class_path": "SGD"}}
    (whole,) = run(job(tmp_path / "1", arguments, **plain) | {"gradients": True})
    assert whole["error"] is None
    for ranks, settings in ((1, {"micro_batch_size": 2}), (2, {}), (3, {"micro_batch_size": 1})):
        folder = tmp_path / f"{ranks}-{len(settings)}"
        results = run(job(folder, arguments, **plain, **settings) | {"gradients": True}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        assert samples(results) == samples([whole])
        for mine, its in zip(results[0]["gradients"], whole["gradients"], strict=True):
            assert abs(mine - its).max() <= 1e-9 * abs(its).max()
        for name, value in whole["metrics"].items():
            assert results[0]["metrics"][name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, workers):
    settings = {"num_workers": workers}
    run(job(tmp_path / "whole", **settings))
    for step in (3, 7):
        run(job(tmp_path / "run", **settings) | {"stop_at": {"step": step}})
    run(job(tmp_path / "run", **settings))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
