"""Muon bundles read in lanes: any number of ranks, any cut, any interruption; the same events, the same weights."""

from __future__ import annotations

import numpy as np
import pytest
from support.processes import kill_at_checkpoints, run
from support.runs import assert_same_run, config, distance, records, samples

from accel_train.tasks.muon import synth

ROWS, BATCH, IN_EPOCH = 400, 32, 13


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muons")
    synth.write(folder, seed=3, primaries=ROWS // 10, files=3, row_group=30, log10_energy=(5.0, 6.5))
    return f"{folder}/*.parquet"


def job(folder, files, task_args=None, **settings):
    arguments = {"files": files} | (task_args or {})
    settings = (
        dict(global_batch_size=BATCH, num_workers=2, max_steps=2 * IN_EPOCH, eval_steps=0, learning_rate=1e-3)
        | settings
    )
    return {"task": "Muon", "task_args": arguments, "config": config(folder, **settings)}


def test_ranks_and_cuts_change_nothing(tmp_path, files):
    double = {"float64": True}
    (whole,) = run(job(tmp_path / "1", files, double))
    events = samples([whole])
    for epoch in range(2):
        seen = [e for step, batch in events.items() if (step - 1) // IN_EPOCH == epoch for e in batch]
        assert sorted(seen) == list(range(ROWS)), "every row once per epoch"
    for ranks, arguments, settings in (
        (2, {}, {}),
        (3, {"max_muons_per_batch": 25}, {"num_workers": 0}),
        (1, {"max_muons_per_batch": 10}, {"micro_batch_size": 5}),
    ):
        results = run(job(tmp_path / f"{ranks}-{len(arguments)}", files, double | arguments, **settings), ranks)
        assert [r["error"] for r in results] == [None] * ranks
        assert samples(results) == events
        assert distance(results[0]["weights"], whole["weights"]) < 1e-9


def test_the_losses_of_a_cut_batch_agree_in_single_precision_too(tmp_path, files):
    """Adam makes a whole step of a gradient that is nothing but rounding: no such parameter may move what is logged."""
    settings = {"max_steps": 5, "logging_steps": 1}
    losses = []
    for limit in (None, 8):
        run(job(tmp_path / str(limit), files, **settings, micro_batch_size=limit))
        losses.append([[r["critic_loss"], r["generator_loss"]] for r in records(tmp_path / str(limit))])
    np.testing.assert_allclose(*losses, rtol=0.02)


@pytest.mark.parametrize("worlds", [(2, 1), (1, 3)], ids=str)
def test_another_number_of_ranks_in_the_middle_of_an_epoch(tmp_path, files, worlds):
    double = {"float64": True}
    (whole,) = run(job(tmp_path / "whole", files, double))
    seen = {}
    for ranks, stop in zip(worlds, (7, None), strict=True):
        results = run(job(tmp_path / "pieces", files, double) | {"stop_at": stop and {"step": stop}}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        seen |= samples(results)
    assert seen == samples([whole])
    assert distance(results[0]["weights"], whole["weights"]) < 1e-9


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stop", [1, 6, IN_EPOCH, IN_EPOCH + 4])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, files, ranks, stop):
    run(job(tmp_path / "whole", files), ranks)
    run(job(tmp_path / "pieces", files) | {"stop_at": {"step": stop}}, ranks)
    run(job(tmp_path / "pieces", files), ranks)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_killed_in_the_middle_of_an_epoch(tmp_path, files):
    settings = dict(max_steps=6 * IN_EPOCH, save_steps=3)
    run(job(tmp_path / "whole", files, **settings))
    seen = {}
    kill_at_checkpoints(job(tmp_path / "killed", files, **settings))
    (result,) = run(job(tmp_path / "killed", files, **settings))
    seen |= samples([result])
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
