"""Small runs of gdynet: from Python, as jobs, by the command line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from accelerate.state import AcceleratorState

from accel_train.cli import main
from accel_train.tasks.gdynet.task import GDyNetTask
from support.runs import ON_CPU, config
from support.small_tasks import GDyNet

TAU, BATCH, IN_EPOCH = 3, 10, 5  # 44 pairs in train, 14 in val
SMALL = {"atom_fea_len": 6, "n_conv": 2, "state_len": 3, "num_gaussians": 8, "tau": TAU, "epochs": 2}
SPLITS = ("train", "val", "test")
LISTS = [
    "epochs", "loss_types",
    *(f"{split}_{what}_{which}" for split in ("train", "val") for what in ("losses", "vamp1_scores", "vamp2_scores")
      for which in ("last", "avg")),
]  # fmt: skip


def task_of(data: Path, cls: type[GDyNetTask] = GDyNet, **options: Any) -> Any:
    return cls(**{**{f"{split}_fnames": [str(data / split)] for split in SPLITS}, **SMALL, **options})


def job(folder, data, arguments=None, **more):
    fnames = {f"{split}_fnames": [str(data / split)] for split in SPLITS}
    more = (
        dict(global_batch_size=BATCH, max_steps=None, max_grad_norm=None, eval_steps="1ep", logging_steps="1ep") | more
    )
    return {"task": "GDyNet", "task_args": fnames | (arguments or {}), "config": config(folder, **more)}


def command(*arguments) -> int:
    with mock.patch.dict(os.environ, ON_CPU):
        try:
            return main([str(argument) for argument in arguments])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


def train(folder, data, *options, **arguments) -> int:
    """Exit code of ``accel-train train``."""
    arguments = {**{f"{split}_fnames": [str(data / split)] for split in SPLITS}, **SMALL, **arguments}
    given_options = [f"--task.init_args.{name}={json.dumps(value)}" for name, value in arguments.items()]
    settings = [f"--output_dir={folder}", f"--global_batch_size={BATCH}", "--num_workers=0", "--report_to=[]"]
    return command("train", "--task=gdynet", *given_options, *settings, *options)


def changed(folder, base, **arrays) -> Path:
    """A copy of a trajectory with some arrays changed, each by a function."""
    shutil.copytree(base, folder)
    for name, change in arrays.items():
        np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))
    return folder


def with_nan(distances):
    distances[23, 4, 2] = np.nan
    return distances


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert said.startswith("accel-train: error: ") and said.count("\n") == 1
    return said


def predictions(folder) -> tuple[np.ndarray, dict[str, Any]]:
    folder = folder / "predictions"
    return np.load(folder / "probabilities.npy"), json.loads((folder / "predictions.json").read_text())


def lists_of(folder) -> dict[str, list[Any]]:
    return json.loads((folder / "metrics.json").read_text())
