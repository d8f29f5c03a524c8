"""Small shots: in memory, and as HDF5 files with the lists that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from accel_train.tasks.tcn.shots import Shot


def shot(
    number: int = 1,
    t_disruption: float | None = None,
    samples: int = 100,
    start: int = 0,
    stop: int | None = None,
    t0: float = -50.0,
    dt: float = 1.0,
    split: str = "train",
) -> Shot:
    """Disruptive if a time is given."""
    time = float("nan") if t_disruption is None else t_disruption
    stop = samples if stop is None else stop
    return Shot(number, t_disruption is not None, time, t0, dt, samples, start, stop, split)


class InMemory:
    """``Shots`` of random int16. Scale 0.5 and offset the number of the shot."""

    def __init__(self, shots: Sequence[Shot], channels: int = 3) -> None:
        self.shots, self.channels, self.dtype = list(shots), channels, np.dtype(np.int16)
        self.mean, self.std = np.zeros(channels), np.ones(channels)
        self.values = {
            each.number: np.random.default_rng(each.number).integers(-999, 999, (channels, each.samples), np.int16)
            for each in self.shots
        }

    def split(self, name: str) -> list[Shot]:
        return [each for each in self.shots if each.split == name]

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        assert 0 <= first <= last <= self.values[number].shape[1]
        return self.values[number][:, first:last]

    def files(self, shots: Any) -> None:
        return None

    def scale(self, number: int) -> np.ndarray:
        return np.full(self.channels, 0.5, np.float32)

    def offset(self, number: int) -> np.ndarray:
        return np.full(self.channels, number, np.float32)

    def fingerprint(self) -> dict[str, Any]:
        return {}


def digitised(random: np.random.Generator, channels: int, samples: int) -> np.ndarray:
    """float32 [C, T] on a grid per channel, as a digitiser of 12 bits gives them."""
    counts = np.cumsum(random.integers(-30, 31, (channels, samples)), 1).clip(-2000, 2000)
    step, zero = random.uniform(1e-4, 1e-2, (channels, 1)), random.uniform(-1, 1, (channels, 1))
    return (counts * step + zero).astype(np.float32)


def write_file(path: Path, values: np.ndarray, **attributes: Any) -> None:
    """``LFS`` in the shape of ``values``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["LFS"] = values
        file.attrs.update(attributes)


def write_shots(root: Path, count: int = 6, shape: tuple[int, ...] = (2, 3), samples: int = 400, seed: int = 0) -> Path:
    """``root/disrupt`` with meta.csv and ``root/clear`` without one; even numbers are disruptive, dt is 1 ms, t0 -50.

    The disruption is 10 samples before the end. Raw: the first 40 ms are offset only.
    """
    random, rows = np.random.default_rng(seed), ["shot,split,t_disruption"]
    for number in range(100, 100 + count):
        values = digitised(random, int(np.prod(shape)), samples)
        folder = root / ("clear" if number % 2 else "disrupt")
        write_file(folder / f"{number}.h5", values.reshape(*shape, samples))
        if number % 2 == 0:
            rows.append(f"{number},{('train', 'train', 'val', 'test')[number // 2 % 4]},{samples - 50 - 10}")
    (root / "disrupt" / "meta.csv").write_text("\n".join(rows) + "\n")
    return root
