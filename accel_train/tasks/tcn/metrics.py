"""Does the alarm sound before disruptions, and only then? Numbers over shots, with intervals over shots.

Steps of one shot follow one another, so 100 % of 16 disruptions say less than they seem to: every number has the
interval that other shots might have given (``accel_train.intervals``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from accel_train.errors import UserError
from accel_train.intervals import exact
from accel_train.sums import Confusion
from accel_train.tasks.tcn.alarms import (
    USEFUL,
    AlarmRule,
    ShotScores,
    Useful,
    alarm_step,
    alarm_warning_ms,
    outcome_of,
    rises,
)
from accel_train.tasks.tcn.steps import with_intervals

FALSE_POSITIVE_RATES = (1, 2, 5, 10)  # %
WARNING_RATE = 5  # %: false positives at which warning times are given
TRUE_POSITIVE_RATE = 95  # %
AHEAD_MS = (1, 2, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000, 5000)  # of the cumulative warning-time curve
MISSES = ("missed", "late", "early")
LEAST_ZHU_MS = 50.0  # Zhu et al., Nucl. Fusion 61, 026007, 2021: a first crossing must be earlier than this


@dataclass(frozen=True, eq=False)
class ShotTable:
    """What is left of the scores of n shots, of which D are disruptive and C clear, both in the order of ``numbers``.

    The rule gives an outcome for each shot. The plain thresholds of the sweep, with the hold time of the rule, are
    one just above the highest level of every clear shot, so that no other has another false positive rate.

    numbers: int64 [n]
    disruptive: bool [n]
    outcomes: str [n], of the rule
    warning_ms: float64 [D], of the rule: how long before the disruption the alarm sounds, -inf without one
    swept_false: bool [C, K], of the K thresholds of the sweep, from the highest down
    swept_warning_ms: float64 [D, K]
    higher: float64 [D, C], whether the highest level before the disruption is above that of the clear shot; half if
        they are equal
    higher_zhu: float64 [D, C], the same with the levels until 50 ms before the disruption
    unscored: bool [n], shots too short for any score: their alarm cannot sound
    """

    useful: Useful
    numbers: np.ndarray
    disruptive: np.ndarray
    outcomes: np.ndarray
    warning_ms: np.ndarray
    swept_false: np.ndarray
    swept_warning_ms: np.ndarray
    higher: np.ndarray
    higher_zhu: np.ndarray
    unscored: np.ndarray

    @staticmethod
    def of(shots: Iterable[ShotScores], rule: AlarmRule, useful: Useful = USEFUL) -> ShotTable:
        """One shot is looked at after the other.

        Args:
            rule: chosen on other shots (``operating.choose_rule`` of validation data).

        Raises:
            UserError: no shots, or one that comes twice.
        """
        rows = [_Row.of(shot, rule, useful) for shot in shots]
        numbers = np.array([row.number for row in rows], np.int64)
        if not len(numbers) or len(np.unique(numbers)) < len(numbers):
            raise UserError(f"alarms: {len(numbers)} shots with {len(set(numbers))} numbers; give each shot once")
        clear = np.array([row.highest() for row in rows if not row.disruptive])
        disruptive = [row for row in rows if row.disruptive]
        thresholds = np.append(np.unique(clear)[::-1], -np.inf)
        return ShotTable(
            useful,
            numbers,
            np.array([row.disruptive for row in rows]),
            np.array([row.outcome for row in rows]),
            np.array([row.warning_ms for row in disruptive]),
            clear[:, None] > thresholds,
            np.array([row.warnings_above(thresholds) for row in disruptive]).reshape(-1, len(thresholds)),
            _pairs(np.array([row.highest() for row in disruptive]), clear),
            _pairs(np.array([row.highest(LEAST_ZHU_MS) for row in disruptive]), clear),
            np.array([not len(row.levels) for row in rows]),
        )

    def sizes(self) -> dict[str, float]:
        """How many shots there are: ``shots_disruptive``, ``shots_clear``, and of both ``shots_unscored``."""
        disruptive, n = int(self.disruptive.sum()), len(self.numbers)
        return {
            "shots_disruptive": disruptive,
            "shots_clear": n - disruptive,
            "shots_unscored": int(self.unscored.sum()),
        }

    def metrics(self, times: np.ndarray | None = None) -> dict[str, float]:
        """All numbers over shots; NaN where there is nothing to count.

        Of the rule: ``tpr`` (share of the disruptions with a correct alarm), ``missed``, ``late``, ``early`` (shares of
        the disruptions), ``fpr`` (share of the clear shots with a false alarm), ``precision``, ``f1``, ``f2``, mean and
        median ``warning_*_ms`` of correct alarms, ``warned/*ms``: share of the disruptions with an alarm so early or
        earlier (the cumulative warning-time curve).

        Of the sweep: ``tpr_at_fpr_N`` at the lowest threshold at which at most N % of the clear shots have an alarm,
        warning times at 5 %, ``fpr_at_tpr_95``, ``auc`` (any alarm before the disruption is right), ``auc_zhu`` (only
        one that is more than 50 ms ahead).

        Args:
            times: int64 [n], how often each shot counts; once by default.
        """
        times = np.ones(len(self.numbers), np.int64) if times is None else times
        d, c = times[self.disruptive], times[~self.disruptive]
        return self._of_the_rule(times, d) | self._of_the_sweep(d, c)

    def intervals(self, seed: int, resamples: int = 2000) -> dict[str, float]:
        """``metrics`` and, as ``NAME/low`` and ``NAME/high``, the ends of their 95 % intervals over shots.

        Those of shares of shots are at least the exact ones: no resample of 20 correct alarms has a miss, and yet the
        next shot may be one. So is that of an AUC of 0 or 1, of as many pairs as have no shot in common. For precision,
        F1 and F2 there is none (NaN) where all resamples are alike.
        """
        # the sum of rows of the unit matrix says how often each shot was drawn
        shots = {"times": torch.eye(len(self.numbers), dtype=torch.float64)}
        found = with_intervals(lambda sums: self.metrics(sums["times"].long().numpy()), shots, seed, resamples)
        for name, units in self._shares(found).items():
            if not math.isnan(found[name]):
                low, high = exact(round(found[name] * units), units)
                found[f"{name}/low"] = float(np.nanmin([found[f"{name}/low"], low]))
                found[f"{name}/high"] = float(np.nanmax([found[f"{name}/high"], high]))
        for name in ("precision", "f1", "f2"):
            if found[f"{name}/low"] == found[f"{name}/high"]:
                found |= {f"{name}/low": math.nan, f"{name}/high": math.nan}
        return found

    def _shares(self, found: dict[str, float]) -> dict[str, int]:
        """Metrics that are shares, and of how many."""
        disruptive = int(self.disruptive.sum())
        clear = len(self.disruptive) - disruptive
        of_disruptive = ["tpr", *MISSES, *(f"warned/{ms}ms" for ms in AHEAD_MS)]
        of_disruptive += [f"tpr_at_fpr_{percent}" for percent in FALSE_POSITIVE_RATES]
        units = dict.fromkeys(of_disruptive, disruptive)
        units |= dict.fromkeys(("fpr", f"fpr_at_tpr_{TRUE_POSITIVE_RATE}"), clear)
        return units | {name: min(disruptive, clear) for name in ("auc", "auc_zhu") if found[name] in (0.0, 1.0)}

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """False and true positive rate of the sweep, float64 [K], as ``tpr_at_fpr_N`` has them."""
        every = np.ones(len(self.numbers), np.int64)
        return self._rates(every[self.disruptive], every[~self.disruptive])

    def _of_the_rule(self, times: np.ndarray, d: np.ndarray) -> dict[str, float]:
        count = {name: float(times[self.outcomes == name].sum()) for name in (*MISSES, "correct", "false", "quiet")}
        misses = sum(count[name] for name in MISSES)
        confusion = Confusion(torch.tensor([[count["quiet"], count["false"]], [misses, count["correct"]]]).double())
        found = {"tpr": confusion.recall, "fpr": confusion.false_positive_rate}
        found |= {name: _share(count[name], d.sum()) for name in MISSES}
        found |= {"precision": confusion.precision, "f1": confusion.f_score(), "f2": confusion.f_score(2)}
        found |= _named(self._warning(self.warning_ms, d), "")
        return found | {f"warned/{ms}ms": _share(float(d @ (self.warning_ms >= ms)), d.sum()) for ms in AHEAD_MS}

    def _of_the_sweep(self, d: np.ndarray, c: np.ndarray) -> dict[str, float]:
        fpr, tpr = self._rates(d, c)
        found: dict[str, float] = {}
        for percent in FALSE_POSITIVE_RATES:
            at = int((fpr <= percent / 100).sum()) - 1  # the lowest threshold; NaN everywhere without clear shots
            found[f"tpr_at_fpr_{percent}"] = float(tpr[at]) if at >= 0 else math.nan
            if percent == WARNING_RATE:
                warning = self._warning(self.swept_warning_ms[:, at], d) if at >= 0 else (math.nan, math.nan)
                found |= _named(warning, f"_at_fpr_{percent}")
        enough = fpr[tpr >= TRUE_POSITIVE_RATE / 100]
        found[f"fpr_at_tpr_{TRUE_POSITIVE_RATE}"] = float(enough.min()) if len(enough) else math.nan
        pairs = d.sum() * c.sum()
        return found | {"auc": _share(d @ self.higher @ c, pairs), "auc_zhu": _share(d @ self.higher_zhu @ c, pairs)}

    def _rates(self, d: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore"):
            return c @ self.swept_false / c.sum(), d @ self.useful.correct(self.swept_warning_ms) / d.sum()

    def _warning(self, warning_ms: np.ndarray, d: np.ndarray) -> tuple[float, float]:
        """Mean and median over the correct alarms."""
        correct = np.repeat(warning_ms, np.where(self.useful.correct(warning_ms), d, 0))
        return (float(correct.mean()), float(np.median(correct))) if len(correct) else (math.nan, math.nan)


@dataclass(frozen=True, eq=False)
class _Row:
    """One shot: its alarm by the rule, and those of all plain thresholds (``rises``)."""

    number: int
    disruptive: bool
    outcome: str
    warning_ms: float
    levels: np.ndarray
    warnings_ms: np.ndarray

    @staticmethod
    def of(shot: ShotScores, rule: AlarmRule, useful: Useful) -> _Row:
        step = alarm_step(shot, rule)
        steps, levels = rises(shot, rule.hold_ms)
        outcome, warning = outcome_of(shot, step, useful), alarm_warning_ms(shot, step)
        return _Row(shot.number, shot.disruptive, outcome, warning, levels, shot.warning_ms(steps))

    def highest(self, more_than_ms: float = 0.0) -> float:
        """The highest threshold at which an alarm sounds more than so long before the disruption, or at all where there
        is none; -inf if it never does."""
        levels = self.levels[self.warnings_ms > more_than_ms] if self.disruptive else self.levels
        return float(levels[-1]) if len(levels) else -math.inf

    def warnings_above(self, thresholds: np.ndarray) -> np.ndarray:
        """How long before the disruption the alarm sounds at thresholds just above these; -inf where it does not."""
        return np.append(self.warnings_ms, -np.inf)[np.searchsorted(self.levels, thresholds, side="right")]


def _pairs(disruptive: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """Which of two shots has the higher level: 1 the disruptive one, 0 the clear one, half if they are equal."""
    return np.where(disruptive[:, None] == clear, 0.5, disruptive[:, None] > clear)


def _share(part: float | np.ndarray, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _named(warning: tuple[float, float], where: str) -> dict[str, float]:
    return {f"warning_mean_ms{where}": warning[0], f"warning_median_ms{where}": warning[1]}
