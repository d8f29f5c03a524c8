"""Groups of parameters and schedules of one's own: the same on any cut, and bit for bit after a stop."""

from __future__ import annotations

import numpy as np
import pytest
from support.laws import assert_cuts_change_nothing
from support.processes import run
from support.runs import assert_same_run, config, records

SETTINGS = {
    "lr_scheduler_type": "support.toys.sawtooth",
    "lr_scheduler_kwargs": {"period": 7},
    "optimizer": {"init_args": {"weight_decay": 0.3}, "lr_factors": {"model.3.*": 2.0}},
}
CYCLE = {
    "lr_scheduler_type": "torch.optim.lr_scheduler.OneCycleLR",
    "lr_scheduler_kwargs": {"max_lr": 0.05, "total_steps": 24, "cycle_momentum": False},
    "optimizer": {"init_args": {"weight_decay": 0.3}},
}


def grouped(folder, stop_at=None, ranks=1, task_args=None, **settings):
    job = {"task": "Grouped", "task_args": {"dropout": 0.2, **(task_args or {})}, "config": config(folder, **settings)}
    return run(job | {"stop_at": stop_at and {"step": stop_at}}, ranks)


def test_cuts_change_nothing(tmp_path):
    assert_cuts_change_nothing(
        lambda folder, **settings: {
            "task": "Grouped", "task_args": {"float64": True},
            "config": config(folder, lr_scheduler_type="support.toys.sawtooth", **settings),
        },
        tmp_path,
    )  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("settings", [SETTINGS, CYCLE], ids=["function", "class"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, settings, ranks):
    grouped(tmp_path / "whole", ranks=ranks, **settings)
    for stop in (3, 11, None):
        results = grouped(tmp_path / "pieces", stop, ranks, **settings)
        assert [r["error"] for r in results] == [None] * ranks
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
    rates = [line["lr"] for line in records(tmp_path / "whole") if "lr" in line]
    assert len(set(rates)) > 3


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_factor_of_zero_leaves_a_layer_as_it_is(tmp_path, ranks):
    start, *_ = grouped(tmp_path / "start", ranks=ranks, learning_rate=0.0, max_steps=1, **{"eval_steps": 0})
    result, *_ = grouped(tmp_path / "run", ranks=ranks, task_args={"factor": 0.0}, **SETTINGS)
    for name, value in result["weights"].items():
        assert np.array_equal(value, start["weights"][name]) == name.startswith("model.0."), name


def test_a_factor_may_change_on_resume_but_no_member(tmp_path):
    grouped(tmp_path, 6, **SETTINGS)
    more = {"allow_changed_config": True, **SETTINGS}
    (result,) = grouped(tmp_path, 9, task_args={"factor": 0.2}, **more)
    assert result["error"] is None
    for factors in ({"model.0.bias": 2.0, "model.3.weight": 0.1}, {"model.*": 2.0}):
        other = {"init_args": {"weight_decay": 0.3}, "lr_factors": factors}
        (result,) = grouped(tmp_path, **more | {"optimizer": other})
        assert result["error"][0] == "UserError", factors
