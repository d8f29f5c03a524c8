"""Commands of gdynet as its users meet them."""

from __future__ import annotations

import json

import pytest
import yaml
from support.gdynet_runs import changed, command, lists_of, one_line, predictions, with_nan


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
    assert command("inspect", bad) == 2
    assert "frame 23, atom 4, neighbour 2: nan is no distance" in capsys.readouterr().out
    without = changed(tmp_path / "without", data / "train")
    (without / "atom_directions.npy").unlink()
    assert command("inspect", without) == 0
    assert "no atom_directions.npy, which model_type=gdynet_ferro needs" in capsys.readouterr().out
    assert command("inspect", without, "--model_type=gdynet_vanilla") == 0
    assert "warnings: 0" in capsys.readouterr().out
    assert command("inspect", without, "--model_type=gdynet_ferro") == 2
    assert "Missing required" in capsys.readouterr().out
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
        (["--system=markof"], "got 'markof' (did you mean markov?)"),
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


GUIDE_CONFIG = """
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
"""The basic example of the GDyNet-ferro guide, smaller."""


def test_a_config_of_the_known_trainer_is_trained_as_converted(data, tmp_path, capsys):
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(GUIDE_CONFIG.format(data=data, folder=tmp_path))
    assert command("gdynet", "convert", theirs, "--out", ours) == 0
    assert command("train", "--config", ours) == 0
    assert command("evaluate", tmp_path / "my_experiment", "--split=test") == 0
    folder = tmp_path / "my_experiment"
    assert lists_of(folder)["loss_types"] == ["vamp2", "vamp1", "vamp2"]
    assert len(list((folder / "checkpoints").glob("step-*"))) == 3, "one of every epoch, and all are kept"
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert (settings["per_device_batch_size"], settings["seed"], settings["learning_rate"]) == (16, 1234, 0.001)
    assert predictions(folder / "evaluation")[0].shape == (94, 3, 3)
