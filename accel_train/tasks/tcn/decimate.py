"""Fewer samples: every q-th as it is, or after a low-pass filter that sees the past only."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

LENGTH = 16
"""Kept samples that the filter reaches back."""
CUTOFF = 0.77
"""Of the Nyquist frequency of what is kept: half amplitude. It passes up to 0.55 of it and stops from 1 on."""
KAISER = 5.65
"""60 dB less in the stop band (Kaiser's formula: 0.1102 (A - 8.7))."""


def decimate(x: np.ndarray, step: int, filtered: bool) -> np.ndarray:
    """[c, ceil(T / step)] of [c, T]: samples 0, step, 2 step, ...

    Args:
        x: float32.
        filtered: against aliasing, by a windowed sinc of 16 ``step`` taps. It is causal, so that no step knows of what
            comes after it, and delays by 8 kept samples what it passes, as a filter before the digitiser would. Before
            the first sample it sees the first sample.

    Returns:
        float32, of its own memory.
    """
    if step == 1 or not filtered:
        return np.ascontiguousarray(x[:, ::step])
    taps, kept = kernel(step), -(-x.shape[1] // step)
    before = np.repeat(x[:, :1], len(taps) - 1, axis=1)
    padded = np.concatenate([before, x, np.zeros((len(x), kept * step - x.shape[1]), x.dtype)], 1)
    out = np.zeros((len(x), kept))
    for phase in range(step):  # a copy of each phase, so that all sums run along memory
        samples = np.ascontiguousarray(padded[:, phase::step], np.float64)
        for late, tap in enumerate(taps[len(taps) - 1 - phase :: -step]):
            out += tap * samples[:, late : late + kept]
    return out.astype(np.float32)


@lru_cache
def kernel(step: int) -> np.ndarray:
    """float64 [16 step], of sum 1; the first is of the newest sample."""
    length = LENGTH * step
    time = np.arange(length) - (length - 1) / 2
    taps = np.sinc(CUTOFF * time / step) * np.kaiser(length, KAISER)
    return taps / taps.sum()
