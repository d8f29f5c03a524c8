"""The bar: banded ridge regression, linear and in closed form. Each modality is a band of features with a strength of
regularisation of its own, each feature acts on the brain after several delays, and every voxel has its own weights of
bands and its own strength, chosen by cross-validation (Nunez-Elizalde, Huth and Gallant, NeuroImage 197, 482, 2019;
random search as in Dupré la Tour et al., NeuroImage 264, 119728, 2022).

For weights g on the simplex and strength a, with X the delayed features of all bands, those of band b times sqrt(g_b):
y = X w + m, where |y - X w - m|^2 + a |w|^2 is least. A band is scaled so that its rows have length 1 on average, which
makes strengths comparable whatever the number of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from accel_train import keyed
from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.scores import measured, stretches, voxel_blocks

ALPHAS = np.logspace(-4, 4, 17)
SAMPLES = 20
"""Draws of weights of bands, besides each band alone and all alike."""
FOLDS = 5
GAP = 21
"""TRs left out between what is fitted and what is predicted: the length of a hemodynamic response, 32 s, at 1.5 s."""

Fold = tuple[np.ndarray, np.ndarray]
"""Rows to fit and rows to predict, int."""
Spectrum = tuple[np.ndarray, np.ndarray, np.ndarray]
"""(A, e, P): the prediction of rows that were held out is A ((P y) / (e + a)) and the mean of y."""


# -- features --------------------------------------------------------------------------------------------------------


def delayed(features: np.ndarray, runs: np.ndarray, delays: Sequence[int]) -> np.ndarray:
    """Features as they were some TRs ago: [T, D] to [T, delays * D], delay by delay, zeros from outside a stretch.

    Args:
        delays: TRs; a negative one is later in the stimulus, for volumes that were moved earlier.
    """
    found = np.zeros((len(features), len(delays), features.shape[1]))
    for at in stretches(runs):
        part, rows = features[at], at.stop - at.start
        for i, delay in enumerate(delays):
            first, last = max(delay, 0), rows + min(delay, 0)
            if first < last:
                found[at, i][first:last] = part[first - delay : last - delay]
    return found.reshape(len(features), -1)


class Design:
    """The delayed features of all bands, as they are or, if they outnumber the rows, as products of rows.

    Args:
        features: [T, D] of each band, any real dtype.
        runs: int [T], the stretch of each row (``scores``).
        train: bool [T]; of these rows are mean and variance of a feature. One that is constant there is left out.
        delays: TRs.

    Raises:
        DataError: a feature that is not finite, or a band of which all are constant.
    """

    def __init__(
        self, features: Mapping[str, np.ndarray], runs: np.ndarray, train: np.ndarray, delays: Sequence[int]
    ) -> None:
        self.names, self.runs, self.train = list(features), runs, train
        bands = [_standard(name, each, train) for name, each in features.items()]
        self.kernel = sum(each.shape[1] for each in bands) * len(delays) > len(runs)
        scaled = (self._scaled(delayed(each, runs, delays)) for each in bands)
        if self.kernel:
            self._products = np.stack([x @ x.T for x in scaled])
        else:
            columns = list(scaled)
            self._columns = np.concatenate(columns, 1)
            self._band = np.repeat(np.arange(len(columns)), [x.shape[1] for x in columns])

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x[self.train] ** 2).sum(1).mean())

    def spectrum(self, weights: np.ndarray, fitted: np.ndarray, held_out: np.ndarray) -> Spectrum:
        """One decomposition, from which the solutions for all strengths and voxels follow.

        Args:
            weights: [bands], of ``names``.
            fitted, held_out: rows, int.
        """
        if not self.kernel:
            x = self._columns * np.sqrt(weights)[self._band]
            mean = x[fitted].mean(0)
            x_fitted = x[fitted] - mean
            e, q = np.linalg.eigh(x_fitted.T @ x_fitted)
            return (x[held_out] - mean) @ q, e.clip(0), (x_fitted @ q).T
        k = np.tensordot(weights, self._products, 1)
        of_fitted, of_held_out = k[np.ix_(fitted, fitted)], k[np.ix_(held_out, fitted)]
        mean = of_fitted.mean(0)
        of_held_out = of_held_out - of_held_out.mean(1, keepdims=True) - mean + mean.mean()
        e, q = np.linalg.eigh(of_fitted - mean - mean[:, None] + mean.mean())
        return of_held_out @ q, e.clip(0), q.T


def _standard(name: str, features: np.ndarray, train: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float64)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise DataError(f"ridge: feature {column} of {name!r} is not finite in row {row}")
    mean, std = x[train].mean(0), x[train].std(0)
    varies = std > 1e-9 * (np.abs(mean) + std)
    if not varies.any():
        raise DataError(f"ridge: no feature of {name!r} varies over the training TRs")
    return (x[:, varies] - mean[varies]) / std[varies]


# -- cross-validation ------------------------------------------------------------------------------------------------


def folds(
    runs: np.ndarray, train: np.ndarray, count: int = FOLDS, gap: int = GAP
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each run is predicted in turn, or, if all training rows are of one, blocks of it, with
    ``gap`` rows on both sides of a block in neither.

    Raises:
        UserError: nothing would be left to fit.
    """
    rows = np.flatnonzero(train)
    if len(np.unique(runs[rows])) > 1:
        return [(rows[runs[rows] != run], rows[runs[rows] == run]) for run in np.unique(runs[rows])]
    blocks = np.array_split(rows, count)
    found = [(rows[(rows < block[0] - gap) | (rows > block[-1] + gap)], block) for block in blocks if len(block)]
    if not found or not all(len(fitted) > 1 for fitted, _ in found):
        raise UserError(f"ridge: {len(rows)} training TRs are too few for {count} blocks with gaps of {gap} TRs")
    return found


def simplex(bands: int, seed: int, samples: int = SAMPLES) -> np.ndarray:
    """float64 [candidates, bands], each row with sum 1: all alike, each band alone, and Dirichlet draws, half of them
    with concentration 1 and half with 0.1, near the edges."""
    if bands == 1:
        return np.ones((1, 1))
    draw = np.random.default_rng(keyed.key(seed, "bands"))
    drawn = [draw.dirichlet(np.full(bands, (1.0, 0.1)[i % 2])) for i in range(samples)]
    return np.vstack([np.full((1, bands), 1 / bands), np.eye(bands), *drawn])


# -- the fit ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ridge:
    """What was chosen for each voxel.

    weights: float64 [V, bands], on the simplex. alpha: float64 [V].
    r2: float64 [V], of the rows predicted in cross-validation; NaN for a voxel that is constant.
    """

    design: Design
    weights: np.ndarray
    alpha: np.ndarray
    r2: np.ndarray
    fmri: np.ndarray
    rows: np.ndarray

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """float64 [rows, V], by a fit to all training rows."""
        y = self.fmri[self.rows].astype(np.float64)
        mean = y.mean(0)
        found = np.empty((len(rows), y.shape[1]))
        kinds, kind = np.unique(self.weights, axis=0, return_inverse=True)
        for i, weights in enumerate(kinds):
            a, e, p = self.design.spectrum(weights, self.rows, rows)
            for alpha in np.unique(self.alpha[kind.ravel() == i]):
                at = np.flatnonzero((kind.ravel() == i) & (self.alpha == alpha))
                found[:, at] = a @ ((p @ (y[:, at] - mean[at])) / (e + alpha)[:, None]) + mean[at]
        return found


def fit(
    design: Design,
    fmri: np.ndarray,
    candidates: np.ndarray,
    alphas: np.ndarray = ALPHAS,
    gap: int = GAP,
) -> Ridge:
    """The weights and the strength of each voxel that predict best, by least squares over all folds.

    Args:
        fmri: [T, V]; rows with a NaN are not fitted and do not count.
        candidates: [n, bands], weights to choose from (``simplex``).
        alphas: strengths to choose from.

    Raises:
        UserError: too few training rows.
    """
    splits = folds(design.runs, design.train & measured(fmri), gap=gap)
    voxels = fmri.shape[1]
    best, choice = np.full(voxels, np.inf), np.zeros((voxels, 2), int)
    for i, weights in enumerate(candidates):
        errors = _errors(design, weights, splits, fmri, alphas)
        least = errors.argmin(0)
        error = errors[least, np.arange(voxels)]
        better = error < best
        best[better], choice[better] = error[better], np.stack([np.full(voxels, i), least], 1)[better]
    spread = sum(((fmri[held_out] - fmri[fitted].mean(0, dtype=np.float64)) ** 2).sum(0) for fitted, held_out in splits)
    r2 = 1 - np.divide(best, spread, out=np.full(voxels, np.nan), where=spread > 0)
    rows = np.flatnonzero(design.train & measured(fmri))
    return Ridge(design, candidates[choice[:, 0]], alphas[choice[:, 1]], r2, fmri, rows)


def _errors(
    design: Design,
    weights: np.ndarray,
    splits: Sequence[Fold],
    fmri: np.ndarray,
    alphas: np.ndarray,
) -> np.ndarray:
    """float64 [alphas, V]: squared errors of what was held out, added up over the folds."""
    found = np.zeros((len(alphas), fmri.shape[1]))
    for fitted, held_out in splits:
        a, e, p = design.spectrum(weights, fitted, held_out)
        for at in voxel_blocks(fmri.shape[1]):
            y = fmri[fitted, at].astype(np.float64)
            mean = y.mean(0)
            inner, true = p @ (y - mean), fmri[held_out, at] - mean
            for i, alpha in enumerate(alphas):
                found[i, at] += ((a @ (inner / (e + alpha)[:, None]) - true) ** 2).sum(0)
    return found
