"""A data set is there whole or not at all, says its truth, and never mixes with what is there."""

from __future__ import annotations

import json
import os
import shlex

import pytest

from accel_train.data.synthetic import training_line, write_data_set
from accel_train.errors import UserError


def fill(folder):
    (folder / "a.txt").write_text("data")
    (folder / "part").mkdir()
    return {"options": {"walls": 2}, "truth": {"rate": 0.5}}


@pytest.mark.parametrize("exists", [False, True])
def test_a_set_has_its_files_and_its_truth(tmp_path, exists):
    out = tmp_path / "above" / "set"
    if exists:
        out.mkdir(parents=True)
    before = out.stat().st_ino if exists else None
    about = write_data_set(out, 7, 20, fill)
    assert sorted(path.name for path in out.iterdir()) == ["a.txt", "metadata.json", "part"]
    assert json.loads((out / "metadata.json").read_text()) == about
    assert (about["seed"], about["size"], about["truth"]) == (7, 20, {"rate": 0.5})
    assert list(out.parent.iterdir()) == [out]
    assert before in (None, out.stat().st_ino)  # a shell may stand in it
    assert out.stat().st_mode == (tmp_path / "above").stat().st_mode


def test_a_set_that_fails_leaves_nothing(tmp_path):
    def broken(folder):
        fill(folder)
        raise OSError("no space left")

    for out in (tmp_path / "new", tmp_path):
        with pytest.raises(OSError, match="no space left"):
            write_data_set(out, 0, 1, broken)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_data_set(tmp_path, 0, 1, lambda folder: {"truth": {"rate": float("nan")}})
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path):
    (tmp_path / "b.txt").write_text("mine")
    for out, says in ((tmp_path, "there is b.txt in .* already"), (tmp_path / "b.txt", "is not a folder")):
        with pytest.raises(UserError, match=f"out: .*{says}; give an empty or new"):
            write_data_set(out, 0, 1, fill)
    assert os.listdir(tmp_path) == ["b.txt"]


def test_the_line_is_what_a_shell_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "x.yaml").touch()
    line = training_line("examples/x.yaml", {"files": "my set/*.parquet", "splits": ["a b"], "width": 3})
    start, options = shlex.split(line)[:4], shlex.split(line)[4:]
    assert start == ["accel-train", "train", "--config", "examples/x.yaml"]
    assert options == [
        "--task.init_args.files=my set/*.parquet", '--task.init_args.splits=["a b"]', "--task.init_args.width=3",
    ]  # fmt: skip
