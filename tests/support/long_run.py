"""A toy run that takes long enough to be met on its way: as a job, and as arguments of the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.runs import config

SETTINGS: dict[str, Any] = dict(max_steps=200, eval_steps=40, logging_steps=10)
TOY = {"dropout": 0.2}


def job(folder: Path, slow: float = 0.0, **more: Any) -> dict[str, Any]:
    """``slow``: seconds per step."""
    return {"task_args": TOY | {"slow": slow}, "config": config(folder, **SETTINGS | more)}


def arguments(folder: Path, slow: float = 0.0, **more: Any) -> list[str]:
    made = job(folder, slow, **more)
    values = made["config"] | {f"task.init_args.{name}": value for name, value in made["task_args"].items()}
    written = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items() if v is not None}
    return ["train", "--task=support.toys.Toy", *(f"--{k}={v}" for k, v in written.items())]


def logged(folder: Path, lines: int = 2) -> bool:
    """Has it come so far?"""
    path = folder / "metrics.jsonl"
    return path.exists() and len(path.read_text().splitlines()) >= lines
