"""What fails, fails in the same way in every window, epoch and rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from accel_train.errors import UserError
from accel_train.tasks.tcn.robustness import FAILURES, Failure, failed, forward_fill, kept_channels, stored_zero

START, STOP, CHANNELS = 10, 210, 12
X = np.random.default_rng(0).normal(size=(CHANNELS, STOP - START))


def spoiled(failure, seed=0, shot=1):
    lost = failure.first_lost(seed, shot, CHANNELS, START, STOP, dt_ms=0.5)
    return lost - START, failed(X, failure, lost, np.full(CHANNELS, -9.0), START)


@given(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(0, CHANNELS - 1))
def test_more_failures_are_the_same_and_more(seed, shot, k):
    less, more = (Failure(channels=c).first_lost(seed, shot, CHANNELS, START, STOP, 0.5)[0] for c in (k, k + 1))
    assert (less < STOP).sum() == k and (more < STOP).sum() == k + 1
    assert (more[less < STOP] == less[less < STOP]).all()
    assert (more >= START).all()


@pytest.mark.parametrize("fill", [False, True])
def test_a_dead_channel_falls_to_zero_or_holds(fill):
    (silent, _), y = spoiled(Failure(channels=5, forward_fill=fill))
    assert sorted(silent < STOP - START) == [False] * 7 + [True] * 5 and len(set(silent)) == 6
    for before, after, since in zip(X, y, silent, strict=True):
        assert (after[:since] == before[:since]).all()
        assert (after[since:] == (before[since - 1] if fill else -9.0)).all()


def test_frozen_at_the_end():
    _, y = spoiled(Failure(frozen_ms=20))
    assert (y[:, :-40] == X[:, :-40]).all() and (y[:, -40:] == X[:, [-41]]).all()
    _, y = spoiled(Failure(frozen_ms=1e6))
    assert (y == X[:, :1]).all()


def test_nothing_fails_unless_asked():
    assert (spoiled(Failure())[1] == X).all()
    assert all((spoiled(failure)[1] != X).any() for failure in FAILURES.values() if failure.channels <= CHANNELS)
    assert (spoiled(Failure(channels=3), shot=1)[1] != spoiled(Failure(channels=3), shot=2)[1]).any()
    with pytest.raises(UserError, match="frozen_ms: -1 is out of range"):
        Failure(frozen_ms=-1)


def test_the_stored_zero():
    scale, offset = np.array([0.5, 0.001, 2.0], np.float32), np.array([1.0, 100.0, 3.0], np.float32)
    np.testing.assert_array_equal(stored_zero(scale, offset, np.dtype("i2")), np.array([-2, -32768, -2], "i2"))
    np.testing.assert_allclose(stored_zero(scale, offset, np.dtype("f4")) * scale + offset, 0, atol=1e-4)


@given(arrays.arrays(np.float32, (3, 7), elements=st.sampled_from([np.nan, 1.0, 2.0, -3.0])))
def test_forward_fill(x):
    expected = x.copy()
    for row in expected:
        for i in range(1, len(row)):
            row[i] = row[i - 1] if np.isnan(row[i]) else row[i]
    np.testing.assert_array_equal(forward_fill(x), expected)


@given(st.integers(0, 2**63), st.integers(0, 1000), st.lists(st.integers(0, 10**9), max_size=20), st.integers(0, 20))
def test_drop_out_does_not_depend_on_the_cut(seed, epoch, items, cut):
    items = np.array(items, np.int64)
    whole = kept_channels(seed, epoch, items, 16, 0.5)
    parts = [kept_channels(seed, epoch, part, 16, 0.5) for part in (items[:cut], items[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert whole.shape == (len(items), 16) and whole.dtype == bool


def test_how_much_drops_out():
    items = np.arange(4000)
    dropped = 1 - kept_channels(1, 0, items, 160, 0.4).mean(1)
    assert dropped.mean() == pytest.approx(0.2, abs=0.01) and dropped.max() < 0.6 and dropped.min() == 0
    assert kept_channels(1, 0, items, 8, 0.0).all()
    assert (kept_channels(1, 0, items, 8, 0.4) != kept_channels(1, 1, items, 8, 0.4)).any()
