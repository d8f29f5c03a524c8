"""Where weights come from: in every checkpoint and model, the same however often a run was stopped, and a chain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from support.runs import config
from support.toy_sources import Arrays
from support.toys import Toy

from accel_train import IndexedSource, Trainer, inspect
from accel_train.commands.export import export_run
from accel_train.errors import DataError, UserError
from accel_train.run import identity
from accel_train.run.checkpoint import write_manifest


class OnFiles(Toy):
    movable = ("folder",)

    def __init__(self, folder: str, width: int = 8) -> None:
        super().__init__(width=width)
        self.folder = Path(folder)

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        return IndexedSource(Arrays(self.folder / "x.npy"), batch_size, seed) if split == "train" else None


@pytest.fixture
def data(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", np.random.default_rng(0).normal(size=(50, 1, 4)).astype(np.float32))
    return tmp_path / "data"


def fit(data: Path, folder: Path, steps: int, **settings) -> None:
    Trainer(OnFiles(str(data)), **(config(folder, max_steps=steps, eval_steps=0) | settings)).fit()


def of_model(folder: Path) -> dict:
    return json.loads((folder / "model" / "identity.json").read_text())


def test_an_interruption_leaves_no_trace_and_a_change_does(data, tmp_path):
    fit(data, tmp_path / "whole", 14)
    fit(data, tmp_path / "pieces", 7)
    fit(data, tmp_path / "pieces", 14)
    whole, pieces = (of_model(tmp_path / name) for name in ("whole", "pieces"))
    assert pieces["gone_on_from"]["step"] == 7 and whole["gone_on_from"] is None
    assert whole["digest"] == pieces["digest"] and whole["before"] is None and whole["step"] == 14
    for name in ("whole", "pieces"):
        with safe_open(tmp_path / name / "model" / "model.safetensors", "np") as file:
            assert file.metadata()[identity.HEADER] == whole["digest"]
    assert str(tmp_path) not in json.dumps(pieces)
    fit(data, tmp_path / "pieces", 21, learning_rate=0.02)
    changed = of_model(tmp_path / "pieces")
    assert changed["before"] == {
        "digest": pieces["digest"],
        "step": 14,
        "changed": ["config.learning_rate: 0.01 -> 0.02"],
    }
    text = inspect(str(tmp_path / "pieces" / "model"))
    assert f"before     step 14 of {pieces['digest'][:16]}" in text and "learning_rate: 0.01 -> 0.02" in text
    export_run(tmp_path / "pieces", None, tmp_path / "exported", trust=True)
    assert json.loads((tmp_path / "exported" / "identity.json").read_text()) == changed


def test_an_identity_that_is_not_that_of_the_weights(data, tmp_path):
    fit(data, tmp_path / "run", 7)
    path = tmp_path / "run" / "model" / "identity.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "NOT TO BE TRUSTED: identity.json was altered" in inspect(str(path.parent))


def test_a_checkpoint_without_one(data, tmp_path, capsys):
    fit(data, tmp_path, 7)
    checkpoint = (tmp_path / "checkpoints" / "latest").resolve()
    (checkpoint / "identity.json").unlink()
    write_manifest(checkpoint, {"step": 7})
    assert "not known" in inspect(str(checkpoint))
    capsys.readouterr()
    fit(data, tmp_path, 14)
    assert capsys.readouterr().out.count("says nothing of its identity") == 1
    assert of_model(tmp_path)["before"] == {**identity.UNKNOWN, "step": 7}


def test_weights_of_another_run(data, tmp_path):
    fit(data, tmp_path / "one", 7)
    fit(data, tmp_path / "two", 7, init_from=str(tmp_path / "one" / "model"))
    assert of_model(tmp_path / "two")["before"]["digest"] == of_model(tmp_path / "one")["digest"]


def edit(data: Path) -> None:
    array = np.lib.format.open_memmap(data / "x.npy", "r+")
    array[30, 0, 0] += 1
    array.flush()


def test_other_values_are_refused_at_the_start(data, tmp_path, capsys):
    fit(data, tmp_path / "run", 7)
    edit(data)
    with pytest.raises(UserError, match="x has another content.*--allow_changed_data"):
        fit(data, tmp_path / "run", 14)
    fit(data, tmp_path / "run", 14, allow_changed_data=True)
    assert "resuming with changed data: x has another content" in capsys.readouterr().out
    assert any(line.startswith("data.digest") for line in of_model(tmp_path / "run")["before"]["changed"])


def test_other_values_are_refused_when_they_are_read(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("accel_train.data.held.AT_START", 100)
    monkeypatch.setattr("accel_train.data.held.BLOCK_BYTES", 16)
    fit(data, tmp_path / "run", 8)
    assert of_model(tmp_path / "run")["content"] | {"digest": ""} == {
        "algorithm": "xxh3_64", "blocks": 50, "one_in": 1, "read": 50, "digest": ""
    }  # fmt: skip
    edit(data)
    with pytest.raises(DataError, match="Arrays, items 30 to 30: content differs from what this run read before"):
        fit(data, tmp_path / "run", 14)
    saved = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert saved[0] == "step-000000008" and len(saved) <= 2, "the last whole step"
    capsys.readouterr()
    fit(data, tmp_path / "run", 21, allow_changed_data=True)
    assert "going on with changed data: Arrays, items 30 to 30" in capsys.readouterr().out
    fit(data, tmp_path / "run", 28)


class Squares:
    """Nothing tells what they are."""

    def __len__(self) -> int:
        return 50

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        x = np.repeat(indices.astype(np.float32), 4).reshape(-1, 1, 4) / 50
        return {"index": indices, "x": x, "y": x.mean(-1) ** 2, "mask": np.ones((len(x), 1), np.float32)}


class OfSquares(Toy):
    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        return IndexedSource(Squares(), batch_size, seed) if split == "train" else None


def test_data_without_an_identity_are_mentioned_once(tmp_path, capsys):
    for steps in (7, 14):
        Trainer(OfSquares(), **config(tmp_path, max_steps=steps)).fit()
        assert capsys.readouterr().out.count("nothing tells whether the data of Squares are the same") == 1
