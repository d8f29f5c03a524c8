"""Slow dynamics from state probabilities: Koopman matrices, timescales and their tests, in frames.

Predictions are float [F, n, k] per trajectory: frames, targets, probabilities of k states. They may be memory-mapped;
they are read in blocks of frames. Everything that needs pairs of frames is a function of sums over these pairs
(``moments``), so several trajectories simply add up, no pair crosses from one into another, and each lag is read once.

Formulas: Wu and Noe, J. Nonlinear Sci. 30, 23 (2020) for Koopman matrices and VAMP scores; Prinz et al., J. Chem. Phys.
134, 174105 (2011) for timescales, the Chapman-Kolmogorov test and the reversible estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from accel_train.errors import UserError

Predictions = Sequence[np.ndarray]
Table = Mapping[int, np.ndarray]
"""Lag -> ``moments`` at this lag."""

SPLIT_BY = ("targets", "time")
ROWS = 1 << 18  # read at once
EPSILON = 1e-10  # of the largest eigenvalue: float32 rounds at 1e-14, and a state of one row in 1e9 still counts
Z95 = 1.96


# -- sums over pairs of frames ---------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """The pairs (t, t + lag) with start <= t < stop of some targets of one trajectory, and the split they belong to."""

    split: int
    p: np.ndarray
    start: int
    stop: int


def _pieces(predictions: Predictions, lag: int, splits: int, split_by: str) -> Iterator[Piece]:
    """Every pair of frames in exactly one piece: by neighbouring targets, or by the time at which the pair begins."""
    if split_by not in SPLIT_BY:
        raise UserError(f"split_by: unknown {split_by!r}; there are {', '.join(SPLIT_BY)}")
    before, total = 0, sum(max(len(p) - lag, 0) for p in predictions)
    for p in predictions:
        pairs, n = max(len(p) - lag, 0), p.shape[1]
        for i in range(splits):
            if split_by == "targets":
                yield Piece(i, p[:, i * n // splits : (i + 1) * n // splits], 0, pairs)
            else:
                edges = (min(max(j * total // splits - before, 0), pairs) for j in (i, i + 1))
                yield Piece(i, p, *edges)
        before += pairs


def _blocks(piece: Piece, lag: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """[f, n, k] at t and at t + lag, a few frames at a time."""
    step = max(ROWS // max(piece.p.shape[1], 1), 1)
    for t in range(piece.start, piece.stop, step):
        end = min(t + step, piece.stop)
        yield piece.p[t:end], piece.p[t + lag : end + lag]


def moments(predictions: Predictions, lag: int, splits: int = 1, split_by: str = "targets") -> np.ndarray:
    """Sums of z z' over rows z = [1, x, y], float64 [splits, 2k+1, 2k+1]: x is p of a target at t, y at t + lag.

    The splits add up to the moments of everything. Raises UserError where one of them has no pair.
    """
    k = predictions[0].shape[2]
    found = np.zeros((splits, 2 * k + 1, 2 * k + 1))
    for piece in _pieces(predictions, lag, splits, split_by):
        for x, y in _blocks(piece, lag):
            rows = np.ones((x.shape[0] * x.shape[1], 2 * k + 1))
            rows[:, 1 : k + 1], rows[:, k + 1 :] = x.reshape(-1, k), y.reshape(-1, k)
            found[piece.split] += rows.T @ rows
    if not found[:, 0, 0].all():
        least = f"at least {splits} targets" if split_by == "targets" else f"{splits} pairs of frames that far apart"
        raise UserError(f"lag {lag} frames: {splits} splits by {split_by} need {least}; shorten the lag or split less")
    return found


def transition_counts(predictions: Predictions, lag: int) -> np.ndarray:
    """int64 [k, k]: how often the likeliest state is i at t and j at t + lag, over frames and targets."""
    k = predictions[0].shape[2]
    found = np.zeros(k * k, np.int64)
    for piece in _pieces(predictions, lag, 1, "time"):
        for x, y in _blocks(piece, lag):
            found += np.bincount((x.argmax(2) * k + y.argmax(2)).ravel(), minlength=k * k)
    return found.reshape(k, k)


# -- transition matrices ---------------------------------------------------------------------------------------------


def koopman(predictions: Predictions, lag: int, epsilon: float = EPSILON) -> np.ndarray:
    """K = (x'x)^+ x'y, float64 [k, k], without centring: E[y | x] = x K.

    Rows sum to one, since those of x and y do. Entries may leave [0, 1] where states are soft (see ``constrained``).
    """
    return operator(moments(predictions, lag)[0], epsilon)


def operator(moment: np.ndarray, epsilon: float = EPSILON) -> np.ndarray:
    """``koopman`` from moments [2k+1, 2k+1]; eigenvalues of x'x up to ``epsilon`` of the largest count as zero."""
    xx, xy = _gram(moment)
    return np.linalg.pinv(xx, rcond=epsilon, hermitian=True) @ xy


def constrained(moment: np.ndarray, tolerance: float = 1e-12, most: int = 100_000) -> np.ndarray:
    """The transition matrix (entries at least 0, rows of sum 1) with the least |y - x K|^2, float64 [k, k].

    A convex quadratic programme; where no bound binds it is ``operator``. Solved by projected gradients with momentum
    and restarts (O'Donoghue and Candes, 2015), the step of row i being one over sum_j (x'x)_ij, the population of i,
    until the gap of Frank and Wolfe proves that half of |y - x K|^2 per row is within ``tolerance`` of the least.
    """
    xx, xy = (part / moment[0, 0] for part in _gram(moment))
    of_row = xx.sum(1, keepdims=True).clip(np.finfo(float).tiny)
    found = ahead = _nearest_stochastic(operator(moment))
    pace = 1.0
    for _ in range(most):
        slope = xx @ found - xy
        if (slope * found).sum() - slope.min(1).sum() <= tolerance:
            return found
        new = _nearest_stochastic(ahead - (xx @ ahead - xy) / of_row)
        if (of_row * (ahead - new) * (new - found)).sum() > 0:
            pace = 1.0
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead = new + (pace - 1) / faster * (new - found)
        found, pace = new, faster
    raise UserError(f"constrained Koopman matrix: no convergence in {most:,} iterations")


def _nearest_stochastic(rows: np.ndarray) -> np.ndarray:
    """Each row's nearest point with entries at least 0 that sum to 1 (Held, Wolfe and Crowder, 1974)."""
    descending = -np.sort(-rows, 1)
    level = (descending.cumsum(1) - 1) / np.arange(1, rows.shape[1] + 1)
    last = (descending > level).sum(1) - 1
    return np.clip(rows - level[np.arange(len(rows)), last, None], 0, None)


def _gram(moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    k = len(moment) // 2
    return moment[1 : k + 1, 1 : k + 1], moment[1 : k + 1, k + 1 :]


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


def reversible(counts: np.ndarray, tolerance: float = 1e-12, most: int = 100_000) -> np.ndarray:
    """The likeliest transition matrix in detailed balance, float64 [m, m]; for ``counts`` among ``connected`` states.

    Iterates x_ij = (c_ij + c_ji) / (c_i / x_i + c_j / x_j) (Prinz et al., section III.F).
    """
    both, of_row = (counts + counts.T).astype(np.float64), counts.sum(1)
    if not counts.any():
        return likeliest(counts)
    x = both / both.sum()
    for _ in range(most):
        rate = of_row / x.sum(1)
        new = both / (rate[:, None] + rate)
        new /= new.sum()
        if np.abs(new - x).max() <= tolerance * new.max():
            return likeliest(new)
        x = new
    raise UserError(f"reversible transition matrix: no convergence in {most:,} iterations")


# -- eigenvalues -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """Of a transition matrix at ``lag``, the slowest process first.

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
    """Eigenanalysis of a matrix [k, k] whose rows sum to 1."""
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


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and half width of its 95 % band, 1.96 std / sqrt(n), over axis 0, the splits.

    Values that are not finite are left out; NaN where fewer than two are left.
    """
    finite = np.ma.masked_invalid(values)
    half = Z95 * finite.std(0, ddof=1) / np.sqrt(finite.count(0))
    return finite.mean(0).filled(np.nan), half.filled(np.nan)


def implied_timescales(table: Table, epsilon: float = EPSILON) -> dict[str, np.ndarray]:
    """Timescales in frames over the lags of ``table``, slowest first.

    ``lags`` [l]; ``timescales`` of all pairs [l, k-1]; ``low`` and ``high`` [l, k-1], the band of the mean logarithm
    over splits, NaN where fewer than two splits have a finite timescale; ``splits_used`` [l, k-1].
    """
    lags = np.array(sorted(table))
    times = np.array([spectrum(operator(table[lag].sum(0), epsilon), lag).timescales for lag in lags.tolist()])
    split = [[spectrum(operator(m, epsilon), lag).timescales for m in table[lag]] for lag in lags.tolist()]
    with np.errstate(divide="ignore"):
        logs = np.log(np.array(split)).swapaxes(0, 1)  # [splits, l, k-1]
    mean, half = band(logs)
    return {
        "lags": lags,
        "timescales": times,
        "low": np.exp(mean - half),
        "high": np.exp(mean + half),
        "splits_used": np.isfinite(logs).sum(0),
    }


def chapman_kolmogorov(table: Table, lag: int, steps: int = 5, epsilon: float = EPSILON) -> dict[str, Any]:
    """Is K(m lag) the m-th power of K(lag)? For m = 0 to steps - 1; ``table`` holds the lags m * lag.

    ``predicted`` and ``estimated`` [steps, k, k] with the half widths of their bands over splits; ``max_difference``;
    ``share_within_band``: of the entries with m >= 2, those whose difference is at most 1.96 of its standard errors
    over splits.
    """
    check_steps(steps)
    one = np.eye(table[lag].shape[1] // 2)

    def both(pick: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        first = operator(pick(table[lag]), epsilon)
        estimated = [one, *(operator(pick(table[m * lag]), epsilon) for m in range(1, steps))]
        return np.array([np.linalg.matrix_power(first, m) for m in range(steps)]), np.array(estimated)

    predicted, estimated = both(lambda moments: moments.sum(0))
    split = [both(lambda moments, i=i: moments[i]) for i in range(len(table[lag]))]
    predictions, estimates = (np.array(each) for each in zip(*split, strict=True))
    difference = np.abs(predicted - estimated)
    within = difference <= band(predictions - estimates)[1] + 1e-12  # where the splits agree, rounding would decide
    return {
        "predicted": predicted,
        "estimated": estimated,
        "predicted_half_width": band(predictions)[1],
        "estimated_half_width": band(estimates)[1],
        "max_difference": float(difference.max()),
        "share_within_band": float(within[2:].mean()),
    }


def check_steps(steps: int) -> None:
    """Raises UserError for fewer steps than test anything."""
    if steps < 3:
        raise UserError(f"steps: {steps} test nothing, as m = 0 and m = 1 agree by construction; give at least 3")


# -- numbers ---------------------------------------------------------------------------------------------------------


def _covariances(moment: np.ndarray) -> np.ndarray:
    """Of [x, y], float64 [2k, 2k]."""
    mean = moment[0, 1:] / moment[0, 0]
    return moment[1:, 1:] / moment[0, 0] - np.outer(mean, mean)


def vamp(moment: np.ndarray) -> dict[str, float]:
    """``vamp.scores`` over all pairs: vamp1 and vamp2 are at most k - 1."""
    import torch

    from accel_train.tasks.gdynet.vamp import covariances, scores

    shift = np.eye(len(moment))
    shift[0, 1:] = -2 / (len(moment) - 1)  # its moments are around 1/k
    return scores(covariances(torch.from_numpy(shift.T @ moment @ shift)))


def noise_floor(states: int, rows: int) -> float:
    """VAMP-2 to expect of independent x and y, (k-1)^2 / (R-1), in a batch of R rows (pairs times targets)."""
    return (states - 1) ** 2 / max(rows - 1, 1)


def autocorrelations(table: Table) -> dict[str, np.ndarray]:
    """``lags`` [l] and the correlation [l, k] of each state's probability with itself; NaN for a constant one."""
    lags = sorted(table)
    found = []
    for lag in lags:
        covariance = _covariances(table[lag].sum(0))
        k = len(covariance) // 2
        spread = np.sqrt(np.diag(covariance).clip(0))
        scale = spread[:k] * spread[k:]
        found.append(np.divide(np.diag(covariance, k), scale, out=np.full(k, np.nan), where=scale > 1e-15))
    return {"lags": np.array(lags), "correlation": np.array(found)}


class Statistics(NamedTuple):
    """Of predictions: over frames and targets [k], except ``crispness`` and ``per_frame``."""

    mean: np.ndarray
    std: np.ndarray
    smallest: np.ndarray
    largest: np.ndarray
    argmax_share: np.ndarray
    crispness: float  # mean of the largest probability: 1 for states with sharp borders, 1/k for none
    per_frame: list[np.ndarray]  # [F, k] of each trajectory, means over targets


def statistics(predictions: Predictions) -> Statistics:
    """One pass over everything."""
    k = predictions[0].shape[2]
    sums, squares, counts, top = np.zeros(k), np.zeros(k), np.zeros(k), 0.0
    smallest, largest, per_frame = np.full(k, np.inf), np.full(k, -np.inf), [np.zeros((0, k)) for _ in predictions]
    for i, p in enumerate(predictions):
        frames = []
        for x, _ in _blocks(Piece(0, p, 0, len(p)), 0):
            frames.append(x.mean(1, dtype=np.float64))
            sums, squares = sums + x.sum((0, 1), dtype=np.float64), squares + np.square(x, dtype=np.float64).sum((0, 1))
            counts += np.bincount(x.argmax(2).ravel(), minlength=k)
            top += float(x.max(2).sum(dtype=np.float64))
            smallest, largest = np.minimum(smallest, x.min((0, 1))), np.maximum(largest, x.max((0, 1)))
        per_frame[i] = np.concatenate(frames)
    rows = counts.sum()
    mean = sums / rows
    spread = np.sqrt((squares / rows - mean**2).clip(0))
    return Statistics(mean, spread, smallest, largest, counts / rows, top / rows, per_frame)


def agreement(predictions: Predictions, states: Sequence[np.ndarray]) -> dict[str, float]:
    """Predictions beside known states [F, n], matched one to one.

    ``purity``: share of rows whose likeliest state has their true state as its commonest; ``distinct``: how many true
    states are the commonest of a likeliest state of their own; ``population_error``: largest difference of a mean
    probability from the true population.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise UserError("agreement needs another package: pip install 'accel_train[gdynet]'") from None
    k, names = predictions[0].shape[2], np.unique(np.concatenate([np.unique(s) for s in states]))
    table, mean = np.zeros((k, len(names))), statistics(predictions).mean
    for p, s in zip(predictions, states, strict=True):
        step = max(ROWS // p.shape[1], 1)
        for t in range(0, len(p), step):
            cell = p[t : t + step].argmax(2) * len(names) + np.searchsorted(names, s[t : t + step])
            table += np.bincount(cell.ravel(), minlength=table.size).reshape(table.shape)
    ours, true = linear_sum_assignment(table, maximize=True)
    error = np.abs(mean[ours] - table.sum(0)[true] / table.sum())
    return {
        "purity": float(table.max(1).sum() / table.sum()),
        "distinct": float(len(np.unique(table[table.any(1)].argmax(1)))),
        "population_error": float(error.max()),
    }
