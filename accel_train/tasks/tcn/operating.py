"""Thresholds are chosen on validation shots, once, and then applied to the test."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from accel_train.errors import UserError
from accel_train.tasks.tcn.alarms import (
    USEFUL,
    AlarmRule,
    ShotScores,
    Useful,
    first_longer,
    hold_steps,
    on_runs,
    outcome_of,
    rises,
)
from accel_train.tasks.tcn.steps import best_threshold

HOLDS_MS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
GAPS = (0.0, 1.0, 2.0, 4.0)  # of the trigger, lo below hi, in logits
LEVELS = 48  # values of hi, at most


@dataclass(frozen=True)
class OperatingPoint:
    """What was chosen on validation data: all that an evaluation of test data is told.

    Args:
        threshold: a logit, of steps.
        rule: of alarms.
    """

    threshold: float
    rule: AlarmRule

    @staticmethod
    def choose(shots: Sequence[ShotScores], steps: Tensor, useful: Useful = USEFUL) -> OperatingPoint:
        """The threshold of the best F1 over steps and the rule of the best F2 over shots.

        Args:
            shots: of the validation split.
            steps: [2, bins + 1], the histograms of its steps (``step_sums``), added up.

        Raises:
            UserError: validation data without a disruption or without a positive step.
        """
        if not steps[1].any():
            raise UserError("the validation data have no positive step: no threshold can be chosen; see the split")
        return OperatingPoint(best_threshold(steps), choose_rule(shots, useful))


def choose_rule(shots: Sequence[ShotScores], useful: Useful = USEFUL) -> AlarmRule:
    """The alarm rule of the highest F2 over shots: a miss costs more than a false alarm.

    Of rules that are equally good, one of the shortest hold time, since it warns first; then the narrowest gap; then
    the middle of the widest range of thresholds, which is farthest from being worse.

    Args:
        shots: of the validation split; gone through several times.

    Raises:
        UserError: no shot with a disruption.
    """
    if not any(shot.disruptive for shot in shots):
        raise UserError("the validation data have no disruption: no alarm can be chosen; see the split")
    his = _levels(shots)
    correct = np.zeros((len(HOLDS_MS), len(GAPS), len(his)))
    false = np.zeros_like(correct)
    for shot in shots:
        for (g, gap), (h, hi) in itertools.product(enumerate(GAPS), enumerate(his)):
            outcomes = [outcome_of(shot, step, useful) for step in _alarms(shot, hi - gap, hi)]
            correct[:, g, h] += [outcome == "correct" for outcome in outcomes]
            false[:, g, h] += [outcome == "false" for outcome in outcomes]
    disruptive = sum(shot.disruptive for shot in shots)
    f2 = 5 * correct / (correct + false + 4 * disruptive)
    hold, gap, _ = np.argwhere(f2 == f2.max())[0]
    hi = _middle(his, f2[hold, gap] == f2.max())
    return AlarmRule(hi - GAPS[gap], hi, HOLDS_MS[hold])


def _middle(his: np.ndarray, best: np.ndarray) -> float:
    """The one nearest to the middle of the widest range without another that is worse."""
    edges = np.flatnonzero(np.diff(best, prepend=False, append=False)).reshape(-1, 2)
    first, end = max(edges, key=lambda run: his[run[1] - 1] - his[run[0]])
    run = his[first:end]
    return float(run[np.argmin(abs(run - (run[0] + run[-1]) / 2))])


def _levels(shots: Sequence[ShotScores]) -> np.ndarray:
    """Between the highest levels of the shots, at any hold time, where the outcome of a shot may change; and as many
    that are evenly spaced, where no shot has its own but all may be told apart."""
    tops = {float(levels[-1]) for shot in shots for hold in HOLDS_MS if len(levels := rises(shot, hold)[1])}
    if not tops:
        raise UserError("no validation shot is long enough for a score; see the receptive field")
    levels = np.sort(np.array([*tops]))
    between = np.append(levels[0], (levels[1:] + levels[:-1]) / 2)
    some = between[np.linspace(0, len(between) - 1, LEVELS // 2).round().astype(np.int64)]
    return np.unique([*some, *np.linspace(between[0], between[-1], LEVELS // 2)])


def _alarms(shot: ShotScores, lo: float, hi: float) -> list[int | None]:
    """The step of the alarm for each hold time."""
    starts, ends = on_runs(shot.scored, lo, hi)
    found = [first_longer(starts, ends, hold_steps(hold, shot.dt_ms)) for hold in HOLDS_MS]
    return [None if step is None else shot.first + step for step in found]
