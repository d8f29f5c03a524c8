"""What is known exactly: relaxation times and VAMP scores of Markov chains and of diffusion in one dimension.

Scores have no +1: the stationary process is left out of them. Chains need no detailed balance, except where it is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from accel_train.errors import DataError, UserError

LAGS = (1, 10)
"""The lags in frames for which ``known`` gives the scores."""


def noise_floor(states: int, rows: int) -> float:
    """VAMP-2 to expect of so many rows of features that do not depend on each other: (k - 1)^2 / (rows - 1)."""
    return (states - 1) ** 2 / max(rows - 1, 1)


# -- chains ----------------------------------------------------------------------------------------------------------


def stationary(T: ArrayLike) -> np.ndarray:
    """The distribution float64 [k] that a row-stochastic [k, k] keeps; of an irreducible chain there is one."""
    matrix = np.asarray(T, float)
    equations = np.vstack([matrix.T - np.eye(len(matrix)), np.ones(len(matrix))])
    return np.linalg.lstsq(equations, np.eye(len(matrix) + 1)[-1])[0]


def timescales(T: ArrayLike, lag: int = 1) -> np.ndarray:
    """Relaxation times -lag / ln|eigenvalue| float64 [k - 1] in frames, longest first; inf from |eigenvalue| >= 1 on.

    Args:
        T: transition matrix [k, k] over ``lag`` frames; its largest eigenvalue is the stationary process.
    """
    size = np.sort(np.abs(np.linalg.eigvals(np.asarray(T, float))))[-2::-1]
    with np.errstate(divide="ignore"):
        return np.where(size >= 1, np.inf, lag / -np.log(np.minimum(size, 1.0)))


def vamp_scores(T: ArrayLike, tau: int) -> tuple[float, float]:
    """(VAMP-1, VAMP-2) of the chain with transition matrix [k, k] per frame: the most any states can score at lag tau.

    For a reversible chain these are the sums over i >= 2 of |eigenvalue|^tau and of eigenvalue^(2 tau).
    """
    matrix = np.asarray(T, float)
    return joint_scores(stationary(matrix)[:, None] * np.linalg.matrix_power(matrix, tau))


def chapman_kolmogorov(T: ArrayLike, steps: int) -> np.ndarray:
    """T^0 to T^(steps - 1), float64 [steps, k, k]: the transition matrices over multiples of the lag of T."""
    matrix = np.asarray(T, float)
    return np.stack([np.linalg.matrix_power(matrix, m) for m in range(steps)])


def reversible(states: int, laziness: float, seed: int) -> np.ndarray:
    """A random transition matrix [states, states] in detailed balance; no state is left with more than 1 - laziness.

    From a symmetric matrix of weights, so that its stationary distribution is that of their row sums. With a laziness
    of at least 0.5 no eigenvalue is negative.
    """
    weights = np.random.default_rng(seed).exponential(size=(states, states))
    weights += weights.T
    return laziness * np.eye(states) + (1 - laziness) * weights / weights.sum(1, keepdims=True)


def known(chain: ArrayLike) -> dict[str, Any]:
    """All of the above as JSON, for ``LAGS``."""
    scores = {tau: vamp_scores(chain, tau) for tau in LAGS}
    return _as_json(timescales(chain), stationary(chain), scores)


def _as_json(times: np.ndarray, distribution: np.ndarray, scores: dict[int, tuple[float, float]]) -> dict[str, Any]:
    return {
        "timescales_frames": times.tolist(),
        "stationary": distribution.tolist(),
        "vamp1": {str(tau): float(score[0]) for tau, score in scores.items()},
        "vamp2": {str(tau): float(score[1]) for tau, score in scores.items()},
    }


# -- the same from a trajectory whose states are known ---------------------------------------------------------------


def joint(states: np.ndarray, tau: int) -> np.ndarray:
    """Share of the pairs (frame, frame + tau) in each pair of states, float64 [k, k].

    Args:
        states: integers from 0 of shape (frames, targets).
    """
    if not 1 <= tau < len(states):
        raise UserError(f"tau: {tau} frames; the trajectory has {len(states)}, so give 1 to {len(states) - 1}")
    k = int(states.max()) + 1
    pairs = states[:-tau].astype(np.int64) * k + states[tau:]
    return np.bincount(pairs.ravel(), minlength=k * k).reshape(k, k) / pairs.size


def joint_scores(joint: np.ndarray) -> tuple[float, float]:
    """(VAMP-1, VAMP-2) of indicator functions, from the joint distribution [k, k] of the state now and later.

    The whitened covariance of indicators is this matrix over the root of its margins, whose first singular value, 1,
    is the constant function.
    """
    margins = np.outer(joint.sum(1), joint.sum(0))
    whitened = np.divide(joint, np.sqrt(margins), out=np.zeros_like(joint), where=margins > 0)
    values = np.linalg.svd(whitened, compute_uv=False)[1:]
    return float(values.sum()), float((values**2).sum())


def oracle(states: np.ndarray, tau: int) -> tuple[float, float, np.ndarray]:
    """(VAMP-1, VAMP-2, timescales in frames) that a model with exactly these states (frames, targets) would get.

    They differ from the truth by the sampling error of the trajectory, which no model can help.
    """
    pairs = joint(states, tau)
    leaving = pairs.sum(1, keepdims=True)
    if not leaving.all():
        raise DataError(f"state {int(np.argmin(leaving))} is never left within the trajectory; make it longer")
    return *joint_scores(pairs), timescales(pairs / leaving, tau)


# -- diffusion in one dimension --------------------------------------------------------------------------------------


class Diffusion(NamedTuple):
    """The slow processes of dx = -V'(x) dt + sqrt(2) dW."""

    x: np.ndarray
    """Centres [n] of the cells, equally far from each other."""
    weights: np.ndarray
    """Stationary probability [n] of each cell."""
    timescales: np.ndarray
    """Relaxation times [count] in the time unit of t, longest first, without the stationary process."""
    functions: np.ndarray
    """Eigenfunctions [n, count] of the propagator, of variance 1 in the stationary distribution."""


def diffusion(
    potential: Callable[[np.ndarray], np.ndarray], low: float, high: float, count: int = 3, cells: int = 2000
) -> Diffusion:
    """Slow processes in a potential (in kT), from the generator on ``cells`` equal cells between reflecting walls.

    Rates exp(-(V_j - V_i) / 2) / dx^2 to the neighbours keep detailed balance exactly, and the error is of second order
    in dx. Divided by the root of the stationary distribution the generator is symmetric and tridiagonal.
    """
    try:
        from scipy.linalg import eigh_tridiagonal
    except ImportError:
        raise UserError("diffusion needs another package: pip install 'accel_train[gdynet]'") from None
    dx = (high - low) / cells
    x = low + dx * (np.arange(cells) + 0.5)
    energy = potential(x)
    weights = np.exp(energy.min() - energy)
    weights /= weights.sum()
    up, down = np.exp(-np.diff(energy) / 2), np.exp(np.diff(energy) / 2)
    diagonal = -(np.append(up, 0) + np.insert(down, 0, 0)) / dx**2
    wanted = (cells - 1 - count, cells - 2)  # the last one is 0
    values, vectors = eigh_tridiagonal(diagonal, np.full(cells - 1, dx**-2), select="i", select_range=wanted)
    return Diffusion(x, weights, -1 / values[::-1], vectors[:, ::-1] / np.sqrt(weights)[:, None])


def prinz(x: np.ndarray) -> np.ndarray:
    """The four-well potential of Prinz et al. (J. Chem. Phys. 134, 174105, 2011), in kT."""
    bumps = 0.8 * np.exp(-80 * x**2) + 0.2 * np.exp(-80 * (x - 0.5) ** 2) + 0.5 * np.exp(-40 * (x + 0.5) ** 2)
    return 4 * (x**8 + bumps)


def prinz_force(x: np.ndarray) -> np.ndarray:
    """Minus the derivative of ``prinz``."""
    middle = 128 * x * np.exp(-80 * x**2)
    right = 32 * (x - 0.5) * np.exp(-80 * (x - 0.5) ** 2)
    left = 40 * (x + 0.5) * np.exp(-40 * (x + 0.5) ** 2)
    return -4 * (8 * x**7 - middle - right - left)


PRINZ_RANGE = (-1.5, 1.5)  # the potential is 100 kT at its ends
PRINZ_TOPS = (-0.5, 0.0, 0.5)  # of the barriers between its wells
PRINZ_STEP, PRINZ_STEPS = 1e-5, 500  # of the Euler-Maruyama integration: time units, and steps per frame


def double_well(z: np.ndarray, height: float = 5.0) -> np.ndarray:
    """Wells at -1 and 1 with a barrier of ``height`` kT between them."""
    return height * (z**2 - 1) ** 2


def known_prinz() -> dict[str, Any]:
    """As ``known`` for a chain: three slow processes in frames, the share of each well, the scores of four states."""
    found = diffusion(prinz, *PRINZ_RANGE)
    times = found.timescales / (PRINZ_STEP * PRINZ_STEPS)
    wells = np.bincount(np.digitize(found.x, PRINZ_TOPS), found.weights)
    scores = {tau: (np.exp(-tau / times).sum(), np.exp(-2 * tau / times).sum()) for tau in LAGS}
    return _as_json(times, wells, scores)
