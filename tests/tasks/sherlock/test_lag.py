"""The lag is causal, has the shape of a response, and may be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.tasks.sherlock.lag import Lag, hrf

TR = 1.5


def test_the_response_peaks_at_five_seconds_and_undershoots():
    fine = hrf(0.05, 640)
    assert 4.9 <= 0.05 * int(fine.argmax()) <= 5.1
    assert fine[int(9 / 0.05) :].min() < -0.1 * fine.max() and fine.abs()[-1] < 1e-3 * fine.max()
    assert 4.5 <= TR * int(hrf(TR, 14).argmax()) <= 6


def test_it_is_what_a_fine_simulation_measures_in_the_middle_of_each_volume():
    steps, n = 200, 40
    dt = TR / steps
    stimulus = np.random.default_rng(0).normal(size=n)
    density = np.diff(_area(np.arange(n * steps + 1) * dt))
    fine = np.convolve(np.repeat(stimulus, steps), density)[: n * steps]
    measured = fine[steps // 2 - 1 :: steps]
    taps = hrf(TR, n - 1).numpy()
    ours = np.convolve(stimulus, taps)[:n]
    assert np.corrcoef(ours, measured)[0, 1] > 1 - 1e-6


def _area(t):
    scipy = pytest.importorskip("scipy.stats")
    return scipy.gamma.cdf(t, 6 / 0.9, scale=0.9) - 0.35 * scipy.gamma.cdf(t, 12 / 0.9, scale=0.9)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(["hrf", "fir"]), lags=st.integers(0, 6), volumes=st.integers(1, 5), seed=st.integers(0, 99))
def test_it_is_a_causal_sum(kind, lags, volumes, seed):
    generator = torch.Generator().manual_seed(seed)
    lag = Lag(kind, 3, TR, lags).double()
    if kind == "fir":
        with torch.no_grad():
            lag.taps += torch.randn(lag.taps.shape, generator=generator, dtype=torch.float64)
    n = torch.randn(2, lags + volumes, 3, generator=generator, dtype=torch.float64)
    taps = lag.taps.expand(3, lags + 1)
    for t in range(volumes):
        wanted = sum(taps[:, k] * n[:, lags + t - k] for k in range(lags + 1))
        torch.testing.assert_close(lag(n)[:, t], wanted)


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(["hrf", "fir"]), lags=st.integers(0, 6), seed=st.integers(0, 99))
def test_the_matched_filter_is_the_adjoint_and_recovers_one_event(kind, lags, seed):
    generator = torch.Generator().manual_seed(seed)
    lag = Lag(kind, 3, TR, lags).double()
    x = torch.randn(2, lags + 4, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 4 + lags, 3, generator=generator, dtype=torch.float64)
    padded = torch.cat([torch.zeros(2, lags, 3, dtype=torch.float64), x], 1)
    norm = lag.taps.square().sum(-1)
    torch.testing.assert_close((lag(padded) * y).sum(), (x[:, :4] * lag.back(y) * norm).sum() + _rest(lag, x, y, lags))
    event = torch.zeros(1, 2 * lags + 1, 3, dtype=torch.float64)
    event[:, lags] = 2.0
    torch.testing.assert_close(lag.back(lag(event))[0, 0], torch.full((3,), 2.0, dtype=torch.float64))


def _rest(lag, x, y, lags):
    """What activity after the fourth TR adds, of which ``back`` does not see the whole response."""
    late = x.clone()
    late[:, :4] = 0
    padded = torch.cat([torch.zeros(2, lags, 3, dtype=torch.float64), late], 1)
    return (lag(padded) * y).sum()
