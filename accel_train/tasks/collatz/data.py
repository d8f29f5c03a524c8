"""Rows of the Collatz task: number, tokens and stopping time of any index, as whole batches."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import Any

import numpy as np

from accel_train.task import Event
from accel_train.tasks.collatz.cycles import ClosedOrbit
from accel_train.tasks.collatz.numbers import VERSION, Numbers
from accel_train.tasks.collatz.trajectory import trajectories


class Rows:
    """Random access to the rows from ``first`` on of a stream of numbers; only evaluation asks for the length."""

    def __init__(self, numbers: Numbers, max_len: int, length: int, first: int = 0) -> None:
        self.numbers, self.max_len, self.length, self.first = numbers, max_len, length, first
        self._found: list[Event] = []
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict[str, Any]:
        return {"numbers": self.numbers, "max_len": self.max_len, "length": self.length, "first": self.first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def fingerprint(self) -> dict[str, Any]:
        made = {"generator": "collatz", "version": VERSION, "max_len": self.max_len, **asdict(self.numbers)}
        return {"generated": json.loads(json.dumps(made))}

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """tokens uint8 [N, max_len] (2 = pad), steps int32 [N] (T), for the device and for the host, mode uint8 [N],
        high and low int64 [N] (the two 64-bit limbs of n, as bit patterns)."""
        high, low, mode = self.numbers.draw(indices + self.first)
        while True:
            try:
                tokens, steps = trajectories(high, low, self.max_len)
                break
            except ClosedOrbit as found:
                high, low = self._report(found, high, low)
        limbs = {"high": high.view(np.int64), "low": low.view(np.int64)}
        return {"tokens": tokens, "steps": steps, "host_steps": steps, "mode": mode, **limbs}

    def item_names(self, batch: dict[str, Any]) -> list[str]:
        """The numbers themselves."""
        limbs = zip(batch["high"].tolist(), batch["low"].tolist(), strict=True)
        return [f"n = {((high % 2**64) << 64) + low % 2**64}" for high, low in limbs]

    def _report(self, found: ClosedOrbit, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keep the event for ``monitor``; the row becomes n = 1, whose T of 0 counts in no loss."""
        cycle = found.cycle
        fields = {"start": str(cycle.start), "length": len(cycle.members), "smallest": str(cycle.members[0])}
        with self._lock:
            self._found.append(Event("cycle", "NON-TRIVIAL COLLATZ CYCLE FOUND", fields))
        same = (high == np.uint64(cycle.start >> 64)) & (low == np.uint64(cycle.start & (2**64 - 1)))
        return np.where(same, np.uint64(0), high), np.where(same, np.uint64(1), low)

    def take_found(self) -> list[Event]:
        with self._lock:
            found, self._found = self._found, []
        return found
