"""The scan peaks where the volumes were moved to."""

from __future__ import annotations

import numpy as np
import pytest
from support.movie_brain import ROIS, movie, response

from accel_train.tasks.sherlock.lagscan import after_response, lag_scan, stimulus_lag_scan

HELD = {name: ROIS[name] for name in ("visual", "auditory")}


@pytest.mark.parametrize("preshift", [0, 3])
def test_stimulus_and_brain_say_how_far_volumes_were_moved(preshift: int):
    film = movie(0, preshift=preshift)
    scan = stimulus_lag_scan(film.features, response(), film.people[0], film.runs, film.train, ~film.train)
    assert scan.peaks(HELD) == {"visual": preshift, "auditory": preshift}
    assert np.mean(scan.peak[20:] == preshift) > 0.8
    curve = dict(zip(scan.shifts.tolist(), scan.curves(HELD)["visual"], strict=True))
    assert curve[preshift] > 0.5 and curve[preshift - 8] < 0.15  # as a response that is centred would have it


@pytest.mark.parametrize("shift", [-4, 0, 3])
def test_predictions_that_come_too_late_or_too_early(shift: int):
    film = movie(1)
    moved = np.concatenate([np.roll(film.signal[film.runs == run], shift, 0) for run in (0, 1)])
    scan = lag_scan(moved, film.people[0], film.runs)
    assert scan.peaks(HELD) == {"visual": shift, "auditory": shift}


def test_two_regions_may_differ():
    film = movie(2)
    y = film.people[0].copy()
    y[:, ROIS["auditory"]] = np.roll(y[:, ROIS["auditory"]], 2, 0)
    assert lag_scan(film.signal, y, film.runs).peaks(HELD) == {"visual": 0, "auditory": -2}


def test_no_row_comes_from_another_run():
    """The one row of the other run has nothing to be compared with."""
    x = np.random.default_rng(0).normal(size=(9, 2))
    runs = np.repeat([0, 1], [8, 1])
    scan = lag_scan(x, x, runs, shifts=[0, 1, 8])
    np.testing.assert_allclose(scan.r[0], 1)
    np.testing.assert_allclose(scan.r[1], [np.corrcoef(x[1:8, v], x[:7, v])[0, 1] for v in range(2)])
    assert np.isnan(scan.r[2]).all() and (scan.peak == 0).all()


def test_a_response_starts_again_in_each_run():
    x = np.zeros((12, 1))
    x[[2, 8]] = 6.0
    found = after_response(x, np.array([0.0, 1.0, 0.5]), np.repeat([0, 1], 6))
    np.testing.assert_allclose(found[6:], found[:6])
    assert found[:6, 0].argmax() == 3
