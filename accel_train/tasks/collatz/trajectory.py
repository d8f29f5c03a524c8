"""Exact Collatz trajectories of many numbers at once, in numpy.

Writing n = 2^k a + b, the parities of the first k shortcut steps (where 3n+1 and the halving after it count as one)
depend on b alone, and the value after them is 3^c(b) a + d(b) (Terras, Acta Arithmetica 30, 1976). So one table over b
replaces k steps by a multiplication, and gives their tokens, too. Numbers below 2^k are looked up to their end.

A number is held in two uint64 limbs until it falls below ``_HANDOVER`` and in one int64 from there on. Where that is
not wide enough the row is walked again in Python integers, so an answer may be slow but never wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from accel_train.tasks.collatz.cycles import ClosedOrbit, find_cycle

PAD = 2
PATIENCE = 100_000
"""Steps after which an orbit is suspected of never reaching 1, and looked at for a cycle."""

JUMP = _K = 14
_SIZE = 1 << _K
_HANDOVER = 46  # bits; numbers shorter than this go on in one limb
_HEADROOM = 54  # bits; the multiplier has at most 23, so a jump from below 2^54 cannot leave int64
_STRIDE_WIDE, _STRIDE_NARROW = 3, 5  # jumps between two looks at which rows are done
_LONGEST_TAIL = 275  # tokens of the longest trajectory that starts below 2^14
_CHUNK = 4096  # rows; keeps the working set in the second-level cache
assert _K * _STRIDE_WIDE < _HANDOVER, "a wide row must not be able to pass 1 within a stride"

# 0-d arrays, since numpy converts a Python int at every operation, which on short rows costs as much as the operation.
_SHIFT, _LOW, _TABLE, _TOP = (np.array(x, np.int64) for x in (_K, _SIZE - 1, _SIZE, 40))
_USHIFT, _UREST, _UCUT = (np.array(x, np.uint64) for x in (_K, 64 - _K, 24))

# -- one number, in Python integers --------------------------------------------------------------------------------


def exact_trajectory(n: int, multiplier: int = 3, offset: int = 1, patience: int = PATIENCE) -> tuple[list[int], int]:
    """Parities of ``n`` and of every following value but the final 1, and how many they are: the reference.

    Args:
        n: any integer whose orbit reaches 1 or closes.
        multiplier, offset: the map, for odd values.
        patience: after this many steps, and every doubling of it, the orbit is searched for a cycle.

    Raises:
        ClosedOrbit: the orbit runs into a cycle without 1.
    """
    tokens: list[int] = []
    start = n
    while True:
        for _ in range(patience - len(tokens)):
            if n == 1:
                return tokens, len(tokens)
            odd = n & 1
            tokens.append(odd)
            n = multiplier * n + offset if odd else n >> 1
        cycle = find_cycle(n, multiplier, offset, max_steps=patience)
        if cycle is not None and 1 not in cycle.members:
            raise ClosedOrbit(replace(cycle, start=start))
        patience *= 2


def trajectories_of(numbers: Sequence[int], max_len: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """``trajectories`` of Python integers of any size; those beyond 128 bits are walked in Python.

    Returns:
        tokens uint8 [N, max_len], steps int32 [N].

    Raises:
        ValueError: a number is below 1.
    """
    if any(n < 1 for n in numbers):
        raise ValueError(f"trajectories are defined for positive numbers, got {min(numbers)}")
    small = [n if n >> 128 == 0 else 1 for n in numbers]
    high = np.array([n >> 64 for n in small], np.uint64)
    low = np.array([n & 0xFFFFFFFFFFFFFFFF for n in small], np.uint64)
    tokens, steps = trajectories(high, low, max_len)
    for row, n in enumerate(numbers):
        if n >> 128:
            tokens[row], steps[row] = _exact_row(n, max_len)
    return tokens, steps


def _exact_row(n: int, max_len: int) -> tuple[np.ndarray, int]:
    parities, steps = exact_trajectory(n)
    row = np.full(max_len, PAD, np.uint8)
    row[: min(steps, max_len)] = parities[:max_len]
    return row, steps


# -- many numbers, in numpy ----------------------------------------------------------------------------------------


def trajectories(high: np.ndarray, low: np.ndarray, max_len: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Parities and total stopping times of the numbers ``high * 2**64 + low``, exact for every row.

    Args:
        high, low: uint64 [N], the limbs.
        max_len: tokens kept of each row; the steps are counted to the end regardless.

    Returns:
        tokens uint8 [N, max_len], the parity (0 even, 1 odd) of n and of each following value but the final 1, then 2;
        steps int32 [N], the number of steps to reach 1: T(1) = 0, T(27) = 111.

    Raises:
        ValueError: a number is 0, or the limbs differ in shape.
        ClosedOrbit: an orbit ends in a cycle other than 1, 4, 2.
    """
    high, low = (np.ascontiguousarray(limb, dtype=np.uint64) for limb in (high, low))
    if high.ndim != 1 or high.shape != low.shape:
        raise ValueError(f"high and low must be of one length, got shapes {high.shape} and {low.shape}")
    if not (high | low).all():
        raise ValueError("trajectories are defined for positive numbers, got 0")
    tokens = np.empty((len(low), max_len), np.uint8)
    steps = np.empty(len(low), np.int32)
    for i in range(0, len(low), _CHUNK):
        part = slice(i, i + _CHUNK)
        _trajectories(high[part], low[part], tokens[part], steps[part])
    return tokens, steps


def _trajectories(high: np.ndarray, low: np.ndarray, tokens: np.ndarray, steps: np.ndarray) -> None:
    """One chunk, written into ``tokens`` and ``steps``."""
    tape = _Tape(*tokens.shape)
    short = (high == 0) & (low < np.uint64(1 << _HANDOVER))
    begun, wide = np.flatnonzero(short), np.flatnonzero(~short)
    fallen, values, lost = _wide_stage(tape, wide, high[wide], low[wide])
    rows, values = np.concatenate([begun, fallen]), np.concatenate([low[begun].astype(np.int64), values])
    lost += _narrow_stage(tape, rows, values)
    tape.write(tokens, steps)
    for row in np.concatenate(lost) if lost else ():
        tokens[row], steps[row] = _exact_row((int(high[row]) << 64) | int(low[row]), tokens.shape[1])


def _wide_stage(
    tape: _Tape, rows: np.ndarray, high: np.ndarray, low: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Jump in two limbs until every row is short. Returns the rows, their values, and the rows that were lost."""
    fallen, values, lost = [rows[:0]], [np.empty(0, np.int64)], []
    for _ in range(PATIENCE // (_K * _STRIDE_WIDE)):
        if not rows.size:
            break
        begin = at = tape.position(rows)
        overflow = np.zeros(len(rows), bool)
        for _ in range(_STRIDE_WIDE):
            high, low, entry, over = jump(high, low)
            overflow |= over
            at = tape.record(at, entry)
        tape.advance(rows, at - begin)
        short = (high == 0) & (low < np.uint64(1 << _HANDOVER)) & ~overflow
        fallen.append(rows[short])
        values.append(low[short].astype(np.int64))
        if overflow.any():
            lost.append(rows[overflow])
        stay = ~(short | overflow)
        rows, high, low = rows[stay], high[stay], low[stay]
    return np.concatenate(fallen), np.concatenate(values), lost + [rows] * bool(rows.size)


def _narrow_stage(tape: _Tape, rows: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    """Jump in one int64 until every row has ended at 0, the table's mark after 1. Returns the rows that were lost."""
    table, lost = _table(), []
    for _ in range(PATIENCE // (_K * _STRIDE_NARROW)):
        if not rows.size:
            break
        begin = at = tape.position(rows)
        peak = value
        for _ in range(_STRIDE_NARROW):
            entry = np.minimum(value, (value & _LOW) | _TABLE)
            at = tape.record(at, entry)
            value = (value >> _SHIFT) * table.factor.take(entry, mode="clip") + table.term.take(entry, mode="clip")
            peak = np.maximum(peak, value)
        tape.advance(rows, at - begin)
        overflow = peak >= 1 << _HEADROOM
        if overflow.any():
            lost.append(rows[overflow])
        stay = (value != 0) & ~overflow
        rows, value = rows[stay], value[stay]
    return lost + [rows] * bool(rows.size)


def jump(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``JUMP`` = 14 shortcut steps of each number ``high * 2**64 + low``, through 1 and round again if it is met.

    Args:
        high, low: uint64 [N].

    Returns:
        the new high and low, uint64 [N]; the table entries used, int64 [N]; and where the result does not fit in
        128 bits, bool [N], for those rows the limbs are meaningless.
    """
    table = _table()
    entry = (low.view(np.int64) & _LOW) | _TABLE
    factor, term = table.factor.take(entry).view(np.uint64), table.term.take(entry).view(np.uint64)
    a_low = (low >> _USHIFT) | (high << _UREST)
    a_high = high >> _USHIFT
    low = a_low * factor + term
    # Without its lowest 24 bits the product fits in a word but for the carry; the difference to the wrapped sum, taken
    # as signed, is that carry negated, times 2^40, plus less than 2^24.
    borrow = ((low >> _UCUT) - (a_low >> _UCUT) * factor).view(np.int64) >> _TOP
    high = a_high * factor - borrow.view(np.uint64)
    return high, low, entry, a_high > table.limit.take(entry)


# -- the table, and the tape ---------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """What to do for each entry: n itself below 2^k ("to the end"), else 2^k + (n mod 2^k) ("k shortcut steps").

    factor, term: int64 [2 * 2^k]; the next value is factor * (n >> k) + term, which is 0 after the end.
    length: int64 [2 * 2^k], tokens written.
    limit: uint64 [2 * 2^k], the largest upper limb of n >> k whose product stays in its limb: term < factor.
    tokens: uint64 [2 * 2^k], those of k shortcut steps, first in the lowest bit; 0 for the entries to the end.
    tails: uint64 [2^k, 5], those of the entries to the end.
    """

    factor: np.ndarray
    term: np.ndarray
    length: np.ndarray
    limit: np.ndarray
    tokens: np.ndarray
    tails: np.ndarray


@cache
def _table() -> _Table:
    factor, term, length = np.zeros((3, 2 * _SIZE), np.int64)
    limit, tokens = np.zeros((2, 2 * _SIZE), np.uint64)
    value, jumps = np.arange(_SIZE), slice(_SIZE, None)
    factor[jumps] = 1
    for _ in range(_K):
        odd = value & 1
        tokens[jumps] |= odd.astype(np.uint64) << length[jumps].astype(np.uint64)
        length[jumps] += 1 + odd
        factor[jumps] *= 1 + 2 * odd
        value = np.where(odd, 3 * value + 1, value) >> 1
    term[jumps] = value
    limit[jumps] = [2**64 // int(x) - 1 for x in factor[jumps]]

    tails = np.zeros((_SIZE, -(-_LONGEST_TAIL // 64)), np.uint64)
    value, alive, place = np.arange(_SIZE), np.arange(2, _SIZE), 0
    while alive.size:
        odd = value[alive] & 1
        tails[alive, place // 64] |= odd.astype(np.uint64) << np.uint64(place % 64)
        value[alive] = np.where(odd, 3 * value[alive] + 1, value[alive] >> 1)
        length[alive] += 1
        alive, place = alive[value[alive] > 1], place + 1
    return _Table(factor, term, length, limit, tokens, tails)


class _Tape:
    """Where each row stands, and which table entries wrote which tokens: all tokens are laid down at once, at the end.

    A row owns a stretch of bits long enough for its tokens and for what the stride that crosses their end writes on.
    """

    def __init__(self, rows: int, max_len: int) -> None:
        self.max_len = max_len
        spill = 2 * _K * _STRIDE_NARROW + 2 * _LONGEST_TAIL + 64
        self.words = -(-max_len // 64) + -(-spill // 64)
        self.steps = np.zeros(rows, np.int64)
        self.at: list[np.ndarray] = []
        self.entries: list[np.ndarray] = []
        self.length = _table().length

    def position(self, rows: np.ndarray) -> np.ndarray:
        """Bit at which each row's next token goes; rows that have all the tokens they need stay where they are."""
        return rows * (64 * self.words) + np.minimum(self.steps[rows], self.max_len)

    def record(self, at: np.ndarray, entry: np.ndarray) -> np.ndarray:
        """Note these entries at these bits; returns the bits after them."""
        self.at.append(at)
        self.entries.append(entry)
        return at + self.length.take(entry, mode="clip")

    def advance(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        self.steps[rows] += tokens

    def write(self, tokens: np.ndarray, steps: np.ndarray) -> None:
        """Lay down tokens uint8 [N, max_len] and steps [N]. Bits never overlap, so adding words is joining them."""
        table, at, entry = _table(), np.concatenate(self.at), np.concatenate(self.entries)
        words = np.zeros(len(steps) * self.words, np.uint64)
        last = np.flatnonzero((entry > 0) & (entry < _SIZE))
        tails = table.tails[entry[last]]
        tail_at = at[last, None] + 64 * np.arange(tails.shape[1])
        for pattern, bit in ((table.tokens.take(entry, mode="clip"), at), (tails.ravel(), tail_at.ravel())):
            word, shift = bit >> 6, (bit & 63).astype(np.uint64)
            np.add.at(words, word, pattern << shift)
            np.add.at(words, word + 1, (pattern >> np.uint64(1)) >> (np.uint64(63) - shift))
        rows = words.astype("<u8", copy=False).view(np.uint8).reshape(len(steps), 8 * self.words)
        bits = np.unpackbits(rows, axis=1, count=self.max_len, bitorder="little")
        ramp = np.repeat(np.array([0, PAD], np.uint8), self.max_len)  # its windows are all the paddings there can be
        padding = np.lib.stride_tricks.sliding_window_view(ramp, self.max_len)
        np.bitwise_or(bits, padding[self.max_len - np.minimum(self.steps, self.max_len)], out=tokens)
        steps[:] = self.steps
