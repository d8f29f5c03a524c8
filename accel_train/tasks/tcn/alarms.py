"""When does a disruption alarm sound, and was it of use? Exactly as a control room would have heard it.

The score of every step passes a Schmitt trigger: on from ``hi`` upwards, off from ``lo`` downwards, in between as it
was, and off at the start. The alarm sounds when it has stayed on for the hold time, and not before that is known. It
sounds once: a plasma is not shut down twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from accel_train.errors import DataError, UserError

Outcome = Literal["correct", "missed", "late", "early", "false", "quiet"]


@dataclass(frozen=True)
class AlarmRule:
    """Two thresholds, in the unit of the scores (logits), and a hold time.

    With ``lo`` equal to ``hi`` it is a plain threshold, which a score reaches if it is at least as large.

    Raises:
        UserError: lo above hi, or a hold time below zero.
    """

    lo: float
    hi: float
    hold_ms: float = 0.0

    def __post_init__(self) -> None:
        if not self.lo <= self.hi:
            raise UserError(f"alarm: lo={self.lo:g} must not be above hi={self.hi:g}")
        if not 0 <= self.hold_ms < math.inf:
            raise UserError(f"alarm: hold_ms={self.hold_ms:g} must be at least 0 ms")


@dataclass(frozen=True)
class Useful:
    """How long before a disruption an alarm is of use (ms, both ends included): later is ``late``, before is ``early``.

    Mitigation by gas or pellets needs 30 ms. An alarm ten seconds ahead has nothing to do with this disruption.
    """

    least_ms: float = 30.0
    most_ms: float = 10_000.0

    def correct(self, warning_ms: np.ndarray) -> np.ndarray:
        """bool: which of these times before a disruption are of use (float64, any shape)."""
        return (self.least_ms <= warning_ms) & (warning_ms <= self.most_ms)


USEFUL = Useful()


@dataclass(frozen=True, eq=False)
class ShotScores:
    """The scores of one whole shot.

    Args:
        number: of the shot.
        scores: float32 [T], the logit of every step; what lies before ``first`` is not looked at.
        t0_ms: plasma time of step 0, in ms.
        dt_ms: between steps, in ms.
        t_disruption_ms: plasma time of the disruption, NaN in a shot without one.
        first: the first step with a score, after the receptive field.

    Raises:
        DataError: a score that is not finite, a disruption without a time, or a time without a disruption.
    """

    number: int
    scores: np.ndarray
    t0_ms: float
    dt_ms: float
    disruptive: bool
    t_disruption_ms: float
    first: int = 0

    def __post_init__(self) -> None:
        bad = np.flatnonzero(~np.isfinite(self.scored))
        if len(bad):
            which = f"{len(bad)} scores are not finite, the first at {self.times_ms(self.first + bad[:1])[0]:g} ms"
            raise DataError(f"shot {self.number}: {which}; check its signals")
        if self.disruptive == math.isnan(self.t_disruption_ms):
            what = "disruptive, but without" if self.disruptive else "not disruptive, but with"
            raise DataError(f"shot {self.number}: {what} a time of disruption; check the shot list")

    @property
    def scored(self) -> np.ndarray:
        """float32 [T - first]: the steps that have a score."""
        return self.scores[self.first :]

    def times_ms(self, steps: np.ndarray) -> np.ndarray:
        """float64: plasma times of these steps (int64, any shape), in ms."""
        return self.t0_ms + steps * self.dt_ms

    def warning_ms(self, steps: np.ndarray) -> np.ndarray:
        """float64: how long before the disruption these steps are, in ms, to the nanosecond; NaN without a disruption.

        Times that differ by the rounding of t0 + i dt alone are thus the same.
        """
        return (self.t_disruption_ms - self.times_ms(steps)).round(6)


# -- the trigger -----------------------------------------------------------------------------------------------------


def hold_steps(hold_ms: float, dt_ms: float) -> int:
    """The fewest steps that last for the hold time: 3 steps of 0.1 ms are 0.3 ms, whatever binary fractions say."""
    return math.ceil(hold_ms / dt_ms - 1e-6)


def on_runs(scores: np.ndarray, lo: float, hi: float) -> tuple[np.ndarray, np.ndarray]:
    """int64 starts and ends of the runs in which the trigger is on, the end excluded; a run may reach the last step.

    Args:
        scores: [T], no NaN.
    """
    reached = scores >= hi
    up, down = np.flatnonzero(reached), np.flatnonzero((scores <= lo) & ~reached)
    off_before = np.searchsorted(down, up)  # how often it went off before: the same within a run
    begins = np.diff(off_before, prepend=-1) > 0
    return up[begins], np.append(down, len(scores))[off_before[begins]]


def first_longer(starts: np.ndarray, ends: np.ndarray, hold: int) -> int | None:
    """Where the first run of more than ``hold`` steps has been on for ``hold`` steps; None if there is no such run."""
    long = np.flatnonzero(ends - starts > hold)
    return int(starts[long[0]]) + hold if len(long) else None


def alarm_index(scores: np.ndarray, lo: float, hi: float, hold: int) -> int | None:
    """The step at which the alarm sounds: the start of the first run that is on for more than ``hold`` steps, plus
    ``hold``; None if there is no such run.

    Args:
        scores: [T], no NaN.
        hold: steps; 0 for an alarm at once.
    """
    return first_longer(*on_runs(scores, lo, hi), hold)


def alarm_step(shot: ShotScores, rule: AlarmRule) -> int | None:
    """The step of the shot, counted from its beginning, at which the alarm sounds."""
    found = alarm_index(shot.scored, rule.lo, rule.hi, hold_steps(rule.hold_ms, shot.dt_ms))
    return None if found is None else shot.first + found


# -- every plain threshold at once -----------------------------------------------------------------------------------


def rises(shot: ShotScores, hold_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """The alarms of every plain threshold: steps int64 [n] and levels [n], both increasing.

    At a threshold the alarm sounds at the first of these steps whose level is at least as high; never, if none is.
    Levels are new maxima of the lowest score in the last hold time.
    """
    hold = hold_steps(hold_ms, shot.dt_ms)
    lowest = _lowest_of(shot.scored, hold + 1)
    highest = np.maximum.accumulate(lowest)
    new = np.flatnonzero(np.diff(highest, prepend=-np.inf) > 0)
    return shot.first + hold + new, highest[new]


def _lowest_of(scores: np.ndarray, width: int) -> np.ndarray:
    """The minimum of every ``width`` scores that follow one another, [T - width + 1], by doubling."""
    have = 1
    while have < width:
        step = min(have, width - have)
        scores = np.minimum(scores[:-step], scores[step:])
        have += step
    return scores


# -- what it was worth -----------------------------------------------------------------------------------------------


def alarm_warning_ms(shot: ShotScores, step: int | None) -> float:
    """How long before the disruption an alarm at this step sounds, in ms, negative if after it; -inf without an alarm.

    In a shot without a disruption: NaN, and -inf without an alarm.
    """
    return -math.inf if step is None else float(shot.warning_ms(np.array(step)))


def outcome_of(shot: ShotScores, step: int | None, useful: Useful = USEFUL) -> Outcome:
    """What the field calls an alarm at this step, or none.

    In a shot with a disruption: ``correct``; ``late``, too short before it to be of use; ``early``; ``missed``, none
    before it. In another one: ``false``, or ``quiet`` without an alarm.
    """
    if not shot.disruptive:
        return "quiet" if step is None else "false"
    warning = alarm_warning_ms(shot, step)
    if warning <= 0:
        return "missed"
    if warning < useful.least_ms:
        return "late"
    return "correct" if warning <= useful.most_ms else "early"
