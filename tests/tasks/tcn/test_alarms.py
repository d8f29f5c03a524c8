"""The alarm is that of a state machine which hears one score after another; times are right at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.alarms import (
    AlarmRule,
    ShotScores,
    Useful,
    alarm_index,
    alarm_step,
    alarm_warning_ms,
    hold_steps,
    outcome_of,
    rises,
)


def heard(scores, lo: float, hi: float, hold: int) -> int | None:
    """One score after another, as a control room hears them."""
    on, since = False, 0
    for i, score in enumerate(scores):
        if score >= hi:
            on, since = True, since if on else i
        elif score <= lo:
            on = False
        if on and i - since >= hold:
            return i
    return None


def shot(scores, t0=-50.0, dt=1.0, t_disruption=math.nan, first=0) -> ShotScores:
    disruptive = not math.isnan(t_disruption)
    return ShotScores(7, np.asarray(scores, np.float32), t0, dt, disruptive, t_disruption, first)


def test_as_a_state_machine_on_10_000_tracks():
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(10_000):
        n = int(random.integers(0, 60))
        walk = random.integers(2) * np.cumsum(random.integers(-2, 3, n)) + random.integers(0, 6, n)
        lo, hi = np.sort(random.integers(-1, 8, 2))
        hold = int(random.integers(0, 7))
        found = alarm_index(walk.astype(np.float32), lo, hi, hold)
        assert found == heard(walk.tolist(), lo, hi, hold)
        alarms += found is not None
    assert 2000 < alarms < 8000


@pytest.mark.parametrize("hold", [0, 1, 4, 9, 10, 11])
@pytest.mark.parametrize(("lo", "hi"), [(0.5, 0.5), (0.3, 0.7), (0.0, 1.0)])
def test_tracks_with_a_known_answer(lo: float, hi: float, hold: int):
    t = np.arange(100)
    step = (t >= 40).astype(np.float32)
    assert alarm_index(step, lo, hi, hold) == 40 + hold
    ramp = t / 99
    assert alarm_index(ramp, lo, hi, hold) == (i if (i := math.ceil(hi * 99) + hold) < 100 else None)
    blip = ((t >= 40) & (t < 50)).astype(np.float32)  # 10 steps
    assert alarm_index(blip, lo, hi, hold) == (40 + hold if hold < 10 else None)
    end = (t >= 90).astype(np.float32)  # on until nothing more is heard
    assert alarm_index(end, lo, hi, hold) == (90 + hold if hold < 10 else None)


def test_an_oscillation_between_the_thresholds_stays_as_it_was():
    up_and_down = np.where(np.arange(40) % 2, 0.4, 0.6).astype(np.float32)
    peak = np.append(np.float32(0.9), up_and_down)
    assert alarm_index(up_and_down, 0.3, 0.7, 0) is None
    assert alarm_index(peak, 0.3, 0.7, 30) == 30  # one peak is enough, for it never falls to lo
    assert alarm_index(peak, 0.5, 0.7, 1) == 1 and alarm_index(peak, 0.5, 0.7, 2) is None
    assert alarm_index(up_and_down, 0.5, 0.5, 0) == 0 and alarm_index(up_and_down, 0.5, 0.5, 1) is None
    assert alarm_index(np.full(9, 0.5, np.float32), 0.5, 0.5, 3) == 3  # lo and hi at once: on


def test_tracks_longer_than_narrow_integers_count():
    long = np.zeros(3_000_000, np.float32)
    long[2_900_000:] = 1
    assert alarm_index(long, 0.2, 0.8, 70_000) == 2_970_000
    steps, levels = rises(shot(long), 70_000.0)
    assert steps.tolist() == [70_000, 2_970_000] and levels.tolist() == [0, 1]


@given(
    st.lists(st.integers(0, 9), max_size=40), st.integers(0, 5), st.integers(0, 6), st.sampled_from([0.01, 0.1, 1.0])
)
def test_every_plain_threshold_at_once(scores: list[int], first: int, hold: int, dt: float):
    track = shot([math.nan] * first + scores, dt=dt, first=first)
    steps, levels = rises(track, hold * dt)
    assert (np.diff(steps) > 0).all() and (np.diff(levels) > 0).all()
    for threshold in np.arange(-0.5, 10, 0.5):
        at = np.flatnonzero(levels >= threshold)
        found = alarm_step(track, AlarmRule(threshold, threshold, hold * dt))
        assert found == (int(steps[at[0]]) if len(at) else None)


@given(st.integers(0, 100_000), st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.7, 1.0, 5.0]))
def test_hold_times_are_whole_steps_however_they_are_written(steps: int, dt: float):
    assert hold_steps(steps * dt, dt) == steps
    assert hold_steps((steps + 0.01) * dt, dt) == steps + 1


@pytest.mark.parametrize(
    ("warning", "outcome"),
    [(-5, "missed"), (0, "missed"), (0.1, "late"), (29.9, "late"), (30, "correct"), (500, "correct"), (500.1, "early")],
)
@pytest.mark.parametrize("t0", [-50.0, 0.0])
def test_the_vocabulary_at_its_edges(t0: float, warning: float, outcome: str):
    at = 6000
    scores = np.where(np.arange(7000) == at, 1.0, 0.0)
    one = shot(scores, t0, 0.1, t0 + at * 0.1 + warning)
    found = alarm_step(one, AlarmRule(0.5, 0.5))
    assert found == at and alarm_warning_ms(one, found) == warning
    assert outcome_of(one, found, Useful(most_ms=500)) == outcome


def test_without_an_alarm_and_without_a_disruption():
    assert outcome_of(shot([0], t_disruption=900.0), None) == "missed"
    assert outcome_of(shot([0]), None) == "quiet" and outcome_of(shot([1]), 0) == "false"


def test_mistakes_are_named():
    with pytest.raises(UserError, match="lo=2 must not be above hi=1"):
        AlarmRule(2, 1)
    with pytest.raises(UserError, match="hold_ms=-1 must be at least 0"):
        AlarmRule(1, 1, -1)
    with pytest.raises(DataError, match="shot 7: 2 scores are not finite, the first at -48 ms"):
        shot([math.nan, 0, math.nan, math.inf], first=1)
    with pytest.raises(DataError, match="shot 7: disruptive, but without a time"):
        ShotScores(7, np.zeros(3, np.float32), 0, 1, True, math.nan)
    with pytest.raises(DataError, match="shot 7: not disruptive, but with a time"):
        ShotScores(7, np.zeros(3, np.float32), 0, 1, False, 3.0)
