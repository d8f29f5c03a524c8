"""Large arrays whose memory is used again, once nobody has them: to be given fresh pages costs as much as the copy that
fills them (benchmarks/windows.py)."""

from __future__ import annotations

import math
import weakref
from collections import deque

import numpy as np
from numpy.typing import DTypeLike

_SPARE: deque[np.ndarray] = deque(maxlen=2)
"""What is kept for the next batch: no more than that, whatever a run does. Appending and popping are atomic."""


class _Owner:
    """Lives as long as an array or tensor that lies in ``memory``."""

    def __init__(self, memory: np.ndarray) -> None:
        self.__array_interface__ = memory.__array_interface__


def lend(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """As ``np.empty``. When it is gone, and all views and tensors that share its memory, the next one gets that."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        memory = _SPARE.pop()
    except IndexError:
        memory = np.empty(0, np.uint8)
    if memory.size < size:
        memory = np.empty(size, np.uint8)
    owner = _Owner(memory)
    weakref.finalize(owner, _SPARE.append, memory).atexit = False
    return np.asarray(owner)[:size].view(dtype).reshape(shape)
