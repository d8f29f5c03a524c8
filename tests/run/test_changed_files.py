"""Files of training and validation that change between two sessions, or under a running one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from support.runs import config, steps_saved
from support.toy_sources import Arrays
from support.toys import Toy

from accel_train import IndexedSource, Trainer, inspect
from accel_train.cli import main
from accel_train.errors import DataError, UserError


class OnFiles(Toy):
    movable = ("folder",)

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        path = self.folder / f"{split}.npy"
        return IndexedSource(Arrays(path), batch_size, seed, split == "train") if path.exists() else None


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    for seed, split in enumerate(("train", "validation")):
        x = np.random.default_rng(seed).normal(size=(50, 1, 4)).astype(np.float32)
        np.save(tmp_path / "data" / f"{split}.npy", x)
    return tmp_path / "data"


@pytest.fixture
def large(monkeypatch) -> None:
    """Too large to be hashed at the start, so when they are read: a block for each item."""
    monkeypatch.setattr("accel_train.data.held.AT_START", 100)
    monkeypatch.setattr("accel_train.data.held.BLOCK_BYTES", 16)


def fit(data: Path, folder: Path, steps: int, on_step=None, **settings) -> None:
    Trainer(OnFiles(str(data)), on_step=on_step, **config(folder, max_steps=steps, **settings)).fit()


def edit(data: Path, split: str, by: float = 1.0) -> None:
    array = np.lib.format.open_memmap(data / f"{split}.npy", "r+")
    array[30, 0, 0] += by
    array.flush()


def of_model(folder: Path) -> dict:
    return json.loads((folder / "model" / "identity.json").read_text())


def test_other_validation_data_are_refused_at_the_start(data, tmp_path, capsys):
    fit(data, tmp_path, 6)
    edit(data, "validation")
    with pytest.raises(UserError, match="evaluated on other validation data.*: x has another content.*allow_changed"):
        fit(data, tmp_path, 12)
    assert main(["verify", str(tmp_path)]) == 2
    assert "evaluated on other validation data" in capsys.readouterr().err
    fit(data, tmp_path, 12, allow_changed_data=True)
    assert "resuming with changed validation data: x has another content" in capsys.readouterr().out
    fit(data, tmp_path, 18)


def test_other_validation_data_are_refused_when_they_are_read(data, tmp_path, large):
    fit(data, tmp_path, 6)
    edit(data, "validation")
    with pytest.raises(UserError, match="validation data, Arrays, items 30 to 30: content differs from what this run"):
        fit(data, tmp_path, 12)
    assert 6 in steps_saved(tmp_path)
    with pytest.raises(UserError, match="validation data, Arrays, items 30 to 30: content differs"):
        main_verify(tmp_path)


def main_verify(folder: Path) -> None:
    from accel_train.train.verifying import Recorded, check

    recorded = Recorded(folder, trust=True)
    check(recorded, recorded.intervals(0, 6)[0])


def test_what_was_evaluated_on_stands_beside_what_weights_follow_from(data, tmp_path):
    fit(data, tmp_path / "one", 6)
    edit(data, "validation")
    fit(data, tmp_path / "two", 6)
    one, two = (of_model(tmp_path / name) for name in ("one", "two"))
    assert one["digest"] == two["digest"] and one["validation"]["digest"] != two["validation"]["digest"]
    assert "  validation 50 items, fingerprint" in inspect(str(tmp_path / "one" / "model"))
    plateau = dict(lr_scheduler_type="plateau", lr_scheduler_kwargs={"patience": 3})
    fit(data, tmp_path / "three", 6, **plateau)
    edit(data, "validation")
    fit(data, tmp_path / "four", 6, **plateau)
    assert of_model(tmp_path / "three")["digest"] != of_model(tmp_path / "four")["digest"]


def test_a_file_that_is_written_to_under_a_session_ends_it(data, tmp_path):
    def write(step) -> None:
        if step.number == 9:
            edit(data, "train")

    with pytest.raises(DataError, match=r"train\.npy was written to while this run was reading.*start again"):
        fit(data, tmp_path, 18, write, save_steps=6, eval_steps=0)
    assert steps_saved(tmp_path) == [6], "no later one, which might hold what was learned of both"
    with pytest.raises(UserError, match="x has another content"):
        fit(data, tmp_path, 18, eval_steps=0)
    np.save(data / "train.npy", np.random.default_rng(0).normal(size=(50, 1, 4)).astype(np.float32))
    fit(data, tmp_path, 18, eval_steps=0)


def test_validation_data_that_are_written_to_cost_an_evaluation(data, tmp_path):
    def write(step) -> None:
        if step.number == 9:
            edit(data, "validation")

    with pytest.raises(
        DataError, match=r"step 12 is saved, but its evaluation.*: validation data, .*n\.npy was written"
    ):
        fit(data, tmp_path, 18, write)
    assert 12 in steps_saved(tmp_path)


def test_a_file_that_another_one_replaces_is_mentioned_once(data, tmp_path, capsys):
    def replace(step) -> None:
        if step.number == 9:
            np.save(data / "new.npy", np.zeros((50, 1, 4), np.float32))
            os.replace(data / "new.npy", data / "train.npy")

    fit(data, tmp_path / "run", 18, replace, save_steps=6)
    assert capsys.readouterr().out.count("train.npy was replaced or removed while this run is reading") == 1
    with pytest.raises(UserError, match="x has another content"):
        fit(data, tmp_path / "run", 24)
