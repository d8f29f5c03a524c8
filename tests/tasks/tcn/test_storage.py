"""How samples are stored: counts without loss, other values within half a step; decimation; sums in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shots import digitised

from accel_train.errors import DataError
from accel_train.tasks.tcn.decimate import decimate, kernel
from accel_train.tasks.tcn.norm import moments, norm, together
from accel_train.tasks.tcn.quantise import store


def decoded(stored) -> np.ndarray:
    return stored.values.astype(np.float64) * stored.scale[:, None] + stored.offset[:, None]


@given(
    st.integers(0, 10**6), st.integers(2, 16), st.floats(1e-6, 1e3), st.floats(-3, 3), st.sampled_from([1, 2, 3, 7]),
    st.integers(2, 400),
)  # fmt: skip
def test_what_a_digitiser_gave_is_stored_without_loss(seed, bits, step, zero, stride, samples):
    """Whatever the range, and if only some counts occur: they come back, and values within rounding of float32."""
    random = np.random.default_rng(seed)
    counts = random.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), samples) // stride * stride
    x = ((counts + zero) * step).astype(np.float32)
    stored = store(x[None], "int16")
    assert stored.values.dtype == np.int16
    if stored.counts[0]:
        ratio = stored.scale[0] / step
        np.testing.assert_allclose(
            np.diff(stored.values[0].astype(int)) * (ratio if len(np.unique(counts)) > 1 else 1),
            np.diff(counts),
            atol=0.05 * stride,
        )
        assert stored.error[0] <= 0.02 * max(stored.scale[0], 2e-7 * np.abs(x).max())
    else:  # a few counts far from each other: no grid is seen, and the error is half of one in 65,534
        assert len(np.unique(counts)) < 2**bits / 8
        assert stored.error[0] <= 0.51 * np.ptp(x.astype(float)) / 65_534 + 1e-7 * np.abs(x).max()


def test_digitised_shots_come_back_bit_for_bit_but_for_rounding():
    x = digitised(np.random.default_rng(0), 6, 20_000)
    stored = store(x, "int16")
    assert stored.counts.all()
    assert (stored.error <= 2.0**-23 * np.abs(x).max(1)).all()
    again = store(decoded(stored).astype(np.float32), "int16")
    np.testing.assert_array_equal(again.values, stored.values)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_other_values_are_within_half_a_step(seed, size, middle):
    x = (np.random.default_rng(seed).normal(size=(1, 300)) * size + middle).astype(np.float32)
    stored = store(x, "int16")
    span = np.ptp(x.astype(float))
    limit = 0.501 * span / 65_534 + 1e-6 * abs(middle)
    assert stored.error[0] <= limit and np.abs(decoded(stored) - x).max() == stored.error[0]


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32"])
def test_a_channel_that_never_changes(dtype):
    stored = store(np.full((1, 9), -2.5, np.float32), dtype)
    assert (decoded(stored) == -2.5).all() and stored.error[0] == 0


def test_float32_is_as_it_was_and_float16_is_not():
    x = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    exact, half = store(x, "float32"), store(x, "float16")
    np.testing.assert_array_equal(exact.values, x)
    assert exact.error.max() == 0 and exact.counts.all() and not half.counts.any()
    assert 0 < half.error.max() < 2e-3 and half.values.dtype == np.float16


@pytest.mark.parametrize("dtype", ["int16", "float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(dtype, bad):
    x = np.zeros((2, 5), np.float32)
    x[1, 2:4] = bad
    with pytest.raises(DataError, match="channel 9: 2 of 5 values are not finite"):
        store(x, dtype, first_channel=8)


def test_too_large_for_float16():
    with pytest.raises(DataError, match="channel 4: values are too large for float16"):
        store(np.array([[1.0], [1e5]], np.float32), "float16", first_channel=3)


# -- decimation ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 7), st.booleans())
def test_as_many_as_slicing_gives(samples, step, filtered):
    x = np.random.default_rng(samples).normal(size=(2, samples)).astype(np.float32)
    kept = decimate(x, step, filtered)
    assert kept.shape == x[:, ::step].shape and kept.dtype == np.float32
    if not filtered:
        np.testing.assert_array_equal(kept, x[:, ::step])


@given(st.integers(1, 90), st.integers(2, 6))
def test_the_filter_is_the_plain_sum_over_the_past(samples, step):
    x = np.random.default_rng(samples).normal(size=samples).astype(np.float32)
    taps = kernel(step)
    padded = np.concatenate([np.repeat(x[:1], len(taps) - 1), x]).astype(float)
    expected = [taps @ padded[i : i + len(taps)][::-1] for i in range(0, samples, step)]
    np.testing.assert_allclose(decimate(x[None], step, True)[0], expected, atol=1e-6)


@pytest.mark.parametrize("step", [2, 5, 10])
@pytest.mark.parametrize(
    "frequency, low, high", [(0.05, 0.99, 1.01), (0.53, 0.97, 1.02), (1.03, 0, 2e-3), (1.7, 0, 2e-3)]
)
def test_what_it_passes_and_what_it_stops(step, frequency, low, high):
    """In units of the Nyquist frequency of what is kept. Plain slicing folds the last two back at full size."""
    tone = np.cos(np.pi * frequency / step * np.arange(800 * step)).astype(np.float32)[None]
    size, plain = (np.sqrt(2) * decimate(tone, step, filtered)[0, 20:].std() for filtered in (True, False))
    assert low <= size <= high and plain > 0.98


def test_a_later_sample_changes_nothing_before_it():
    x = np.random.default_rng(1).normal(size=(1, 100)).astype(np.float32)
    later = x.copy()
    later[:, 61:] += 5
    np.testing.assert_array_equal(decimate(x, 4, True)[:, :16], decimate(later, 4, True)[:, :16])


# -- norm ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum), st.floats(-1e6, 1e6))
def test_parts_together_are_the_whole(sizes, shift):
    x = np.random.default_rng(sum(sizes)).normal(size=(3, sum(sizes))) + shift
    parts = np.split(x, np.cumsum(sizes)[:-1], axis=1)
    total = together(moments(part) for part in parts)
    assert total.count == x.shape[1]
    np.testing.assert_allclose(total.mean, x.mean(1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total.squares, x.var(1) * x.shape[1], rtol=1e-6, atol=1e-6)


def test_a_dead_channel_has_deviation_1():
    mean, std = norm(moments(np.array([[3.3] * 7, [1, 2, 3, 4, 5, 6, 7]])))
    np.testing.assert_allclose(mean, [3.3, 4])
    np.testing.assert_allclose(std, [1, 2])
