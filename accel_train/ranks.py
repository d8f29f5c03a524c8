"""The few things ranks say to each other. On one process every call returns at once."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator

T = TypeVar("T")


class Ranks:
    """Sums over all ranks, on the device (no host sync on a GPU) or between the hosts."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.is_main: bool = self.rank == 0
        self._hosts = None
        if self.world_size > 1:
            # NCCL cannot sum host memory; votes and metrics must not wait for the GPU.
            gloo = dist.get_backend() == "gloo"
            self._hosts = dist.group.WORLD if gloo else dist.new_group(backend="gloo")

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place, where the tensor lives."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def host_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """In place, for a CPU tensor."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self._hosts)
        return tensor

    def share(self, tensors: list[torch.Tensor]) -> None:
        """Make these device tensors those of rank 0, everywhere."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def all_agree(self, ok: bool) -> bool:
        return ok if self.world_size == 1 else bool(self.host_sum(torch.tensor(0.0 if ok else 1.0)) == 0)

    def gather(self, value: T) -> list[T]:
        """One picklable value of every rank, on every rank. For rare moments only."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._hosts)
        return values

    def from_main(self, value: T) -> T:
        """Rank 0's value on every rank."""
        return self.gather(value)[0]
