"""What people compare two runs with, and most laws here, finds whatever differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import same_run
import torch
from safetensors.torch import save_file


def made(folder: Path, loss: float = 0.5, wall_time: float = 1.0, **weights: torch.Tensor) -> Path:
    (folder / "model").mkdir(parents=True)
    record = {"kind": "train", "step": 5, "loss": loss, "wall_time": wall_time, "cuda/alloc_mib": wall_time}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    save_file({"weight": torch.tensor([1.0, 2.0]), **weights}, folder / "model" / "model.safetensors")
    return folder


def found(one: Path, other: Path) -> list[str]:
    return list(same_run.differences(one, other))


def test_the_clock_and_the_memory_of_a_gpu_do_not_count(tmp_path: Path):
    assert found(made(tmp_path / "a"), made(tmp_path / "b", wall_time=2.0)) == []


@pytest.mark.parametrize(("change", "says"), [
    ({"loss": 0.25}, "metrics.jsonl: train at step 5: loss is 0.5 and 0.25"),
    ({"weight": torch.tensor([1.0, 2.5])}, "model/model.safetensors: weight is 2.0 in element 1 and 2.5"),
    ({"weight": torch.ones(3)}, "weight is torch.float32 (2,) and torch.float32 (3,)"),
    ({"bias": torch.ones(3)}, "model/model.safetensors: bias is missing and torch.float32 (3,)"),
])  # fmt: skip
def test_each_difference_is_a_line(tmp_path: Path, change: dict, says: str):
    (line,) = found(made(tmp_path / "a"), made(tmp_path / "b", **change))
    assert line.endswith(says)


def test_one_bit_is_enough(tmp_path: Path):
    """Of equal numbers, too."""
    zeros = [made(tmp_path / str(zero), weight=torch.tensor([zero])) for zero in (0.0, -0.0)]
    assert found(*zeros) == ["model/model.safetensors: weight is 0.0 and -0.0"]


def test_files_and_records_that_one_run_lacks(tmp_path: Path):
    one, other = made(tmp_path / "a"), made(tmp_path / "b")
    (one / "metrics.jsonl").write_text("")
    (one / "model" / "model.safetensors").rename(one / "model" / "other.safetensors")
    assert found(one, other) == [
        "metrics.jsonl: the number of records is 0 and 1",
        "files with weights: model/model.safetensors, model/other.safetensors is in one run only",
    ]
    (one / "model" / "other.safetensors").unlink()
    assert "no weights to compare" in found(one, other)


def test_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*runs: Path) -> int:
        monkeypatch.setattr("sys.argv", ["same_run.py", *map(str, runs)])
        return same_run.main()

    one, other = made(tmp_path / "a"), made(tmp_path / "b", loss=1.0)
    assert call(one, one) == 0 and capsys.readouterr().out == "the same\n"
    assert call(one, other) == 1 and capsys.readouterr().out.splitlines()[-1] == "1 difference"
    assert call(one) == call(one, tmp_path / "none") == 2 and "usage" in capsys.readouterr().err
