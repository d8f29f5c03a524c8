"""Chains give back the matrices they were drawn from, constrained, reversible or free."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chains import CAGED, FASTER, chain, matrix, one_hot, soft

from accel_train.tasks.gdynet import truth
from accel_train.tasks.gdynet.analysis.analyse import (
    connected,
    constrained,
    koopman,
    likeliest,
    moments,
    reversible,
    spectrum,
    transition_counts,
)


def test_one_hot_gives_the_empirical_matrix():
    """Of indicators the Koopman matrix is the counted one, which no constraint changes."""
    p = one_hot(chain(FASTER, 500, 4))
    counted = likeliest(transition_counts([p], 2))
    np.testing.assert_allclose(matrix(p, 2), counted, atol=1e-12)
    np.testing.assert_allclose(constrained(moments([p], 2)[0]), counted, atol=1e-9)


def test_a_linear_mixture_has_the_same_spectrum():
    states = chain(FASTER, 500, 4)
    p, mix = soft(states)
    K, counted = matrix(p, 2), matrix(one_hot(states), 2)
    np.testing.assert_allclose(K.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(K, np.linalg.inv(mix) @ counted @ mix, atol=1e-5)
    np.testing.assert_allclose(spectrum(K, 2).timescales, spectrum(counted, 2).timescales, rtol=1e-4)


@pytest.mark.parametrize("T", [CAGED, FASTER])
def test_long_chains_give_the_true_times(T):
    p = one_hot(chain(T, 4000, 60))
    found = spectrum(matrix(p, 5), 5)
    np.testing.assert_allclose(found.timescales, truth.timescales(T), rtol=0.1)
    np.testing.assert_allclose(found.stationary, truth.stationary(T), atol=0.03)


def test_spectrum_of_a_known_matrix():
    found = spectrum(CAGED, 1)
    np.testing.assert_allclose(found.eigenvalues, [1, 0.99, 0.97], atol=1e-12)
    np.testing.assert_allclose(found.stationary, [1 / 3] * 3, atol=1e-12)
    np.testing.assert_allclose(found.timescales, [-1 / np.log(0.99), -1 / np.log(0.97)])
    np.testing.assert_allclose(np.abs(found.vectors), [[1, 0, 1], [0.5, 1, 0.5]], atol=1e-12)
    np.testing.assert_allclose(found.vectors.sum(1), 0, atol=1e-12)
    assert np.isinf(spectrum(np.eye(3), 1).timescales).all()
    assert spectrum(np.full((2, 2), 0.5), 1).timescales == pytest.approx(0, abs=0.1)


def brute_force(moment):
    """Least squares over transition matrices of two states, on a grid."""
    grid = np.linspace(0, 1, 401)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    K = np.stack([np.stack([a, 1 - a], -1), np.stack([b, 1 - b], -1)], -2)
    xx, xy = moment[1:3, 1:3], moment[1:3, 3:5]
    value = ((xx @ K / 2 - xy) * K).sum((-1, -2))
    return K[np.unravel_index(value.argmin(), value.shape)]


def test_the_constrained_matrix_is_the_best_one():
    x = np.random.default_rng(0).uniform(0.4, 0.6, 200)
    amplified = 0.55 + 3 * (x - 0.5)  # no transition matrix does that
    p = np.array([[x, 1 - x], [amplified, 1 - amplified]]).swapaxes(1, 2)
    moment = moments([p], 1)[0]
    assert koopman(moment).max() > 1
    np.testing.assert_allclose(constrained(moment), brute_force(moment), atol=0.003)


@given(st.integers(0, 1000), st.integers(2, 6), st.floats(0.05, 1))
@settings(deadline=None, max_examples=20)
def test_no_transition_matrix_near_the_constrained_one_is_better(seed, k, sharpness):
    states = chain(np.random.default_rng(seed).dirichlet(np.ones(k), k), 60, 3, seed)
    moment = moments([soft(states, k, sharpness)[0]], 1)[0]
    K, rng = constrained(moment), np.random.default_rng(seed)
    assert K.min() >= 0
    np.testing.assert_allclose(K.sum(1), 1, atol=1e-12)
    xx, xy = moment[1 : k + 1, 1 : k + 1], moment[1 : k + 1, k + 1 :]

    def loss(matrix):
        return float(((xx @ matrix / 2 - xy) * matrix).sum() / moment[0, 0])

    for other in rng.dirichlet(np.ones(k), (20, k)):
        assert loss(K) <= loss(0.9 * K + 0.1 * other) + 1e-9


def test_the_reversible_matrix():
    """In detailed balance; of symmetric counts, and of two states, it is the counted one; it is the likeliest."""
    counts = transition_counts([one_hot(chain(FASTER, 2000, 4))], 1)
    T = reversible(counts)
    flow = spectrum(T, 1).stationary[:, None] * T
    np.testing.assert_allclose(T.sum(1), 1)
    np.testing.assert_allclose(flow, flow.T, atol=1e-10)
    np.testing.assert_allclose(reversible(counts + counts.T), likeliest(counts + counts.T), atol=1e-10)
    two = np.array([[90, 10], [3, 40]])
    np.testing.assert_allclose(reversible(two), likeliest(two), atol=1e-8)
    rng = np.random.default_rng(0)
    for _ in range(20):  # other matrices in detailed balance
        weights = flow * np.exp(0.05 * rng.standard_normal((3, 3)))
        other = likeliest(weights + weights.T)
        assert (counts * np.log(other)).sum() <= (counts * np.log(T)).sum()


def test_states_that_are_not_left_and_entered_again_are_left_out():
    counts = np.array([[50, 5, 0, 0], [4, 60, 1, 0], [0, 0, 7, 0], [0, 0, 0, 0]])
    assert connected(counts).tolist() == [0, 1]
    assert reversible(np.zeros((1, 1), int)).tolist() == [[1.0]]


def test_a_state_that_never_occurs_does_no_harm():
    p = np.concatenate([one_hot(chain(FASTER, 400, 4)), np.zeros((400, 4, 1), np.float32)], 2)
    K = matrix(p, 1)
    np.testing.assert_allclose(K[:3, :3], matrix(p[..., :3], 1), atol=1e-12)
    assert spectrum(K, 1).timescales[2] == 0
    assert constrained(moments([p], 1)[0]).sum(1) == pytest.approx([1] * 4)
