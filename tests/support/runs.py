"""Making runs, and comparing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import same_run

from accel_train.run.checkpoint import CheckpointFolder, verify

ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def config(folder: Path | str, **settings: Any) -> dict[str, Any]:
    """Settings that fit the toys: 7 steps per epoch of 50 items, the last with two items."""
    defaults = dict(output_dir=str(folder), max_steps=24, global_batch_size=8, learning_rate=0.01, logging_steps=5,
                    eval_steps=6, save_steps=None, num_workers=0, report_to=[], hang_warning=None)  # fmt: skip
    return defaults | settings


def records(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what the clock says."""
    return same_run.records(Path(folder))


def weights_files(folder: Path | str) -> dict[str, bytes]:
    """The bytes of every exported tensor file, last and best."""
    found = same_run.weights_files(Path(folder))
    assert any(name.startswith("model/") for name in found), f"nothing was exported to {folder}"
    return found


def assert_same_run(one: Path | str, other: Path | str) -> None:
    """Bit for bit the same weights, and the same history."""
    assert list(same_run.differences(Path(one), Path(other))) == []


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest difference of a tensor relative to its largest element."""
    assert one.keys() == other.keys()
    return max(float(np.abs(one[k] - other[k]).max() / max(np.abs(other[k]).max(), 1e-12)) for k in one)


def samples(results: list[dict[str, Any]]) -> dict[int, list[int]]:
    """Items of every step over all ranks, in rank order."""
    steps = sorted({step for result in results for step in result["samples"]})
    return {step: [i for result in results for i in result["samples"].get(step, [])] for step in steps}


def damaged(folder: Path | str) -> list[str]:
    """What is wrong with checkpoints under a good name: must be nothing at any moment."""
    checkpoints = CheckpointFolder(Path(folder) / "checkpoints")
    return [f"{step}: {reason}" for step in checkpoints.steps() if (reason := verify(checkpoints.path(step)))]


def steps_saved(folder: Path | str) -> list[int]:
    return CheckpointFolder(Path(folder) / "checkpoints").steps()
