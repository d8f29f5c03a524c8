"""Laws that every task is held to, in the words of a job: ``job(folder, **settings)``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.processes import run
from support.runs import samples

Job = Callable[..., dict[str, Any]]
CUTS = ((1, {"micro_batch_size": 2}), (2, {}), (3, {"micro_batch_size": 1}))
"""Ranks, and further settings."""


def assert_cuts_change_nothing(job: Job, folder: Path) -> None:
    """Ranks and micro-batches give the items, gradients and metrics of one rank, in float64 and with SGD."""
    plain: dict[str, Any] = {"optimizer": {"class_path": "SGD"}}
    (whole,) = run(job(folder / "whole", **plain) | {"gradients": True})
    assert whole["error"] is None
    for ranks, settings in CUTS:
        results = run(job(folder / f"{ranks}-{len(settings)}", **plain, **settings) | {"gradients": True}, ranks)
        assert [r["error"] for r in results] == [None] * ranks
        cut, same = ({step: sorted(items) for step, items in samples(each).items()} for each in (results, [whole]))
        assert cut == same
        for mine, its in zip(results[0]["gradients"], whole["gradients"], strict=True):
            assert abs(mine - its).max() <= 1e-9 * abs(its).max()
        for name, value in whole["metrics"].items():
            assert results[0]["metrics"][name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
