"""Sums over pairs are those of a double loop, and add up over splits, blocks and trajectories."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chains import random_predictions

from accel_train.errors import UserError
from accel_train.tasks.gdynet.analysis.analyse import (
    moments,
    statistics,
    transition_counts,
)
from accel_train.tasks.gdynet.analysis.moments import populations


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(2, 5), st.integers(1, 7), st.sampled_from(["targets", "time"]))
def test_splits_and_trajectories_add_up(seed, k, lag, split_by):
    """Each pair of frames within one trajectory is in exactly one split, none crosses a boundary."""
    predictions = random_predictions(seed, k, [(11, 4), (6, 4), (23, 4)])
    whole = np.zeros((2 * k + 1, 2 * k + 1))
    for p in predictions:
        for t in range(len(p) - lag):
            for x, y in zip(p[t].astype(np.float64), p[t + lag].astype(np.float64), strict=True):
                z = np.concatenate([[1.0], x, y])
                whole += np.outer(z, z)
    split = moments(predictions, lag, 3, split_by)
    assert split.shape == (3, 2 * k + 1, 2 * k + 1)
    np.testing.assert_allclose(split.sum(0), whole, rtol=1e-12)
    np.testing.assert_allclose(moments(predictions, lag)[0], whole, rtol=1e-12)
    alone = sum(moments([p], lag)[0] for p in predictions if len(p) > lag)
    np.testing.assert_allclose(alone, whole, rtol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    predictions = random_predictions(0, 3, [(50, 4), (31, 4)])
    numbers = moments(predictions, 3, 2, "time"), transition_counts(predictions, 3), statistics(predictions)
    monkeypatch.setattr("accel_train.tasks.gdynet.analysis.moments.ROWS", 8)
    np.testing.assert_allclose(moments(predictions, 3, 2, "time"), numbers[0], rtol=1e-12)
    np.testing.assert_array_equal(transition_counts(predictions, 3), numbers[1])
    for ours, before in zip(statistics(predictions), numbers[2], strict=True):
        np.testing.assert_allclose(ours, before, rtol=1e-12)


def test_splits_by_time_are_contiguous_and_even():
    p = np.zeros((41, 1, 2), np.float32)
    p[:, 0, 0] = np.arange(41)
    first = moments([p], 1, 4, "time")
    assert first[:, 0, 0].tolist() == [10, 10, 10, 10]
    assert first[:, 0, 1].tolist() == [np.arange(i, i + 10).sum() for i in (0, 10, 20, 30)]


@pytest.mark.parametrize(("split_by", "splits"), [("targets", 5), ("time", 9)])
def test_a_split_without_pairs_is_refused(split_by, splits):
    with pytest.raises(UserError, match=rf"lag 2 frames: {splits} splits by {split_by} need"):
        moments(random_predictions(0, 2, [(10, 4)]), 2, splits, split_by)


@given(st.integers(0, 100), st.integers(2, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_counts_are_those_of_a_double_loop(seed, k, lag):
    predictions = random_predictions(seed, k, [(12, 3), (lag, 3), (9, 3)])
    counts = np.zeros((k, k), np.int64)
    for p in predictions:
        for t in range(len(p) - lag):
            for i in range(p.shape[1]):
                counts[p[t, i].argmax(), p[t + lag, i].argmax()] += 1
    np.testing.assert_array_equal(transition_counts(predictions, lag), counts)


def test_statistics():
    p = random_predictions(3, 4, [(30, 5), (7, 5)])
    found, rows = statistics(p), np.concatenate([x.reshape(-1, 4) for x in p]).astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(0))
    np.testing.assert_allclose(found.std, rows.std(0))
    np.testing.assert_allclose([found.smallest, found.largest], [rows.min(0), rows.max(0)])
    np.testing.assert_allclose(found.argmax_share, np.bincount(rows.argmax(1), minlength=4) / len(rows))
    assert found.crispness == pytest.approx(rows.max(1).mean())
    np.testing.assert_allclose(populations(p)[1], p[1].mean(1), rtol=1e-6)
