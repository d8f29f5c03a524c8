"""``tcn report``: chosen on validation shots, judged on test shots, in one command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.shots import InMemory, shot, write_shots

from accel_train.cli import main
from accel_train.errors import UserError
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.tcn import baselines
from accel_train.tasks.tcn.labels import LabelSettings
from accel_train.tasks.tcn.report import command, judge
from accel_train.tasks.tcn.report.judge import Data
from accel_train.tasks.tcn.report.scores import Scores, of_network
from accel_train.tasks.tcn.robustness import Failure
from accel_train.tasks.tcn.steps import EDGES
from accel_train.tasks.tcn.task import TCNTask
from accel_train.tasks.tcn.windows import Windows
from accel_train.train.measuring import evaluate_run
from accel_train.train.trainer import Trainer

SIZES: dict[str, Any] = dict(
    nsub=96, twarn_ms=80.0, levels=2, nhid=4, kernel_size=3, dilation_base=3, nrecept_target=13, dropout=0.0
)
SETTINGS: dict[str, Any] = dict(global_batch_size=8, max_steps=3, learning_rate=1e-2, report_to=[])


def preprocess(raw: Path, out: Path) -> Path:
    folders = [f"--{name}={raw / name}" for name in ("disrupt", "clear")]
    assert main(["tcn", "preprocess", *folders, f"--out={out}", "--dt_ms=1"]) == 0
    return out


def raw_shots(folder: Path) -> Path:
    """12 of each class: 6 to train, 3 to choose, 3 to judge."""
    write_shots(folder, count=24, seed=1)
    rows = [f"{number},{('train', 'train', 'val', 'test')[number // 2 % 4]}" for number in range(101, 124, 2)]
    (folder / "clear" / "meta.csv").write_text("\n".join(["shot,split", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Fewer resamples, and no trees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "RESAMPLES", 20)
        patch.setattr(baselines, "names", lambda: ["logistic", *baselines.LEAKS])
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/, data/ and a run of a few steps."""
    root = tmp_path_factory.mktemp("report")
    preprocess(raw_shots(root / "raw"), root / "data")
    Trainer(TCNTask(str(root / "data"), **SIZES), output_dir=str(root / "run"), **SETTINGS).fit()
    return root


@pytest.fixture(scope="module")
def found(place: Path) -> dict[str, Any]:
    assert main(["tcn", "report", str(place / "run")]) == 0
    return json.loads((place / "run" / "report" / "report.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main(["tcn", "report", *map(str, arguments)]) == 2
    *others, line = capsys.readouterr().err.splitlines()
    assert others in ([], ["report: network"]) and line.startswith("accel-train: error: ")
    return line


# -- what is found -----------------------------------------------------------------------------------------------------


def test_everything_is_there(place: Path, found: dict[str, Any]):
    kinds = {name: row["kind"] for name, row in found["rows"].items()}
    assert kinds["network"] == "network" and {"logistic", "time since start", "file position"} <= kinds.keys()
    assert [name for name, kind in kinds.items() if kind == "failure"] == [
        f"last {ms} ms frozen" for ms in (10, 20, 50)
    ]
    assert {(each["shot"], each["disruptive"]) for each in found["alarms"]} == {
        (number, number % 2 == 0) for number in (102, 103, 110, 111, 118, 119)
    }
    assert found["shots"] == {
        "train": 12, "validation": 6, "test": 6, "shots_disruptive": 3, "shots_clear": 3, "shots_unscored": 0
    }  # fmt: skip
    rules = {json.dumps(row["rule"]) for row in found["rows"].values() if row["kind"] != "trivial"}
    assert len(rules) == 1, "nobody chooses a rule for sensors that fail"
    assert {path.stem for path in (place / "run" / "report").glob("*.png")} >= {"roc", "warning_time", "reliability"}


def test_whole_shots_give_what_an_evaluation_of_windows_gives(place: Path, found: dict[str, Any], tmp_path: Path):
    metrics = evaluate_run(place / "run", "test", out=tmp_path).metrics
    mine = found["rows"]["network"]["metrics"]
    for name in ("step_auc", "step_pr_auc"):
        assert mine[name] == pytest.approx(metrics[name], abs=2e-3)  # a score at the edge of a bin
    chosen = evaluate_run(place / "run", out=tmp_path).metrics
    assert found["rows"]["network"]["threshold"] == pytest.approx(chosen["threshold"], abs=2 / 64)


def test_the_test_shots_choose_nothing(place: Path, found: dict[str, Any], tmp_path: Path):
    """Other labels of the test shots: other numbers, the same rules and thresholds."""
    shutil.copytree(place / "data", tmp_path / "data")
    path = tmp_path / "data" / "meta.json"
    meta = json.loads(path.read_text())
    for each in meta["shots"]:
        if each["split"] == "test" and each["disruptive"]:
            each["t_disruption_ms"] -= 60
    path.write_text(json.dumps(meta))
    out = tmp_path / "out"
    assert (
        main(["tcn", "report", str(place / "run"), f"--out={out}", f"--task.init_args.data={tmp_path / 'data'}"]) == 0
    )
    other = json.loads((out / "report.json").read_text())
    for name, row in found["rows"].items():
        assert {key: other["rows"][name][key] for key in ("threshold", "rule")} == {
            key: row[key] for key in ("threshold", "rule")
        }
    assert other["rows"]["network"]["metrics"] != found["rows"]["network"]["metrics"]


def test_the_same_again(place: Path, found: dict[str, Any], tmp_path: Path):
    assert main(["tcn", "report", str(place / "run"), f"--out={tmp_path}"]) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == found


def test_every_step_is_in_the_sums_once():
    shots = [shot(1, 60.0, samples=120, stop=110), shot(2, samples=90, start=10), shot(3, samples=8)]
    data, task = InMemory(shots), TCNTask("in memory", **SIZES)
    windows = Windows(data, shots, 40, task.receptive_field, LabelSettings(twarn_ms=30.0))
    task._store = data  # pyright: ignore[reportAttributeAccessIssue]
    model: Any = task.build_model(None).eval()
    scores = Scores.of(windows, of_network(model, data, 40))
    assert scores.steps.sum((1, 2)).tolist() == [110 - task.receptive_field + 1, 80 - task.receptive_field + 1, 0]
    with torch.no_grad():
        x = torch.from_numpy(data.values[1][:, :110])[None]
        whole = model(x, torch.from_numpy(data.scale(1)), torch.from_numpy(data.offset(1)))[0].numpy()
    np.testing.assert_allclose(scores.shots[0].scored, whole, atol=1e-4 * abs(whole).max())
    binned = np.clip(np.digitize(scores.shots[0].scored, EDGES) - 1, 0, len(EDGES) - 2)
    assert (np.bincount(binned, minlength=len(EDGES)) == scores.steps[0].sum(0).numpy()).all()
    assert not len(scores.shots[2].scored)
    frozen = Scores.of(windows, of_network(model, data, 40, Failure(frozen_ms=20.0)))
    same = frozen.shots[0].scored == pytest.approx(scores.shots[0].scored)
    before = frozen.shots[0].scored[:-20], scores.shots[0].scored[:-20]
    assert not same and before[0] == pytest.approx(before[1])


@pytest.mark.parametrize("negatives", [None, 1.0, 3.0])
def test_probabilities_are_those_of_the_training_split(negatives: float | None):
    """Whatever a loss has seen: 4 windows of 10 steps, of which one has 5 positive ones."""
    train: Any = SimpleNamespace(counted=np.full(4, 10), positive=np.array([0, 5, 0, 0]))
    share = 5 / 40
    seen = {None: 5 / 40, 1.0: 5 / 20, 3.0: 5 / 40}[negatives]

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    expected = {"batch": logit(share), "none": logit(share) - logit(seen), "dataset": 2 * logit(share) - logit(seen)}
    for balance, shift in expected.items():
        empty: Any = None
        data = Data("", empty, train, empty, empty, balance, negatives)
        assert data.shift(share) == pytest.approx(shift)


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_no_figures_cost_a_line(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    from accel_train.tasks.tcn import figures

    def broken(*_: Any) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr(figures, "roc_figure", broken)
    assert main(["tcn", "report", str(place / "run"), f"--out={tmp_path / 'out'}"]) == 0
    out, err = capsys.readouterr()
    assert "figures failed and is left out: ValueError: no ink" in err
    assert "report.json" in out and (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize("change, message", [
    (lambda each: each["split"] != "validation", "has no validation shots"),
    (lambda each: each["split"] != "test", "has no test shots"),
    (lambda each: each["split"] != "validation" or not each["disruptive"], "the validation data have no positive step"),
])  # fmt: skip
def test_splits_that_lack_something(place: Path, tmp_path: Path, capsys, change, message):
    folder = other_shots(place / "data", tmp_path / "data", change)
    line = refused(capsys, place / "run", f"--task.init_args.data={folder}", f"--out={tmp_path / 'out'}")
    assert message in line and not (tmp_path / "out").exists()


def other_shots(data: Path, out: Path, keep: Any) -> Path:
    shutil.copytree(data, out)
    meta = json.loads((out / "meta.json").read_text())
    rows = [row for row, each in enumerate(meta["shots"]) if keep(each)]
    meta["shots"] = [meta["shots"][row] for row in rows]
    (out / "meta.json").write_text(json.dumps(meta))
    for name in ("scale", "offset", "baseline"):
        np.save(out / f"{name}.npy", np.load(out / f"{name}.npy")[rows])
    return out


@pytest.mark.parametrize("disruptive, what", [(True, "true alarms"), (False, "false alarms")])
def test_a_test_split_of_one_class(place: Path, tmp_path: Path, capsys, disruptive, what):
    folder = other_shots(
        place / "data", tmp_path / "data", lambda each: each["split"] != "test" or each["disruptive"] != disruptive
    )
    capsys.readouterr()
    assert (
        main(["tcn", "report", str(place / "run"), f"--task.init_args.data={folder}", f"--out={tmp_path / 'o'}"]) == 0
    )
    out, err = capsys.readouterr()
    assert f"nothing is known of {what}" in out and "failed" not in err
    metrics = json.loads((tmp_path / "o" / "report.json").read_text())["rows"]["network"]["metrics"]
    assert metrics["auc"] is None and (metrics["tpr"] is None) == disruptive == (metrics["fpr"] is not None)


def test_shots_without_a_score_are_named(place: Path, tmp_path: Path, capsys):
    folder = other_shots(place / "data", tmp_path / "data", lambda _: True)
    meta = json.loads((folder / "meta.json").read_text())
    short = next(each for each in meta["shots"] if each["split"] == "test")
    short["start"] = short["stop"] - 5
    (folder / "meta.json").write_text(json.dumps(meta))
    given = [f"--task.init_args.data={folder}", f"--out={tmp_path / 'out'}"]
    assert main(["tcn", "report", str(place / "run"), *given]) == 0
    assert f"1 test shots are shorter than the receptive field, so that no alarm can sound in them; the first is " \
           f"{short['number']}" in capsys.readouterr().out  # fmt: skip


def test_other_data_are_named(place: Path, tmp_path: Path, capsys):
    shutil.copytree(place / "data", tmp_path / "data")
    with np.load(tmp_path / "data" / "norm.npz") as norm:
        np.savez(tmp_path / "data" / "norm.npz", mean=norm["mean"] + 1, std=norm["std"])
    given = [f"--task.init_args.data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    assert main(["tcn", "report", str(place / "run"), *given]) == 0
    assert "the network was trained on other data" in capsys.readouterr().out


def test_other_channels(place: Path, tmp_path: Path, capsys):
    raw = write_shots(tmp_path / "raw", count=8, shape=(2, 2))
    preprocess(raw, tmp_path / "data")
    line = refused(capsys, place / "run", f"--task.init_args.data={tmp_path / 'data'}")
    assert "another shape" in line and "has 4 channels" in line


def test_prebuilt_windows_have_no_shots(place: Path, tmp_path: Path, capsys):
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "labels.npy", np.zeros(1))
    line = refused(capsys, place / "run", f"--task.init_args.data={tmp_path}")
    assert "prebuilt windows" in line and "accel-train evaluate" in line


def test_what_is_no_run_of_tcn(place: Path, tmp_path: Path, capsys):
    saved: Any = SimpleNamespace(task=CollatzTask(), home=tmp_path)
    with pytest.raises(UserError, match="a run of the task collatz, not of tcn"):
        command._task(saved)
    assert "unrecognized arguments: --tsak" in refused(capsys, place / "run", "--tsak=1")
    assert "no such folder" in refused(capsys, tmp_path / "none")


def test_windows_are_cut_once(place: Path):
    task = TCNTask(str(place / "data"), **SIZES)
    assert command.read(task).test is task.windows("test") is task.windows("test")
    assert task.windows("train", 3) is not task.windows("train")
