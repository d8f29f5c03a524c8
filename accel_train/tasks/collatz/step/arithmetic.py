"""The long step of an odd number, and numbers as digits; exact, whole arrays at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LARGEST = 2**40
"""Numbers below it have long steps that fit in 64 bits: 3^40 < 2^64."""

_POWERS = np.array([3**k for k in range(41)], np.uint64)


class LongStep(NamedTuple):
    """uint64 [N], then uint8 [N] each: the odd number that follows, and the lengths k and h of the two loops."""

    result: np.ndarray
    ups: np.ndarray
    halvings: np.ndarray


def long_step(n: np.ndarray) -> LongStep:
    """From odd n to the next odd number after a descent: k steps n -> (3n+1)/2, as long as n stays odd, and then h
    halvings, until it is odd again.

    With n = 2^k m - 1, m odd, the steps give 3^k m - 1 (Terras, Acta Arithmetica 30, 241, 1976); so k is the number of
    ones that n ends in, in binary, and n mod 2^(k+h+1) has one value for each pair (k, h).

    Args:
        n: uint64 [N], odd, below ``LARGEST``.
    """
    ups = _trailing_zeros(n + np.uint64(1))
    top = ((n + np.uint64(1)) >> ups) * _POWERS[ups] - np.uint64(1)
    halvings = _trailing_zeros(top)
    return LongStep(top >> halvings, ups.astype(np.uint8), halvings.astype(np.uint8))


def _trailing_zeros(n: np.ndarray) -> np.ndarray:
    """uint64 [N] of positive n."""
    lowest = n & (~n + np.uint64(1))
    return (np.frexp(lowest.astype(np.float64))[1] - 1).astype(np.uint64)  # a power of two is exact as a float


def digits_of(n: np.ndarray, base: int, width: int) -> np.ndarray:
    """uint8 [N, width], the lowest digit first. What lies above ``width`` digits is lost."""
    digits = np.empty((len(n), width), np.uint8)
    for i in range(width):
        n, digits[:, i] = np.divmod(n, np.uint64(base))
    return digits


def value_of(digits: np.ndarray, base: int) -> list[int]:
    """The numbers whose digits [N, width] these are, the lowest first, as Python integers."""
    return [sum(int(d) * base**i for i, d in enumerate(row)) for row in digits]


def width_of(base: int, last: int) -> int:
    """Digits of the largest long step of an odd number below ``last``."""
    largest = max((3**k * (last >> k) - 1) // 2 for k in range(1, last.bit_length() + 1))
    width = 1
    while base**width <= largest:
        width += 1
    return width
