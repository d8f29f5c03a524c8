"""A damaged checkpoint is noticed before anything is loaded from it, and the one before it is used."""

from __future__ import annotations

import json
import shutil

import pytest
from support.processes import run
from support.runs import config, weights_files

from accel_train import cli
from accel_train.run.checkpoint import verify


def flip(path, at=None):
    """One bit of the byte ``at``, or of the one in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "emptied": lambda p: p.write_bytes(b""),
    "gone": lambda p: p.unlink(),
}
SETTINGS = dict(save_steps=4, eval_steps=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that stopped at step 12, with checkpoints of steps 4, 8 and 12, and its end without any damage."""
    folder = tmp_path_factory.mktemp("made")
    job = {"task_args": {"dropout": 0.2}}
    run(job | {"config": config(folder / "stopped", **SETTINGS), "stop_at": {"step": 12}})
    run(job | {"config": config(folder / "whole", **SETTINGS)})
    files = sorted(p.name for p in (folder / "stopped/checkpoints/step-000000012").iterdir())
    assert {"MANIFEST.json", "progress.json", "config.yaml", "model.safetensors", "optimizer.bin"} <= set(files)
    return folder, files


def go_on(made, tmp_path, hurt, **settings):
    folder, _ = made
    shutil.copytree(folder / "stopped", tmp_path / "run", symlinks=True)
    hurt(tmp_path / "run" / "checkpoints")
    return run({"task_args": {"dropout": 0.2}, "config": config(tmp_path / "run", **SETTINGS | settings)})[0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file_in_turn(made, tmp_path, damage):
    folder, files = made
    for name in files:
        result = go_on(made, tmp_path / name, lambda c, n=name: DAMAGES[damage](c / "step-000000012" / n))
        assert result["error"] is None, name
        assert min(result["samples"]) == 9, f"resumed from elsewhere with {name} {damage}"
        warnings = [title for kind, title in result["events"] if kind == "warning"]
        assert any(name in title and "step-000000012" in title for title in warnings), warnings
        assert weights_files(tmp_path / name / "run") == weights_files(folder / "whole")


def test_every_third_byte_of_the_manifest(made, tmp_path):
    """Either it is noticed, or what it says of the files is still the same."""
    checkpoint = tmp_path / "step-000000012"
    shutil.copytree(made[0] / "stopped/checkpoints/step-000000012", checkpoint)
    path = checkpoint / "MANIFEST.json"
    good = path.read_bytes()
    files = json.loads(good)["files"]
    for at in range(0, len(good), 3):
        path.write_bytes(good)
        flip(path, at)
        if verify(checkpoint) is None:
            assert json.loads(path.read_bytes())["files"] == files, f"byte {at}"


def test_two_damaged_in_different_ways(made, tmp_path):
    def hurt(checkpoints):
        DAMAGES["flipped"](checkpoints / "step-000000012/model.safetensors")
        shutil.rmtree(checkpoints / "step-000000008")
        (checkpoints / "step-000000008").mkdir()

    result = go_on(made, tmp_path, hurt)
    assert min(result["samples"]) == 5
    assert weights_files(tmp_path / "run") == weights_files(made[0] / "whole")


def test_all_damaged(made, tmp_path, capsys):
    def hurt(checkpoints):
        for path in checkpoints.glob("step-*/optimizer.bin"):
            DAMAGES["flipped"](path)

    kind, text = go_on(made, tmp_path, hurt)["error"]
    assert kind == "UserError" and "every checkpoint is damaged" in text and "optimizer.bin" in text
    arguments = [f"--{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in
                 config(tmp_path / "run", **SETTINGS).items() if v is not None]  # fmt: skip
    assert cli.main(["train", "--task=support.toys.Toy", "--task.init_args.dropout=0.2", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("accel-train: error: ") and "optimizer.bin" in error and "Traceback" not in error
    assert len(list((tmp_path / "run/checkpoints").glob("step-*"))) == 3, "the evidence is gone"


def test_a_path_that_does_not_exist(made, tmp_path):
    where = str(tmp_path / "run/checkpoints/step-000000099")
    kind, text = go_on(made, tmp_path, lambda c: None, resume_from_checkpoint=where)["error"]
    assert kind == "UserError" and where in text and "does not exist" in text and "12" in text


def test_a_named_checkpoint_that_is_damaged_is_refused(made, tmp_path):
    where = str(tmp_path / "run/checkpoints/step-000000008")
    hurt = lambda c: DAMAGES["cut"](c / "step-000000008/model.safetensors")  # noqa: E731
    kind, text = go_on(made, tmp_path, hurt, resume_from_checkpoint=where)["error"]
    assert kind == "UserError" and "damaged" in text and "model.safetensors" in text


def test_two_ranks_use_the_same_older_one(made, tmp_path):
    job = {"task_args": {"dropout": 0.2}}
    run(job | {"config": config(tmp_path / "whole", **SETTINGS)}, 2)
    run(job | {"config": config(tmp_path / "hurt", **SETTINGS), "stop_at": {"step": 12}}, 2)
    DAMAGES["flipped"](tmp_path / "hurt/checkpoints/step-000000012/random_states_0.pkl")
    results = run(job | {"config": config(tmp_path / "hurt", **SETTINGS)}, 2)
    assert {min(r["samples"]) for r in results} == {9}
    assert weights_files(tmp_path / "hurt") == weights_files(tmp_path / "whole")
