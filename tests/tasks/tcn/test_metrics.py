"""Numbers over shots are those of alarms that are looked at one threshold after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.tcn import operating
from accel_train.tasks.tcn.alarms import AlarmRule, ShotScores, Useful, alarm_step, alarm_warning_ms, outcome_of
from accel_train.tasks.tcn.metrics import ShotTable
from accel_train.tasks.tcn.operating import OperatingPoint, choose_rule
from accel_train.tasks.tcn.steps import EDGES

USEFUL = Useful(10, 60)  # steps of 5 ms


def shots_of(tracks: list[tuple[list[int], bool, int]]) -> list[ShotScores]:
    """Shots from scores, whether they end in a disruption, and how many steps after the last but one."""
    return [
        ShotScores(n, np.array(s, np.float32), -50, 5.0, bad, -50 + 5.0 * (len(s) - after) if bad else math.nan)
        for n, (s, bad, after) in enumerate(tracks)
    ]


def both_kinds(n: int, seed: int, separation: float = 2.0, length: int = 200) -> list[ShotScores]:
    """Noise, and in every second shot a rise at the end."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(n):
        scores = random.normal(size=length)
        scores[-40:] += separation * (i % 2)
        found.append(ShotScores(i, scores.astype(np.float32), -50.0, 5.0, bool(i % 2), 950.0 if i % 2 else math.nan))
    return found


TRACKS = st.lists(
    st.tuples(st.lists(st.integers(0, 6), max_size=25), st.booleans(), st.integers(0, 3)), min_size=1, max_size=8
)


@given(TRACKS, st.integers(0, 3))
def test_the_sweep_is_that_of_single_alarms(tracks, hold: int):
    """Every threshold at which anything changes, each shot by itself."""
    shots = shots_of(tracks)
    table = ShotTable.of(shots, AlarmRule(3, 4, hold * 5.0), USEFUL)
    found = table.metrics()
    by_threshold = []
    for threshold in np.arange(6.5, -1, -1):
        steps = [alarm_step(shot, AlarmRule(threshold, threshold, hold * 5.0)) for shot in shots]
        warnings = [alarm_warning_ms(shot, s) for shot, s in zip(shots, steps, strict=True) if shot.disruptive]
        false = [s is not None for shot, s in zip(shots, steps, strict=True) if not shot.disruptive]
        by_threshold.append((false, warnings))
    d, c = len(by_threshold[0][1]), len(by_threshold[0][0])
    for percent in (1, 2, 5, 10):
        expected = math.nan
        if d and c:
            warnings = [w for false, w in by_threshold if sum(false) <= percent / 100 * c][-1]
            expected = sum(10 <= w <= 60 for w in warnings) / d
        assert found[f"tpr_at_fpr_{percent}"] == pytest.approx(expected, nan_ok=True)
    for name, least in (("auc", 0.0), ("auc_zhu", 50.0)):
        rates = [(sum(false) / max(c, 1), sum(w > least for w in ws) / max(d, 1)) for false, ws in by_threshold]
        fpr, tpr = np.array([(0, 0), *rates, (1, 1)]).T
        # a shot without any level is not above a clear one, and as high as a clear one without any
        area = float((np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum())
        assert found[name] == pytest.approx(area if d and c else math.nan, nan_ok=True), name


@given(TRACKS, st.integers(0, 3))
def test_the_rule_has_the_vocabulary_of_the_field(tracks, hold: int):
    shots, rule = shots_of(tracks), AlarmRule(2, 4, hold * 5.0)
    table = ShotTable.of(shots, rule, USEFUL)
    found = table.metrics()
    outcomes = [outcome_of(shot, alarm_step(shot, rule), USEFUL) for shot in shots]
    warnings = [alarm_warning_ms(shot, alarm_step(shot, rule)) for shot in shots if shot.disruptive]
    d, c = table.sizes()["shots_disruptive"], table.sizes()["shots_clear"]
    assert (d, c) == (len(warnings), len(shots) - len(warnings))
    for name, outcome in {"tpr": "correct", "missed": "missed", "late": "late", "early": "early"}.items():
        assert found[name] == pytest.approx(outcomes.count(outcome) / d if d else math.nan, nan_ok=True)
    assert found["fpr"] == pytest.approx(outcomes.count("false") / c if c else math.nan, nan_ok=True)
    correct = [w for w in warnings if 10 <= w <= 60]
    assert found["warning_mean_ms"] == pytest.approx(np.mean(correct) if correct else math.nan, nan_ok=True)
    assert found["warning_median_ms"] == pytest.approx(np.median(correct) if correct else math.nan, nan_ok=True)
    assert found["warned/30ms"] == pytest.approx(sum(w >= 30 for w in warnings) / d if d else math.nan, nan_ok=True)
    tp, fp = outcomes.count("correct"), outcomes.count("false")
    if d:
        assert found["f2"] == pytest.approx(5 * tp / (5 * tp + 4 * (d - tp) + fp))


@given(TRACKS, st.data())
def test_a_shot_that_is_drawn_twice_counts_twice(tracks, data):
    shots, rule = shots_of(tracks), AlarmRule(3, 3)
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(shots), max_size=len(shots)))
    repeated = shots_of([track for track, n in zip(tracks, times, strict=True) for _ in range(n)])
    found = ShotTable.of(shots, rule, USEFUL).metrics(np.array(times))
    if repeated:
        assert found == pytest.approx(ShotTable.of(repeated, rule, USEFUL).metrics(), nan_ok=True)


def test_an_alarm_by_every_shot_before_it_ends():
    """Closed form: the score of shot i is i from 100 (disruptive) or 0 (clear) ms before its end."""
    n = 20
    shots = []
    for i in range(n):
        scores = np.where(np.arange(100) >= 80, i, -1.0)
        shots.append(
            ShotScores(i, scores.astype(np.float32), 0.0, 5.0, i >= n // 2, 500.0 if i >= n // 2 else math.nan)
        )
    found = ShotTable.of(shots, AlarmRule(9.5, 9.5)).metrics()
    assert found["auc"] == found["auc_zhu"] == found["tpr"] == found["f2"] == found["tpr_at_fpr_1"] == 1
    assert found["fpr"] == found["fpr_at_tpr_95"] == found["missed"] == 0
    assert found["warning_mean_ms"] == found["warning_median_ms_at_fpr_5"] == 100
    assert found["warned/100ms"] == 1 and found["warned/200ms"] == 0
    late = ShotTable.of(shots, AlarmRule(9.5, 9.5, 75)).metrics()  # 25 ms ahead
    assert (late["late"], late["auc"], late["auc_zhu"], late["tpr_at_fpr_10"]) == (1, 1, 0, 0)


def test_intervals_are_those_of_binomials_and_repeatable():
    shots = both_kinds(200, seed=0, separation=1.5)
    table = ShotTable.of(shots, choose_rule(both_kinds(60, seed=1, separation=1.5), USEFUL), Useful(10, 1e4))
    found, again, other = (table.intervals(seed, resamples=300) for seed in (3, 3, 4))
    assert found == again != other
    for name in ("tpr", "fpr", "tpr_at_fpr_5", "auc", "f2", "warning_mean_ms_at_fpr_5"):
        assert found[f"{name}/low"] <= found[name] <= found[f"{name}/high"], name
    p = found["tpr"]
    width = found["tpr/high"] - found["tpr/low"]
    assert 0 < width == pytest.approx(2 * 1.96 * math.sqrt(p * (1 - p) / 100), rel=0.25)


def test_no_miss_among_twelve_is_not_certainty():
    """No resample of shots that are all right has one that is wrong."""
    tracks = [np.full(20, 5.0 if i % 2 else -5.0, np.float32) for i in range(24)]
    shots = [ShotScores(i, x, 0.0, 10.0, bool(i % 2), 200.0 if i % 2 else math.nan) for i, x in enumerate(tracks)]
    found = ShotTable.of(shots, AlarmRule(0, 0)).intervals(seed=0, resamples=20)
    lowest = 0.025 ** (1 / 12)
    for name in ("tpr", "tpr_at_fpr_1", "auc", "auc_zhu"):
        assert (found[name], found[f"{name}/low"], found[f"{name}/high"]) == pytest.approx((1, lowest, 1))
    for name in ("fpr", "fpr_at_tpr_95", "missed"):
        assert (found[name], found[f"{name}/low"], found[f"{name}/high"]) == pytest.approx((0, 0, 1 - lowest))
    assert found["f2"] == 1 and math.isnan(found["f2/low"])


def test_a_shot_without_scores_is_counted_and_quiet():
    shots = [*both_kinds(4, 0), ShotScores(9, np.zeros(5, np.float32), 0, 5.0, True, 25.0, first=5)]
    table = ShotTable.of(shots, AlarmRule(-9, -9))
    assert table.sizes() == {"shots_disruptive": 3, "shots_clear": 2, "shots_unscored": 1}
    assert table.metrics()["missed"] == pytest.approx(1 / 3)


def test_the_same_shot_twice_is_refused():
    with pytest.raises(UserError, match="2 shots with 1 numbers"):
        ShotTable.of([both_kinds(1, 0)[0]] * 2, AlarmRule(0, 0))
    with pytest.raises(UserError, match="0 shots"):
        ShotTable.of([], AlarmRule(0, 0))


# -- choosing --------------------------------------------------------------------------------------------------------


def f2(shots: list[ShotScores], rule: AlarmRule) -> float:
    return ShotTable.of(shots, rule, USEFUL).metrics()["f2"]


def test_the_rule_is_the_best_of_the_grid(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operating, "HOLDS_MS", (0.0, 10.0))
    monkeypatch.setattr(operating, "GAPS", (0.0, 1.0))
    monkeypatch.setattr(operating, "LEVELS", 12)
    shots = both_kinds(30, seed=5, separation=1.0)
    chosen = choose_rule(shots, USEFUL)
    grid = [AlarmRule(hi - g, hi, h) for hi in operating._levels(shots) for g in (0, 1) for h in (0, 10)]
    assert f2(shots, chosen) == pytest.approx(max(f2(shots, rule) for rule in grid))
    shortest = [rule for rule in grid if rule.hold_ms == 0 and f2(shots, rule) == pytest.approx(f2(shots, chosen))]
    assert (chosen.hold_ms == 0) == bool(shortest)


def test_the_threshold_lies_between_the_classes():
    """Not just below the disruption that is found last, whose neighbour in the test would be missed."""
    heights = [*np.linspace(8, 9, 10), *np.linspace(-1, 0, 10)]
    shots = [
        ShotScores(i, np.linspace(-4, top, 40).astype(np.float32), 0.0, 5.0, top > 4, 260.0 if top > 4 else math.nan)
        for i, top in enumerate(heights)
    ]
    rule = choose_rule(shots)
    assert rule.hold_ms == 0 and rule.lo == rule.hi == pytest.approx(4, abs=0.5)


def test_shots_that_can_be_told_apart_are_and_others_too():
    validation, test = both_kinds(40, seed=1, separation=6), both_kinds(40, seed=2, separation=6)
    rule = choose_rule(validation, Useful(10, 500))
    assert rule.hold_ms == 0 and rule.lo == rule.hi and 3.5 < rule.hi < 7
    assert ShotTable.of(test, rule, Useful(10, 500)).metrics()["f2"] > 0.95


def test_validation_data_without_a_disruption_choose_nothing():
    steps = torch.zeros(2, len(EDGES), dtype=torch.int64)
    with pytest.raises(UserError, match="no positive step"):
        OperatingPoint.choose(both_kinds(4, 0), steps)
    with pytest.raises(UserError, match="no disruption"):
        choose_rule(both_kinds(1, 0))
    steps[1, 1025] = steps[0, 1000] = 3
    point = OperatingPoint.choose(both_kinds(4, 0), steps, USEFUL)
    assert EDGES[1000] < point.threshold <= EDGES[1025]
