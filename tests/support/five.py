"""The five tasks, tiny, on data of their own: as jobs, for runs that are killed, altered or looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accel_train.tasks.gdynet.synth import synth
from accel_train.tasks.muon.synth import write
from support.runs import config

FIVE = {"collatz": "Collatz", "muon": "Muon", "gdynet": "GDyNet", "tcn": "Disruptions", "sherlock": "Brains"}
"""By name, the class in ``small_tasks``."""
ALTERABLE = {"collatz": "steps", "muon": "primary", "gdynet": "distances", "tcn": "scale", "sherlock": "fmri"}
"""A field of each task's batches that has a row per item and of which its loss depends."""


def job(name: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """A run of this task in ``folder/run``; data that it needs are made beside it."""
    arguments: dict[str, dict[str, Any]] = {
        "muon": {"files": f"{folder}/muon/*.parquet"},
        "gdynet": {"train_fnames": [f"{folder}/gdynet/train"], "val_fnames": [], "epochs": 1000},
    }
    if name == "muon" and not (folder / "muon").exists():
        write(folder / "muon", seed=3, primaries=40, files=1, row_group=50, log10_energy=(5.0, 6.0))
    if name == "gdynet" and not (folder / "gdynet").exists():
        synth(folder / "gdynet", seed=3, size=47, clusters=3)
    usual = {"global_batch_size": 6, "learning_rate": 1e-3, "eval_steps": 0, "save_total_limit": None, "seed": 3}
    settings = config(folder / "run", **usual | settings)
    return {"task": FIVE[name], "task_args": arguments.get(name, {}), "config": settings}
