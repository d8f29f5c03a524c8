"""Rows of long steps: an odd number, its digits and those of the result, for any index, as whole batches.

A number n is held out if and only if a hash of n, the same in every run, is a multiple of 64: one number in 64, which
needs no list. The rule of the parity task, six bits of n, would not do here: it keeps certain digits from ever standing
next to each other at one place in training, and the held-out numbers all have them there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from accel_train import keyed
from accel_train.tasks.collatz.step.arithmetic import digits_of, long_step

VERSION = 1
"""Of the rule by which a row follows from its index: raised whenever other rows come out."""
_RULE = keyed.key("collatz step", "held out")


def is_held_out(n: np.ndarray) -> np.ndarray:
    """bool [N], of n uint64 [N]."""
    return keyed.bits(_RULE, n)[:, 0] % np.uint64(64) == 0


class Steps:
    """Random access to rows of odd numbers drawn evenly below ``last``; only evaluation asks for the length.

    Args:
        seed: of the run; the same seed and index give the same number on every machine.
        last: even; no number reaches it.
        base, width: of the digits.
        held_out: held-out numbers instead of those for training.
        length, first: rows, from row ``first`` of the stream on.
    """

    def __init__(
        self, seed: int, last: int, base: int, width: int, held_out: bool, length: int, first: int = 0
    ) -> None:
        self.seed, self.last, self.base, self.width, self.held_out = seed, last, base, width, held_out
        self.length, self.first = length, first

    def __len__(self) -> int:
        return self.length

    def fingerprint(self) -> dict[str, Any]:
        made = {"seed": self.seed, "last": self.last, "base": self.base, "width": self.width}
        return {"generated": {"generator": "collatz step", "version": VERSION, **made}}

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """digits uint8 [N, width] of n and result uint8 [N, width], the lowest digit first; ups, halvings uint8 [N],
        the lengths of the two loops; n int64 [N]."""
        n = self.draw(indices + self.first)
        result, ups, halvings = long_step(n)
        digits, following = (digits_of(each, self.base, self.width) for each in (n, result))
        return {"digits": digits, "result": following, "ups": ups, "halvings": halvings, "n": n.view(np.int64)}

    def draw(self, indices: np.ndarray) -> np.ndarray:
        """uint64 [N], for each index the first of its draws that is of the kind asked for."""
        n, missing, draws = np.zeros(len(indices), np.uint64), np.arange(len(indices)), 0
        while missing.size:
            bits = keyed.bits(keyed.key(self.seed, "collatz step", draws), indices[missing])[:, 0]
            found = bits % np.uint64(self.last // 2) * np.uint64(2) + np.uint64(1)
            n[missing] = found
            missing, draws = missing[is_held_out(found) != self.held_out], draws + 1
        return n
