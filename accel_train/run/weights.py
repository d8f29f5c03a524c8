"""Weights as safetensors: exported with what is needed to rebuild the models, in checkpoints, and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.config.trust import imports_for
from accel_train.errors import UserError
from accel_train.run import identity
from accel_train.run.checkpoint import MANIFEST, OF_OTHERS, verified
from accel_train.run.folder import write_json
from accel_train.system.writing import replace_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.task import Task

AVERAGES = "averages.safetensors"
"""In a checkpoint: the averages of the weights, beside the weights themselves."""


def export_models(
    folder: Path,
    states: dict[str, dict[str, Tensor]],
    config: dict[str, Any],
    info: dict[str, Any],
    known: dict[str, Any] | None = None,
) -> None:
    """A folder of safetensors (one per model, from ``whole_state``), config.json and identity.json, swapped in whole.

    Args:
        known: their identity; its digest is in the header of each, too.
    """
    from safetensors.torch import save_file

    header = {"format": "pt"} if known is None else {"format": "pt", identity.HEADER: known["digest"]}

    def write(temporary: Path) -> None:
        for name, state in states.items():
            save_file(state, str(temporary / f"{name}.safetensors"), metadata=header)
            _order_header(temporary / f"{name}.safetensors")
        if known is not None:
            write_json(temporary / identity.FILE, known)
        write_json(temporary / "config.json", {"task": config["task"], "models": list(states), **info})

    replace_folder(folder, write)


def _order_header(path: Path) -> None:
    """The library writes the metadata in an order that changes from process to process; the same weights are the same
    bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= size:
            file.seek(8)
            file.write(ordered.ljust(size))


def whole_state(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """The model's state with every tensor in one piece and, where some share memory, stored once. What was spread over
    the ranks is in host memory.

    Args:
        keep: False to join the other ranks in gathering, and get nothing.
    """
    tied = _tied(model)
    state, memory = {}, set()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        spread = hasattr(tensor, "full_tensor")
        verified = tensor.full_tensor() if spread else tensor.contiguous()
        if not keep:
            continue
        verified = verified.cpu() if spread else verified
        storage = verified.untyped_storage().data_ptr()
        state[name] = (
            verified.clone() if storage in memory else verified
        )  # a part of another one: safetensors needs its own
        memory.add(storage)
    return state


def load_whole_states(models: list[nn.Module], folder: str) -> None:
    """A hook for accelerate's ``load_state``: loads these models, so that nothing is left for it to load."""
    for i, model in enumerate(models):
        state = load_tensors(Path(folder) / (f"model_{i}.safetensors" if i else "model.safetensors"))
        tied = _tied(model)
        missing, unknown = model.load_state_dict(state, strict=False)
        for what, keys in (("no value", [k for k in missing if k not in tied]), ("no place in the model", unknown)):
            if keys:
                raise UserError(f"{folder}: {keys[0].removeprefix('trained.')} has {what} ({len(keys)} such)")
    models.clear()


def load_exported(folder: Path, trust: bool = False) -> tuple[Task, dict[str, nn.Module], dict[str, Any]]:
    """Rebuild the task and its models from an exported folder; nothing else is needed.

    Args:
        trust: also import a task that is in no installed package, and not imported yet.
    """
    from accel_train import contract
    from accel_train.config.read import build_task

    described = read_described(Path(folder))
    with imports_for(folder, trust):
        task = build_task(described["task"])
    models = contract.models_of(task, None)
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


def load_weights(models: dict[str, nn.Module], path: Path) -> None:
    """Only the weights, from an exported folder, a checkpoint, or a run folder (its newest checkpoint). Where a run has
    averaged them, the averages."""
    tensors = read_weights(path, list(models))
    for name, model in models.items():
        own = model.state_dict()
        wrong = [k for k in own if k in tensors[name] and tensors[name][k].shape != own[k].shape]
        missing = [k for k in own if k not in tensors[name] and k not in _tied(model)]
        unknown = [k for k in tensors[name] if k not in own]
        for what, keys in (("another shape", wrong), ("no value", missing), ("no place in the model", unknown)):
            if keys:
                raise UserError(f"{path}: {name}.{keys[0]} has {what} ({len(keys)} such); it is of another model")
        model.load_state_dict({k: as_kept(own[k], value) for k, value in tensors[name].items()}, strict=False)


def as_kept(own: Any, value: Tensor) -> Tensor:
    """A value like ``own``: whole, or this rank's piece of it where the model is spread over ranks."""
    if not hasattr(own, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _tied(model: nn.Module) -> set[str]:
    """Names of tensors that are the same as an earlier one, in memory and shape; those are stored once."""
    seen = set()
    tied = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if hasattr(tensor, "full_tensor") or not tensor.numel():
            continue
        same = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if same in seen:
            tied.add(name)
        seen.add(same)
    return tied


def read_weights(path: Path, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """By model and name, averaged where the run has averaged them."""
    path = Path(path)
    if (path / "config.json").is_file():
        missing = [name for name in names if not (path / f"{name}.safetensors").is_file()]
        if missing:
            raise UserError(f"{path}: no {missing[0]}.safetensors there")
        return {name: load_tensors(path / f"{name}.safetensors") for name in names}
    if not (path / MANIFEST).is_file() and not (path / "checkpoints").is_dir():
        hint = f"; {OF_OTHERS}" if path.is_file() else ""
        raise UserError(
            f"{path}: neither a model folder (config.json), a checkpoint ({MANIFEST}) nor a run folder{hint}"
        )
    tensors: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    checkpoint = verified(path)
    files = [*sorted(checkpoint.glob("model*.safetensors")), *checkpoint.glob(AVERAGES)]
    if not files:
        raise UserError(
            f"{checkpoint} holds weights in the pieces of FSDP; those in model/ and best/ of its run are whole"
        )
    for file in files:
        for key, tensor in load_tensors(file).items():
            name, _, rest = key.removeprefix("trained.").partition(".")
            if name in tensors:
                tensors[name][rest] = tensor
    return tensors


def load_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from None
