"""Timescales, their bands, and the tests of a model are as defined."""

import numpy as np
import pytest
from support.chains import CAGED, FASTER, chain, matrix, one_hot, soft, table

from accel_train.errors import UserError
from accel_train.tasks.gdynet import truth
from accel_train.tasks.gdynet.analysis.analyse import (
    agreement,
    autocorrelations,
    chapman_kolmogorov,
    implied_timescales,
    koopman,
    moments,
    spectrum,
    vamp,
)
from accel_train.tasks.gdynet.analysis.timescales import band


def test_band():
    values = np.array([[1.0, np.nan, np.inf], [3.0, np.nan, 2.0], [5.0, 4.0, 4.0]])
    mean, half = band(values)
    np.testing.assert_allclose(mean, [3, 4, 3])
    np.testing.assert_allclose(half, [1.96 * 2 / np.sqrt(3), np.nan, 1.96 * np.sqrt(2) / np.sqrt(2)])


@pytest.mark.parametrize("split_by", ["targets", "time"])
def test_implied_timescales_and_their_bands(split_by):
    p = one_hot(chain(CAGED, 3000, 30))
    lags = [1, 5, 20]
    found = implied_timescales(table([p], lags, 5, split_by))
    assert found["lags"].tolist() == lags and (found["splits_used"] == 5).all()
    true = truth.timescales(CAGED)
    np.testing.assert_allclose(found["timescales"], np.broadcast_to(true, (3, 2)), rtol=0.15)
    logs = np.log([spectrum(koopman(m), 5).timescales for m in moments([p], 5, 5, split_by)])
    half = 1.96 * logs.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(np.log([found["low"][1], found["high"][1]]), [logs.mean(0) - half, logs.mean(0) + half])


def test_bands_hold_the_truth_about_as_often_as_they_say():
    """With 40 splits the factor 1.96 is nearly Student's."""
    inside, true = np.zeros(2), truth.timescales(FASTER)
    for seed in range(30):
        found = implied_timescales(table([one_hot(chain(FASTER, 600, 40, seed))], [1], 40))
        inside += (found["low"][0] < true) & (true < found["high"][0])
    assert (inside >= 24).all()


def test_chapman_kolmogorov_of_a_chain():
    p = one_hot(chain(FASTER, 2000, 40))
    found = chapman_kolmogorov(table([p], [2, 4, 6, 8]), 2, 5)
    assert found["predicted"].shape == found["estimated"].shape == (5, 3, 3)
    np.testing.assert_array_equal(found["predicted"][:2], found["estimated"][:2])
    np.testing.assert_allclose(found["predicted"][3], np.linalg.matrix_power(matrix(p, 2), 3))
    np.testing.assert_allclose(found["estimated"][3], matrix(p, 6))
    assert found["max_difference"] < 0.02
    assert found["share_within_band"] > 0.7


def test_chapman_kolmogorov_sees_what_is_not_markovian():
    """Two states of a chain of three that are taken for one remember."""
    cycle = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])
    p = one_hot(np.minimum(chain(cycle, 2000, 40), 1), 2)
    found = chapman_kolmogorov(table([p], range(1, 20)), 1, 20)
    assert found["max_difference"] > 0.05 and found["share_within_band"] < 0.5


def test_a_frozen_system_agrees_exactly():
    p = one_hot(np.broadcast_to(np.arange(9) % 3, (50, 9)))
    found = chapman_kolmogorov({lag: moments([p], lag, 3) for lag in (1, 2)}, 1, 3)
    assert found["max_difference"] < 1e-12 and found["share_within_band"] == 1


def test_two_steps_test_nothing():
    with pytest.raises(UserError, match="steps: 2 test nothing"):
        chapman_kolmogorov({}, 1, 2)


def test_vamp_of_a_reversible_chain():
    """Sums of eigenvalues, and of their squares, to the power of the lag; the same for mixed states."""
    states = chain(CAGED, 4000, 60)
    scores = vamp(moments([one_hot(states)], 10)[0])
    assert scores["vamp1"] == pytest.approx(0.99**10 + 0.97**10, rel=0.02)
    assert scores["vamp2"] == pytest.approx(0.99**20 + 0.97**20, rel=0.03)
    assert vamp(moments([soft(states)[0]], 10)[0])["vamp2"] == pytest.approx(scores["vamp2"], rel=1e-4)


def test_autocorrelations():
    states = chain(CAGED, 1000, 20)
    p = one_hot(states)
    found = autocorrelations(table([p], [7, 30]))
    for lag, values in zip(found["lags"], found["correlation"], strict=True):
        for i in range(3):
            x, y = p[:-lag, :, i].ravel(), p[lag:, :, i].ravel()
            assert values[i] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)
    constant = autocorrelations(table([np.full((20, 5, 2), 0.5)], [1]))
    assert np.isnan(constant["correlation"]).all()


def test_agreement_with_known_states():
    states = chain(CAGED, 500, 10) - 1
    p, _ = soft(states + 1)
    renamed = p[..., [2, 0, 1]]
    found = agreement([renamed], [states])
    assert found["purity"] == 1 and found["distinct"] == 3
    assert found["population_error"] < 0.15
    assert agreement([one_hot(states + 1)], [states])["population_error"] == pytest.approx(0, abs=1e-9)
    lumped = one_hot(np.minimum(states + 1, 1))
    assert agreement([lumped], [states])["distinct"] == 2
    assert found["states"].tolist() == [-1, 0, 1] and (found["counts"] > 0).tolist() == np.eye(3)[[2, 0, 1]].tolist()
    halves = agreement([renamed[:200], renamed[200:]], [states[:200], states[200:]])
    np.testing.assert_array_equal(halves["counts"], found["counts"])


def test_more_known_states_than_predicted_ones():
    states = np.repeat([[0], [1], [2], [2]], 25, 0)
    found = agreement([one_hot(np.minimum(states, 1), 2)], [states])
    assert found["counts"].tolist() == [[25, 0, 0], [0, 25, 50]]
    assert found["distinct"] == 2 and found["purity"] == 0.75 and found["population_error"] == 0.25
