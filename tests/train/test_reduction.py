"""The reduction of gradients, which a run leaves nothing of."""

from __future__ import annotations

import gc
import weakref

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from accel_train.train.reduction import Reduction


def test_the_models_of_a_run_that_is_over_are_freed():
    """DDP keeps the hook where Python's collector cannot see that it leads back to DDP."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore
    try:
        module = DistributedDataParallel(nn.Linear(4, 4), find_unused_parameters=True)
        reduction = Reduction(module)
        reduction.begin()
        module(torch.ones(1, 4)).sum().backward()
        reduction.begin()
        reduction.complete()
        alive = weakref.ref(module)
        del module, reduction
        gc.collect()
        assert alive() is None
    finally:
        dist.destroy_process_group()
