"""What a run leaves behind besides checkpoints: its config, its environment, exported models."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.checkpoint import MANIFEST, replace_folder, whole
from accel_train.errors import UserError
from accel_train.secrets import scrub
from accel_train.trust import imports_for

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.task import Task


def write_json(path: Path, value: Any) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def write_config(path: Path, config: dict[str, Any]) -> None:
    from accel_train.values import dumps

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(dumps(config))
    os.replace(temporary, path)


def save_figures(folder: Path, figures: dict[str, Any]) -> dict[str, Any]:
    """As NAME.png; returns the figures."""
    for name, figure in figures.items():
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=120)
    return figures


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


# -- models ----------------------------------------------------------------------------------------------------------


def export_models(
    folder: Path, task: Task, states: dict[str, dict[str, Tensor]], config: dict[str, Any], info: dict[str, Any]
) -> None:
    """A folder of safetensors (one per model, from ``whole_state``) and config.json, swapped in whole."""
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        for name, state in states.items():
            save_file(state, str(temporary / f"{name}.safetensors"), metadata={"format": "pt"})
        write_json(temporary / "config.json", {"task": config["task"], "models": list(states), **info})
        task.export(states, temporary)

    replace_folder(folder, write)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with every tensor in one piece and, where some share memory, stored once."""
    tied = _tied(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).contiguous() for name, t in state.items()}  # type: ignore[operator]


def load_exported(folder: Path, trust: bool = False) -> tuple[Task, dict[str, nn.Module], dict[str, Any]]:
    """Rebuild the task and its models from an exported folder; nothing else is needed.

    Args:
        trust: also import a task that is in no installed package, and not imported yet.
    """
    from accel_train.config import build_task

    described = read_described(Path(folder))
    with imports_for(folder, trust):
        task = build_task(described["task"])
    models = as_dict(task.build_model())
    load_weights(models, Path(folder))
    return task, models, described


def read_described(folder: Path) -> dict[str, Any]:
    """The config.json of an exported folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: no config.json there; is it an exported model folder?")
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not (isinstance(described, dict) and {"task", "models"} <= described.keys()):
        raise UserError(f"{path}: it names no task and models, so accel_train has not written it")
    return described


def as_dict(models: Any) -> dict[str, nn.Module]:
    return models if isinstance(models, dict) else {"model": models}


def load_weights(models: dict[str, nn.Module], path: Path) -> None:
    """Only the weights, from an exported folder, a checkpoint, or a run folder (its newest checkpoint)."""
    tensors = read_weights(path, list(models))
    for name, model in models.items():
        own = model.state_dict()
        wrong = [k for k in own if k in tensors[name] and tensors[name][k].shape != own[k].shape]
        missing = [k for k in own if k not in tensors[name] and k not in _tied(model)]
        unknown = [k for k in tensors[name] if k not in own]
        for what, keys in (("another shape", wrong), ("no value", missing), ("no place in the model", unknown)):
            if keys:
                raise UserError(f"{path}: {name}.{keys[0]} has {what} ({len(keys)} such); it is of another model")
        model.load_state_dict(tensors[name], strict=False)


def _tied(model: nn.Module) -> set[str]:
    """Names that share memory with an earlier one; safetensors stores them once."""
    seen: set[int] = set()
    tied = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if hasattr(tensor, "full_tensor") or not tensor.numel():
            continue
        if tensor.data_ptr() in seen:
            tied.add(name)
        seen.add(tensor.data_ptr())
    return tied


def read_weights(path: Path, names: list[str]) -> dict[str, dict[str, Tensor]]:
    path = Path(path)
    if (path / "config.json").is_file():
        missing = [name for name in names if not (path / f"{name}.safetensors").is_file()]
        if missing:
            raise UserError(f"{path}: no {missing[0]}.safetensors there")
        return {name: _load_tensors(path / f"{name}.safetensors") for name in names}
    if not (path / MANIFEST).is_file() and not (path / "checkpoints").is_dir():
        raise UserError(f"{path}: neither a model folder (config.json), a checkpoint ({MANIFEST}) nor a run folder")
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for file in sorted(whole(path).glob("model*.safetensors")):
        for key, tensor in _load_tensors(file).items():
            name, _, rest = key.removeprefix("trained.").partition(".")
            if name in tensors:
                tensors[name][rest] = tensor
    return tensors


def _load_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from None
