"""What a run leaves behind besides checkpoints and weights: its config and its environment."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.errors import UserError
from accel_train.system.secrets import scrub
from accel_train.system.writing import write_atomic

if TYPE_CHECKING:
    import torch

_FILES = [
    "config.yaml", "environment.json", "status.json", "metrics.jsonl", "metrics.json", "events.jsonl", "digests.jsonl",
    "tracker_id", "mirror.json",
]  # fmt: skip
_FOLDERS = ["checkpoints", "control", "tensorboard", "figures", "phases", "profile"]


def check_names(folder: Path) -> None:
    """A UserError if something in this run folder is in the way of a file or a folder that a run needs."""
    for name in (*_FILES, "control/stop", "control/save", "control/status"):
        if (folder / name).exists() and not (folder / name).is_file():
            raise UserError(f"{folder / name} is not a file but a run writes one there; move it away")
    for name in _FOLDERS:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise UserError(f"{folder / name} is not a folder but a run writes one there; move it away")


def write_json(path: Path, value: Any) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(value, indent=1) + "\n")


def write_config(path: Path, config: dict[str, Any]) -> None:
    from accel_train.config.yaml_text import dumps

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(config))


def machine(world_size: int, device: torch.device) -> dict[str, Any]:
    """What the bits of a step depend on besides config, seed and data: what two machines must have in common to agree
    bit for bit."""
    import torch

    gpu = device.type == "cuda"
    on = torch.cuda.get_device_name(device) if gpu else f"cpu ({torch.backends.cpu.get_cpu_capability()})"
    return {"ranks": world_size, "device": on, "threads": torch.get_num_threads(), "torch": torch.__version__}


def environment(seed: int, world_size: int, device: str) -> dict[str, Any]:
    """What is needed to repeat or to explain a run."""
    import torch

    versions = {}
    for package in ("accel_train", "torch", "accelerate", "numpy", "datasets", "pyarrow", "h5py", "safetensors"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "command": scrub(" ".join(sys.argv)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "versions": versions,
        "git": _git(),
        "seed": seed,
        "world_size": world_size,
        "device": device,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def _git() -> dict[str, Any] | None:
    """Commit and cleanliness of the working directory, if it is a checkout."""
    try:
        run = lambda *a: subprocess.run(["git", *a], capture_output=True, text=True, timeout=10)  # noqa: E731
        commit = run("rev-parse", "HEAD")
        if commit.returncode:
            return None
        return {"commit": commit.stdout.strip(), "changed": bool(run("status", "--porcelain").stdout.strip())}
    except (OSError, subprocess.SubprocessError):
        return None
