"""A config of the GDyNet-ferro trainer becomes one of ours: every key of it is accounted for."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from accel_train.config.plain import flatten
from accel_train.config.read import read, settings_for
from accel_train.errors import UserError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.convert import KEYS, convert, tree
from accel_train.tasks.gdynet.task import GDyNetTask

main = COMMANDS["convert"].run

GUIDE = {
    "model_type": "gdynet_vanilla",
    "model": {
        "atom_fea_len": 64, "n_conv": 3, "state_len": 10, "cutoff": 6.0, "num_gaussians": 50, "tau": 10,
        "epsilon": 1.0e-10, "batch_size": 32, "learning_rate": 0.001,
    },
    "data": {"train_fnames": ["/path/to/train"], "val_fnames": ["/path/to/val"], "test_fnames": ["/path/to/test"]},
    "training": {"epochs": 30, "loss_schedule": ["vamp2", "vamp1", "vamp2"], "seed": 1234},
    "optimization": {"torch_compile": False, "mixed_precision": False, "torchscript": False},
    "checkpointing": {"frequency": 1, "save_best_only": False},
    "output": {"folder": "./output/my_experiment"},
}  # fmt: skip
"""The basic example of its guide."""

ALL = copy.deepcopy(GUIDE)
ALL["model"] |= {"mode": "regularize"}
ALL["optimization"] = {
    "torch_compile": True, "compile_mode": "max-autotune", "mixed_precision": True, "torchscript": True
}  # fmt: skip
ALL["checkpointing"] = {"frequency": 10, "save_best_only": True}
ALL["wandb"] = {"enabled": True, "project": "gdynet", "entity": "a team", "run_name": "first"}


def converted(tmp_path, config, capsys=None):
    """(Our tree, what is printed) for a config as a tree or as text."""
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    ours.unlink(missing_ok=True)
    assert main([str(theirs), "--out", str(ours)]) == 0
    return read(["--config", str(ours)]), capsys.readouterr().out if capsys else ""


def changed(config=GUIDE, **sections):
    """The config with these keys of these sections changed."""
    config = copy.deepcopy(config)
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values} if isinstance(values, dict) else values
    return config


def test_the_example_of_the_guide(tmp_path, capsys):
    ours, said = converted(tmp_path, GUIDE, capsys)
    assert ours == {
        "task": {
            "class_path": "gdynet",
            "init_args": {
                "model_type": "gdynet_vanilla", "atom_fea_len": 64, "n_conv": 3, "state_len": 10, "cutoff": 6.0,
                "num_gaussians": 50, "tau": 10, "epsilon": 1e-10, "mode": "trunc", "train_fnames": ["/path/to/train"],
                "val_fnames": ["/path/to/val"], "test_fnames": ["/path/to/test"],
                "loss_schedule": ["vamp2", "vamp1", "vamp2"], "epochs": 30,
            },
        },
        "per_device_batch_size": 32, "learning_rate": 0.001, "seed": 1234, "output_dir": "./output/my_experiment",
        "torch_compile": None, "mixed_precision": "no", "save_steps": "1ep", "save_total_limit": None,
    }  # fmt: skip
    assert "per rank" in said and "global_batch_size" in said
    task = GDyNetTask(**ours["task"]["init_args"])
    assert [phase["length"] for phase in task.phases()] == ["30ep"] * 3


def test_every_key_there_is(tmp_path, capsys):
    assert set(flatten(ALL)) == set(KEYS)
    ours, said = converted(tmp_path, ALL, capsys)
    for key in KEYS:
        assert f"  {key} " in said
    init = ours["task"]["init_args"]
    assert init["mode"] == "regularize" and "repeat" not in init
    assert (ours["torch_compile"], ours["mixed_precision"]) == ("max-autotune", "fp16")
    assert (ours["save_steps"], ours["save_total_limit"]) == ("10ep", 1)
    assert ours["report_to"] == ["tensorboard", "wandb"]
    for text in (
        "bf16", "accel-train export", "export WANDB_PROJECT=gdynet", "export WANDB_ENTITY='a team'",
        "export WANDB_NAME=first", "lobes", "norm",
    ):  # fmt: skip
        assert text in said
    settings_for(GDyNetTask, {name: value for name, value in ours.items() if name != "task"})


@given(st.sets(st.sampled_from(sorted(set(KEYS) - {"data.train_fnames"}))), st.booleans())
def test_no_key_is_passed_over(left_out, null):
    """Whichever are left out or null, each that is given is spoken of, and one that is not changes nothing."""
    flat = flatten(ALL)
    given_keys = {key: None if key in left_out else value for key, value in flat.items() if null or key not in left_out}
    changes = convert(given_keys)
    spoken_of = {change.old for change in changes}
    assert set(given_keys) <= spoken_of <= set(given_keys) | {"model_type", "model.mode"}
    complete = flatten(tree(convert(flat)))
    for name, value in flatten(tree(changes)).items():
        last = name.rpartition(".")[2]
        if last not in ("mode", "model_type", "torch_compile", "report_to"):
            assert value == complete[name]


def test_what_is_not_given_is_left_to_the_task(tmp_path, capsys):
    ours, said = converted(tmp_path, {"data": {"train_fnames": "/d"}, "wandb": None, "model": {}}, capsys)
    init = {"model_type": "gdynet_ferro", "mode": "trunc", "train_fnames": ["/d"]}
    assert ours == {"task": {"class_path": "gdynet", "init_args": init}}
    assert "their default" in said


@pytest.mark.parametrize("number", [4, 5])
def test_a_list_of_files_stays_one(tmp_path, number):
    names = ("atom_types", "target_index", "nbr_lists", "nbr_dists", "atom_directions")
    files = [f"/data/{name}.npy" for name in names[:number]]
    ours, _ = converted(tmp_path, changed(data={"train_fnames": files}))
    assert ours["task"]["init_args"]["train_fnames"] == files


@pytest.mark.parametrize(
    ("written", "schedule", "repeat"),
    [
        ("['vamp2', 'vamp1'] * 3  # expands in Python", ["vamp2", "vamp1"], 3),
        ("\"['vamp2', 'vamp1'] * 3\"", ["vamp2", "vamp1"], 3),
        ("[vamp2]*2", ["vamp2"], 2),
        ("[vamp1] * 1", ["vamp1"], None),
        ('["vamp2", "vamp2", "vamp1"]', ["vamp2", "vamp2", "vamp1"], None),
        ("vamp2", ["vamp2"], None),
        ("\n    - vamp2\n    - vamp1", ["vamp2", "vamp1"], None),
    ],
)
def test_schedules(tmp_path, written, schedule, repeat):
    text = f"data: {{train_fnames: [/d]}}\ntraining:\n  epochs: 2\n  loss_schedule: {written}\n"
    init = converted(tmp_path, text)[0]["task"]["init_args"]
    assert init["loss_schedule"] == schedule and init.get("repeat") == repeat
    assert len(GDyNetTask(**init).phases()) == len(schedule) * (repeat or 1)


def test_wandb_that_is_off(tmp_path, capsys):
    ours, said = converted(tmp_path, changed(wandb={"enabled": False, "project": "gdynet"}), capsys)
    assert ours["report_to"] == ["tensorboard"] and "wandb is not enabled" in said and "WANDB_PROJECT" not in said


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"model": {"tua": 3}}, r"model.tua: the GDyNet-ferro trainer has no such key \(did you mean model.tau\?\)"),
        ({"training": {"learning_rate": 1e-3}}, r"training.learning_rate: .* \(did you mean model.learning_rate\?\)"),
        ({"optimisation": {"torch_compile": True}}, r"optimisation.torch_compile: .*mean optimization.torch_compile"),
        ({"colour": "red"}, "^colour: the GDyNet-ferro trainer has no such key; correct it or take it out"),
        ({"model_type": "gdynet_fero"}, r"model_type: expected .*gdynet_ferro"),
        ({"model_type": None, "model": {"mode": "truncate"}}, r"model.mode: expected .*trunc"),
        ({"model": {"tau": "ten"}}, "model.tau: expected int, got 'ten'"),
        ({"model": {"state_len": 1}}, "task.init_args.state_len: 1 is out of range"),
        ({"model": {"batch_size": 0}}, "per_device_batch_size: 0 is out of range"),
        ({"data": {"train_fnames": None}}, "data.train_fnames: missing"),
        ({"data": {"train_fnames": {"a": 1}}}, r"data.train_fnames.a: the GDyNet-ferro trainer has no such key"),
        ({"training": {"loss_schedule": ["vamp2", "VAMP1"]}}, r"'VAMP1' is no loss .* \(did you mean vamp1\?\)"),
        ({"training": {"loss_schedule": ["vamp_sym"]}}, "which ran it as vamp2"),
        ({"training": {"loss_schedule": "['vamp2'] + ['vamp1']"}}, "training.loss_schedule: "),
        ({"training": {"loss_schedule": []}}, "at least one loss"),
        ({"checkpointing": {"frequency": 0}}, "checkpointing.frequency: 0 is out of range"),
        ({"output": "./output"}, "output: expected keys, such as folder, got './output'"),
    ],
)
def test_what_is_refused(tmp_path, sections, says):
    with pytest.raises(UserError, match=says):
        converted(tmp_path, changed(**sections))
    assert not (tmp_path / "ours.yaml").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a\n", "expected lines of KEY: VALUE"),
        ("model: {tau: 1\ndata:\n", "line 2: "),
        ("data:\n  train_fnames: [/d]\n  train_fnames: [/e]\n", "line 3: train_fnames is given twice"),
    ],
)
def test_what_is_no_config(tmp_path, text, says):
    with pytest.raises(UserError, match=says):
        converted(tmp_path, text)


def test_files(tmp_path):
    with pytest.raises(UserError, match="nowhere.yaml: No such file"):
        main([str(tmp_path / "nowhere.yaml"), "--out", str(tmp_path / "ours.yaml")])
    (tmp_path / "ours.yaml").write_text("precious")
    with pytest.raises(UserError, match="ours.yaml exists; give another --out"):
        main([str(tmp_path / "theirs.yaml"), "--out", str(tmp_path / "ours.yaml")])
    with pytest.raises(UserError, match="convert: .*--out"):
        main([str(tmp_path / "theirs.yaml")])
    assert (tmp_path / "ours.yaml").read_text() == "precious"
