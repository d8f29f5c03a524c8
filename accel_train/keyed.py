"""Random numbers that are a pure function of a key: no generator, no state, nothing to save.

Every number is a hash of (seed, purpose, index, draw), so it does not matter which rank, worker or micro-batch asks
for it, or in which order. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

import hashlib

import numpy as np

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
