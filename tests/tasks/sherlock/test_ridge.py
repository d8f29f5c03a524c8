"""Banded ridge against a direct solution, and against himalaya where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.movie_brain import ROIS, movie

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock import ridge
from accel_train.tasks.sherlock.scores import by_roi, temporal_r

RUNS = np.repeat([0, 1, 2], [40, 35, 30])
TRAIN = RUNS < 2
ALIKE = np.array([[0.5, 0.5]])


def random_features(seed: int, widths: dict[str, int]) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(1.0, 3.0, (len(RUNS), width)) for name, width in widths.items()}


def columns_of(features: dict[str, np.ndarray], weights: np.ndarray, delays: list[int]) -> np.ndarray:
    """What ``Design`` says it does, in full."""
    bands = []
    for weight, x in zip(weights, features.values(), strict=True):
        late = ridge.delayed((x - x[TRAIN].mean(0)) / x[TRAIN].std(0), RUNS, delays)
        bands.append(np.sqrt(weight) * late / np.sqrt((late[TRAIN] ** 2).sum(1).mean()))
    return np.concatenate(bands, 1)


def direct(x: np.ndarray, y: np.ndarray, fitted: np.ndarray, held_out: np.ndarray, alpha: float) -> np.ndarray:
    """The normal equations with a column of ones that no penalty holds back."""
    ones = np.column_stack([x, np.ones(len(x))])
    penalty = alpha * np.diag([1.0] * x.shape[1] + [0.0])
    w = np.linalg.solve(ones[fitted].T @ ones[fitted] + penalty, ones[fitted].T @ y[fitted])
    return ones[held_out] @ w


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 25), st.floats(0.05, 0.95), st.sampled_from([1e-2, 1, 50])
)
def test_both_forms_are_the_direct_solution(seed: int, first: int, second: int, weight: float, alpha: float):
    """Few features and many, which are solved by products of features and of rows."""
    features = random_features(seed, {"a": first, "b": second})
    weights, delays = np.array([[weight, 1 - weight]]), [1, 2, 4]
    y = np.random.default_rng(seed + 1).normal(2.0, 1.0, (len(RUNS), 3))
    design = ridge.Design(features, RUNS, TRAIN, delays)
    assert design.kernel == (3 * (first + second) > len(RUNS))
    found = ridge.fit(design, y, weights, np.array([alpha])).predict(np.flatnonzero(~TRAIN))
    wanted = direct(columns_of(features, weights[0], delays), y, np.flatnonzero(TRAIN), np.flatnonzero(~TRAIN), alpha)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("widths", [{"a": 4, "b": 5}, {"a": 30, "b": 20}])
def test_each_voxel_gets_the_best_of_all_pairs(widths: dict[str, int]):
    features, delays = random_features(3, widths), [0, 1]
    y = np.random.default_rng(4).normal(size=(len(RUNS), 7)) + features["a"][:, :1] * np.linspace(0, 1, 7)
    candidates, alphas = np.array([[0.5, 0.5], [1.0, 0.0], [0.1, 0.9]]), np.array([0.01, 1.0, 100.0])
    found = ridge.fit(ridge.Design(features, RUNS, TRAIN, delays), y, candidates, alphas)
    splits = [(np.flatnonzero(TRAIN & (run != RUNS)), np.flatnonzero(run == RUNS)) for run in (0, 1)]
    errors = {
        (tuple(weights), alpha): sum(
            ((direct(columns_of(features, weights, delays), y, *split, alpha) - y[split[1]]) ** 2).sum(0)
            for split in splits
        )
        for weights in candidates
        for alpha in alphas
    }
    least = np.stack(list(errors.values())).argmin(0)
    wanted = [list(errors)[i] for i in least]
    assert [(tuple(w), a) for w, a in zip(found.weights, found.alpha, strict=True)] == wanted
    assert len(set(wanted)) > 1
    test = np.flatnonzero(~TRAIN)
    for voxel, (weights, alpha) in enumerate(wanted):
        x = columns_of(features, np.array(weights), delays)
        of_voxel = direct(x, y[:, voxel : voxel + 1], np.flatnonzero(TRAIN), test, alpha)
        np.testing.assert_allclose(found.predict(test)[:, [voxel]], of_voxel, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("widths", [{"a": 4, "b": 5}, {"a": 40, "b": 30}])
def test_himalaya_says_the_same(widths: dict[str, int]):
    """Its banded search over the same weights, strengths and folds: what it chooses for each voxel and predicts."""
    kernel_ridge: Any = pytest.importorskip("himalaya.kernel_ridge")
    from sklearn.model_selection import PredefinedSplit

    runs, delays = np.repeat([0, 1, 2], [40, 40, 25]), [1, 2]  # folds of one size: himalaya averages over folds
    features, candidates, alphas = random_features(5, widths), ridge.simplex(2, seed=1), np.logspace(-3, 3, 7)
    train, test = np.flatnonzero(runs < 2), np.flatnonzero(runs == 2)
    standard = [(x - x[train].mean(0)) / x[train].std(0) for x in features.values()]
    late = [ridge.delayed(x, runs, delays) for x in standard]
    scaled = [x / np.sqrt((x[train] ** 2).sum(1).mean()) for x in late]
    draw = np.random.default_rng(6)
    signal = sum(x[:, :3] @ draw.normal(size=(3, 12)) * share for x, share in zip(scaled, (1, 0.3), strict=True))
    y = signal / signal.std(0) + draw.normal(5, 1, (len(runs), 12))

    search = {"n_iter": candidates, "alphas": alphas, "progress_bar": False}
    model = kernel_ridge.MultipleKernelRidgeCV(
        "precomputed", solver="random_search", solver_params=search, fit_intercept=True, cv=PredefinedSplit(runs[train])
    )
    with np.errstate(divide="ignore"):  # it takes the logarithm of a weight of 0
        model.fit(np.stack([x[train] @ x[train].T for x in scaled]), y[train])
    found = ridge.fit(ridge.Design(features, runs, runs < 2, delays), y, candidates, alphas)
    np.testing.assert_allclose(found.alpha, model.best_alphas_, rtol=1e-9)
    np.testing.assert_allclose(found.weights.T, np.exp(model.deltas_) * model.best_alphas_, atol=1e-9)
    assert len(np.unique(found.weights, axis=0)) > 2
    predicted = model.predict(np.stack([x[test] @ x[train].T for x in scaled]))
    np.testing.assert_allclose(found.predict(test), predicted, atol=1e-6)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.lists(st.integers(-4, 8), min_size=1, max_size=4))
def test_delays_end_at_a_run(lengths: list[int], delays: list[int]):
    """Row t has what was at t - delay of the same run, and zeros where nothing was."""
    runs = np.repeat(np.arange(len(lengths)), lengths)
    x = np.arange(1.0, len(runs) + 1)[:, None]
    found = ridge.delayed(x, runs, delays)
    for t, (run, row) in enumerate(zip(runs, found, strict=True)):
        before = [t - delay for delay in delays]
        there = [0 <= b < len(runs) and runs[b] == run for b in before]
        np.testing.assert_array_equal(row, [x[b, 0] if ok else 0.0 for b, ok in zip(before, there, strict=True)])


def test_folds_are_runs_or_blocks_with_gaps():
    by_run = ridge.folds(RUNS, TRAIN)
    assert [set(RUNS[held_out]) for _, held_out in by_run] == [{0}, {1}]
    assert all(not set(RUNS[fitted]) & set(RUNS[held_out]) for fitted, held_out in by_run)
    one = np.zeros(200, int)
    for fitted, held_out in ridge.folds(one, np.ones(200, bool), count=4, gap=15):
        assert min(abs(int(f) - int(h)) for f in fitted for h in held_out) == 16
    assert sorted(np.concatenate([held_out for _, held_out in ridge.folds(one, one == 0)])) == list(range(200))
    with pytest.raises(UserError, match="30 training TRs are too few"):
        ridge.folds(RUNS, RUNS == 2, count=2, gap=21)


def test_weights_of_bands_lie_on_the_simplex():
    found = ridge.simplex(3, seed=1)
    np.testing.assert_allclose(found.sum(1), 1)
    assert (found >= 0).all() and (found[1:4] == np.eye(3)).all()
    assert (found == ridge.simplex(3, seed=1)).all() and (found != ridge.simplex(3, seed=2)).any()


def test_missing_volumes_are_not_fitted():
    film = movie(0)
    y = film.people[0].copy()
    missing = np.arange(200, 230)
    y[missing] = np.nan
    design = ridge.Design(film.features, film.runs, film.train, range(1, 7))
    test, alike = np.flatnonzero(~film.train), ALIKE
    found = ridge.fit(design, y, alike, np.array([1.0]))
    kept = film.train.copy()
    kept[missing] = False
    a, e, p = design.spectrum(alike[0], np.flatnonzero(kept), test)
    fitted = film.people[0][kept].astype(float)
    np.testing.assert_allclose(
        found.predict(test), a @ (p @ (fitted - fitted.mean(0)) / (e + 1)[:, None]) + fitted.mean(0), atol=1e-9
    )


def test_it_finds_what_is_there_and_gives_each_region_its_band():
    """c = 0.6 for one person, near which ridge comes; a region goes by its own modality."""
    film = movie(1, trs=(480, 400))
    design = ridge.Design(film.features, film.runs, film.train, range(1, 9))
    test = np.flatnonzero(~film.train)
    fitted = ridge.fit(design, film.people[0], ridge.simplex(2, seed=0))
    r = by_roi(temporal_r(fitted.predict(test), film.people[0][test]), ROIS)
    assert 0.5 < r["visual"] < 0.65 and 0.5 < r["auditory"] < 0.65 and abs(r["null"]) < 0.07
    weights = dict(zip(design.names, fitted.weights[ROIS["visual"]].mean(0), strict=True))
    assert weights["video"] > 0.8


def test_what_cannot_be_used_is_said():
    features = random_features(0, {"a": 3})
    features["a"][7, 2] = np.inf
    with pytest.raises(DataError, match="feature 2 of 'a' is not finite in row 7"):
        ridge.Design(features, RUNS, TRAIN, [1])
    with pytest.raises(DataError, match="no feature of 'b' varies"):
        ridge.Design({"b": np.ones((len(RUNS), 2))}, RUNS, TRAIN, [1])
