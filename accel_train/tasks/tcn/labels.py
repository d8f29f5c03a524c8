"""Which steps of a shot are positive ("a disruption is coming"), and which steps count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.tcn.shots import Shot


@dataclass(frozen=True)
class LabelSettings:
    """All times in ms.

    Args:
        twarn_ms: a step is positive from so long before the disruption on: from the *edge*.
        ignore_twarn: steps from the edge on do not count, so that only clear plasma is left.
        exclude_last_ms: the last steps, from so long before the disruption on, do not count: 0 leaves none out.
        ignore_band_ms: steps that are nearer to the edge than this do not count.

    Raises:
        UserError: a time is negative or not finite, or nothing positive would be left.
    """

    twarn_ms: float = 300.0
    ignore_twarn: bool = False
    exclude_last_ms: float = 0.0
    ignore_band_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("twarn_ms", "exclude_last_ms", "ignore_band_ms"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"{name}: must be 0 ms or more, it is {value}")
        if self.exclude_last_ms + self.ignore_band_ms >= self.twarn_ms:
            raise UserError(
                f"twarn_ms: the {self.twarn_ms:g} ms before a disruption are positive, and exclude_last_ms "
                f"{self.exclude_last_ms:g} with ignore_band_ms {self.ignore_band_ms:g} leaves none of them"
            )


def label(shot: Shot, first: int, last: int, settings: LabelSettings) -> tuple[np.ndarray, np.ndarray]:
    """Target and mask of the stored samples ``first`` to ``last - 1``, which may lie outside of the record.

    Positive are those of t >= t_disruption - twarn. Those outside of the shot's segment do not count.

    Returns:
        target, counts: bool [last - first]. No step that does not count is positive.
    """
    target, counts = np.zeros((2, last - first), bool)

    def mark(array: np.ndarray, start: int, stop: int, value: bool) -> None:
        array[max(0, start - first) : max(0, stop - first)] = value

    mark(counts, shot.start, shot.stop, True)
    if shot.disruptive:
        edge = shot.t_disruption_ms - settings.twarn_ms
        mark(target, shot.index(edge), last, True)
        if settings.ignore_twarn:
            mark(counts, shot.index(edge), last, False)
        if settings.exclude_last_ms:
            mark(counts, shot.index(shot.t_disruption_ms - settings.exclude_last_ms), last, False)
        if settings.ignore_band_ms:
            band = settings.ignore_band_ms
            mark(counts, shot.index(edge - band), shot.index(edge + band), False)
    return target & counts, counts
