"""Mean and deviation of each channel over a training split, by sums per shot that are put together in their order.

So they are the same, bit for bit, whoever did which shot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of some samples: how many, and float64 [C] their mean and the sum of squared differences to it."""

    count: int
    mean: np.ndarray
    squares: np.ndarray


def moments(x: np.ndarray) -> Moments:
    """Of [C, n]."""
    x = np.ascontiguousarray(x, np.float64)
    mean = x.mean(1) if x.shape[1] else np.zeros(len(x))
    return Moments(x.shape[1], mean, np.square(x - mean[:, None]).sum(1))


def together(parts: Iterable[Moments]) -> Moments:
    """Of all samples of all parts, added in this order (Chan, Golub and LeVeque, 1979); there must be one part."""
    total: Moments | None = None
    for part in parts:
        if total is None or total.count == 0:
            total = part
        elif part.count:
            count, difference = total.count + part.count, part.mean - total.mean
            mean = total.mean + difference * (part.count / count)
            between = difference * difference * (total.count * part.count / count)
            total = Moments(count, mean, total.squares + part.squares + between)
    assert total is not None
    return total


def norm(of: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 [C]; 1 for a channel that never changes, whose z is then 0."""
    std = np.sqrt(of.squares / max(1, of.count))
    return of.mean, np.where(std > 1e-9 * np.maximum(1e-300, np.abs(of.mean)), std, 1.0)
