"""Markov chains with known matrices give them back; sums, bands and counts are as defined; the command, end to end."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet import truth
from accel_train.tasks.gdynet.analysis.analyse import (
    agreement,
    analyse,
    autocorrelations,
    chapman_kolmogorov,
    connected,
    constrained,
    figures,
    implied_timescales,
    koopman,
    likeliest,
    load,
    moments,
    reversible,
    spectrum,
    statistics,
    summary,
    transition_counts,
    vamp,
)
from accel_train.tasks.gdynet.analysis.history import curves
from accel_train.tasks.gdynet.analysis.moments import populations
from accel_train.tasks.gdynet.analysis.timescales import band
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.task import epoch_lists

main = COMMANDS["analyze"].run

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


# -- sums over pairs -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.integers(2, 5), st.integers(1, 7), st.sampled_from(["targets", "time"]))
def test_splits_and_trajectories_add_up(seed, k, lag, split_by):
    """Each pair of frames within one trajectory is in exactly one split, none crosses a boundary."""
    predictions = random_predictions(seed, k, [(11, 4), (6, 4), (23, 4)])
    whole = np.zeros((2 * k + 1, 2 * k + 1))
    for p in predictions:
        for t in range(len(p) - lag):
            for x, y in zip(p[t].astype(np.float64), p[t + lag].astype(np.float64), strict=True):
                z = np.concatenate([[1.0], x, y])
                whole += np.outer(z, z)
    split = moments(predictions, lag, 3, split_by)
    assert split.shape == (3, 2 * k + 1, 2 * k + 1)
    np.testing.assert_allclose(split.sum(0), whole, rtol=1e-12)
    np.testing.assert_allclose(moments(predictions, lag)[0], whole, rtol=1e-12)
    alone = sum(moments([p], lag)[0] for p in predictions if len(p) > lag)
    np.testing.assert_allclose(alone, whole, rtol=1e-12)


def test_blocks_change_nothing(monkeypatch):
    predictions = random_predictions(0, 3, [(50, 4), (31, 4)])
    numbers = moments(predictions, 3, 2, "time"), transition_counts(predictions, 3), statistics(predictions)
    monkeypatch.setattr("accel_train.tasks.gdynet.analysis.moments.ROWS", 8)
    np.testing.assert_allclose(moments(predictions, 3, 2, "time"), numbers[0], rtol=1e-12)
    np.testing.assert_array_equal(transition_counts(predictions, 3), numbers[1])
    for ours, before in zip(statistics(predictions), numbers[2], strict=True):
        np.testing.assert_allclose(ours, before, rtol=1e-12)


def test_splits_by_time_are_contiguous_and_even():
    p = np.zeros((41, 1, 2), np.float32)
    p[:, 0, 0] = np.arange(41)
    first = moments([p], 1, 4, "time")
    assert first[:, 0, 0].tolist() == [10, 10, 10, 10]
    assert first[:, 0, 1].tolist() == [np.arange(i, i + 10).sum() for i in (0, 10, 20, 30)]


@pytest.mark.parametrize(("split_by", "splits"), [("targets", 5), ("time", 9)])
def test_a_split_without_pairs_is_refused(split_by, splits):
    with pytest.raises(UserError, match=rf"lag 2 frames: {splits} splits by {split_by} need"):
        moments(random_predictions(0, 2, [(10, 4)]), 2, splits, split_by)


@given(st.integers(0, 100), st.integers(2, 5), st.integers(1, 6))
@settings(deadline=None, max_examples=20)
def test_counts_are_those_of_a_double_loop(seed, k, lag):
    predictions = random_predictions(seed, k, [(12, 3), (lag, 3), (9, 3)])
    counts = np.zeros((k, k), np.int64)
    for p in predictions:
        for t in range(len(p) - lag):
            for i in range(p.shape[1]):
                counts[p[t, i].argmax(), p[t + lag, i].argmax()] += 1
    np.testing.assert_array_equal(transition_counts(predictions, lag), counts)


def test_statistics():
    p = random_predictions(3, 4, [(30, 5), (7, 5)])
    found, rows = statistics(p), np.concatenate([x.reshape(-1, 4) for x in p]).astype(np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(0))
    np.testing.assert_allclose(found.std, rows.std(0))
    np.testing.assert_allclose([found.smallest, found.largest], [rows.min(0), rows.max(0)])
    np.testing.assert_allclose(found.argmax_share, np.bincount(rows.argmax(1), minlength=4) / len(rows))
    assert found.crispness == pytest.approx(rows.max(1).mean())
    np.testing.assert_allclose(populations(p)[1], p[1].mean(1), rtol=1e-6)


# -- matrices --------------------------------------------------------------------------------------------------------


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


# -- timescales and tests --------------------------------------------------------------------------------------------


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


# -- how it was learned ----------------------------------------------------------------------------------------------

STEPS = {"step": [5, 10, 15, 20], "phase": ["vamp2", "vamp2", "vamp1", "vamp1"], "epoch": [0, 0, 1, 1]} | {
    name: [0.1, 0.2, 0.3, None] for name in ("loss", "vamp1", "vamp2", "last/loss", "last/vamp1", "last/vamp2")
}
EVALUATED = {
    "eval_step": [10, 20], "eval_phase": ["vamp2", "vamp1"], "eval_loss": [-1.0, -2.0], "eval_vamp1": [1.0, 2.0],
    "eval_vamp2": [3.0, 4.0],
}  # fmt: skip


def test_curves_over_epochs():
    """By the lists that the task itself writes."""
    history = STEPS | EVALUATED | epoch_lists(STEPS | EVALUATED)
    found = curves(history)
    assert found.unit == "epoch" and found.phases == [("vamp2", 0, 1), ("vamp1", 1, 2)]
    assert list(found.lines) == ["loss", "vamp1", "vamp2"]
    assert found.lines["vamp2"] == {"training": ([1, 2], [0.2, None]), "validation": ([1, 2], [3.0, 4.0])}


def test_curves_over_steps():
    """Where evaluations fall between log lines, or there are none."""
    found = curves(STEPS | {"eval_step": [12], "eval_loss": [-1.0]})
    assert found.unit == "step" and found.phases == [("vamp2", 0, 10), ("vamp1", 10, 20)]
    assert found.lines["loss"]["validation"] == ([12], [-1.0])
    assert found.lines["vamp2"] == {"training": ([5, 10, 15, 20], [0.1, 0.2, 0.3, None])}
    twice = STEPS | EVALUATED | {"eval_step": [5, 10]}  # in one epoch
    assert curves(twice | epoch_lists(twice)).unit == "step"
    assert curves({}).lines == {} and curves({"step": [1], "phase": ["vamp2"], "loss": [None]}).lines == {}


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder with predictions of two trajectories and a history of three phases."""
    folder = tmp_path / "run" / "evaluation" / "predictions"
    folder.mkdir(parents=True)
    listed = []
    for i, frames in enumerate((400, 300)):
        np.save(folder / f"part{i}.npy", soft(chain(FASTER, frames, 6, i))[0])
        listed.append({"name": f"run {i}", "file": f"part{i}.npy", "frames": frames})
    index = {"dt_ns": 0.5, "tau": 3, "split": "test", "trajectories": listed}
    (folder / "predictions.json").write_text(json.dumps(index))
    steps, phases = list(range(10, 70, 10)), ["vamp2", "vamp2", "vamp1", "vamp1", "vamp2", "vamp2"]
    history = {
        "step": steps, "phase": phases, "epoch": [0, 0, 1, 1, 2, 2],
        "loss": [-0.5, -1.0, -0.01, -0.02, -1.1, None], "vamp2": [0.5, 1.0, 1.0, 1.05, 1.1, 1.2],
        "eval_step": [20, 40, 60], "eval_phase": ["vamp2", "vamp1", "vamp2"], "eval_loss": [-0.9, -1.2, -1.1],
        "eval_vamp2": [0.9, 1.2, 1.1],
    }  # fmt: skip
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(history))
    (tmp_path / "run" / "config.yaml").write_text("global_batch_size: 32\n")
    return tmp_path / "run"


def test_the_command(run, capsys):
    assert main([str(run)]) == 0
    out = run / "evaluation" / "analysis"
    text = (out / "analysis.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["lag_frames"] == 3 and found["lag_ns"] == 1.5
    assert found["states"] == 3 and found["split_by"] == "targets"
    assert [t["name"] for t in found["trajectories"]] == ["run 0", "run 1"]
    times = truth.timescales(FASTER)
    np.testing.assert_allclose(found["koopman"]["timescales_frames"], times, rtol=0.5)
    np.testing.assert_allclose(
        found["koopman"]["timescales_ns"], np.multiply(found["koopman"]["timescales_frames"], 0.5)
    )
    assert found["vamp"]["noise_floor_per_batch"] == pytest.approx(4 / (32 * 6 - 1))
    learned = found["training"]
    assert learned["epochs"] == 3 and learned["metrics"]["eval_vamp2"] == {"final": 1.1, "best": 1.2, "best_step": 40}
    assert learned["metrics"]["loss/vamp2"] == {"final": -1.1, "best": -1.1, "best_step": 50}
    assert learned["metrics"]["loss/vamp1"]["best"] == -0.02
    with np.load(out / "populations.npz") as populations:
        assert [populations[name].shape for name in populations.files] == [(400, 3), (300, 3)]
    names = "implied_timescales chapman_kolmogorov koopman stationary eigenvectors autocorrelation populations training"
    for name in names.split():
        assert (out / f"{name}.png").stat().st_size > 5000 and (out / f"{name}.pdf").stat().st_size > 5000
    shown = capsys.readouterr().out
    assert "lag 3 frames, the tau of the model; another with --lag (1.5 ns)" in shown
    assert "Chapman-Kolmogorov, 5 steps" in shown and "noise alone gives" in shown


def test_in_a_notebook(run, tmp_path):
    """A few lines; what was logged decides how time is counted in the figure of the training."""
    loaded = load(run)
    found = analyse(loaded, lag=2)
    assert "lag 2 frames, as given" in summary(found) and "known states" not in summary(found)
    drawn = figures(found, loaded)
    assert drawn["training"].axes[-1].get_xlabel() == "step"
    assert {*drawn} - {*figures(found)} == {"populations", "training"}
    history = json.loads((run / "metrics.json").read_text())
    history |= dict.fromkeys(("vamp1", "last/loss", "last/vamp1", "last/vamp2"), history["loss"])
    history |= {"eval_vamp1": history["eval_vamp2"]}
    (run / "metrics.json").write_text(json.dumps(history | epoch_lists(history)))
    axes = figures(found, load(run))["training"].axes
    assert [each.get_ylabel() for each in axes] == ["loss", "VAMP-1", "VAMP-2"] and axes[-1].get_xlabel() == "epoch"
    assert [each.get_text() for each in axes[0].texts] == ["vamp2", "vamp1", "vamp2"]


def test_a_run_of_one_epoch_can_be_drawn(run, tmp_path):
    """Its phase is longer than its line."""
    history = {name: values[1:2] for name, values in STEPS.items()} | {k: v[:1] for k, v in EVALUATED.items()}
    (run / "metrics.json").write_text(json.dumps(history | epoch_lists(history)))
    loaded = load(run)
    figure = figures(analyse(loaded), loaded)["training"]
    figure.savefig(tmp_path / "training.png")
    assert figure.axes[0].get_xlim()[0] <= 0


def test_known_states(run, capsys):
    known = [run / f"states{i}.npy" for i in range(2)]
    for i, (path, frames) in enumerate(zip(known, (400, 300), strict=True)):
        np.save(path, chain(FASTER, frames, 6, i).astype(np.int8))
    assert main([str(run), "--states", *map(str, known), "--out", str(run / "out")]) == 0
    found = json.loads((run / "out" / "analysis.json").read_text())["agreement"]
    assert found["states"] == [0, 1, 2] and found["distinct"] == 3 and found["purity"] == 1
    assert np.sum(found["counts"]) == 700 * 6
    assert "known states: purity 1.0000, 3 of 3 have a likeliest state" in capsys.readouterr().out
    with pytest.raises(UserError, match="--states: 1 files for 2 trajectories"):
        load(run, known[:1])
    with pytest.raises(DataError, match=r"states1\.npy: holds int8 \(300, 6\), not a state"):
        load(run, known[::-1])
    np.save(known[0], np.zeros((400, 6)))
    with pytest.raises(DataError, match="holds float64"):
        load(run, known)


def test_what_does_not_converge_is_left_out(run, monkeypatch):
    monkeypatch.setattr("accel_train.tasks.gdynet.analysis.koopman.ITERATIONS", 1)
    found = analyse(load(run))
    assert found["argmax"]["reversible"] is None and found["argmax"]["likeliest"]
    assert any("reversible transition matrix: no convergence" in text for text in found["warnings"])
    assert summary(found) and figures(found)


def test_one_file_of_all_trajectories_is_the_same(run, tmp_path):
    """As the evaluation writes it: the trajectories one after another, with their starts."""
    parts = sorted((run / "evaluation" / "predictions").glob("*.npy"))
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one" / "all.npy", np.concatenate([np.load(path) for path in parts]))
    listed = [{"name": "run 0", "start": 0, "frames": 400}, {"name": "run 1", "start": 400, "frames": 300}]
    index = {"file": "all.npy", "dt_ns": 0.5, "tau": 3, "trajectories": listed}
    (tmp_path / "one" / "predictions.json").write_text(json.dumps(index))
    first = analyse(load([run]))
    for what in (tmp_path / "one", tmp_path / "one" / "all.npy"):
        found = analyse(load([what]))
        for key in ("koopman", "argmax", "implied_timescales", "chapman_kolmogorov"):
            assert found[key] == first[key]


def test_a_file_alone_with_coordinates(tmp_path, capsys):
    np.save(tmp_path / "p.npy", one_hot(chain(FASTER, 100, 3)))
    coords = np.random.default_rng(0).uniform(0, 10, (100, 7, 3)).astype(np.float32)
    np.save(tmp_path / "traj_coords.npy", coords)
    np.save(tmp_path / "target_index.npy", np.array([1, 3, 6]))
    argv = [str(tmp_path / "p.npy"), "--coords", str(tmp_path / "traj_coords.npy"), "--out", str(tmp_path / "out")]
    assert main([*argv, "--lag", "2", "--lags", "1", "4", "--steps", "3", "--splits", "2"]) == 0
    found = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert found["implied_timescales"]["lags_frames"] == [1, 2, 4] and found["dt_ns"] is None
    assert not any(key.endswith("_ns") and key != "dt_ns" for key in found)
    assert (tmp_path / "out" / "maps.png").exists()
    assert "lag 2 frames, as given" in capsys.readouterr().out


def test_the_default_lag_fits(tmp_path):
    np.save(tmp_path / "p.npy", one_hot(chain(FASTER, 100, 6)))
    (tmp_path / "predictions.json").write_text('{"tau": 50}')
    found = analyse(load([tmp_path / "p.npy"]))
    assert found["lag_frames"] == 12 and "tau is 50" in found["lag_choice"]
    one = analyse(load([tmp_path / "p.npy"]), splits=7)
    assert one["split_by"] == "time"


def test_what_is_not_converged_is_said(tmp_path):
    """Slower than the trajectory; a curve that rises because a fast memory hides a slow process; soft states."""
    slow = np.array([[0.9999, 0.0001], [0.0001, 0.9999]])
    states = chain(slow, 400, 200)
    np.save(tmp_path / "slow.npy", one_hot(states, 2))
    warnings = analyse(load([tmp_path / "slow.npy"]))["warnings"]
    assert any("the longest trajectory has 400" in text for text in warnings)

    rng = np.random.default_rng(0)
    states = chain(np.array([[0.995, 0.005], [0.005, 0.995]]), 2000, 60)
    wrong = rng.random(states.shape) < 0.05
    np.save(tmp_path / "noisy.npy", one_hot(np.where(wrong, 1 - states, states), 2))
    warnings = analyse(load([tmp_path / "noisy.npy"]), lag=1, steps=5)["warnings"]
    assert any("still rises" in text for text in warnings)

    p = 0.5 + rng.uniform(-0.1, 0.1, (1, 10)) * 1.02 ** np.arange(50)[:, None]  # grows
    np.save(tmp_path / "soft.npy", np.stack([p, 1 - p], -1))
    found = analyse(load([tmp_path / "soft.npy"]))
    assert any("outside [0, 1]" in text for text in found["warnings"])
    assert found["koopman"]["entries_outside_0_1"] == 4
    assert any("no finite timescale" in text for text in found["warnings"])
    assert found["koopman"]["timescales_frames"] == [None]


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((4, 3)), r"holds float64 \(4, 3\), not probabilities"),
        (np.ones((4, 3, 1), np.float32), "at least 2 states"),
        (np.full((4, 3, 2), 0.4), r"frame 0, target 0: \[0.4, 0.4\] are not probabilities"),
        (np.where(np.arange(12).reshape(4, 3, 1) == 7, np.nan, np.full((4, 3, 2), 0.5)), "frame 2, target 1"),
    ],
)
def test_bad_predictions(tmp_path, array, error):
    np.save(tmp_path / "p.npy", array)
    with pytest.raises(DataError, match=error):
        load([tmp_path / "p.npy"])


def test_bad_files(run, tmp_path):
    folder = run / "evaluation" / "predictions"
    with pytest.raises(DataError, match=r"nothing\.npy: not an array"):
        load([tmp_path / "nothing.npy"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no predictions"):
        load([tmp_path / "empty"])
    with pytest.raises(UserError, match="give one folder alone"):
        load([run, folder / "part0.npy"])
    np.save(tmp_path / "two.npy", one_hot(chain(FASTER, 20, 6), 2 + 2))
    with pytest.raises(DataError, match="different models"):
        load([folder / "part0.npy", tmp_path / "two.npy"])
    index = folder / "predictions.json"
    for text, error in (
        ("[1", "not JSON"),
        ("[1]", "must be an object"),
        ('{"trajectories": [{"file": "../secret.npy"}]}', "name of a file beside it"),
        ('{"trajectories": [{"file": "part0.npy", "frames": 500}]}', "has 400 frames"),
    ):
        index.write_text(text)
        with pytest.raises(DataError, match=error):
            load([run])
    (folder / "predictions.json").unlink()
    assert [len(p) for p in load([run]).predictions] == [400, 300]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--steps", "2"], "steps: 2 test nothing"),
        (["--lag", "100"], "--lag 100: must be from 1 to 99"),
        (["--lag", "0"], "--lag 0: must be"),
        (["--lags", "0"], "--lags: must be from 1 to 399"),
        (["--splits", "1"], "--splits: 1 is out of range"),
        (["--splits", "7", "--split_by", "targets"], "7 splits by targets need at least 7 targets"),
        (["--dt_ns", "0"], "dt_ns: 0.0 is no time per frame"),
        (["--split_by", "atoms"], "invalid choice: 'atoms'"),
        (["--coords", "x.npy"], "x.npy: not an array"),
    ],
)
def test_bad_options(run, argv, error):
    with pytest.raises(UserError, match=error):
        main([str(run), *argv])
