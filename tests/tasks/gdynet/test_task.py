"""The gdynet task as its users meet it: what it reads and refuses, what it trains, what lies there afterwards."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import run
from support.runs import ON_CPU, config, weights_files
from support.toys import GDyNet

from accel_train import load_exported
from accel_train.cli import main
from accel_train.config.read import parse
from accel_train.errors import DataError, UserError
from accel_train.run.weights import read_weights
from accel_train.tasks.gdynet import choices, splits, vamp
from accel_train.tasks.gdynet.choices import LOSSES
from accel_train.tasks.gdynet.files import Trajectory
from accel_train.tasks.gdynet.synth import synth
from accel_train.tasks.gdynet.task import GDyNetTask

TAU, BATCH, IN_EPOCH = 3, 10, 5  # 44 pairs in train, 14 in val
SMALL = {"atom_fea_len": 6, "n_conv": 2, "state_len": 3, "num_gaussians": 8, "tau": TAU, "epochs": 2}
SPLITS = ("train", "val", "test")
LISTS = [
    "epochs", "loss_types",
    *(f"{split}_{what}_{which}" for split in ("train", "val") for what in ("losses", "vamp1_scores", "vamp2_scores")
      for which in ("last", "avg")),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gdynet") / "data"
    synth(folder, seed=3, size=47, clusters=3)
    return folder


def task_of(data, cls=GDyNet, **options) -> GDyNetTask:
    return cls(**{**{f"{split}_fnames": [str(data / split)] for split in SPLITS}, **SMALL, **options})


def job(folder, data, arguments=None, **more):
    fnames = {f"{split}_fnames": [str(data / split)] for split in SPLITS}
    more = (
        dict(global_batch_size=BATCH, max_steps=None, max_grad_norm=None, eval_steps="1ep", logging_steps="1ep") | more
    )
    return {"task": "GDyNet", "task_args": fnames | (arguments or {}), "config": config(folder, **more)}


def command(*arguments) -> int:
    with mock.patch.dict(os.environ, ON_CPU):
        try:
            return main([str(argument) for argument in arguments])
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


def train(folder, data, *options, **arguments) -> int:
    """Exit code of ``accel-train train``."""
    arguments = {**{f"{split}_fnames": [str(data / split)] for split in SPLITS}, **SMALL, **arguments}
    given_options = [f"--task.init_args.{name}={json.dumps(value)}" for name, value in arguments.items()]
    settings = [f"--output_dir={folder}", f"--global_batch_size={BATCH}", "--num_workers=0", "--report_to=[]"]
    return command("train", "--task=gdynet", *given_options, *settings, *options)


def changed(folder, base, **arrays) -> Path:
    """A copy of a trajectory with some arrays changed, each by a function."""
    shutil.copytree(base, folder)
    for name, change in arrays.items():
        np.save(folder / f"{name}.npy", change(np.load(folder / f"{name}.npy")))
    return folder


def with_nan(distances):
    distances[23, 4, 2] = np.nan
    return distances


def one_line(capsys) -> str:
    said = capsys.readouterr().err
    assert said.startswith("accel-train: error: ") and said.count("\n") == 1
    return said


# -- phases ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([*LOSSES, "vamp_sym"]), min_size=1, max_size=5), st.integers(1, 99), st.integers(1, 4))
def test_phases_are_the_schedule(schedule, epochs, repeat):
    phases = GDyNetTask([], loss_schedule=schedule, epochs=epochs, repeat=repeat).phases()
    names = ["vamp1" if name == "vamp_sym" else name for name in schedule] * repeat
    assert [phase["objectives"] for phase in phases] == [[name] for name in names]
    assert {phase["length"] for phase in phases} == {f"{epochs}ep"}


def test_the_known_schedule_is_the_default():
    phases = GDyNetTask([]).phases()
    assert [(*phase["objectives"], phase["length"]) for phase in phases] == [
        ("vamp2", "30ep"), ("vamp1", "30ep"), ("vamp2", "30ep")
    ]  # fmt: skip


def test_phases_of_the_config_win(data, tmp_path):
    phases = [{"objectives": ["vampe"], "length": "2st"}, {"objectives": ["vamp1_true"], "length": "1ep"}]
    assert train(tmp_path / "run", data, f"--phases={json.dumps(phases)}", "--logging_steps=1") == 0
    lists = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert lists["phase"] == ["vampe"] * 2 + ["vamp1_true"] * 3, "a phase of an epoch ends with the epoch it is in"


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("[vamp3]", r"unknown 'vamp3' \(did you mean vampe\?\); there are vamp2, vamp1, vamp1_true, vampe, vamp_sym$"),
        ("[vamp2, vamp_sim]", r"unknown 'vamp_sim' \(did you mean vamp_sym\?\)"),
        ("[vamp2, colour]", "unknown 'colour'; there are"),
        ("[]", "at least one loss is needed"),
        ("vamp2", r"expected \[...\], got 'vamp2'"),
    ],
)
def test_losses_that_are_refused(schedule, says):
    with pytest.raises(UserError, match=rf"^task.init_args.loss_schedule: {says}"):
        parse(["--task=gdynet", "--task.init_args.train_fnames=[x]", f"--task.init_args.loss_schedule={schedule}"])


# -- options ---------------------------------------------------------------------------------------------------------

RANGES = [
    ("atom_fea_len", 0), ("n_conv", -1), ("state_len", 1), ("tau", 0), ("num_gaussians", 1), ("epochs", 0),
    ("repeat", 0), ("cutoff", 0), ("cutoff", -6), ("cutoff", "inf"), ("dt_ns", 0), ("dt_ns", -1), ("val_share", -0.1),
    ("val_share", 0.95), ("epsilon", -1), ("epsilon", 0), ("epsilon", 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), RANGES)
def test_numbers_out_of_range(name, value):
    value = ".inf" if value == "inf" else value
    with pytest.raises(UserError, match=rf"^task.init_args.{name}: \S+ is out of range, must be [^\n]*$"):
        parse(["--task=gdynet", "--task.init_args.train_fnames=[x]", f"--task.init_args.{name}={value}"])


@pytest.mark.parametrize("option", ["mode=trunk", "norm=bach", "lobes=shard", "model_type=gdynet_fero", "tau=ten"])
def test_words_that_are_refused(option):
    name, _, value = option.partition("=")
    with pytest.raises(UserError, match=rf"^task.init_args.{name}: expected [^\n]*, got '{value}'[^\n]*$"):
        parse(["--task=gdynet", "--task.init_args.train_fnames=[x]", f"--task.init_args.{option}"])


# -- splits ----------------------------------------------------------------------------------------------------------


@given(frames=st.integers(1, 400), tau=st.integers(1, 30), share=st.floats(0.001, 0.9))
@settings(deadline=None)
def test_the_end_is_held_out_behind_a_gap(frames, tau, share):
    lists = np.arange(frames, dtype=np.int32)[:, None, None]
    whole = Trajectory({"nbr_lists": Path("a/nbr_lists.npy")}, {"nbr_lists": lists}, {})
    held_out = max(round(frames * share), tau + 1)
    if frames < held_out + 2 * tau + 1:
        with pytest.raises(DataError, match=rf"^a: {frames} frames are too few to keep val_share [^\n]*val_share: 0"):
            splits.Splits({}, True, tau, 6.0, share)._cut(whole)
        return
    train, validation = (part.nbr_lists.ravel() for part in splits.Splits({}, True, tau, 6.0, share)._cut(whole))
    np.testing.assert_array_equal(train, np.arange(len(train)))
    np.testing.assert_array_equal(validation, np.arange(frames - held_out, frames))
    assert validation[0] - train[-1] == tau + 1, "so many frames are in neither"
    assert len(train) > tau and len(validation) > tau, "each has a pair"


def test_every_trajectory_gives_its_end(data):
    task = task_of(data, train_fnames=[str(data / "train"), str(data / "test")], val_fnames=[], test_fnames=[])
    spans = {split: [part.span for part in task.splits[split]] for split in ("train", "validation", "test")}
    assert spans == {"train": [(0, 39), (0, 82)], "validation": [(42, 47), (85, 94)], "test": []}
    sources = {split: task.build_data(split, BATCH, 0) for split in spans}
    assert len(sources["train"].data) == 36 + 79 and len(sources["validation"].data) == 2 + 6
    assert sources["test"] is None and task.predict_data("test", BATCH) is None
    frames = np.load(data / "test" / "nbr_dists.npy")
    np.testing.assert_array_equal(sources["validation"].data.read(np.array([7]))["distances"][0], frames[[90, 93]])


def test_given_splits_are_taken_whole(data):
    task = task_of(data)
    for split, frames in (("train", 47), ("validation", 17), ("test", 94)):
        (trajectory,) = task.splits[split]
        assert trajectory.frames == frames and trajectory.span is None
    assert task_of(data, val_fnames=[], val_share=0).build_data("validation", BATCH, 0) is None


def test_too_short_for_a_validation(data, tmp_path, capsys):
    assert train(tmp_path / "run", data, val_fnames=[], tau=16) == 2
    assert f"{data}/train: 47 frames are too few to keep val_share 0.1 of them" in one_line(capsys)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("atom_types", lambda a: np.where(a == 22, 23, a), "entry 0 is 23 and not 22"),
        ("target_index", lambda a: a[:2], "2 entries and not 3"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_all_splits_must_be_of_one_system(data, tmp_path, split, name, change, says):
    other = changed(tmp_path / "other", data / split, **{name: change})
    fnames = [str(data / split), str(other)] if split == "train" else [str(other)]
    with pytest.raises(
        DataError, match=rf"^{tmp_path}/other/{name}.npy: another system than .*: {says}; all trajectories must agree$"
    ):
        task_of(data, **{f"{split}_fnames": fnames}).build_data("train", BATCH, 0)


def test_other_numbers_of_neighbours_are_refused(data, tmp_path):
    fewer = {name: lambda a: a[:, :, :4] for name in ("nbr_lists", "nbr_dists")}
    other = changed(tmp_path / "other", data / "test", **fewer)
    with pytest.raises(DataError, match=r"nbr_lists.npy: M=4 neighbours, but .* has M=6; .* \(pad with index -1\)$"):
        task_of(data, test_fnames=[str(other)]).build_data("train", BATCH, 0)


# -- batches ---------------------------------------------------------------------------------------------------------


def test_batches_of_several_trajectories(data):
    """Every pair once, each two frames of one file, tau apart."""
    names = ["val", "train", "val"]
    task = task_of(data, train_fnames=[str(data / name) for name in names])
    source = task.build_data("train", BATCH, seed=1)
    assert source.steps(0) == 8 and len(source.data) == 14 + 44 + 14
    arrays = [np.load(data / name / "nbr_dists.npy") for name in names]
    pairs = [(array[t], array[t + TAU]) for array in arrays for t in range(len(array) - TAU)]
    seen = []
    for step in range(8):
        batch = source.batch(0, step, 0, 1)
        seen += batch["pair"].tolist()
        np.testing.assert_array_equal(batch["distances"], [pairs[i] for i in batch["pair"]])
    assert sorted(seen) == list(range(72)) != seen


@pytest.mark.parametrize("lobes", ["shared", "separate"])
def test_features_are_frames_then_targets(data, lobes):
    task = task_of(data, lobes=lobes, float64=True)
    models = task.build_model(None)
    for parameter in models["lobe_0"].parameters() if lobes == "separate" else ():
        parameter.data *= 1.1
    batch = {name: torch.from_numpy(a) for name, a in task.build_data("train", 4, 0).batch(0, 0, 0, 1).items()}
    both = task.features(models, batch)
    (train,) = task.splits["train"]
    for time, found in enumerate(both):
        lobe = models.get("lobe_t" if time else "lobe_0", models["lobe_0"])
        inputs = [batch[name][:, time] for name in ("neighbours", "distances", "directions")]
        expected = lobe(torch.from_numpy(train.atom_types), torch.from_numpy(train.target_index), *inputs)
        torch.testing.assert_close(found, expected.reshape(4 * 3, 3), rtol=1e-12, atol=1e-14)


# -- scores of a whole split -----------------------------------------------------------------------------------------


@given(size=st.integers(1, 20), mode=st.sampled_from(choices.MODES), epsilon=st.sampled_from([1e-10, 1e-6, 1e-2]))
@settings(deadline=None, max_examples=15)
def test_one_score_of_all_pairs_whatever_the_batches(data, size, mode, epsilon):
    task = task_of(data, float64=True, mode=mode, epsilon=epsilon)
    torch.manual_seed(1)  # states of which no combination varies so little that rounding counts
    models = task.build_model(None)
    source = task.build_data("validation", size, 0)
    batches = [source.batch(0, step, 0, 1) for step in range(source.steps(0))]
    batches = [{name: torch.from_numpy(array) for name, array in batch.items()} for batch in batches]
    with torch.no_grad():
        parts = [task.eval_step(models, batch) for batch in batches]
        rows = [torch.cat(x) for x in zip(*(task.features(models, batch) for batch in batches), strict=True)]
    metrics = task.eval_metrics({name: sum(part[name] for part in parts) for name in parts[0]})
    together = vamp.covariances(vamp.moments(*rows))
    assert together.rows == 14 * 3
    scores = vamp.scores(together, epsilon, mode)
    for name in ("vamp1", "vamp2"):
        assert metrics[name] == pytest.approx(scores[name], rel=1e-7)
    assert metrics["loss"] == -metrics["vamp2"]
    assert metrics["crispness"] == pytest.approx(float(rows[0].max(1).values.mean()), rel=1e-9)
    for i, s in enumerate(vamp.singular_values(together, epsilon, mode).tolist(), 1):
        assert s > 1e-3 and metrics[f"t{i}_frames"] == pytest.approx(-TAU / math.log(s), rel=1e-7)


def test_the_floor_is_that_of_a_training_batch(data):
    task = task_of(data)
    assert task.baselines() == {}, "nobody has asked for data yet"
    task.build_data("train", BATCH, 0)
    assert task.baselines() == {"vamp2": 4 / (3 * BATCH - 1)}


# -- a run and what it leaves ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> Path:
    """Three phases of two epochs; the test has two trajectories."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(folder, data, "--learning_rate=0.01", test_fnames=[str(data / "test"), str(data / "val")]) == 0
    return folder


@pytest.fixture
def trained(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "trained", symlinks=True))


def lists_of(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_fourteen_lists(made):
    lists = lists_of(made)
    assert {name: len(lists[name]) for name in LISTS} == dict.fromkeys(LISTS, 6)
    assert lists["epochs"] == [1, 2, 3, 4, 5, 6]
    assert lists["loss_types"] == ["vamp2", "vamp2", "vamp1", "vamp1", "vamp2", "vamp2"]
    lines = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    by_kind = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "eval")}
    for known, name in (("losses", "loss"), ("vamp1_scores", "vamp1"), ("vamp2_scores", "vamp2")):
        assert lists[f"train_{known}_avg"] == [line[name] for line in by_kind["train"]]
        assert lists[f"train_{known}_last"] == [line[f"last/{name}"] for line in by_kind["train"]]
        assert lists[f"val_{known}_avg"] == lists[f"val_{known}_last"] == [line[name] for line in by_kind["eval"]]
    for loss, score, kind in zip(lists["train_losses_avg"], lists["train_vamp2_scores_avg"], lists["loss_types"],
                                 strict=True):  # fmt: skip
        assert (loss == pytest.approx(-score)) if kind == "vamp2" else (-0.1 < loss < 0), "as users know it"
    assert lists["train_losses_avg"] != lists["train_losses_last"]


def test_an_epoch_has_one_entry_however_often_it_was_looked_at(data, tmp_path):
    run(job(tmp_path / "often", data, eval_steps=1, logging_steps=1))
    run(job(tmp_path / "epochs", data))
    often, epochs = lists_of(tmp_path / "often"), lists_of(tmp_path / "epochs")
    assert len(often["step"]) == len(often["eval_step"]) == 6 * IN_EPOCH
    for name in LISTS:
        assert len(often[name]) == 6
        if not name.startswith("train_") or name.endswith("_last"):
            assert often[name] == epochs[name], "an average is one since the last log line"


def test_the_best_of_the_run_and_of_each_phase(made):
    """By the validation's VAMP-2, whatever the loss of the phase was; a loss of vamp1 is always nearly zero."""
    scores = lists_of(made)["val_vamp2_scores_avg"]
    best = json.loads((made / "best" / "config.json").read_text())
    assert best["metrics"]["vamp2"] == max(scores) and best["step"] == IN_EPOCH * (1 + scores.index(max(scores)))
    assert sorted(path.name for path in (made / "phases").iterdir()) == ["0-vamp2", "1-vamp1", "2-vamp2"]
    for i, folder in enumerate(sorted((made / "phases").iterdir())):
        of_phase = scores[2 * i : 2 * i + 2]
        about = json.loads((folder / "config.json").read_text())
        assert about["metrics"]["vamp2"] == max(of_phase)
        assert about["step"] == IN_EPOCH * (1 + 2 * i + of_phase.index(max(of_phase)))
        assert command("evaluate", folder) == 0
        found = json.loads((folder / "evaluation" / "evaluation.json").read_text())["metrics"]["vamp2"]
        assert found == pytest.approx(max(of_phase), rel=1e-4)
        shutil.rmtree(folder / "evaluation")


def test_the_best_of_a_phase_after_an_interruption(data, tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    run(job(whole, data))
    for step in (7, 16):
        run(job(pieces, data) | {"stop_at": {"step": step}})
    run(job(pieces, data))
    for folder in sorted((whole / "phases").iterdir()):
        assert weights_files(whole) == weights_files(pieces)
        file = folder / "lobe_0.safetensors"
        assert file.read_bytes() == (pieces / "phases" / folder.name / file.name).read_bytes()


def predictions(folder) -> tuple[np.ndarray, dict]:
    folder = folder / "predictions"
    return np.load(folder / "probabilities.npy"), json.loads((folder / "predictions.json").read_text())


def test_predictions_are_the_network_on_every_frame(trained, data, tmp_path, capsys):
    assert command("evaluate", trained, "--split=test") == 0
    assert "of at most 2 at tau 3 frames = 0.003 ns" in capsys.readouterr().out
    found, about = predictions(trained / "evaluation")
    assert found.shape == (94 + 17, 3, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)
    assert about == {
        "split": "test", "weights": str(trained / "best"), "file": "probabilities.npy", "tau": TAU, "dt_ns": 0.001,
        "trajectories": [
            {"name": str(data / "test"), "first_frame": 0, "start": 0, "frames": 94},
            {"name": str(data / "val"), "first_frame": 0, "start": 94, "frames": 17},
        ],
    }  # fmt: skip
    task, models, _ = load_exported(trained / "best")
    both = zip(about["trajectories"], task.splits["test"], strict=True)
    for entry, trajectory in both:
        names = ("atom_types", "target_index", "nbr_lists", "nbr_dists", "directions")
        with torch.no_grad():
            expected = models["lobe_0"].eval()(
                *(torch.from_numpy(np.array(getattr(trajectory, name))) for name in names)
            )
        rows = found[entry["start"] : entry["start"] + entry["frames"]]
        np.testing.assert_allclose(rows, expected.numpy(), rtol=1e-5, atol=1e-6)
    assert command("evaluate", trained, "--split=test", "--batch_size=7", "--out", tmp_path / "other") == 0
    np.testing.assert_allclose(predictions(tmp_path / "other")[0], found, rtol=1e-5, atol=1e-6)
    records = [
        json.loads((out / "evaluation.json").read_text())["metrics"]
        for out in (trained / "evaluation", tmp_path / "other")
    ]
    assert records[0] == pytest.approx(records[1], rel=1e-4)


def test_predictions_of_two_ranks(trained):
    out = trained / "two"
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "accel_train"]
    arguments = ["evaluate", str(trained), "--split=test", "--batch_size=9", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, *ranks, *arguments], env=os.environ | ON_CPU, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    assert command("evaluate", trained, "--split=test") == 0
    (found, about), (expected, about_one) = predictions(out), predictions(trained / "evaluation")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert about == about_one
    metrics = [json.loads((path / "evaluation.json").read_text())["metrics"] for path in (out, trained / "evaluation")]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


def test_predictions_of_held_out_ends(data, tmp_path):
    assert train(tmp_path / "run", data, val_fnames=[], test_fnames=[], epochs=1) == 0
    assert command("evaluate", tmp_path / "run") == 0
    found, about = predictions(tmp_path / "run" / "evaluation")
    assert len(found) == about["trajectories"][0]["frames"] == 5 and about["split"] == "validation"
    assert command("evaluate", tmp_path / "run", "--split=test") == 2


def test_separate_lobes_learn_both_and_the_first_predicts(data, tmp_path):
    results = {}
    for rate in (0.0, 0.01):
        (results[rate],) = run(job(tmp_path / str(rate), data, {"lobes": "separate", "epochs": 1}, learning_rate=rate))
        assert results[rate]["error"] is None
    before, after = (results[rate]["weights"] for rate in (0.0, 0.01))
    assert {name.partition(".")[0] for name in after} == {"lobe_0", "lobe_t"}
    for name in (name.partition(".")[2] for name in after if name.startswith("lobe_0.")):
        first, second = after[f"lobe_0.{name}"], after[f"lobe_t.{name}"]
        assert np.array_equal(before[f"lobe_0.{name}"], before[f"lobe_t.{name}"])
        if not name.endswith("filter.bias"):  # without effect, but for rounding
            assert (first != before[f"lobe_0.{name}"]).any() and (second != before[f"lobe_t.{name}"]).any()
            assert (first != second).any()
    task, models, _ = load_exported(tmp_path / "0.01" / "model")
    batch = {name: torch.from_numpy(array) for name, array in task.predict_data("test", 5).batch(0, 0, 0, 1).items()}
    with torch.no_grad():
        out = task.predict_step(models, batch)["probabilities"]
        models["lobe_t"] = None
        assert torch.equal(task.predict_step(models, batch)["probabilities"], out)


def test_in_half_the_precision(data, tmp_path):
    whole, half = (
        run(job(tmp_path / precision, data, {"epochs": 1}, mixed_precision=precision))[0]
        for precision in ("no", "bf16")
    )
    assert whole["error"] is None and half["error"] is None
    assert half["metrics"]["vamp2"] == pytest.approx(whole["metrics"]["vamp2"], abs=0.1)
    assert half["metrics"] != whole["metrics"]


@pytest.mark.parametrize("pieces", [1, 2])
def test_running_statistics_count_every_piece_once(data, tmp_path, pieces):
    """Whether it goes through the network once or twice, and evaluation does not count."""
    (result,) = run(job(tmp_path, data, {"norm": "batch", "epochs": 1}, micro_batch_size=BATCH // pieces))
    assert result["error"] is None
    counts = {int(value) for name, value in result["weights"].items() if name.endswith("num_batches_tracked")}
    assert counts == {3 * (IN_EPOCH * pieces - (pieces - 1))}, "the last batch of an epoch, of 4, stays whole"


def test_programs_give_the_predictions(trained, data, tmp_path):
    assert command("evaluate", trained, "--split=test") == 0
    assert command("export", trained, "--out", tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "lobe_0.safetensors", "lobe_0.pt2", "lobe_0.torchscript.pt"}
    arrays = ("atom_types", "target_index", "nbr_lists", "nbr_dists", "atom_directions")
    inputs = [torch.from_numpy(np.load(data / "test" / f"{name}.npy")) for name in arrays]
    inputs[:2] = [x.long() for x in inputs[:2]]
    found = torch.export.load(tmp_path / "out" / "lobe_0.pt2").module()(*inputs)
    np.testing.assert_allclose(found.detach(), predictions(trained / "evaluation")[0][:94], rtol=1e-4, atol=1e-5)


def test_other_weights_to_start_from(trained, data, tmp_path, capsys):
    """Transfer learning takes weights and nothing else: the first epoch of the first phase comes next."""
    other = {"train_fnames": [str(data / "test")], "epochs": 1}
    assert train(tmp_path / "run", data, f"--init_from={trained}/best", "--learning_rate=0", **other) == 0
    (theirs,), (ours,) = (
        read_weights(path, ["lobe_0"]).values() for path in (trained / "best", tmp_path / "run" / "model")
    )
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    lists = lists_of(tmp_path / "run")
    assert lists["epochs"] == [1, 2, 3] and lists["loss_types"] == ["vamp2", "vamp1", "vamp2"]
    assert lists["step"] == [10, 20, 30], "91 pairs in batches of 10"
    capsys.readouterr()
    assert train(tmp_path / "wide", data, f"--init_from={trained}/best", state_len=4) == 2
    assert "lobe_0.out.weight has another shape" in one_line(capsys)


# -- what the data say -----------------------------------------------------------------------------------------------


def test_what_is_odd_in_the_data_is_said(data, tmp_path):
    names = {"train": [], "val": []}
    for split in names:
        folder = changed(tmp_path / split, data / split, target_index=lambda a: a[[0, 1, 1]])
        names[split] = [str(folder)]
    fnames = {f"{split}_fnames": fnames for split, fnames in names.items()} | {"test_fnames": []}
    (result,) = run(job(tmp_path / "run", data, {**fnames, "cutoff": 3.5, "epochs": 1}))
    assert result["error"] is None
    warnings = [title for kind, title in result["events"] if kind == "warning"]
    for split in names:
        for text in ("target_index.npy: target_index contains 1 duplicate entries", "nbr_dists.npy: "):
            assert sum(f"{tmp_path}/{split}/{text}" in title for title in warnings) == 1
    assert sum("beyond the cutoff of 3.5 A" in title for title in warnings) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_frame_in_the_middle_stops_the_run_after_the_last_whole_step(data, tmp_path, capsys, workers):
    bad = changed(tmp_path / "bad", data / "train", nbr_dists=with_nan)
    assert train(tmp_path / "run", data, f"--num_workers={workers}", train_fnames=[str(bad)]) == 2
    said = one_line(capsys)
    assert f"{bad}/nbr_dists.npy: frame 23, atom 4, neighbour 2: nan is no distance" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000000001"]


@pytest.mark.parametrize("where", ["last batch of an epoch", "every batch", "validation"])
def test_a_single_row_has_no_covariance(data, tmp_path, capsys, where):
    one = {split: changed(tmp_path / split, data / split, target_index=lambda a: a[:1]) for split in SPLITS}
    if where == "validation":
        files = ("nbr_lists", "nbr_dists", "atom_directions")
        one["val"] = changed(tmp_path / "short", one["val"], **{name: lambda a: a[: TAU + 1] for name in files})
    fnames = {f"{split}_fnames": [str(folder)] for split, folder in one.items()}
    batch = {"last batch of an epoch": 43, "every batch": 1, "validation": BATCH}[where]
    assert train(tmp_path / "run", data, f"--global_batch_size={batch}", **fnames) == 2
    says = {"every batch": "a batch"}.get(where, f"the {where}")
    assert f"{says} has 1 pair of frames x targets, and a covariance needs 2" in one_line(capsys)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_few_rows_are_warned_of(data, tmp_path):
    task = task_of(data, state_len=10)
    said = [event.title for event in task.build_data("train", 2, 0).events() if "noise" in event.title]
    assert said[0] == "a batch has 6 pairs of frames x targets, of which pure noise scores VAMP-2 9: use more"


def test_a_folder_in_two_splits_is_warned_of(data):
    task = task_of(data, test_fnames=[str(data / "train")])
    assert any("trained on and held out at once" in e.title for e in task.build_data("train", 10, 0).events())


def test_predictions_fit_into_memory(trained, monkeypatch):
    """As evaluations do: after an out-of-memory error, half as many at once."""
    assert command("evaluate", trained, "--split=test") == 0
    file = trained / "evaluation" / "predictions" / "probabilities.npy"
    whole, real, sizes = np.load(file), GDyNetTask.predict_step, []

    def small(self, models, batch):
        sizes.append(len(batch["frame"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("injected")
        return real(self, models, batch)

    monkeypatch.setattr(GDyNetTask, "predict_step", small)
    assert command("evaluate", trained, "--split=test") == 0
    assert max(sizes) > 3
    np.testing.assert_allclose(np.load(file), whole, atol=1e-6)


def test_a_run_is_evaluated_without_its_training_data(data, tmp_path):
    folders = {split: shutil.copytree(data / split, tmp_path / split) for split in SPLITS}
    fnames = {f"{split}_fnames": [str(folder)] for split, folder in folders.items()}
    assert train(tmp_path / "run", data, epochs=1, **fnames) == 0
    for split in ("train", "val"):
        shutil.rmtree(folders[split])
    assert command("evaluate", tmp_path / "run", "--split=test") == 0


def test_a_test_needs_no_training_data(data):
    task = task_of(data, train_fnames=["nowhere"], val_fnames=[], test_fnames=[str(data / "test")])
    assert len(task.build_data("test", 10, 0).data) > 0
    assert task.frame_ns() == 0.001


def test_time_is_in_the_units_that_somebody_has_said(data, tmp_path):
    metrics = {"vamp2": 1.5, "vamp1": 1.7, "crispness": 0.9, "t1_frames": 40.0, "t2_frames": 8.0}
    assert task_of(data).describe_predictions("validation")["dt_ns"] == 0.001
    said = task_of(data).summary(metrics)
    assert "at most 2 at tau 3 frames = 0.003 ns" in said and "40 = 0.04 ns, 8 = 0.008 ns" in said
    said = task_of(data, dt_ns=0.5).summary(metrics)
    assert "tau 3 frames = 1.5 ns" in said and "40 = 20 ns, 8 = 4 ns" in said
    silent = changed(tmp_path / "silent", data / "train")
    (silent / "meta.json").unlink()
    said = task_of(data, train_fnames=[str(silent)]).summary(metrics)
    assert "tau 3 frames\n" in said and "ns" not in said
    assert "crispness 0.900" in said


def test_without_a_validation(data, tmp_path):
    assert train(tmp_path / "run", data, val_fnames=[], val_share=0, epochs=1) == 0
    assert not (tmp_path / "run" / "best").exists()


# -- commands --------------------------------------------------------------------------------------------------------


def test_inspect_looks_at_data(data, tmp_path, capsys):
    assert command("inspect", data, "--tau=3") == 0
    said = capsys.readouterr().out
    for text in (
        "trajectory",
        "47 frames",
        "17 frames",
        "94 frames",
        "44 pairs of frames (tau 3 = 0.003 ns)",
        "warnings: 0",
    ):
        assert text in said
    bad = changed(tmp_path / "bad", data / "train", nbr_dists=with_nan)
    assert command("inspect", bad) == 0
    assert "frame 23, atom 4, neighbour 2: nan is no distance" in capsys.readouterr().out
    assert command("inspect", data, "--tua=3") == 2
    assert "did you mean tau?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "system", "recipe"),
    [
        ([], "ferro", {"clusters": 8, "marked": False}),
        (["--clusters=2", "--delta=0.2", "--marked=true"], "ferro", {"clusters": 2, "delta": 0.2, "marked": True}),
        (["--system=markov", "--walkers=3", "--states=5"], "markov", {"walkers": 3, "states": 5}),
        (["--system=ellipsoids", "--laziness=0.9"], "ellipsoids", {"laziness": 0.9}),
    ],
)
def test_synth_systems(tmp_path, capsys, options, system, recipe):
    assert command("synth", "gdynet", "--out", tmp_path / "data", "--size=16", "--seed=5", *options) == 0
    about = json.loads((tmp_path / "data" / "metadata.json").read_text())
    assert (about["system"], about["seed"], about["frames"]["train"]) == (system, 5, 16)
    assert recipe.items() <= about["recipe"].items()
    hint = next(line for line in capsys.readouterr().out.splitlines() if "accel-train train" in line)
    assert f"--task.init_args.state_len={about['state_len']}" in hint


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--system=markof"], "system: unknown 'markof' (did you mean markov?); there are ferro, prinz,"),
        (["--system=markov", "--clusters=2"], "clusters: no such option"),
        (["--system=markov", "--stats=2"], "stats: no such option (did you mean states?)"),
        (["--clusters=0"], "clusters: 0 is out of range"),
        (["--clusters=many"], "clusters: expected int, got 'many'"),
        (["--size=7"], "size: 7 is out of range"),
    ],
)
def test_synth_refuses(tmp_path, capsys, options, says):
    assert command("synth", "gdynet", "--out", tmp_path / "data", *options) == 2
    assert says in one_line(capsys)
    assert not list(tmp_path.glob("data/*"))


KNOWN = """
model_type: 'gdynet_vanilla'  # or 'gdynet_ferro'
model:
  atom_fea_len: 8
  n_conv: 3
  state_len: 3
  cutoff: 6.0
  num_gaussians: 10
  tau: 3
  epsilon: 1.0e-10
  batch_size: 16
  learning_rate: 0.001
data:
  train_fnames: ['{data}/train']
  val_fnames: ['{data}/val']
  test_fnames: ['{data}/test']
training:
  epochs: 1
  loss_schedule: ['vamp2', 'vamp1', 'vamp2']
  seed: 1234
optimization:
  torch_compile: false
  mixed_precision: false
  torchscript: false
checkpointing:
  frequency: 1
  save_best_only: false
output:
  folder: '{folder}/my_experiment'
"""
"""The basic example of the known trainer's guide, smaller."""


def test_a_config_of_the_known_trainer_is_trained_as_converted(data, tmp_path, capsys):
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(KNOWN.format(data=data, folder=tmp_path))
    assert command("gdynet", "convert", theirs, "--out", ours) == 0
    assert command("train", "--config", ours) == 0
    assert command("evaluate", tmp_path / "my_experiment", "--split=test") == 0
    folder = tmp_path / "my_experiment"
    assert lists_of(folder)["loss_types"] == ["vamp2", "vamp1", "vamp2"]
    assert len(list((folder / "checkpoints").glob("step-*"))) == 3, "one of every epoch, and all are kept"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["per_device_batch_size"], settings["seed"], settings["learning_rate"]) == (16, 1234, 0.001)
    assert predictions(folder / "evaluation")[0].shape == (94, 3, 3)
