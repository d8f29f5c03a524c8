"""Averages of several networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.movie_brain import ROIS, movie

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.ensembles import ensemble, ensemble_weights
from accel_train.tasks.sherlock.scores import by_roi, temporal_r


def networks(noise: list[float], seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    film, draw = movie(seed), np.random.default_rng(seed)
    return [film.signal + each * draw.normal(size=film.signal.shape) for each in noise], film.people[0], film.runs


def test_errors_of_their_own_average_out():
    predicted, y, runs = networks([1.0, 1.0, 1.0])
    validation, test = runs == 0, runs == 1
    weights = ensemble_weights([each[validation] for each in predicted], y[validation])
    r = by_roi(temporal_r(ensemble([each[test] for each in predicted], weights), y[test]), ROIS)
    best = max(by_roi(temporal_r(each[test], y[test]), ROIS)["visual"] for each in predicted)
    assert r["visual"] > best + 0.05


def test_each_voxel_listens_to_the_network_that_knows_it():
    """One network knows the visual region, the other the auditory one."""
    predicted, y, runs = networks([0.0, 0.0])
    draw = np.random.default_rng(1)
    for each, name in zip(predicted, ("auditory", "visual"), strict=True):
        each[:, ROIS[name]] = 3 * draw.normal(size=(len(y), 20))
    weights = ensemble_weights([each[runs == 0] for each in predicted], y[runs == 0])
    assert (weights[0, ROIS["visual"]] > 0.9).all() and (weights[1, ROIS["auditory"]] > 0.9).all()


@given(st.integers(2, 5), st.integers(0, 100))
def test_weights_sum_to_one_and_do_not_depend_on_the_order(count: int, seed: int):
    draw = np.random.default_rng(seed)
    predicted, y = list(draw.normal(size=(count, 30, 4))), draw.normal(size=(30, 4))
    weights = ensemble_weights(predicted, y)
    np.testing.assert_allclose(weights.sum(0), 1)
    np.testing.assert_allclose(ensemble_weights(predicted[::-1], y), weights[::-1])
    same = ensemble_weights([predicted[0]] * count, y)
    np.testing.assert_allclose(same, 1 / count)


def test_it_takes_two_that_fit():
    with pytest.raises(UserError, match="at least 2 runs"):
        ensemble_weights([np.zeros((3, 2))], np.zeros((3, 2)))
    with pytest.raises(DataError, match="different shapes"):
        ensemble([np.zeros((3, 2)), np.zeros((3, 4))], np.full((2, 2), 0.5))
