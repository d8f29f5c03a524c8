"""Does a task keep its promise that shares add up? A batch as a whole is compared with the same batch cut in two.

Models are in eval mode (dropout would draw other masks), and nothing is left behind: weights, buffers, modes, gradients
and generators are afterwards as they were.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_train import contract
from accel_train.task import Batch, Objective, Task
from accel_train.train.evaluation import quietly

GOES_ON = "see docs/writing_a_task.md; check_contract: false trains regardless"
A_MEAN = (
    "it seems to be a mean over the local batch, so the run depends on ranks and micro-batches; return a sum over the "
    "items divided by totals['items']"
)
NO_SHARE = "each share must be a sum over its items, divided by what stands in totals"
DRAWS = (
    "draws random numbers, so the run depends on ranks and micro-batches; accel_train.keyed draws by item (see "
    "docs/writing_a_task.md)"
)


@dataclass
class Findings:
    """``error``: shares do not add up. ``warnings``: what makes a run depend on the cut, but may be meant."""

    error: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Values:
    """Sums over one batch, or over its parts, and the loss of each; losses and terms are float64 on the host."""

    totals: dict[str, Tensor]
    losses: Tensor  # [batches]
    terms: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        return self.losses.sum()


def examine(
    task: Task, models: dict[str, nn.Module], objective: Objective, batch: Batch, accelerator: Accelerator
) -> Findings:
    """Compare ``batch`` with its halves; needs no other rank. Whatever the task raises is a warning here, since the
    step that follows will raise it too, unless it was eval mode that did it."""
    try:
        with untouched(models), quietly(models), eager(models), accelerator.autocast():
            found = _compare(copy.copy(task), models, objective, batch, _tolerance(models, accelerator))
    except torch.OutOfMemoryError:
        return Findings()
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return Findings(warnings=[f"objective {objective.name!r}: whether its shares add up could not be seen: {text}"])
    found.warnings += _batch_norms(models)
    return found


def _compare(
    task: Task, models: dict[str, nn.Module], objective: Objective, batch: Batch, tolerance: Tolerance
) -> Findings:
    name, size = type(task).__name__, task.size(batch)
    halves = task.split(batch, -(-size // 2))
    if len(halves) < 2:
        return Findings()
    sizes = [task.size(half) for half in halves]
    if sum(sizes) != size:
        made = " + ".join(map(str, sizes))
        return Findings(f"{name}.split made {made} items of {size}: it must lose and double nothing")

    whole = _values(task, models, objective, [batch])
    if not all(torch.isfinite(value).all() for value in (whole.loss, *whole.totals.values())):
        return Findings()  # the step will raise it too, and say so
    parts = _values(task, models, objective, halves, whole.totals)
    draws = [whole, _redrawn(task, models, objective, batch, 1)]
    if _spread([draw.loss for draw in draws]) > 0:  # a loss that draws, or kernels that do not repeat
        draws += [_redrawn(task, models, objective, batch, seed) for seed in (2, 3)]

    for total, value in whole.totals.items():
        noise = _spread([draw.totals[total] for draw in draws])
        if _differ(value, parts.totals[total], noise, tolerance):
            shown = f"{_shown(value)} of a batch, but the sum over its halves is {_shown(parts.totals[total])}"
            return Findings(f"{name}.totals: {total!r} is {shown}; totals must be sums over items ({GOES_ON})")

    noise = _spread([draw.loss for draw in draws])
    if _differ(whole.loss, parts.loss, noise, tolerance):
        between = parts.losses.min() < whole.loss < parts.losses.max()
        mean = between or torch.isclose(parts.losses, whole.loss, rtol=0.05).all()
        shown = f"{_shown(whole.loss)}, but its halves add up to {_shown(parts.loss)}"
        return Findings(
            f"{name}.loss_step: the loss of {size} items is {shown}: {A_MEAN if mean else NO_SHARE} ({GOES_ON})"
        )
    warnings = []
    if noise > max(tolerance.relative / 10 * float(whole.loss.abs()), tolerance.absolute):
        warnings.append(f"{name}.loss_step {DRAWS}")
    for term, value in whole.terms.items():
        noise = _spread([draw.terms[term] for draw in draws if term in draw.terms])
        summed = parts.terms.get(term, torch.zeros_like(value))
        if _differ(value, summed, noise, tolerance):
            shown = f"{_shown(value)} of a batch, but its halves add up to {_shown(summed)}"
            warnings.append(f"{name}.loss_step: the term {term!r} is {shown}: its logged values depend on the cut")
    return Findings(warnings=warnings)


def _values(
    task: Task,
    models: dict[str, nn.Module],
    objective: Objective,
    batches: list[Batch],
    given: dict[str, Tensor] | None = None,
) -> _Values:
    """Totals of these batches, and their losses if the totals are those ``given`` (their own if None)."""
    device = next((v.device for v in batches[0].values() if isinstance(v, Tensor)), torch.device("cpu"))
    batches = [contract.forwarded(task, models, batch, objective) for batch in batches]
    with torch.no_grad():
        parts = [contract.sums_of(task, "totals", task.totals(models, batch, objective), device) for batch in batches]
    totals = _summed(parts)
    losses = [
        contract.loss_of(task, task.loss_step(models, batch, dict(given or totals), objective)) for batch in batches
    ]
    values = torch.stack([loss.value.detach().double().cpu() for loss in losses])
    terms = _summed([{name: term.double().cpu() for name, term in loss.terms.items()} for loss in losses])
    return _Values(totals, values, terms)


def _redrawn(task: Task, models: dict[str, nn.Module], objective: Objective, batch: Batch, seed: int) -> _Values:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    return _values(task, models, objective, [batch])


def _summed(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


# -- what is the same ------------------------------------------------------------------------------------------------


class Tolerance(NamedTuple):
    """Wide: the mistakes looked for make a large difference, and a false alarm would end the run."""

    relative: float
    absolute: float


def _tolerance(models: dict[str, nn.Module], accelerator: Accelerator) -> Tolerance:
    short = any(p.dtype in (torch.float16, torch.bfloat16) for model in models.values() for p in model.parameters())
    return Tolerance(0.1, 1e-2) if short or accelerator.mixed_precision != "no" else Tolerance(0.01, 1e-5)


def _differ(whole: Tensor, parts: Tensor, noise: float, tolerance: Tolerance) -> bool:
    if whole.shape != parts.shape:
        return True
    if whole.numel() == 0:
        return False
    whole, parts = whole.double(), parts.double()
    size = max(float(whole.abs().max()), float(parts.abs().max()))
    return float((whole - parts).abs().max()) > max(tolerance.relative * size, tolerance.absolute, 10 * noise)


def _spread(values: list[Tensor]) -> float:
    """How far the values of one batch lie apart under other seeds."""
    if not values or values[0].numel() == 0 or any(v.shape != values[0].shape for v in values):
        return 0.0
    stacked = torch.stack([value.double() for value in values])
    return float((stacked.amax(0) - stacked.amin(0)).max())


def _shown(value: Tensor) -> str:
    return f"{float(value):.6g}" if value.numel() == 1 else f"a tensor of shape {tuple(value.shape)}"


def _batch_norms(models: dict[str, nn.Module]) -> list[str]:
    found = [
        f"{name}.{path}" if path else name
        for name, model in models.items()
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if not found:
        return []
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return [f"{found[0]}{more}: BatchNorm looks at what a rank has at once, so the run depends on how a batch is cut; "
            "LayerNorm and GroupNorm do not (see docs/writing_a_task.md)"]  # fmt: skip


# -- leaving no trace ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def untouched(models: dict[str, nn.Module]) -> Generator[None]:
    """Parameters, buffers and what of them wants a gradient, put back in place."""
    modules = [module for model in models.values() for module in model.modules()]
    homes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (home, dict(home)) for module in modules for home in (module._parameters, module._buffers)
    ]
    tensors = {id(t): t for _, held in homes for t in held.values() if t is not None}
    kept = [(t, t.detach().clone(), t.requires_grad) for t in tensors.values()]
    try:
        yield
    finally:
        for home, held in homes:
            home.update(held)
        with torch.no_grad():
            for tensor, value, wanted in kept:
                tensor.copy_(value)
                if tensor.is_leaf:
                    tensor.requires_grad_(wanted)


def eager(models: dict[str, nn.Module]) -> contextlib.AbstractContextManager[Any]:
    """Halves have another shape; a model must not be compiled once more for them."""
    if any(module._compiled_call_impl is not None for model in models.values() for module in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return contextlib.nullcontext()
