"""Synthetic data: a folder that is there whole or not at all, with its truth in numbers, and how to train on it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.system.writing import refuse_filled


def write_data_set(out: str | Path, seed: int, size: int, fill: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make a folder of data, and in it last metadata.json, whose content is returned.

    Args:
        out: an empty or new folder. What is made has other names until it is whole.
        seed, size: written down; with the options they decide every number.
        fill: writes the data into the folder that it is given, and returns what else metadata.json says: the options,
            and as ``truth`` the numbers that a perfect model would find.

    Raises:
        UserError: there is something in ``out`` already.
    """
    out = Path(out)
    refuse_filled("out", out)
    home = out if out.is_dir() else out.parent  # the folder above one that exists may be somebody else's
    made = home / f".{out.name}.{os.getpid()}"
    made.mkdir(parents=True)
    try:
        about = {"seed": seed, "size": size, **fill(made), "numpy": np.__version__}
        (made / "metadata.json").write_text(json.dumps(about, indent=1, allow_nan=False) + "\n")
        if not out.is_dir():
            made.rename(out)
        else:
            for path in sorted(made.iterdir(), key=lambda path: path.name == "metadata.json"):
                path.rename(out / path.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return about


def training_line(config: str, arguments: Mapping[str, Any]) -> str:
    """The command that trains on it, as a shell reads it.

    Args:
        config: an example, examples/TASK_small.yaml; where it is not, the command copies it first.
        arguments: of the task; lists are written as JSON.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in arguments.items()}
    options = [f"--task.init_args.{name}={shlex.quote(text)}" for name, text in texts.items()]
    first = "" if Path(config).exists() else f"accel-train init {Path(config).stem.partition('_')[0]} && "
    return " ".join([f"{first}accel-train train --config", config, *options])
