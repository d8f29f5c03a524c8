"""Sensors that fail: shots as they would look, what can be done about it, and training that gets used to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from accel_train import keyed
from accel_train.arguments import Range, check_arguments


@dataclass(frozen=True)
class Failure:
    """What fails in each shot.

    Args:
        channels: so many, drawn for each shot, give no signal from a moment on that is drawn, too, uniformly in the
            part of the shot that counts.
        frozen_ms: all channels keep their value during so long before the shot ends.
        forward_fill: a channel without signal keeps its last value, instead of falling to zero. One that is frozen
            does so by itself.
    """

    channels: Annotated[int, Range(0)] = 0
    frozen_ms: Annotated[float, Range(0)] = 0.0
    forward_fill: bool = False

    def __post_init__(self) -> None:
        check_arguments(Failure, vars(self), "")

    def first_lost(self, seed: int, shot: int, channels: int, start: int, stop: int, dt_ms: float) -> np.ndarray:
        """From which sample on each channel gives nothing, and from which it is frozen: int64 [2, channels], ``stop``
        for never. The same for every window of a shot, and with more channels those that failed before fail again.

        Args:
            shot: its number; with ``seed`` it decides what fails.
            start, stop: the samples of the shot that count.
        """
        draws = keyed.uniform(keyed.key(seed, "failing sensors", shot), np.arange(channels), 2)
        failing = np.argsort(draws[:, 0], kind="stable")[: self.channels]
        lost = np.full((2, channels), stop, np.int64)
        lost[0, failing] = start + (draws[failing, 1] * (stop - start)).astype(np.int64)
        lost[1] = max(start, stop - round(self.frozen_ms / dt_ms))
        return lost


FAILURES: Mapping[str, Failure] = {
    **{f"{k} channels dead{' and filled' if fill else ''}": Failure(channels=k, forward_fill=fill)
       for k in (8, 40) for fill in (False, True)},
    **{f"last {ms} ms frozen": Failure(frozen_ms=ms) for ms in (10, 20, 50)},
}  # fmt: skip
"""The rows of the table."""


def failed(x: np.ndarray, failure: Failure, lost: np.ndarray, zero: np.ndarray, start: int) -> np.ndarray:
    """A shot as failing sensors record it: a new array.

    Args:
        x: [C, n], the samples of a shot from ``start`` to the end of what counts, in any unit.
        lost: ``failure.first_lost``.
        zero: [C], the value of no signal in the unit of x: ``stored_zero`` of stored values.
    """
    x = x.copy()
    for values, none, silent, frozen in zip(x, zero, *(lost - start), strict=True):
        if silent < len(values):
            values[silent:] = values[max(silent - 1, 0)] if failure.forward_fill else none
        if frozen < len(values):
            values[frozen:] = values[max(frozen - 1, 0)]
    return x


def stored_zero(scale: np.ndarray, offset: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The stored value nearest to a physical 0, if physical = stored * scale + offset: [C] of ``dtype``."""
    zero = -offset.astype(np.float64) / scale
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        zero = np.clip(np.round(zero), limits.min, limits.max)
    return zero.astype(dtype)


def forward_fill(x: np.ndarray) -> np.ndarray:
    """NaN replaced by the last value before it, in time, that is none; those before the first one stay.

    Args:
        x: floating point [..., n].
    """
    known = np.where(np.isnan(x), 0, np.arange(x.shape[-1]))
    return np.take_along_axis(x, np.maximum.accumulate(known, axis=-1), axis=-1)


def kept_channels(seed: int, epoch: int, items: np.ndarray, channels: int, rate: float) -> np.ndarray:
    """Channel drop-out for training: bool [B, channels], False where a channel is to be set to its mean (0 once it is
    normalised) in the whole window.

    A function of (seed, epoch, item), so that neither ranks, workers, micro-batches nor interruptions change it.

    Args:
        items: int64 [B], at least 0; each once in an epoch, such as the places of windows in it.
        rate: the largest share that is dropped. Each window has its own, uniform up to it, so that the model sees whole
            arrays as well as broken ones; nothing is scaled up for it, since nothing is where sensors are dead.
    """
    draws = keyed.uniform(keyed.key(seed, "channel drop-out", epoch), items, channels + 1)
    return draws[:, 1:] >= rate * draws[:, :1]
