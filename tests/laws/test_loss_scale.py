"""fp16's loss scale: every optimiser sees unscaled gradients and steps once per update (on a CPU, with its scaler)."""

from __future__ import annotations

import numpy as np
import pytest
from support.processes import run
from support.runs import assert_same_run, config


def job(folder, **more):
    settings = more.pop("settings", {})
    return {"task": "Gan", "gradients": True, "config": config(folder, **settings), **more}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"micro_batch_size": 3}], ids=["whole", "cut"])
def test_two_optimisers(tmp_path, ranks, settings):
    plain = run(job(tmp_path / "plain", settings=settings), ranks)
    scaled = run(job(tmp_path / "scaled", settings=settings, loss_scale=2.0**12), ranks)
    for one, other in zip(scaled, plain, strict=True):
        assert one["error"] is None
        assert one["scales"] and set(one["scales"]) == {2.0**12}
        assert one["updates"] == other["updates"]
        assert [name for step, name in one["updates"] if step == 3] == ["critic", "critic", "generator"]
        assert len(one["gradients"]) == len(other["gradients"]) == 3 * 24
        for got, wanted in zip(one["gradients"], other["gradients"], strict=True):
            assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 1)])
def test_an_overflow_on_one_rank_halves_the_scale_on_all(tmp_path, ranks, rank):
    faults = {"non_finite": {"steps": [4], "kind": "inf loss", "rank": rank}}
    results = run(job(tmp_path, loss_scale=2.0**12, faults=faults), ranks)
    for result in results:
        assert result["error"] is None
        assert [name for step, name in result["updates"] if step == 4] == []
        assert result["scales"] == results[0]["scales"] and set(result["scales"]) <= {2.0**10, 2.0**11}
        for name, weight in result["weights"].items():
            assert np.isfinite(weight).all() and (weight == results[0]["weights"][name]).all()


def test_the_scale_survives_a_resume(tmp_path):
    faults = {"non_finite": {"steps": [4, 5], "kind": "inf loss"}}
    run(job(tmp_path / "whole", loss_scale=2.0**12, faults=faults))
    run(job(tmp_path / "pieces", loss_scale=2.0**12, faults=faults, stop_at={"step": 8}))
    (result,) = run(job(tmp_path / "pieces", loss_scale=2.0**12, faults=faults))
    assert min(result["scales"]) == 2.0**8  # the critic: two updates in each of two steps
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
