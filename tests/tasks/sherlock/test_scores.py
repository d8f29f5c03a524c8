"""Correlations over time, and how far they would move."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.movie_brain import ROIS, C, movie

from accel_train.errors import DataError
from accel_train.sums import Correlation
from accel_train.tasks.sherlock import scores

RUNS = np.repeat([0, 1], [50, 30])


def series(seed: int, voxels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(len(RUNS), voxels)), draw.normal(size=(len(RUNS), voxels))


def test_r_is_that_of_numpy_without_what_was_not_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scores, "VOXELS", 2)
    predicted, true = series(0)
    true[10:20, 3] = np.nan
    true[:, 1] = 4.0
    found = scores.temporal_r(predicted, true)
    rows = np.r_[0:10, 20:80]
    wanted = [np.corrcoef(predicted[rows, v], true[rows, v])[0, 1] for v in (0, 2, 3, 4)]
    np.testing.assert_allclose(found[[0, 2, 3, 4]], wanted, atol=1e-12)
    assert np.isnan(found[1])


def test_blocks_add_up_to_the_whole():
    predicted, true = series(1)
    parts = scores.block_sums(predicted, true, scores.time_blocks(RUNS, 21))
    assert len(parts) == 3  # 21 + 29 of the first run, 30 of the second
    np.testing.assert_allclose(Correlation(parts.sum(0)).pearson, scores.temporal_r(predicted, true), atol=1e-12)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=5), st.integers(1, 30))
def test_blocks_are_long_enough_and_within_a_run(lengths: list[int], length: int):
    runs = np.repeat(np.arange(len(lengths)), lengths)
    block = scores.time_blocks(runs, length)
    assert (np.diff(block) >= 0).all() and set(block) == set(range(block[-1] + 1))
    for each in range(block[-1] + 1):
        of_block = runs[block == each]
        assert len(set(of_block)) == 1
        assert len(of_block) >= length or len(of_block) == lengths[of_block[0]]
        assert len(of_block) < 2 * length


def test_a_run_that_comes_back_is_refused():
    assert scores.stretches(np.array([3, 3, 1, 1, 1])) == [slice(0, 2), slice(2, 5)]
    with pytest.raises(DataError, match="must stand together"):
        scores.stretches(np.array([0, 1, 0]))
    with pytest.raises(DataError, match="do not fit"):
        scores.temporal_r(np.zeros((4, 2)), np.zeros((4, 3)))


def test_a_mean_of_correlations_is_fishers():
    r = np.array([[0.1, 0.9], [np.nan, 0.5]])
    assert scores.fisher_mean(r) == pytest.approx(np.tanh((np.arctanh([0.1, 0.9, 0.5])).mean()))
    np.testing.assert_allclose(scores.fisher_mean(r, 0)[0], 0.1)
    assert np.isnan(scores.fisher_mean(np.array([np.nan])))
    assert scores.fisher_mean(np.array([1.0, 1.0])) == pytest.approx(1)


def test_what_a_perfect_model_scores_is_the_theory():
    """c of one person; c / sqrt(c^2 + (1 - c^2) / 3) = 0.792 of the mean of three."""
    film = movie(2, trs=(1500, 1500))
    one = scores.by_roi(np.stack([scores.temporal_r(film.signal, each) for each in film.people]), ROIS)
    three = scores.by_roi(scores.temporal_r(film.signal, np.mean(film.people, 0)), ROIS)
    assert [one["visual"], three["visual"]] == pytest.approx([C, 0.7924], abs=0.02)
    assert np.isnan(one["null"])  # a prediction that is constant


def test_intervals_over_time_hold_the_truth_and_tell_models_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scores, "VOXELS", 500)  # several parts
    film = movie(3)
    block = scores.time_blocks(film.runs, 21)
    worse = film.signal + np.random.default_rng(0).normal(size=film.signal.shape)
    draws = scores.draws_of_blocks(int(block.max()) + 1, seed=0, resamples=200)
    r = {
        name: np.tanh(
            np.stack([scores.drawn_z(scores.block_sums(p, y, block), draws, ROIS) for y in film.people]).mean(0)
        )
        for name, p in {"good": film.signal, "worse": worse}.items()
    }
    whole = scores.by_roi(np.stack([scores.temporal_r(worse, each) for each in film.people]), ROIS)
    np.testing.assert_allclose(r["worse"][0], list(whole.values()), atol=1e-9)
    good, difference = scores.estimate(r["good"][:, 1]), scores.estimate(r["good"][:, 1] - r["worse"][:, 1])
    assert good.low < C < good.high and good.low < good.value < good.high < good.low + 0.1
    assert 0.1 < difference.low < C - C / np.sqrt(2) < difference.high
    assert np.isnan(r["good"][:, 0]).all() and np.isnan(scores.estimate(r["good"][:, 0]).low)  # nothing is predicted


def test_intervals_over_people_need_several():
    found = scores.over_people(np.arctanh([0.5, 0.6, 0.4]), seed=0)
    assert 0.4 <= found.low < found.value < found.high <= 0.6
    assert found == scores.over_people(np.arctanh([0.5, 0.6, 0.4]), seed=0)
    alone = scores.over_people(np.arctanh([0.5]), seed=0)
    assert alone.value == pytest.approx(0.5) and np.isnan(alone.low)


def test_stretches_of_what_is_held_out():
    runs = np.repeat([0, 1], [6, 4])
    np.testing.assert_array_equal(scores.numbered(np.array([1, 2, 4, 5, 6, 7]), runs), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(scores.numbered(np.array([3]), runs), [0])
