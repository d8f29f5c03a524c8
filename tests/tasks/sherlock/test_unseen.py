"""Viewers who are withheld at training: nothing of theirs is used, and they are told apart in every table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.movie_brain import Movie, movie, write_prepared

from accel_train import Trainer
from accel_train.cli import main
from accel_train.errors import UserError
from accel_train.tasks.sherlock import nulls, ridge, scores
from accel_train.tasks.sherlock.report import files
from accel_train.tasks.sherlock.report.case import AVERAGE
from accel_train.tasks.sherlock.report.read import case_fmri
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.train.measuring import evaluate_run

SMALL: dict[str, Any] = dict(window_trs=10, lags=8, latent=4, encoder_widths=[4], fusion_widths=[], subject_rank=1)


@pytest.fixture(scope="module")
def film() -> Movie:
    return movie(0, people=4)


@pytest.fixture
def folder(tmp_path: Path, film: Movie) -> Path:
    """Of four viewers, s2 is held out in the folder itself."""
    return write_prepared(tmp_path / "data", film)


def task_of(folder: Path, *held_out: str, **options: Any) -> SherlockTask:
    return SherlockTask(str(folder), held_out_subjects=list(held_out), **SMALL | options)


def train(folder: Path, out: Path, *held_out: str) -> dict[str, np.ndarray]:
    settings: dict[str, Any] = dict(global_batch_size=8, max_steps=3, report_to=[], learning_rate=1e-2)
    trainer = Trainer(task_of(folder, *held_out), output_dir=str(out), **settings)
    trainer.fit()
    return {name: value.numpy() for name, value in trainer.models["model"].state_dict().items()}


def test_who_is_withheld_is_in_the_test_alone(folder):
    task = task_of(folder, "s1")
    assert task.held_out == ["s1", "s2"]
    assert task.items("train").subjects == task.items("validation").subjects == ["s0", "s3"]
    assert task.items("test").subjects == ["s0", "s1", "s2", "s3"]
    model = task.build_model(task.build_data("train", 8, 0))
    assert model.head.known.tolist() == [True, False, False, True]
    assert task.describe_predictions("test")["held_out_subjects"] == ["s1", "s2"]


def test_nothing_of_a_withheld_viewer_reaches_the_weights(folder, tmp_path):
    before = train(folder, tmp_path / "a", "s1")
    for run in (folder / "fmri/s1").glob("*.npy"):
        np.save(run, -3 * np.load(run))
    after = train(folder, tmp_path / "b", "s1")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    seen = train(folder, tmp_path / "c")
    assert any(not np.array_equal(before[name], seen[name]) for name in before)


def test_names_that_cannot_be_withheld(folder):
    with pytest.raises(UserError, match="held_out_subjects: there is no 's5'.*; there are s0, s1, s2, s3"):
        task_of(folder, "s5").items("train")
    with pytest.raises(UserError, match="nobody is left for training"):
        task_of(folder, "s0", "s1", "s3").items("train")
    with pytest.raises(UserError, match="with target average nobody is predicted alone"):
        task_of(folder, "s1", target="average")


def test_the_table_of_a_run_without_a_viewer(folder, film, tmp_path, capsys, monkeypatch):
    """The report says who was not in training; ridge for them is fitted to the mean of those who were."""
    monkeypatch.setattr(files, "drawn", lambda *of: {})
    monkeypatch.setattr(scores, "RESAMPLES", 20)
    monkeypatch.setattr(nulls, "circular_shifts", lambda *of: (_ for _ in ()).throw(UserError("not here")))
    monkeypatch.setattr(ridge, "simplex", lambda bands, seed: np.full((1, bands), 1 / bands))
    fitted, fit = list[np.ndarray](), ridge.fit

    def kept(design, y, *more, **how):
        fitted.append(y)
        return fit(design, y, *more, **how)

    monkeypatch.setattr(ridge, "fit", kept)
    train(folder, tmp_path / "run", "s1")
    metrics = evaluate_run(tmp_path / "run", "test").metrics
    assert main(["sherlock", "report", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    for person, unseen in (("s0", False), ("s1", True), ("s2", True), ("s3", False)):
        (line,) = [line for line in said.splitlines() if line.startswith(f"{person} ")]
        assert ("(unseen)" in line) == unseen
    known = json.loads((tmp_path / "run/report/report.json").read_text())
    assert known["unseen_people"] == ["s1", "s2"]
    r = {person: of["network"]["all"] for person, of in known["people"].items()}
    assert metrics["fmri_r_new_subjects"] == pytest.approx((r["s1"] + r["s2"]) / 2, abs=0.01)
    assert metrics["fmri_r"] == pytest.approx((r["s0"] + r["s3"]) / 2, abs=0.01)
    task = task_of(folder, "s1")
    of_rest = case_fmri(task.prepared, AVERAGE, task.held_out)
    np.testing.assert_allclose(of_rest, (film.people[0] + film.people[3]) / 2, atol=1e-6)
    for y, wanted in zip(fitted[:4], (film.people[0], of_rest, of_rest, film.people[3]), strict=True):
        np.testing.assert_allclose(y, wanted, atol=1e-6)
