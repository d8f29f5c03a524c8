"""Metrics over a held-out split from exact sums: the same on any number of ranks, and training does not notice."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_train.data.loader import Loader
from accel_train.errors import UserError
from accel_train.progress import Position
from accel_train.ranks import Ranks
from accel_train.task import Batch, Task


def evaluate(
    task: Task,
    models: dict[str, nn.Module],
    loader: Loader,
    accelerator: Accelerator,
    ranks: Ranks,
    micro_batch_size: int | None,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(metrics, summed statistics as float64 CPU tensors) of one pass over the loader's source, on every rank alike."""
    sums: dict[str, Tensor] = {}
    if loader.source.steps(0) is None:
        raise UserError(f"{task.task_name()}: an evaluation split must have an end")
    with quietly(models), torch.no_grad():
        for _, _, share in loader.batches(Position(), last_epoch=1):
            if share is None:
                continue
            for name, part in _statistics(task, models, share, accelerator, micro_batch_size).items():
                part = part.detach().to(torch.float64)
                sums[name] = sums[name] + part if name in sums else part
    shapes = next((s for s in ranks.gather({k: tuple(v.shape) for k, v in sums.items()}) if s), {})
    total = {name: ranks.host_sum(sums.get(name, torch.zeros(shape)).double().cpu()) for name, shape in shapes.items()}
    return {name: float(value) for name, value in task.eval_metrics(total).items()}, total


def _statistics(
    task: Task, models: dict[str, nn.Module], share: Batch, accelerator: Accelerator, limit: int | None
) -> dict[str, Tensor]:
    """One share, cut to fit in memory. No rank waits for another here, so an out-of-memory error is a local matter."""
    limit = limit or task.size(share)
    while True:
        try:
            sums: dict[str, Tensor] = {}
            for micro_batch in task.split(share, limit):
                with accelerator.autocast():
                    parts = task.eval_step(models, micro_batch)
                for name, part in parts.items():
                    sums[name] = sums[name] + part if name in sums else part
            return sums
        except torch.OutOfMemoryError:
            if limit <= 1:
                raise
            limit //= 2
            torch.cuda.empty_cache()


@contextlib.contextmanager
def quietly(models: dict[str, nn.Module]) -> Iterator[None]:
    """Eval mode inside; afterwards modes and every random generator are as they were."""
    modes = [(module, module.training) for model in models.values() for module in model.modules()]
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        for model in models.values():
            model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy_state)
