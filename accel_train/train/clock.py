"""What the loop costs: its time and the time waiting for data, without the pauses, and the memory of a GPU."""

from __future__ import annotations

import time
from typing import Any

import torch

MIB = 2**20


class Clock:
    """``items`` and ``waited`` are added to by the loop; the rest is read at synchronisation points."""

    def __init__(self, step: int) -> None:
        self.items = self.waited = 0.0  # of this rank, since the last exchange
        self._since = time.monotonic()
        self._lap = (step, 0.0)  # step, seconds
        self._seconds_per_step = 0.0
        self._rates: dict[str, float] = {}
        self._window = [0.0, 0.0, 0.0, 0.0]  # steps, seconds, items of all ranks, seconds waited on rank 0

    def pause(self, step: int) -> float:
        """Stop the clock after ``step`` steps; returns the time now."""
        now = time.monotonic()
        steps, seconds = step - self._lap[0], now - self._since
        if steps:
            self._seconds_per_step = seconds / steps
        self._lap = (step, seconds)
        self._window[0] += steps
        self._window[1] += seconds
        return now

    def resume(self) -> None:
        self._since = time.monotonic()

    def seconds_per_step(self) -> float:
        """Mean over the last stretch between two synchronisation points."""
        return self._seconds_per_step

    def read(self, items: float, waited: float) -> None:
        """Take in what all ranks did since the last exchange."""
        self._window[2] += items
        self._window[3] += waited
        self.items = self.waited = 0.0

    def new_window(self) -> None:
        self._window = [0.0] * 4

    def rates(self, step: int, total_steps: int | None) -> dict[str, Any]:
        """Means per step since the last log line, and the time that is left."""
        steps, seconds, items, waited = self._window
        if steps:
            self._rates = {
                "items_per_s": items / max(seconds, 1e-9),
                "step_s": seconds / steps,
                "wait_s": waited / steps,
            }
        rates: dict[str, Any] = dict(self._rates)
        if total_steps is not None and "step_s" in rates:
            rates["eta_s"] = (total_steps - step) * rates["step_s"]
        return rates


def cuda_memory(device: torch.device) -> dict[str, float]:
    """MiB that tensors take and that the allocator holds on this GPU, now and at most since the last call; on any other
    device nothing."""
    if device.type != "cuda":
        return {}
    memory = {
        "cuda/alloc_mib": torch.cuda.memory_allocated(device) / MIB,
        "cuda/reserved_mib": torch.cuda.memory_reserved(device) / MIB,
        "cuda/max_alloc_mib": torch.cuda.max_memory_allocated(device) / MIB,
        "cuda/max_reserved_mib": torch.cuda.max_memory_reserved(device) / MIB,
    }
    torch.cuda.reset_peak_memory_stats(device)
    return memory
