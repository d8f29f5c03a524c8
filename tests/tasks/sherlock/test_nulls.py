"""Chance is found as often as it says, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.movie_brain import ROIS, movie

from accel_train.errors import UserError
from accel_train.tasks.sherlock import nulls
from accel_train.tasks.sherlock.nulls import circular_shifts, significant
from accel_train.tasks.sherlock.scores import temporal_r


def test_p_counts_shifts_that_do_as_well(monkeypatch):
    """Two people and two stretches, each a circle, by hand."""
    monkeypatch.setattr(nulls, "SHORTEST", 11)
    draw = np.random.default_rng(0)
    runs = np.repeat([0, 1], [14, 11])
    pairs = [(draw.normal(size=(25, 6)), draw.normal(size=(25, 6))) for _ in range(2)]
    found = circular_shifts(pairs, runs)
    assert found.shifts == 10
    rolled = [
        sum(temporal_r(np.concatenate([np.roll(x[:14], -s, 0), np.roll(x[14:], -s, 0)]), y) for x, y in pairs)
        for s in range(-5, 6)
    ]
    np.testing.assert_allclose(found.p, (np.stack(rolled) >= rolled[5]).sum(0) / 11)


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


@pytest.mark.parametrize("trs", [(180,), (90, 90), (60, 60, 60), (60, 120)])
@pytest.mark.parametrize("shared", [0.0, 0.5], ids=["own noise", "noise that voxels share"])
def test_chance_is_not_found_too_often(trs, shared):
    """Over 20 seeds at most 5 % of the voxels, however short the stretches: predictions of few, slow series, as those
    of a network are; AR(1) BOLD; a signal in four fifths of the voxels. One seed may well have more."""
    runs, voxels = np.repeat(range(len(trs)), trs), 400
    wrong, right, low = [], [], []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        predicted = ar1(draw, len(runs), 5, 0.8) @ draw.normal(size=(5, voxels))
        common = ar1(draw, len(runs), 3, 0.3) @ draw.normal(size=(3, voxels)) / np.sqrt(3)
        bold = np.sqrt(1 - shared) * ar1(draw, len(runs), voxels, 0.3) + np.sqrt(shared) * common
        bold[:, 80:] += 0.75 * predicted[:, 80:] / predicted[:, 80:].std(0)
        p = circular_shifts([(predicted, bold)], runs).p
        found = significant(p)
        wrong.append(found[:80].mean())
        right.append(found[80:].mean())
        low.append(np.mean(p[:80] <= 0.05))
    assert np.mean(wrong) <= 0.05 and np.mean(low) <= 0.06
    assert np.mean(right) > 0.99
    if not shared:  # voxels of their own: as far apart as chance has them
        assert np.std(wrong) < 1.5 * np.sqrt(np.mean(wrong) / 80)


def test_without_small_shifts_chance_is_found_too_often():
    """Why they are not left out: of shifts by 20 TRs or more alone, in stretches of 60, p is far from uniform."""
    runs, low = np.repeat(range(4), 60), []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        predicted, bold = ar1(draw, 240, 5, 0.8) @ draw.normal(size=(5, 80)), ar1(draw, 240, 80, 0.3)
        stretches = predicted.reshape(4, 60, 80)
        r = [temporal_r(np.roll(stretches, -s, 1).reshape(240, 80), bold) for s in (0, *range(20, 41))]
        low.append([np.mean((np.stack(r) >= r[0]).mean(0) <= 0.05),
                    np.mean(circular_shifts([(predicted, bold)], runs).p <= 0.05)])  # fmt: skip
    without, ours = np.mean(low, 0)
    assert without > 0.1 and ours <= 0.06, (without, ours)


def ar1(draw: np.random.Generator, trs: int, columns: int, phi: float) -> np.ndarray:
    x = draw.normal(size=(trs, columns)) * np.sqrt(1 - phi**2)
    for t in range(1, trs):
        x[t] += phi * x[t - 1]
    return x


def test_missing_volumes_and_voxels_without_a_value():
    film = movie(5, people=1)
    y = film.people[0].copy()
    y[300:310] = np.nan
    found = circular_shifts([(film.signal, y)], film.runs)
    assert np.isnan(found.p[ROIS["null"]]).all()  # predicted constant
    assert (found.p[20:] <= 0.05).all()
    assert found.shifts == 240 - 1
    with pytest.raises(UserError, match="a stretch of 30 TRs is too short, 40 will do"):
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
