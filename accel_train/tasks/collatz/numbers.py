"""Which numbers a Collatz run sees: a pure function of (seed, index), and a split that belongs to the number itself.

A number n is held out if and only if ``(n >> 10) & 63 == 63``. That is 1 number in 64, in runs of 1024, at every
magnitude; whoever meets n, in whatever run or mode, can tell without a list. In every block of 65536 the first 64512
numbers are for training and the last 1024 are held out, which gives both kinds a closed form by rank. Rounding a number
up to 3 mod 4 touches its two lowest bits only, so it never crosses the line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from accel_train import keyed
from accel_train.errors import UserError

VERSION = 1
"""Of the rule by which a number follows from its index: raised whenever other numbers come out."""
NORMAL, NEAR, NEAR3, DENSE = range(4)
MODES = ("normal", "near", "near3", "dense")
"""Names of the mode numbers that ``Numbers.draw`` returns."""

_BLOCK, _HELD = 1 << 16, 1 << 10
_KEPT = _BLOCK - _HELD
_SPAN = 10**12  # near numbers lie in [2^68, 2^68 + _SPAN)
_NEAR_HIGH = 1 << 4  # the upper limb of 2^68
_DENSE_BITS = (70, 120)
_DENSE_ODDS = 52429  # of 65536: each lower bit of a dense number is 1 with probability 0.8


@dataclass(frozen=True)
class Numbers:
    """The endless sequence of numbers of one run, by index.

    Row i is hard exactly if floor((i+1) r) > floor(i r), with r the ``hard_ratio``. Every window of w rows, wherever
    it begins, then holds floor(w r) or ceil(w r) hard ones: each batch is mixed at the stated ratio.

    Args:
        seed: of the run; the same seed and index give the same number on every machine.
        hard_ratio: share of hard rows, 0 to 1.
        normal_order: ``"random"`` draws from ``normal_range``, half of the rows uniformly, half evenly over its
            magnitudes, so that every batch looks the same; ``"sequential"`` visits the training numbers one after
            another, each once before the first comes again. Held-out normal rows are always drawn at random.
        normal_range: normal numbers are taken from [first, last).
        held_out: draw the held-out numbers instead of the training ones.
        hard_shares: weights of near (2^68 + u, u uniform below 10^12), near3 (the same, rounded up to 3 mod 4) and
            dense (70 to 119 bits, each bit below the highest set with probability 0.8) among the hard rows.

    Raises:
        UserError: an argument is out of its range, or the normal range holds no number of the kind asked for.
    """

    seed: int
    hard_ratio: float = 0.5
    normal_order: Literal["random", "sequential"] = "random"
    normal_range: tuple[int, int] = (10, 20_000_000_000)
    held_out: bool = False
    hard_shares: tuple[float, float, float] = (0.3, 0.3, 0.4)

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal_range", tuple(self.normal_range))
        object.__setattr__(self, "hard_shares", tuple(self.hard_shares))
        if not 0 <= self.hard_ratio <= 1:
            raise UserError(f"hard_ratio must lie in [0, 1], got {self.hard_ratio}")
        if self.normal_order not in ("sequential", "random"):
            raise UserError(f'normal_order must be "sequential" or "random", got {self.normal_order!r}')
        if len(self.hard_shares) != 3 or min(self.hard_shares) < 0 or not 0 < sum(self.hard_shares) < math.inf:
            raise UserError(f"hard_shares must be three weights, none negative and not all 0, got {self.hard_shares}")
        if len(self.normal_range) != 2 or not 1 <= self.normal_range[0] < self.normal_range[1] <= 2**62:
            raise UserError(f"normal_range must be [first, last), 1 <= first < last <= 2**62, got {self.normal_range}")
        first, end = self._ranks(*self.normal_range)
        if first == end and self.hard_ratio < 1:
            kind = "held-out" if self.held_out else "training"
            raise UserError(f"normal_range {self.normal_range} holds no {kind} number; make it at least 65536 wide")

    def draw(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The numbers at these indices, in any order and with any repetition.

        Args:
            indices: int64 [N], none negative.

        Returns:
            high, low: uint64 [N], the number is high * 2**64 + low.
            mode: uint8 [N], an index into ``MODES``.

        Raises:
            ValueError: an index is negative.
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and indices.min() < 0:
            raise ValueError(f"indices must not be negative, got {indices.min()}")
        choice, place, shape = self._bits("row", indices, 3).T
        mode = self._modes(indices, choice)
        high, low = np.zeros(len(indices), np.uint64), np.zeros(len(indices), np.uint64)

        normal = np.flatnonzero(mode == NORMAL)
        low[normal] = self._normal(indices[normal], place[normal], shape[normal])

        near = np.flatnonzero((mode == NEAR) | (mode == NEAR3))
        first, end = self._ranks(0, _SPAN)
        offset = self._unrank(first + (place[near] % np.uint64(end - first)).astype(np.int64))
        high[near] = _NEAR_HIGH
        low[near] = np.where(mode[near] == NEAR3, offset | 3, offset)

        dense = np.flatnonzero(mode == DENSE)
        high[dense], low[dense] = self._dense(indices[dense], shape[dense])
        return high, low, mode

    # -- which kind of number --------------------------------------------------------------------------------------

    def _hard_before(self, indices: np.ndarray) -> np.ndarray:
        """floor(i r) in exact integers: r as a fraction whose denominator is small enough for int64."""
        ratio = Fraction(self.hard_ratio).limit_denominator(10**6)
        whole, rest = np.divmod(indices, ratio.denominator)
        return whole * ratio.numerator + rest * ratio.numerator // ratio.denominator

    def _modes(self, indices: np.ndarray, choice: np.ndarray) -> np.ndarray:
        hard = self._hard_before(indices + 1) > self._hard_before(indices)
        edges = np.cumsum(self.hard_shares) / sum(self.hard_shares)
        kind = np.searchsorted(edges[:2], _unit(choice), side="right") + NEAR
        return np.where(hard, kind, NORMAL).astype(np.uint8)

    # -- normal numbers, by rank among those of their kind ---------------------------------------------------------

    def _ranks(self, first: int, end: int) -> tuple[int, int]:
        """How many numbers of this split lie below ``first``, and below ``end``."""
        return self._rank(first), self._rank(end)

    def _rank(self, n: int) -> int:
        block, rest = divmod(n, _BLOCK)
        return block * _HELD + max(rest - _KEPT, 0) if self.held_out else block * _KEPT + min(rest, _KEPT)

    def _unrank(self, rank: np.ndarray) -> np.ndarray:
        """The number of this split that ``rank`` others lie below; int64."""
        block, rest = np.divmod(rank, _HELD if self.held_out else _KEPT)
        return block * _BLOCK + rest + (_KEPT if self.held_out else 0)

    def _normal(self, indices: np.ndarray, place: np.ndarray, shape: np.ndarray) -> np.ndarray:
        first, end = self._ranks(*self.normal_range)
        if first == end:
            return indices
        if self.normal_order == "sequential" and not self.held_out:
            rank = first + (indices - self._hard_before(indices)) % (end - first)
        else:
            # rank + shift is proportional to n up to rounding by blocks: what is even in its logarithm is even in log n
            rank = first + (place % np.uint64(end - first)).astype(np.int64)
            shift = _HELD if self.held_out else 0
            low, high = math.log(first + shift), math.log(end + shift)
            spread = np.exp(low + (high - low) * _unit(place)).astype(np.int64) - shift
            rank = np.where(shape >> np.uint64(63), np.clip(spread, first, end - 1), rank)
        return self._unrank(rank)

    # -- dense numbers ---------------------------------------------------------------------------------------------

    def _dense(self, indices: np.ndarray, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        words = self._bits("dense", indices, 32).reshape(-1, 2, 16)
        ones = np.zeros(words.shape[:2], np.uint64)
        for digit in range(16):  # each step halves the distance: after them a bit is 1 with probability 52429 / 65536
            word = words[:, :, digit]
            ones = ones | word if _DENSE_ODDS >> digit & 1 else ones & word
        top = np.uint64(_DENSE_BITS[0] - 65) + shape % np.uint64(_DENSE_BITS[1] - _DENSE_BITS[0])
        leading = np.uint64(1) << top
        high, low = (ones[:, 0] & (leading - np.uint64(1))) | leading, ones[:, 1]
        field = np.uint64(_BLOCK - _HELD)
        if self.held_out:
            return high, low | field
        cleared = np.uint64(1) << (np.uint64(10) + (shape >> np.uint64(32)) % np.uint64(6))
        return high, np.where(low & field == field, low & ~cleared, low)

    def _bits(self, purpose: str, indices: np.ndarray, draws: int) -> np.ndarray:
        split = "held out" if self.held_out else "train"
        return keyed.bits(keyed.key(self.seed, "collatz", split, purpose), indices, draws)


def is_held_out(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Whether the numbers ``high * 2**64 + low`` (uint64 [N] each) are held out; bool [N]. ``high`` has no say."""
    del high
    return (np.asarray(low, np.uint64) >> np.uint64(10)) & np.uint64(63) == np.uint64(63)


def to_int(high: np.ndarray, low: np.ndarray) -> list[int]:
    """The numbers ``high * 2**64 + low`` as Python integers."""
    return [(h << 64) | x for h, x in zip(high.tolist(), low.tolist(), strict=True)]


def _unit(bits: np.ndarray) -> np.ndarray:
    """uint64 to float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53
