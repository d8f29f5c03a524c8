"""Markov chains with known matrices, and networks that see them more or less sharply."""

import numpy as np

from accel_train.tasks.gdynet.analysis.analyse import (
    koopman,
    moments,
)

CAGED = np.array([[0.99, 0.01, 0.0], [0.01, 0.98, 0.01], [0.0, 0.01, 0.99]])
FASTER = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.02, 0.08, 0.9]])


def chain(T, frames, targets, seed=0):
    """States [F, n] of independent chains."""
    rng, above = np.random.default_rng(seed), T.cumsum(1)
    states = np.empty((frames, targets), np.int64)
    states[0] = rng.integers(0, len(T), targets)
    for t in range(1, frames):
        states[t] = (above[states[t - 1]] < rng.random(targets)[:, None]).sum(1).clip(max=len(T) - 1)
    return states


def one_hot(states, k=3):
    return np.eye(k, dtype=np.float32)[states]


def soft(states, k=3, sharpness=0.8):
    """A linear mixture of the indicators: the same Koopman spectrum, other states."""
    mix = sharpness * np.eye(k) + (1 - sharpness) * np.random.default_rng(1).dirichlet(np.ones(k), k)
    return mix[states].astype(np.float32), mix


def random_predictions(seed, k, shapes):
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(k), shape).astype(np.float32) for shape in shapes]


def matrix(p, lag):
    return koopman(moments([p], lag)[0])


def table(predictions, lags, splits=5, split_by="targets"):
    return {lag: moments(predictions, lag, splits, split_by) for lag in lags}
