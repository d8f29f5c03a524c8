"""Random numbers that are a pure function of a key: no generator, no state, nothing to save.

Every number is a hash of (seed, purpose, index, draw), so it does not matter which rank, worker or micro-batch asks
for it, or in which order. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """Hash a few names and integers, such as ``(seed, "noise", epoch)``, into one 64-bit key."""
    text = "\x1f".join(f"{'str' if isinstance(part, str) else 'int'}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def bits(seed: int, indices: np.ndarray, draws: int = 1) -> np.ndarray:
    """64 random bits for every index and draw: uint64, shape (len(indices), draws)."""
    indices = np.asarray(indices).astype(np.uint64)
    rows = _mix(_mix(indices) ^ np.uint64(seed & 0xFFFFFFFFFFFFFFFF))
    return _mix(rows[:, None] + np.arange(draws, dtype=np.uint64) * _GOLDEN)


def uniform(seed: int, indices: np.ndarray, draws: int = 1) -> np.ndarray:
    """float64 in [0, 1), shape (len(indices), draws)."""
    return (bits(seed, indices, draws) >> np.uint64(11)) * 2.0**-53


def normal(seed: int, indices: np.ndarray, draws: int = 1) -> np.ndarray:
    """Standard normal float64 (Box-Muller), shape (len(indices), draws)."""
    pairs = uniform(seed, indices, 2 * draws)
    radius = np.sqrt(-2.0 * np.log1p(-pairs[:, :draws]))
    return radius * np.cos(2.0 * np.pi * pairs[:, draws:])


# -- the same on a device: int64 instead of uint64, of which torch knows too little ------------------------------------


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    return (x >> by) & (2 ** (64 - by) - 1)  # torch shifts the sign in


def _mix_tensor(x: torch.Tensor) -> torch.Tensor:
    x = x + _signed(int(_GOLDEN))
    x = (x ^ _shift(x, 30)) * _signed(int(_MIX_1))
    x = (x ^ _shift(x, 27)) * _signed(int(_MIX_2))
    return x ^ _shift(x, 31)


def tensor_keys(seed: int, *indices: torch.Tensor) -> torch.Tensor:
    """One key for every tuple of indices: int64 tensors of one shape in, int64 of that shape out."""
    keys = _mix_tensor(_mix_tensor(indices[0]) ^ _signed(seed & 0xFFFFFFFFFFFFFFFF))
    for more in indices[1:]:
        keys = _mix_tensor(_mix_tensor(more) ^ keys)
    return keys


def tensor_uniform(keys: torch.Tensor, draws: int = 1) -> torch.Tensor:
    """float64 in [0, 1), shape (len(keys), draws), on the device of the keys: equal to ``uniform`` for one index."""
    import torch

    turns = torch.arange(draws, device=keys.device) * _signed(int(_GOLDEN))
    return _shift(_mix_tensor(keys[:, None] + turns), 11).double() * 2.0**-53


def tensor_normal(keys: torch.Tensor, draws: int = 1) -> torch.Tensor:
    """Standard normal float64 (Box-Muller), shape (len(keys), draws): ``normal`` but for the last bits."""
    pairs = tensor_uniform(keys, 2 * draws)
    radius = (-2.0 * (-pairs[:, :draws]).log1p()).sqrt()
    return radius * (2.0 * math.pi * pairs[:, draws:]).cos()
