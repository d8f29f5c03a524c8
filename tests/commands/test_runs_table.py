"""Runs side by side: what differs, what became of them, the right evaluation of each."""

import csv
import io
import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.cli import main
from accel_train.commands.runs_table import as_csv, as_text, differing, rows_of
from accel_train.config.yaml_text import dumps
from accel_train.errors import UserError

ROOT = Path(__file__).parents[2]


def run_folder(folder: Path, losses, settings=None, state="completed", task="a.B") -> Path:
    """As a run leaves it whose evaluations found these losses, every ten steps."""
    folder.mkdir(parents=True)
    config = {"task": {"class_path": task, "init_args": {"width": 3}}, "output_dir": str(folder), "seed": 0}
    (folder / "config.yaml").write_text(dumps(config | (settings or {})))
    (folder / "status.json").write_text(json.dumps({"state": state, "step": 10 * len(losses)}))
    records = [{"kind": "train", "step": 5, "loss": -9.0, "lr": 0.1}]
    for i, loss in enumerate(losses):
        auc = None if not math.isfinite(loss) else 1 / (1 + abs(loss))
        kept = {"loss": loss if math.isfinite(loss) else None, "auc": auc, "mae": float(i), "mae/near": 7.0}
        records.append({"kind": "eval", "step": 10 * (i + 1), "epoch": 0, "phase": "loss", **kept})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run_folder(tmp_path / "runs/a", [3.0, 1.0, 2.0], {"learning_rate": 0.1})
    run_folder(tmp_path / "runs/sweep/b", [0.5], {"learning_rate": 0.3, "report_to": []}, state="stopped")
    run_folder(tmp_path / "runs/c", [], {"learning_rate": 1e-05}, state="crashed")
    (tmp_path / "runs/a/checkpoints/step-1").mkdir(parents=True)
    for name in ("config.yaml", "status.json"):  # what lies in a run is none
        (tmp_path / "runs/a/checkpoints/step-1" / name).write_text("seed: 1")
    (tmp_path / "runs/again").symlink_to(tmp_path / "runs/a")
    return tmp_path / "runs"


def test_the_table(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    assert main(["runs", "table"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run      learning_rate  report_to      state  step    loss     auc     mae  at step",
        "sweep/b            0.3         []    stopped    10  0.5000  0.6667  0.0000       10",
        "a                  0.1          -  completed    30  1.0000  0.5000  1.0000       20",
        "c                1e-05          -    crashed     0       -       -       -        -",
    ]


def test_csv_has_everything(runs, capsys):
    assert main(["runs", "table", str(runs), "--csv"]) == 0
    first, *others = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert first["run"] == "sweep/b" and first["learning_rate"] == "0.3" and float(first["mae/near"]) == 7
    assert [row["state"] for row in others] == ["completed", "crashed"] and others[1]["loss"] == ""


def test_greater_may_be_better(tmp_path):
    settings = {"metric_for_best_model": "auc", "greater_is_better": True}
    for name, losses in (("x", [4.0, 2.0]), ("y", [1.0, 3.0])):
        run_folder(tmp_path / name, losses, settings)
    assert [(row.name, row.best_step) for row in rows_of(tmp_path)] == [("y", 10), ("x", 20)]
    head = as_text(rows_of(tmp_path), ["mae/near"]).splitlines()[0]
    assert head.split() == "run state step auc mae/near at step".split()


def test_tasks_are_not_compared(tmp_path):
    for name, task in (("x", "a.B"), ("y", "c.D")):
        run_folder(tmp_path / name, [1.0], task=task)
    text = as_text(rows_of(tmp_path))
    assert text.count("at step") == 2 and text.startswith("a.B\nrun ") and "\n\nc.D\nrun " in text


@given(st.lists(st.floats(width=32), max_size=5))
def test_the_best_of_what_is_finite(losses):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        (row,) = rows_of(run_folder(Path(folder) / "run", losses))
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert (row.metrics["loss"] if row.metrics else None) == (min(finite) if finite else None)
    assert row.best_step is None or losses[row.best_step // 10 - 1] == min(finite)


def test_a_killed_and_a_damaged_run_are_told(tmp_path):
    run_folder(tmp_path / "x", [1.0], state="running")
    run_folder(tmp_path / "y", [2.0])
    (tmp_path / "y" / "status.json").write_text("{")
    assert [row.state for row in rows_of(tmp_path)] == ["ended", "status.json is damaged"]
    assert differing(rows_of(tmp_path)) == [] and "status.json is damaged" in as_csv(rows_of(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "runs table: nowhere: no such folder"),
        (["empty"], "runs table: empty: no run in it"),
        (["runs", "--metrics", "mea"], "--metrics: no run has 'mea' (did you mean mae?); there are loss, auc, mae"),
    ],
)
def test_what_cannot_be_shown(runs, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(runs.parent)
    Path("empty").mkdir()
    assert main(["runs", "table", *arguments]) == 2
    assert says in capsys.readouterr().err
    (runs / "a" / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match="a/config.yaml: line"):
        rows_of(runs)


def test_status_of_a_folder_of_runs_points_here(runs, capsys):
    assert main(["status", str(runs)]) == 2
    assert f"there are runs in it: accel-train runs table {runs}" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "rates"), [(None, ["1e-4", "3e-4", "1e-3", "3e-3"]), ("2", ["1e-3"])])
def test_the_sweep_of_the_examples(tmp_path, task, rates):
    (tmp_path / "accel-train").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "accel-train").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | ({"SLURM_ARRAY_TASK_ID": task} if task else {})
    done = subprocess.run(
        ["bash", "examples/sweep.sh", "--seed=1"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        f"train --config examples/collatz_small.yaml --learning_rate={rate} --output_dir=runs/sweep/lr{rate} --seed=1"
        for rate in rates
    ]
