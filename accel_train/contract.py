"""What a task returns is checked where it enters the loop: one line says which method's it is and what is expected.

Types and shapes only: nothing here asks the device for a value.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel_train import keyed
from accel_train.data.draws import generators
from accel_train.data.source import IndexedSource, described
from accel_train.errors import UserError
from accel_train.task import Batch, BatchSource, Loss, Objective, Task

WHEN = ("kind", "step", "epoch", "phase", "wall_time")
"""What every record has of its own."""

CLOCK = ("lr", "grad_norm", "skipped", "items_per_s", "step_s", "wait_s", "eta_s")
"""What the loop adds to a train record."""


def require(task: Task, *methods: str) -> None:
    """Raise UserError unless the task has these methods of its own."""
    for name in methods:
        if getattr(getattr(task, name), "__func__", None) is getattr(Task, name):
            what = (getattr(Task, name).__doc__ or "").splitlines()[0]
            raise UserError(f"{type(task).__name__} has no method {name}, which is needed here: {what}")


def instance(task: Any) -> Task:
    """The task, if it is one and not its class."""
    if isinstance(task, type) and issubclass(task, Task):
        raise UserError(f"the class {task.__name__} was given for a task; give an instance: {task.__name__}(...)")
    if not isinstance(task, Task):
        raise UserError(f"a trainer needs an instance of accel_train.Task, got {described(task)}")
    return task


def source_of(task: Task, split: str, batch_size: int, seed: int) -> BatchSource | None:
    """What ``build_data`` returns for this split."""
    require(task, "build_data")
    with generators(keyed.key(seed, "data")):  # one key for all splits, if items are divided by drawing
        source = task.build_data(split, batch_size, seed)
    method = f"build_data({split!r})"
    if source is not None and not isinstance(source, BatchSource):
        raise _wrong(task, method, source, "a BatchSource: from_dataset(data, batch_size, seed) makes one of a "
                     "Dataset, a DataLoader or a list, from_iterable one of a stream")  # fmt: skip
    if isinstance(source, IndexedSource) and type(source).batch is IndexedSource.batch:
        if not callable(getattr(source.data, "read", None)):
            raise UserError(f"{type(task).__name__}.{method}: {described(source.data)} has no method read(indices), by "
                            "which an IndexedSource gets a batch as a dict of arrays")  # fmt: skip
        if not source.endless and not hasattr(source.data, "__len__"):
            raise UserError(f"{type(task).__name__}.{method}: {described(source.data)} has no length (__len__)")
    return source


def models_of(task: Task, train: BatchSource | None) -> dict[str, nn.Module]:
    """What ``build_model`` returns, by name. One without arguments needs nothing of the training data."""
    require(task, "build_model")
    built = task.build_model(*([train] if inspect.signature(task.build_model).parameters else []))
    models = built if isinstance(built, dict) else {"model": built}
    holder = nn.ModuleDict()
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise _wrong(task, "build_model", built if model is built else {name: model},
                         "a torch.nn.Module, or a dict of names to modules")  # fmt: skip
        if not isinstance(name, str) or not name or "." in name or hasattr(holder, name):
            raise UserError(f"{type(task).__name__}.build_model: {name!r} cannot be the name of a model; take another")
        for path, module in model.named_modules():
            tensors = [*module._parameters.values(), *module._buffers.values()]
            if any(t is not None and nn.parameter.is_lazy(t) for t in tensors):
                raise UserError(
                    f"{type(task).__name__}.build_model: {_place(name, path)} ({type(module).__name__}) has no shape "
                    "yet, so it cannot be restored; give its sizes, or call the model once before returning it"
                )
            for buffer, tensor in module._buffers.items():
                if tensor is not None and _expanded(tensor):  # nothing could be restored into it
                    module._buffers[buffer] = tensor.detach().clone(memory_format=torch.contiguous_format)
            if any(map(_expanded, module._parameters.values())):
                raise UserError(f"{type(task).__name__}.build_model: {_place(name, path)} has an expanded parameter, "
                                "whose elements share memory; clone it")  # fmt: skip
    if not models:
        raise _wrong(task, "build_model", built, "at least one model")
    return dict(models)


def refuse_sparse(models: Mapping[str, nn.Module]) -> None:
    """Sparse gradients are neither clipped nor reduced over ranks by torch."""
    for name, model in models.items():
        for path, module in model.named_modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad:
                raise UserError(f"{_place(name, path)} ({type(module).__name__}) has sparse=True: sparse gradients are "
                                "not supported; leave it out")  # fmt: skip


def objectives_of(task: Task) -> dict[str, Objective]:
    """The task's objectives by name."""
    objectives = task.objectives()
    listed = list(objectives) if isinstance(objectives, (list, tuple)) else []
    if not listed or not all(isinstance(objective, Objective) for objective in listed):
        raise _wrong(task, "objectives", objectives, "a list of Objective(name, trains, repeats)")
    found = {objective.name: objective for objective in listed}
    if len(found) < len(listed):
        names = ", ".join(objective.name for objective in listed)
        raise UserError(f"{type(task).__name__}.objectives: two have the same name ({names})")
    return found


def parameter_options_of(task: Task, name: str, parameter: nn.Parameter) -> Mapping[str, Any]:
    """What the task says of one parameter to the optimiser."""
    options = task.parameter_options(name, parameter)
    if not isinstance(options, Mapping):
        raise _wrong(task, f"parameter_options({name!r})", options, "a dict of options")
    for option in options:
        if option in ("lr", "params"):
            raise UserError(f"{type(task).__name__}.parameter_options({name!r}): {option!r} is the run's to say; give "
                            "lr_factor, by which the learning rate is multiplied")  # fmt: skip
    return options


def forwarded(task: Task, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> Batch:
    """The batch, and what ``forward_step`` makes of it."""
    outputs = task.forward_step(models, batch, objective)
    if not isinstance(outputs, Mapping):
        raise _wrong(task, "forward_step", outputs, "a dict of names to tensors")
    if taken := sorted(outputs.keys() & batch.keys()):
        raise UserError(f"{type(task).__name__}.forward_step: the batch has a {taken[0]!r} already; take another name")
    return {**batch, **outputs}


def loss_of(task: Task, returned: Any) -> Loss:
    """What ``loss_step`` returns: a value that may be differentiated, and terms without gradient as tensors."""
    if not isinstance(returned, Loss):
        raise _wrong(task, "loss_step", returned, "Loss(value, terms)")
    value, terms = returned
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        raise _wrong(task, "loss_step", value, "a scalar tensor as the value of the Loss: a sum over the items of the "
                     "batch, divided by what stands in totals", "a Loss with ")  # fmt: skip
    if not isinstance(terms, Mapping):
        raise _wrong(task, "loss_step", terms, "a dict of names to scalars as the terms of the Loss", "a Loss with ")
    found = {}
    for name, term in terms.items():
        tensor = _tensor(term, value.device)
        if tensor is None or tensor.numel() != 1 or tensor.is_complex():
            raise _wrong(task, "loss_step", term, "a scalar", f"a Loss with the term {name!r} = ")
        if name == "loss":
            raise UserError(f"{type(task).__name__}.loss_step: the name 'loss' is the value's; give the term another")
        _refuse_name(task, "loss_step", name, (*WHEN, *CLOCK))
        found[name] = tensor.reshape(()) if tensor.dim() else tensor
    return Loss(value.reshape(()) if value.dim() else value, found)


def sums_of(task: Task, method: str, returned: Any, device: torch.device) -> dict[str, Tensor]:
    """What ``totals`` or ``eval_step`` returns: tensors of any shape, without gradient."""
    if not isinstance(returned, Mapping):
        raise _wrong(task, method, returned, "a dict of names to sums")
    found = {}
    for name, value in returned.items():
        tensor = _tensor(value, device)
        if tensor is None:
            raise _wrong(task, method, value, "a number or a tensor", f"{name!r} = ")
        found[name] = tensor
    return found


def rows_of(task: Task, returned: Any, items: int) -> dict[str, Tensor]:
    """What ``eval_gather`` returns: a row for each of so many items."""
    if not isinstance(returned, Mapping) or not returned:
        raise _wrong(task, "eval_gather", returned, "a dict of names to tensors")
    for name, value in returned.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != items:
            raise _wrong(task, "eval_gather", value, f"a tensor with a row for each of {items} items", f"{name!r} = ")
    return {name: value.detach() for name, value in returned.items()}


def metrics_of(task: Task, returned: Any, method: str = "eval_metrics", taken: Iterable[str] = ()) -> dict[str, float]:
    """What ``eval_metrics`` or ``eval_gathered`` returns."""
    if not isinstance(returned, Mapping):
        raise _wrong(task, method, returned, "a dict of names to numbers")
    metrics = {}
    for name, value in returned.items():
        _refuse_name(task, method, name, (*WHEN, *taken))
        try:
            metrics[name] = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise _wrong(task, method, value, "a number", f"{name!r} = ") from None
    return metrics


def _refuse_name(task: Task, method: str, name: Any, taken: tuple[str, ...]) -> None:
    """A UserError unless it can name a curve, a column and a field of a record that also has those ``taken``."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(f"{type(task).__name__}.{method} returned the name {name!r}; a name is a text of one line")
    if name in taken:
        raise UserError(f"{type(task).__name__}.{method}: the name {name!r} is the trainer's own; give another")


def _tensor(value: Any, device: torch.device) -> Tensor | None:
    """Numbers and arrays become tensors (none of this waits for the device); None for what is neither."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dtype in (torch.bool, torch.uint8):  # adding these saturates or overflows
            value = value.long()
        return value if value.device == device or value.dim() else value.to(device, non_blocking=True)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        if value.ndim:
            return torch.from_numpy(np.array(value, np.float64)).to(device, non_blocking=True)
        value = value.item()
    if isinstance(value, (int, float)):
        return torch.full((), float(value), dtype=torch.float64, device=device)
    return None


# -- words -----------------------------------------------------------------------------------------------------------


def _wrong(task: Task, method: str, returned: Any, expected: str, before: str = "") -> UserError:
    return UserError(f"{type(task).__name__}.{method} returned {before}{described(returned)}; expected {expected}")


def _expanded(tensor: Any) -> bool:
    """Whether elements of it lie at the same place, so that nothing can be written into it."""
    if tensor is None or tensor.layout is not torch.strided:
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _place(model: str, path: str) -> str:
    return f"model {model!r}" if not path else f"{path!r} of model {model!r}"
