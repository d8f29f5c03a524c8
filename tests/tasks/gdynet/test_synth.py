"""Synthetic trajectories have the slow processes that are said of them, and the layout of real ones."""

from __future__ import annotations

import hashlib
import json
import shlex
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.config.convert import Typed
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet import synth as synth_module
from accel_train.tasks.gdynet import truth
from accel_train.tasks.gdynet.data import load
from accel_train.tasks.gdynet.synth import SPLITS, synth
from accel_train.tasks.gdynet.systems import RADIUS, SYSTEMS, Ellipsoids, Ferro, Markov, Prinz

SMALL = {"ferro": {"clusters": 2}, "prinz": {"walkers": 2}, "ellipsoids": {"walkers": 2}, "markov": {"walkers": 2}}
FERRO = Ferro().chain()


def some(system, frames, seed=0):
    """Frames in memory."""
    (block,) = system.frames(lambda purpose: np.random.default_rng([seed, *purpose.encode()]), [frames])
    return {name: values.reshape(frames, len(system.atoms().types), -1) if values.ndim > 2 else values
            for name, values in block.items()}  # fmt: skip


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


# -- the truth of chains -------------------------------------------------------------------------------------------


def test_the_figures_of_the_cage():
    assert truth.timescales(FERRO) == pytest.approx([99.4992, 32.8308], abs=1e-4)
    assert truth.stationary(FERRO) == pytest.approx([1 / 3] * 3)
    assert truth.vamp_scores(FERRO, 1) == pytest.approx((1.960, 1.921), abs=5e-4)
    assert truth.vamp_scores(FERRO, 10) == pytest.approx((1.642, 1.3617), abs=5e-4)
    vanilla = Ferro().truth()["vanilla"]
    assert vanilla["timescales_frames"] == pytest.approx([32.8308], abs=1e-4)
    assert vanilla["vamp2"] == {"1": pytest.approx(0.9409), "10": pytest.approx(0.5438, abs=5e-5)}
    assert Ferro(marked=True).truth()["vanilla"] == truth.known(FERRO)


def test_the_figures_of_the_ellipsoids():
    known = Ellipsoids().truth()
    assert known["timescales_frames"] == pytest.approx([16.16], abs=0.005)
    assert known["vamp2"]["1"] == pytest.approx(0.8836)


chains = st.builds(truth.reversible, st.integers(2, 7), st.floats(0.5, 0.99), st.integers(0, 2**32))


@settings(max_examples=50, deadline=None)
@given(chains, st.integers(1, 12))
def test_laws_of_reversible_chains(T, tau):
    distribution = truth.stationary(T)
    assert distribution.sum() == pytest.approx(1) and (distribution > 0).all()
    flow = distribution[:, None] * T
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)
    values = np.sort(np.linalg.eigvals(T).real)[-2::-1]
    vamp1, vamp2 = truth.vamp_scores(T, tau)
    assert vamp1 == pytest.approx((values**tau).sum(), abs=1e-9)
    assert vamp2 == pytest.approx((values ** (2 * tau)).sum(), abs=1e-9)
    powers = truth.chapman_kolmogorov(T, tau + 1)
    np.testing.assert_array_equal(powers[0], np.eye(len(T)))
    np.testing.assert_allclose(powers[1:], powers[:-1] @ T, atol=1e-12)
    np.testing.assert_allclose(truth.timescales(powers[tau], tau), truth.timescales(T), rtol=1e-5)


def test_a_chain_need_not_be_reversible():
    """Around a ring in one direction nothing is forgotten: every singular value is 1, as is every |eigenvalue|."""
    ring = np.roll(np.eye(4), 1, axis=1)
    assert truth.vamp_scores(ring, 3) == pytest.approx((3, 3))
    assert np.isinf(truth.timescales(ring)).all() or truth.timescales(ring).min() > 1e12
    assert truth.timescales(np.full((3, 3), 1 / 3)) == pytest.approx([0, 0], abs=0.05)  # all is forgotten at once


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 4))
def test_the_oracle_is_vamp_of_indicators(seed, k, tau):
    states = np.random.default_rng(seed).integers(0, k, (60, 3))
    states[:k, 0] = np.arange(k)
    x, y = (np.eye(k)[part.ravel(), :-1] for part in (states[:-tau], states[tau:]))
    counted = np.zeros((k, k))
    np.add.at(counted, (states[:-tau].ravel(), states[tau:].ravel()), 1 / states[tau:].size)
    np.testing.assert_allclose(truth.joint(states, tau), counted, atol=1e-12)
    c00, ctt, c0t = np.cov(x.T, ddof=0), np.cov(y.T, ddof=0), (x - x.mean(0)).T @ (y - y.mean(0)) / len(x)
    c00, ctt = np.atleast_2d(c00), np.atleast_2d(ctt)
    score = np.trace(np.linalg.solve(c00, c0t) @ np.linalg.solve(ctt, c0t.T))
    _, vamp2, times = truth.oracle(states, tau)
    assert vamp2 == pytest.approx(score, abs=1e-9)
    expected = truth.timescales(counted / counted.sum(1, keepdims=True), tau)
    # As eigenvalues: the time scale of one that is zero is rounding.
    assert np.exp(-tau / times) == pytest.approx(np.exp(-tau / expected), abs=1e-9)


def test_what_an_oracle_cannot_say():
    with pytest.raises(UserError, match="tau: 5 frames; the trajectory has 5, so give 1 to 4"):
        truth.oracle(np.zeros((5, 1), int), 5)
    with pytest.raises(DataError, match="state 1 is never left"):
        truth.oracle(np.array([[0], [0], [2], [0], [1]]), 1)


# -- the truth of diffusion ----------------------------------------------------------------------------------------


def test_the_figures_of_diffusion():
    known = truth.known_prinz()
    assert known["timescales_frames"] == pytest.approx([166.80, 25.35, 13.02], abs=0.005)
    assert [known["vamp1"]["1"], known["vamp2"]["1"]] == pytest.approx([2.8814, 2.7698], abs=5e-5)
    assert [known["vamp1"]["10"], known["vamp2"]["10"]] == pytest.approx([2.0798, 1.5566], abs=5e-5)
    assert sum(known["stationary"]) == pytest.approx(1)
    assert truth.diffusion(truth.double_well, -2.5, 2.5, 2).timescales == pytest.approx([18.01, 0.061], rel=0.005)


def test_diffusion_of_a_harmonic_oscillator_is_known_in_closed_form():
    """V = x^2 / 2: timescales 1, 1/2, 1/3, ...; eigenfunctions are Hermite polynomials; the error falls with dx^2."""
    errors = []
    for cells in (500, 1000):
        found = truth.diffusion(lambda x: x**2 / 2, -8, 8, 3, cells)
        errors.append(np.abs(found.timescales - 1 / np.arange(1, 4)))
        np.testing.assert_allclose((found.functions.T * found.weights) @ found.functions, np.eye(3), atol=1e-8)
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)
    hermite = (found.x**2 - 1) / np.sqrt(2)
    assert abs((hermite * found.functions[:, 1]) @ found.weights) == pytest.approx(1, abs=1e-4)


@given(st.floats(*truth.PRINZ_RANGE))
def test_the_force_is_minus_the_slope(x):
    h = 1e-5
    slope = (truth.prinz(np.float64(x + h)) - truth.prinz(np.float64(x - h))) / (2 * h)
    assert truth.prinz_force(np.float64(x)) == pytest.approx(-slope, rel=1e-5, abs=1e-4)


# -- the motion follows it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [Ferro(clusters=1000), Ellipsoids(walkers=2000), Markov(walkers=2000, states=5)])
def test_states_jump_as_the_chain_says(system):
    """Every count of a transition within 4.5 standard errors; already the first frame is stationary."""
    chain, states = system.chain(), some(system, 50)["true_states"]
    k, distribution = len(chain), truth.stationary(system.chain())
    counts = np.bincount((states[:-1] * k + states[1:]).ravel(), minlength=k * k).reshape(k, k)
    left = counts.sum(1, keepdims=True)
    assert (np.abs(counts - left * chain) <= 4.5 * np.sqrt(left * chain * (1 - chain))).all()
    for at in (0, -1):
        n = states.shape[1]
        here = np.bincount(states[at], minlength=k)
        assert (np.abs(here - n * distribution) < 4.5 * np.sqrt(n * distribution * (1 - distribution))).all()


def test_the_noise_is_an_ornstein_uhlenbeck_process():
    frames, sigma, correlation = 400, 0.1, 3.0
    coordinates = some(Ferro(clusters=20, sigma=sigma, correlation=correlation), frames)["traj_coords"]
    cage = np.delete(coordinates, np.arange(0, 140, 7), 1).reshape(frames, -1)
    cage -= cage.mean(0)
    for lag in (0, 1, 5):
        expected = sigma**2 * np.exp(-lag / correlation)
        assert (cage[: frames - lag] * cage[lag:]).mean() == pytest.approx(expected, abs=0.06 * sigma**2)


def test_prinz_walkers_relax_as_the_generator_says():
    """The mean of psi_i(x_0) psi_i(x_t) is exp(-t / t_i), and x stays distributed like exp(-V)."""
    walkers, frames = 4000, 7
    x = some(Prinz(walkers=walkers), frames)["nbr_dists"][:, ::2] - 3.0
    known = truth.diffusion(truth.prinz, *truth.PRINZ_RANGE)
    psi = np.stack([np.interp(x, known.x, f) for f in known.functions.T])
    times = np.array(truth.known_prinz()["timescales_frames"])
    for t in (0, 1, 3, 6):
        product = psi[:, 0] * psi[:, t]
        assert (np.abs(product.mean(1) - np.exp(-t / times)) < 4.5 * product.std(1) / np.sqrt(walkers)).all()
        u = np.sort(np.interp(x[t], known.x, np.cumsum(known.weights)))
        assert np.abs(u - (np.arange(walkers) + 0.5) / walkers).max() * np.sqrt(walkers) < 2  # Kolmogorov-Smirnov


def test_a_prinz_frame_is_five_hundred_steps_of_euler_and_maruyama():
    """Step by step with the exact force; the table of forces is 5e-5 fine."""

    def random(purpose):
        return np.random.default_rng([7, *purpose.encode()])

    (block,) = Prinz(walkers=50).frames(random, [2])
    x, end = (block["nbr_dists"][frame, ::2] - 3.0 for frame in (0, 1))
    for noise in random("noise").standard_normal((500, 50)):
        x = x + 1e-5 * truth.prinz_force(x) + np.sqrt(2e-5) * noise
    np.testing.assert_allclose(end, x, atol=5e-4)


def test_the_states_of_prinz_are_the_wells():
    block = some(Prinz(walkers=300), 2)
    x = block["nbr_dists"][:, ::2] - 3.0
    np.testing.assert_array_equal(block["true_states"], (x > -0.5).astype(int) + (x > 0) + (x > 0.5))
    np.testing.assert_array_equal(block["nbr_dists"][:, ::2], block["nbr_dists"][:, 1::2])
    assert set(block["true_states"].ravel()) == {0, 1, 2, 3}


def test_ellipsoids_are_told_apart_by_both_coordinates_only():
    block = some(Ellipsoids(walkers=500), 20)
    state, x, y = block["true_states"].ravel(), *block["atom_directions"][:, ::2, :2].reshape(-1, 2).T
    assert np.mean((x > y) == state) > 0.999
    assert not block["atom_directions"][:, 1::2].any() and not block["atom_directions"][..., 2].any()
    assert max(np.mean((x > 0) == state), np.mean((y < 0) == state)) < 0.7


def test_states_of_markov_are_distances():
    block = some(Markov(walkers=50), 20)
    np.testing.assert_allclose(block["nbr_dists"][:, ::2], 2 + 0.4 * block["true_states"])


# -- cages ---------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100), st.booleans())
def test_geometry_of_cages(clusters, seed, marked):
    system = Ferro(clusters=clusters, marked=marked)
    types, targets, neighbours = system.atoms()
    block = some(system, 2, seed)
    r = block["traj_coords"]
    assert r.shape == (2, 7 * clusters, 3) and neighbours.shape == (7 * clusters, 6)
    assert (types[targets] == 22).all() and (types == 22).sum() == clusters and (types == 56).sum() == marked * clusters
    between = np.linalg.norm(r[:, :, None] - r[:, None], axis=-1)
    np.testing.assert_allclose(np.take_along_axis(between, neighbours[None], 2), block["nbr_dists"], atol=1e-6)
    for i, row in enumerate(neighbours):  # all within the radius but oneself, and nothing else
        for frame in between:
            assert set(np.flatnonzero(frame[i] < RADIUS)) - {i} == set(row)
    cage = np.stack([r[:, targets + i] for i in range(1, 7)]).mean(0)
    np.testing.assert_allclose(block["atom_directions"][:, targets], r[:, targets] - cage, atol=1e-9)
    assert not np.delete(block["atom_directions"], targets, 1).any()
    shift = block["atom_directions"][:, targets, 2] - 0.3 * (block["true_states"] - 1)
    assert np.abs(shift).max() < 0.35  # noise, six standard deviations
    if marked:
        top = np.flatnonzero(types == 56)
        assert (r[:, top, 2] - r[:, targets, 2] > 1).all()


def environments(system):
    """By state: the distances of a cluster without noise [7, 6], and the direction of its target."""
    block = some(system, 60)
    types = system.atoms().types[:7]
    found = {}
    for frame, state in enumerate(block["true_states"][:, 0]):
        full = np.zeros((7, 7))
        full[~np.eye(7, dtype=bool)] = block["nbr_dists"][frame, :7].ravel()
        found[state] = full, types, block["atom_directions"][frame, 0]
    return [found[state] for state in range(3)]


def test_distances_reveal_only_the_size_of_the_displacement():
    """Up is down with the top and bottom atoms exchanged: the same graph, whatever is computed from it."""
    (down, types, at_down), (middle, _, at_middle), (up, _, at_up) = environments(Ferro(1, p=0.3, q=0.3, sigma=0))
    exchanged = np.array([0, 1, 2, 3, 4, 6, 5])
    np.testing.assert_allclose(up, down[np.ix_(exchanged, exchanged)], atol=1e-12)
    np.testing.assert_array_equal(types, types[exchanged])
    assert np.abs(np.sort(middle[0]) - np.sort(up[0])).max() > 0.25
    for direction, shift in ((at_down, -0.3), (at_middle, 0.0), (at_up, 0.3)):
        np.testing.assert_allclose(direction, [0, 0, shift], atol=1e-12)


def test_a_marked_cage_shows_the_sign_to_distances():
    (down, types, _), _, (up, _, _) = environments(Ferro(1, p=0.3, q=0.3, sigma=0, marked=True))
    heavy = np.flatnonzero(types == 56)
    assert down[0, heavy] == pytest.approx(2.3) and up[0, heavy] == pytest.approx(1.7)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_files_are_what_training_reads(tmp_path, system):
    said = synth(tmp_path / "data", 3, 8, system, **SMALL[system])
    about = json.loads((tmp_path / "data" / "metadata.json").read_text())
    assert about["frames"] == {"train": 8, "val": 3, "test": 16} and about["recipe"].items() >= SMALL[system].items()
    assert about["constants"]["radius"] == RADIUS and about["constants"]["prinz_step"] == 1e-5
    assert about["truth"].keys() >= {"timescales_frames", "stationary", "vamp1", "vamp2"}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["metadata.json", "test", "train", "val"]
    ferro = about["model_type"] == "gdynet_ferro"
    for split, frames in about["frames"].items():
        (trajectory,) = load([str(tmp_path / "data" / split)], ferro, cutoff=RADIUS)
        assert not trajectory.warnings and trajectory.frames == frames and len(trajectory.target_index) == 2
        kinds = {name: (array.dtype, array.ndim) for name, array in trajectory.arrays.items()}
        assert kinds["nbr_lists"] == (np.int32, 3) and kinds["nbr_dists"] == (np.float32, 3)
        assert kinds["atom_types"] == kinds["target_index"] == (np.int32, 1)
        assert not ferro or kinds["atom_directions"] == (np.float32, 3)
        assert trajectory.meta["radius"] == RADIUS and trajectory.meta["dt_ns"] > 0
        assert trajectory.meta["n_nbrs"] == trajectory.arrays["nbr_lists"].shape[2]
        states = np.load(tmp_path / "data" / split / "true_states.npy", allow_pickle=False)
        assert states.shape == (frames, 2) and states.dtype == np.int8
    command = shlex.split(said.splitlines()[-1])
    assert f"--task.init_args.model_type={about['model_type']}" in command
    assert f'--task.init_args.val_fnames=["{tmp_path}/data/val"]' in command


@pytest.mark.parametrize("system", SYSTEMS)
def test_seed_and_options_decide_everything(tmp_path, monkeypatch, system):
    make = partial(synth, system=system, **SMALL[system])
    make(tmp_path / "a", 1, 16)
    make(tmp_path / "again", 1, 16)
    make(tmp_path / "other", 2, 16)
    make(tmp_path / "longer", 1, 40)
    monkeypatch.setattr(synth_module, "BLOCK", 1)  # one frame at a time
    make(tmp_path / "blocks", 1, 16)
    a = digests(tmp_path / "a")
    assert a == digests(tmp_path / "again")
    blocks = digests(tmp_path / "blocks")
    blocks["metadata.json"] = a["metadata.json"]  # which tells the block
    assert a == blocks
    changing = [name for name in a if name.endswith(("nbr_dists.npy", "atom_directions.npy"))]
    assert sum(a[name] != digests(tmp_path / "other")[name] for name in changing) >= len(SPLITS)
    for name in a:
        if name.endswith(".npy"):
            short, long = np.load(tmp_path / "a" / name), np.load(tmp_path / "longer" / name)
            np.testing.assert_array_equal(short, long[: len(short)])
    train, test = (np.load(tmp_path / "longer" / split / changing[0].split("/")[1]) for split in ("train", "test"))
    assert system == "markov" or (train != test[: len(train)]).any()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"system": "prins"}, r"system: unknown 'prins' \(did you mean prinz\?\); there are ferro, prinz"),
        ({"cluster": 3}, r"cluster: no such option \(did you mean clusters\?\)"),
        ({"system": "prinz", "clusters": 3}, "clusters: no such option"),
        ({"clusters": 0}, "clusters: 0 is out of range"),
        ({"p": 0.6}, "p: 0.6 is out of range"),
        ({"clusters": "many"}, "clusters: expected int, got 'many'"),
        ({"size": 7}, "size: 7 is out of range"),
        ({"system": "markov", "states": 11}, "states: 11 is out of range"),
        ({"system": "ellipsoids", "laziness": 1.0}, "laziness: 1.0 is out of range"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        synth(tmp_path / "data", **options)
    assert not (tmp_path / "data").exists()


def test_options_of_the_command_line_are_text(tmp_path):
    text = {"clusters": Typed("2"), "p": Typed("0.02"), "marked": Typed("true")}
    synth(tmp_path / "text", 0, 8, **text)
    synth(tmp_path / "values", 0, 8, clusters=2, p=0.02, marked=True)
    assert digests(tmp_path / "text") == digests(tmp_path / "values")


def test_data_that_are_there_stay(tmp_path):
    synth(tmp_path, 0, 8, clusters=1)
    before = digests(tmp_path)
    with pytest.raises(UserError, match="there is metadata.json in .* already; give an empty or new folder"):
        synth(tmp_path, 1, 8, clusters=1)
    assert digests(tmp_path) == before


def test_what_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(synth_module.json, "dumps", broken)
    with pytest.raises(OSError, match="disk full"):
        synth(tmp_path, 0, 8, clusters=1)
    assert not list(tmp_path.iterdir())


def test_the_oracle_of_a_set_is_the_truth_up_to_sampling(tmp_path):
    """Relative error of a timescale about 1 / sqrt(number of switches)."""
    synth(tmp_path, 0, 1000)
    states = np.load(tmp_path / "test" / "true_states.npy")
    _, vamp2, times = truth.oracle(states, 10)
    assert vamp2 == pytest.approx(truth.vamp_scores(FERRO, 10)[1], rel=0.15)
    assert times == pytest.approx(truth.timescales(FERRO), rel=0.4)
