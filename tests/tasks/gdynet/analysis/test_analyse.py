"""The analysis, end to end: how it was learned, the command, its figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.chains import FASTER, chain, one_hot, soft

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet import truth, vamp
from accel_train.tasks.gdynet.analysis.analyse import (
    analyse,
    at_one_lag,
    figures,
    load,
    summary,
)
from accel_train.tasks.gdynet.analysis.figures import basic
from accel_train.tasks.gdynet.analysis.history import curves
from accel_train.tasks.gdynet.analysis.predictions import Loaded
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.task import epoch_lists

main = COMMANDS["analyze"].run

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


def test_known_timescales(run, tmp_path, capsys):
    """Of synthetic data, in the table and as lines in the figure."""
    metadata = tmp_path / "metadata.json"
    metadata.write_text(json.dumps({"truth": {"timescales_frames": [99.5, 32.8], "vanilla": {}}}))
    assert main([str(run), "--truth", str(metadata)]) == 0
    table = capsys.readouterr().out
    assert "known" in table and "49.75" in table  # ns, at 0.5 ns for each frame
    found = json.loads((run / "evaluation/analysis/analysis.json").read_text())
    assert found["implied_timescales"]["known_frames"] == [99.5, 32.8][: found["states"] - 1]
    lines = figures(found)["implied_timescales"].axes[0].get_lines()
    assert [line.get_label() for line in lines].count("known") == 1
    metadata.write_text("{}")
    with pytest.raises(UserError, match="--truth: .*is no metadata.json of accel-train synth gdynet"):
        main([str(run), "--truth", str(metadata)])


def test_an_evaluation_alone_gives_the_basic_figures():
    """From its sums, around 1/k: the matrix is that of all pairs."""
    p, _ = soft(chain(FASTER, 4000, 4, seed=1))
    x, y = (torch.from_numpy(part.reshape(-1, 3)) for part in (p[:-5], p[5:]))
    found = at_one_lag(vamp.moments(x, y).numpy(), 5, 0.001)
    whole = analyse(Loaded(["a"], [Path("a.npy")], [p], {"dt_ns": 0.001}, {}, None), lag=5)
    assert np.allclose(found["koopman"]["matrix"], whole["koopman"]["matrix"])
    assert np.allclose(found["koopman"]["timescales_ns"], whole["koopman"]["timescales_ns"])
    assert list(basic(found)) == ["koopman", "stationary", "eigenvectors"]


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
