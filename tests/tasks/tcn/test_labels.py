"""Labels: where a time becomes an index, every option, edges, and the same answer at every sampling rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shots import shot

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.labels import LabelSettings, label
from accel_train.tasks.tcn.shots import SPLITS, index, refuse_twice, split_of


def spans(steps: np.ndarray) -> list[tuple[int, int]]:
    """Where True begins and ends."""
    padded = np.concatenate([[False], steps, [False]]).astype(int)
    return list(zip(np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1), strict=True))


def labels(one=None, first=0, last=None, **settings):
    one = one or shot(t_disruption=30.0, samples=100, start=10, stop=85)  # the disruption is sample 80
    return label(one, first, one.samples if last is None else last, LabelSettings(**settings))


@pytest.mark.parametrize(
    "t, expected", [(-50, 0), (-49.99, 1), (-50.01, 0), (-49.9, 1), (0, 500), (1768, 18180), (-60, -100)]
)
def test_the_first_sample_at_or_after_a_time(t, expected):
    assert index(t, -50.0, 0.1) == expected


@given(st.integers(-(10**6), 10**8), st.sampled_from([0.001, 0.01, 0.1, 0.3, 1.0]), st.sampled_from([-50.0, 0.0, 12.3]))
def test_the_time_of_a_sample_is_that_sample(i, dt, t0):
    assert index(t0 + i * dt, t0, dt) == i
    assert index(t0 + (i + 0.5) * dt, t0, dt) == i + 1


def test_positive_from_twarn_before_the_disruption_to_the_end_of_the_segment():
    target, counts = labels(twarn_ms=20)
    assert spans(target) == [(60, 85)] and spans(counts) == [(10, 85)]


def test_a_clear_shot_has_nothing_positive():
    target, counts = labels(shot(samples=100, start=10, stop=85), twarn_ms=20, ignore_twarn=True, exclude_last_ms=5)
    assert spans(target) == [] and spans(counts) == [(10, 85)]


def test_the_last_steps_can_be_left_out():
    target, counts = labels(twarn_ms=20, exclude_last_ms=5)
    assert spans(target) == [(60, 75)] and spans(counts) == [(10, 75)]


def test_the_time_of_warning_can_be_left_out():
    target, counts = labels(twarn_ms=20, ignore_twarn=True)
    assert spans(target) == [] and spans(counts) == [(10, 60)]


def test_a_band_around_the_edge_can_be_left_out():
    target, counts = labels(twarn_ms=20, ignore_band_ms=3)
    assert spans(target) == [(63, 85)] and spans(counts) == [(10, 57), (63, 85)]


def test_all_options_at_once():
    target, counts = labels(twarn_ms=20, ignore_band_ms=3, exclude_last_ms=5)
    assert spans(target) == [(63, 75)] and spans(counts) == [(10, 57), (63, 75)]


@pytest.mark.parametrize("twarn, expected", [(1000, [(10, 85)]), (1, [(79, 85)]), (0.5, [(80, 85)])])
def test_the_edge_may_be_anywhere(twarn, expected):
    assert spans(labels(twarn_ms=twarn)[0]) == expected


def test_a_disruption_after_the_end_of_the_record():
    target, _ = labels(shot(t_disruption=65.0, samples=100), twarn_ms=20)
    assert spans(target) == [(95, 100)]


@given(st.integers(-20, 120), st.integers(0, 60))
def test_a_part_is_a_part_of_the_whole(first, length):
    """Also where it goes beyond the record: nothing counts there."""
    whole = labels(first=-50, last=200, twarn_ms=20, exclude_last_ms=5, ignore_band_ms=2)
    part = labels(first=first, last=first + length, twarn_ms=20, exclude_last_ms=5, ignore_band_ms=2)
    for a, b in zip(part, whole, strict=True):
        np.testing.assert_array_equal(a, b[first + 50 : first + 50 + length])


@given(
    st.integers(-400, 1400), st.integers(1, 12), st.integers(1, 60), st.sampled_from([0, 0.1, 0.4]),
    st.sampled_from([0, 0.1, 0.4]), st.booleans(), st.sampled_from([0.01, 0.1, 1.0]),
)  # fmt: skip
def test_raw_and_decimated_records_agree(t, step, twarn, exclude, band, ignore, dt):
    """The labels of the samples that decimation keeps are those of the raw record."""
    settings = dict(twarn_ms=twarn, exclude_last_ms=exclude * twarn, ignore_band_ms=band * twarn, ignore_twarn=ignore)
    t, n = t / 10 * dt, 150
    settings = {name: value * dt if name.endswith("_ms") else value for name, value in settings.items()}
    raw = shot(t_disruption=t, samples=n, start=0, stop=n, dt=dt, t0=-50 * dt)
    kept = shot(t_disruption=t, samples=-(-n // step), dt=dt * step, t0=-50 * dt)
    for a, b in zip(labels(raw, **settings), labels(kept, **settings), strict=True):
        np.testing.assert_array_equal(a[::step], b)


@pytest.mark.parametrize(
    "settings, text",
    [
        (dict(twarn_ms=-1), "twarn_ms: must be 0 ms or more"),
        (dict(exclude_last_ms=math.inf), "exclude_last_ms: must be 0 ms or more"),
        (dict(twarn_ms=30, exclude_last_ms=30), "leaves none"),
        (dict(twarn_ms=30, exclude_last_ms=20, ignore_band_ms=10), "leaves none"),
        (dict(twarn_ms=0), "leaves none"),
    ],
)
def test_settings_that_make_no_sense(settings, text):
    with pytest.raises(UserError, match=text):
        LabelSettings(**settings)


def test_splits_follow_from_the_number():
    splits = [split_of(number) for number in range(144199, 144199 + 2000)]
    assert splits[:5] == [split_of(number) for number in range(144199, 144204)]
    shares = [splits.count(name) / len(splits) for name in SPLITS]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.03)


def test_a_number_that_is_there_twice():
    refuse_twice([1, 2], "x")
    with pytest.raises(DataError, match="x: shot 2 is there more than once"):
        refuse_twice([1, 2, 2], "x")
