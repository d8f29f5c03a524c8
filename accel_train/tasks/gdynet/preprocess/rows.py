"""What the text formats have in common: lines that are passed over, rows of atoms, and how a fault in them is said.

Text is bytes here: a byte that is not UTF-8 matters only where it is in a number or a symbol.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from accel_train.tasks.gdynet.preprocess.elements import Said

DECIMALS = 10
"""Rows that must agree on how many decimals a number has before one with others is taken for a cut one."""


class WrongError(Exception):
    """A frame is not as its format wants it, at this line, counted from 0 in the frame."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class CutError(Exception):
    """The file ends inside a frame; says what is there."""


@dataclass(frozen=True)
class Parsed:
    """The atoms of a frame. ``lines`` [N]: the line of each in the frame."""

    lines: np.ndarray
    said: Said
    positions: np.ndarray
    cell: np.ndarray
    periodic: np.ndarray
    charges: np.ndarray | None = None
    ids: np.ndarray | None = None


def shown(text: bytes) -> str:
    return repr(text[:60].strip().decode("utf-8", "backslashreplace"))


def pass_over(lines: Iterator[bytes], count: int, what: str) -> None:
    """Read so many lines. Raises ``CutError`` if there are fewer."""
    last = deque(enumerate(islice(lines, count), 1), maxlen=1)
    if count and (not last or last[0][0] < count):
        raise CutError(f"{last[0][0] if last else 0} of its {count} {what} are there")


def split(lines: list[bytes], first: int, count: int, width: int, exact: bool) -> list[tuple[bytes, ...]]:
    """The ``width`` columns of the lines from ``first`` on; a line may have more only if not ``exact``."""
    lines = lines[first : first + count]
    fields = [line.split() for line in lines]
    lengths = set(map(len, fields))
    if min(lengths, default=width) < width or (exact and lengths - {width}) or b"\0" in b"".join(lines):
        for i, row in enumerate(fields):
            if len(row) < width or (exact and len(row) != width) or b"\0" in lines[i]:
                raise WrongError(first + i, f"{width} fields are expected, there is {shown(lines[i])}")
    return list(islice(zip(*fields, strict=exact), width)) or [()] * width


def numbers(column: tuple[bytes, ...], first: int, kind: type = float) -> np.ndarray:
    """float64 or int64 [N] of a column that begins at line ``first``."""
    try:
        return np.array([kind(field) for field in column], kind)
    except (ValueError, OverflowError):
        for i, field in enumerate(column):
            try:
                np.array(kind(field), kind)
            except (ValueError, OverflowError):
                what = "number" if kind is float else "integer"
                raise WrongError(first + i, f"{shown(field)} is no {what}") from None
        raise


def table(columns: list[tuple[bytes, ...]], first: int) -> np.ndarray:
    """float64 [N, columns]."""
    return np.stack([numbers(column, first) for column in columns], axis=1)


def last_is_odd(lines: list[bytes]) -> bool:
    """Whether the number that ends the last row has other decimals than those before it, which agree on them."""
    decimals = [len(line.split()[-1].partition(b".")[2]) for line in lines[-DECIMALS - 1 :] if line.strip()]
    return len(decimals) > DECIMALS and len(set(decimals[:-1])) == 1 and decimals[-1] != decimals[0]
