"""What people have in common, against what it must be by construction."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.movie_brain import ROIS, C, movie

from accel_train.errors import UserError
from accel_train.tasks.sherlock import ceiling
from accel_train.tasks.sherlock.scores import by_roi


def test_formulas():
    """The numbers of three people with c = 0.6."""
    c = np.array([0.6, 0.0])
    np.testing.assert_allclose(ceiling.of_average(c, 1), c)
    np.testing.assert_allclose(ceiling.of_average(c, 3), [0.79241, 0], atol=1e-5)
    np.testing.assert_allclose(ceiling.leave_one_out_of(c, 3), [0.43656, 0], atol=1e-5)


@given(st.floats(0, 1), st.integers(2, 30))
def test_c_comes_back(c: float, people: int):
    r = ceiling.leave_one_out_of(np.array([c]), people)
    np.testing.assert_allclose(ceiling.c_of_leave_one_out(r, people), c, atol=1e-7)


def test_correlations_are_those_of_numpy():
    people = [np.random.default_rng(seed).normal(size=(40, 3)) + np.arange(40)[:, None] / 20 for seed in range(4)]
    people[1][5:9] = np.nan
    found = ceiling.isc(people)
    rows = np.r_[0:5, 9:40]
    for voxel in range(3):
        z = np.array([each[rows, voxel] for each in people])
        z = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
        pairs = [np.corrcoef(z[i], z[j])[0, 1] for i, j in combinations(range(4), 2)]
        assert found.pairwise[voxel] == pytest.approx(np.mean(pairs))
        others = [np.corrcoef(z[i], np.delete(z, i, 0).mean(0))[0, 1] for i in range(4)]
        np.testing.assert_allclose(found.leave_one_out[:, voxel], others)
    assert (found.people, found.volumes) == (4, 36)


def test_on_brains_it_is_the_theory():
    """c = 0.6: pairs correlate by 0.36, one with the mean of two others by 0.437; ceilings 0.6 and 0.792."""
    found = ceiling.isc(movie(0, trs=(2000, 2000)).people)
    assert by_roi(found.pairwise, ROIS)["visual"] == pytest.approx(0.36, abs=0.01)
    assert by_roi(found.leave_one_out, ROIS)["auditory"] == pytest.approx(0.437, abs=0.01)
    assert abs(by_roi(found.pairwise, ROIS)["null"]) < 0.01
    visual = ROIS["visual"]
    assert found.ceiling().take(visual).mean() == pytest.approx(C, abs=0.015)
    assert found.ceiling(3).take(visual).mean() == pytest.approx(0.792, abs=0.015)


def test_a_share_of_hardly_anything_is_nothing():
    found = ceiling.of_ceiling(np.array([[0.3, 0.3]]), np.array([0.6, 0.1]))
    assert found[0, 0] == pytest.approx(0.5) and np.isnan(found[0, 1])


def test_one_person_has_no_ceiling():
    with pytest.raises(UserError, match="at least 2"):
        ceiling.isc([np.zeros((5, 2))])
    with pytest.raises(UserError, match="there are 2"):
        ceiling.isc([np.eye(4)] + [np.where(np.arange(4)[:, None] < 2, np.nan, np.eye(4))])
