"""Errors of reconstructions, and features of a stimulus."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import DataError
from accel_train.tasks.sherlock.features import linear_features
from accel_train.tasks.sherlock.reconstruction import errors, over_mean, shuffles
from accel_train.tasks.sherlock.scores import time_blocks

RUNS = np.repeat([0, 1], [90, 60])


def test_what_predicts_the_mean_has_1_and_the_truth_0():
    x = np.random.default_rng(0).normal(3, 2, (150, 4, 5))
    block, mean = time_blocks(RUNS, 21), x.mean(0)
    assert over_mean(errors(np.broadcast_to(mean, x.shape), x, mean), block, 0) == (1, 1, 1)
    assert over_mean(errors(x, x, mean), block, 0) == (0, 0, 0)
    found = over_mean(errors(x + np.random.default_rng(1).normal(0, 1, x.shape), x, mean), block, 0)
    assert found.low < found.value < found.high and found.value == pytest.approx(1 / 4, abs=0.02)


def test_frames_are_numbers_and_codes_are_not():
    frames = np.array([[[0, 255]], [[255, 255]]], np.uint8)
    np.testing.assert_allclose(errors(frames - 1.0, frames, np.zeros((1, 2)))[:, 0], 1)
    codes = np.array([[[1, 1], [3, 0]], [[1, 2], [0, 0]]], np.int16)
    mean = np.array([[1], [0]])
    np.testing.assert_allclose(errors(np.array(codes) * [[[1.0]], [[2.0]]], codes, mean), [[0, 0.25], [0.5, 0.25]])
    with pytest.raises(DataError, match="does not fit"):
        errors(frames, codes, mean)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=3), st.integers(1, 30))
def test_a_shuffle_moves_all_it_can(lengths: list[int], least: int):
    runs = np.repeat(np.arange(len(lengths)), lengths)
    for rows in shuffles(runs, least):
        assert sorted(rows) == list(range(len(runs))) and (runs[rows] == runs).all()
        moved = np.abs(rows - np.arange(len(runs)))
        for run, length in enumerate(lengths):
            enough = min(least, length // 2)
            assert (np.minimum(moved, length - moved)[runs == run] >= enough).all()


def test_features_of_every_kind():
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (70, 3, 40, 64, 3)).astype(np.uint8)
    found = linear_features(frames, "frames")
    assert found.shape == (70, 14 * 22 * 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[65].reshape(14, 22, 3)[2, 5], frames[65, :, 6:9, 15:18].mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found[3].reshape(14, 22, 3)[13, 21], frames[3, :, 39:, 63:].mean((0, 1, 2)), rtol=1e-5)
    small = linear_features(frames[:, :, :2, :3], "frames")
    np.testing.assert_allclose(small, frames[:, :, :2, :3].mean(1).reshape(70, -1), rtol=1e-6)
    mel = draw.normal(size=(5, 6, 4))
    np.testing.assert_allclose(linear_features(mel, "mel"), mel.mean(1), rtol=1e-6)
    codes = np.array([[[0, 0, 2], [1, 1, 1]]], np.int16)
    np.testing.assert_allclose(linear_features(codes, "codes", 3), [[2 / 3, 0, 1 / 3, 0, 1, 0]], rtol=1e-6)
    vectors = draw.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(linear_features(vectors, "vectors"), vectors)
