"""A run of gdynet and what it leaves: lists, the best of every phase, predictions, programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.gdynet_runs import BATCH, IN_EPOCH, LISTS, TAU, command, job, lists_of, one_line, predictions, train
from support.processes import run
from support.runs import ON_CPU, weights_files

from accel_train import load_exported
from accel_train.run.weights import read_weights


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
        assert (loss == pytest.approx(-score)) if kind == "vamp2" else (-0.1 < loss < 0), "as the guide prints it"
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
    assert names == {"config.json", "identity.json", "lobe_0.safetensors", "lobe_0.pt2", "lobe_0.torchscript.pt"}
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
