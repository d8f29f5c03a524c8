"""Chance is found as often as it says, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.movie_brain import ROIS, movie

from accel_train.errors import UserError
from accel_train.tasks.sherlock.nulls import circular_shifts, significant
from accel_train.tasks.sherlock.scores import temporal_r


def test_p_counts_shifts_that_do_as_well():
    """Two people and two stretches, each a circle, by hand."""
    draw = np.random.default_rng(0)
    runs = np.repeat([0, 1], [14, 11])
    pairs = [(draw.normal(size=(25, 6)), draw.normal(size=(25, 6))) for _ in range(2)]
    found = circular_shifts(pairs, runs, least=3)
    assert found.shifts == 11 - 2 * 3 + 1
    rolled = [
        sum(temporal_r(np.concatenate([np.roll(x[:14], -s, 0), np.roll(x[14:], -s, 0)]), y) for x, y in pairs)
        for s in range(3, 9)
    ]
    own = sum(temporal_r(*pair) for pair in pairs)
    np.testing.assert_allclose(found.p, (1 + (np.stack(rolled) >= own).sum(0)) / 7)


def test_in_noise_p_is_uniform():
    """20 films that have nothing to do with what is predicted, 60 voxels each: smooth predictions, autocorrelated
    noise."""
    p = []
    for seed in range(20):
        film, other = movie(seed, people=1, c=0.0), movie(seed + 100, people=0)
        p.append(circular_shifts([(other.signal[:, 20:], film.people[0][:, 20:])], film.runs).p)
    p = np.concatenate(p)
    for level in (0.05, 0.25, 0.5, 0.75):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.05)
    assert np.mean(p <= 0.05) <= 0.065


def test_findings_are_where_there_is_something():
    """Over 20 films, at most 5 % of the voxels of the region without a signal are found, and all of the others."""
    wrong, right = [], []
    for seed in range(20):
        film, other = movie(seed, people=1), movie(seed + 100, people=0)
        predicted = film.signal + 0.0
        predicted[:, ROIS["null"]] = other.signal[:, 20:40]
        found = significant(circular_shifts([(predicted, film.people[0])], film.runs).p)
        wrong.append(found[ROIS["null"]].mean())
        right.append(found[20:].mean())
    assert np.mean(wrong) <= 0.05 and np.mean(right) > 0.99


def test_missing_volumes_and_voxels_without_a_value():
    film = movie(5, people=1)
    y = film.people[0].copy()
    y[300:310] = np.nan
    found = circular_shifts([(film.signal, y)], film.runs)
    assert np.isnan(found.p[ROIS["null"]]).all()  # predicted constant
    assert (found.p[20:] <= 0.05).all()
    assert found.shifts == 240 - 2 * 20 + 1
    with pytest.raises(UserError, match="a stretch of 30 TRs is too short; 40 will do"):
        circular_shifts([(film.signal[:30], y[:30])], film.runs[:30])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_benjamini_and_hochberg(p: list[float], rate: float):
    """Adjusted p values, the least of n p_(k) / k from k on, that are at most the rate."""
    values = np.array([*p, np.nan])
    order = np.argsort(values[:-1])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum.accumulate((values[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    found = significant(values, rate)
    assert not found[-1]
    clear = np.abs(adjusted - rate) > 1e-9  # not where rounding decides
    np.testing.assert_array_equal(found[:-1][clear], (adjusted <= rate)[clear])
