"""Transition matrices of states over a lag, and what follows from one: relaxation times and VAMP scores.

The moments are those of ``moments.moments``, of one split or summed over them: float64 [2k+1, 2k+1].

Formulas: Wu and Noe, J. Nonlinear Sci. 30, 23 (2020) for Koopman matrices and VAMP scores; Prinz et al., J. Chem. Phys.
134, 174105 (2011) for timescales and the reversible estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_train.errors import UserError

EPSILON = 1e-10  # of the largest eigenvalue: float32 rounds at 1e-14, and a state of one row in 1e9 still counts
TOLERANCE, ITERATIONS = 1e-12, 100_000  # of what is solved in steps

# -- from moments ----------------------------------------------------------------------------------------------------


def koopman(moments: np.ndarray) -> np.ndarray:
    """K = (x'x)^+ x'y, float64 [k, k], without centring: E[y | x] = x K.

    Rows sum to one, since those of x and y do. Entries may leave [0, 1] where states are soft (see ``constrained``).
    Eigenvalues of x'x up to ``EPSILON`` of the largest count as zero.
    """
    xx, xy = _gram(moments)
    return np.linalg.pinv(xx, rcond=EPSILON, hermitian=True) @ xy


def constrained(moments: np.ndarray) -> np.ndarray:
    """The transition matrix (entries at least 0, rows of sum 1) with the least |y - x K|^2, float64 [k, k].

    A convex quadratic programme; where no bound binds it is ``koopman``. Solved by projected gradients with momentum
    and restarts (O'Donoghue and Candes, 2015), the step of row i being one over sum_j (x'x)_ij, the population of i,
    until the gap of Frank and Wolfe proves that half of |y - x K|^2 per row is within ``TOLERANCE`` of the least.

    Raises:
        UserError: no convergence in ``ITERATIONS``.
    """
    xx, xy = (part / moments[0, 0] for part in _gram(moments))
    of_row = xx.sum(1, keepdims=True).clip(np.finfo(float).tiny)
    found = ahead = _nearest_stochastic(koopman(moments))
    pace = 1.0
    for _ in range(ITERATIONS):
        slope = xx @ found - xy
        if (slope * found).sum() - slope.min(1).sum() <= TOLERANCE:
            return found
        new = _nearest_stochastic(ahead - (xx @ ahead - xy) / of_row)
        if (of_row * (ahead - new) * (new - found)).sum() > 0:
            pace = 1.0
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = new + (pace - 1) / faster * (new - found)
        found, pace = new, faster
    raise UserError(f"constrained Koopman matrix: no convergence in {ITERATIONS:,} iterations")


def _nearest_stochastic(rows: np.ndarray) -> np.ndarray:
    """Each row's nearest point with entries at least 0 that sum to 1 (Held, Wolfe and Crowder, 1974)."""
    descending = -np.sort(-rows, 1)
    level = (descending.cumsum(1) - 1) / np.arange(1, rows.shape[1] + 1)
    last = (descending > level).sum(1) - 1
    return np.clip(rows - level[np.arange(len(rows)), last, None], 0, None)


def _gram(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k = len(moments) // 2
    return moments[1 : k + 1, 1 : k + 1], moments[1 : k + 1, k + 1 :]


def vamp(moments: np.ndarray) -> dict[str, float]:
    """``vamp.scores`` over all pairs: vamp1 and vamp2 are at most k - 1."""
    import torch

    from accel_train.tasks.gdynet.vamp import covariances, scores

    shift = np.eye(len(moments))
    shift[0, 1:] = -2 / (len(moments) - 1)  # its moments are around 1/k
    return scores(covariances(torch.from_numpy(shift.T @ moments @ shift)))


# -- from counts of the likeliest state ------------------------------------------------------------------------------


def connected(counts: np.ndarray) -> np.ndarray:
    """The largest set of states (by entries) that can all reach each other, int [m]."""
    steps = ((counts > 0) | np.eye(len(counts), dtype=bool)).astype(np.float64)
    reach = np.linalg.matrix_power(steps, len(counts)) > 0
    together = reach & reach.T
    return np.flatnonzero(together[(together @ counts.sum(1)).argmax()])


def likeliest(counts: np.ndarray) -> np.ndarray:
    """Rows divided by their sums, float64 [m, m]: of counts, the transition matrix of maximal likelihood.

    A state without any pair stays where it is.
    """
    sums = counts.sum(1, keepdims=True)
    return np.divide(counts, sums, out=np.eye(len(counts)), where=sums > 0)


def reversible(counts: np.ndarray) -> np.ndarray:
    """The likeliest transition matrix in detailed balance, float64 [m, m]; for ``counts`` among ``connected`` states.

    Iterates x_ij = (c_ij + c_ji) / (c_i / x_i + c_j / x_j) (Prinz et al., section III.F).

    Raises:
        UserError: no convergence in ``ITERATIONS``.
    """
    both, of_row = (counts + counts.T).astype(np.float64), counts.sum(1)
    if not counts.any():
        return likeliest(counts)
    x = both / both.sum()
    for _ in range(ITERATIONS):
        rate = of_row / x.sum(1)
        new = both / (rate[:, None] + rate)
        new /= new.sum()
        if np.abs(new - x).max() <= TOLERANCE * new.max():
            return likeliest(new)
        x = new
    raise UserError(f"reversible transition matrix: no convergence in {ITERATIONS:,} iterations")


# -- eigenvalues -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of a transition matrix at a lag, the slowest process first.

    Args:
        eigenvalues: complex [k]; first the one nearest to 1, then by magnitude.
        stationary: float64 [k], sums to 1: the distribution that the matrix leaves as it is.
        vectors: float64 [k-1, k], the left eigenvectors of the others, real part. The positive and the negative entries
            of one sum to 1 and -1 (for real eigenvalues): probability of the first states goes to the others and back.
        timescales: float64 [k-1] in frames, -lag / ln|eigenvalue|; infinite from |eigenvalue| = 1 on.
    """

    eigenvalues: np.ndarray
    stationary: np.ndarray
    vectors: np.ndarray
    timescales: np.ndarray


def spectrum(matrix: np.ndarray, lag: int) -> Spectrum:
    """Eigenanalysis of a matrix [k, k] over ``lag`` frames whose rows sum to 1."""
    values, columns = np.linalg.eig(matrix.T)
    first = np.abs(values - 1).argmin()
    order = [first, *(i for i in np.argsort(-np.abs(values), kind="stable") if i != first)]
    values, left = values[order], columns.T[order]
    largest = left[np.arange(len(left)), np.abs(left).argmax(1)]
    left = (left / largest[:, None]).real
    stationary = left[0] / left[0].sum()
    vectors = 2 * left[1:] / np.abs(left[1:]).sum(1, keepdims=True)
    size = np.abs(values[1:])
    with np.errstate(divide="ignore"):
        times = np.where(size < 1 - 1e-12, -lag / np.log(size), np.inf)
    return Spectrum(values.astype(complex), stationary, vectors, times)
