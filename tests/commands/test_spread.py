"""The spread of runs over seeds: right numbers, from one place for all of them, and nothing left out unsaid."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.cli import main
from accel_train.commands.spread import EVALUATION, Row, spread, table
from accel_train.errors import DataError, UserError


def run_folder(folder: Path, seed: int, evaluated: dict[str, float] | None = None, split: str = "test") -> Path:
    """As a completed run leaves it; its last evaluation in training found a loss of ``seed``."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: {seed}\noutput_dir: {folder}\ntask: {{init_args: {{width: 3}}}}\n")
    (folder / "status.json").write_text(json.dumps({"state": "completed", "step": 20}))
    records = [
        {"kind": "train", "step": 10, "loss": 99.0, "lr": 0.1},
        {"kind": "eval", "step": 10, "epoch": 0, "loss": 50.0, "auc": 0.5},
        {"kind": "eval", "step": 20, "epoch": 1, "loss": float(seed), "auc": None, "non_finite": ["auc"], "w1/a": 2.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if evaluated is not None:
        (folder / "evaluation").mkdir()
        (folder / EVALUATION).write_text(json.dumps({"split": split, "metrics": evaluated}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [run_folder(tmp_path / f"run{seed}", seed) for seed in (1, 2, 6)]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_the_numbers_of_a_row(values: list[float]):
    row = Row.of("x", values)
    assert (row.low, row.high, row.runs) == (min(values), max(values), len(values))
    assert row.mean == pytest.approx(np.mean(values), abs=1e-9)
    expected = np.std(values, ddof=1) if len(values) > 1 else math.nan
    assert row.std == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def test_the_last_evaluation_in_training(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    assert main(["runs", "spread", *map(str, runs)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "3 runs, last evaluation in training",
        "seed: 1, 2, 6",
        "",
        "        mean     std     min     max",
        "loss  3.0000  2.6458  1.0000  6.0000",
    ]
    assert "w1/a" in table(spread(runs), details=True)


def test_what_evaluate_found(tmp_path: Path):
    runs = [run_folder(tmp_path / str(seed), seed, {"f1": seed / 10, "auc": math.nan}) for seed in range(4)]
    text = runs[0] / EVALUATION
    text.write_text(text.read_text().replace("NaN", "0.75"))
    found = spread(runs)
    assert found.source == "evaluation.json, test" and found.differ == {"seed": [0, 1, 2, 3]}
    assert [(row.name, row.runs) for row in found.rows] == [("f1", 4), ("auc", 1)]
    assert [line.split()[-1] for line in table(found).splitlines()[3:]] == ["runs", "4", "1"]


def test_runs_that_do_not_differ_are_pointed_out(tmp_path: Path):
    twins = [run_folder(tmp_path / name, 3) for name in "ab"]
    assert "all settings are the same" in table(spread(twins))
    assert "all settings" not in table(spread(twins[:1]))
    (twins[1] / "config.yaml").write_text("seed: 3\ntask: {init_args: {width: 4}}\n")
    assert spread(twins).differ == {"task.init_args.width": [3, 4]}


def test_what_cannot_be_put_together(runs: list[Path], tmp_path: Path):
    evaluated, other = run_folder(tmp_path / "e", 8, {"f1": 1}), run_folder(tmp_path / "o", 9, {"f1": 1}, "validation")
    for given_runs, says in (
        ([*runs, tmp_path / "none"], "none: no config.yaml there; is it a run folder"),
        ([*runs, runs[0]], "run1: this run is given twice"),
        ([evaluated, *runs], "run1: not evaluated, but others are"),
        ([evaluated, other], "o: evaluated on validation, .*e on test"),
    ):
        with pytest.raises(UserError, match=says):
            spread(given_runs)
    (runs[2] / "status.json").write_text('{"state": "stopped"}')
    with pytest.raises(UserError, match="run6: this run is stopped; wait"):
        spread(runs)
    (evaluated / EVALUATION).write_text('{"split": "test"}')
    with pytest.raises(DataError, match="evaluation.json is damaged.*evaluate that run again"):
        spread([evaluated])
    (runs[0] / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="there are no metrics in last evaluation"):
        spread(runs[:1])
    (runs[0] / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="metrics.jsonl: not there"):
        spread(runs[:1])
