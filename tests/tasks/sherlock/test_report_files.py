"""Prepared folders and predictions as the report reads them, and its commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.movie_brain import ROIS, C, Movie, movie, response, write_prepared

from accel_train.cli import main
from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock import ridge, scores
from accel_train.tasks.sherlock.data import Items, Prepared
from accel_train.tasks.sherlock.report import files
from accel_train.tasks.sherlock.report.case import AVERAGE, EVERYWHERE
from accel_train.tasks.sherlock.report.read import case_fmri, case_of, predictions_of, rows_of
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.train.measuring import evaluate_run
from accel_train.train.trainer import Trainer


@pytest.fixture(scope="module")
def film() -> Movie:
    return movie(0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, film: Movie) -> Prepared:
    return Prepared(write_prepared(tmp_path_factory.mktemp("prepared"), film))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scores, "RESAMPLES", 50)
    monkeypatch.setattr(ridge, "simplex", lambda bands, seed: np.full((1, bands), 1 / bands))


def predict(folder: Path, prepared: Prepared, split: str, window: int, made: np.ndarray, target: Any = "per_subject"):
    """What evaluate would write, of predictions [people, T, V] of all TRs of all runs."""
    items = Items(prepared, split, window, 0, target, prepared.subjects if target == "per_subject" else None)
    subject, run, tr = items.place(np.arange(len(items)))
    first = np.array([0, 240])[run] + tr
    trs = (first[:, None] + np.arange(window)).clip(max=made.shape[1] - 1)
    folder.mkdir(parents=True)
    np.save(folder / "fmri.npy", made[subject[:, None], trs].astype(np.float32))
    rows = {"subject": subject.tolist(), "run": run.tolist(), "tr": tr.tolist()}
    about = {
        "split": split,
        "window_trs": window,
        "subjects": prepared.subjects,
        "runs": list(prepared.runs),
        "rows": rows,
    }
    (folder / "predictions.json").write_text(json.dumps(about))
    return folder


def known(film: Movie, noise: float = 0.2, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.stack([C * film.signal + noise * draw.normal(size=film.signal.shape) for _ in film.people])


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_case_is_what_is_in_the_folder(film: Movie, prepared: Prepared):
    case = case_of(prepared, response())
    assert case.train.sum() == 150 and (case.runs == film.runs).all() and case.held_out == ["s2"]
    np.testing.assert_array_equal(case.fmri("s1"), film.people[1])
    np.testing.assert_allclose(case.fmri(AVERAGE), np.mean(film.people[:2], 0), atol=1e-6)
    assert set(case.rois) == {EVERYWHERE, *ROIS} and (case.rois["visual"] == ROIS["visual"]).all()
    shapes = {name: each.shape for name, each in case.features.items()}
    assert shapes == {"video": (500, 24), "audio": (500, 2), "tokens": (500, 8), "text": (500, 4)}
    np.testing.assert_allclose(case.features["tokens"].sum(1), 2)  # a share of each codebook
    assert (case.features["text"][240:] == case.features["text"][:150].mean(0)).all() and not case.there["text"][
        240:
    ].any()
    np.testing.assert_array_equal(
        case.stimulus("audio", np.array([240, 3]))[:, 0], film.features["audio"][[240, 3]].astype(np.float32)
    )
    assert case.hrf_trs == 22


@pytest.mark.parametrize("parcels", [False, True])
def test_columns_are_found_on_the_grid(tmp_path: Path, film: Movie, parcels: bool):
    nibabel: Any = pytest.importorskip("nibabel")
    folder = write_prepared(tmp_path, film)
    about = json.loads((folder / "meta.json").read_text())
    labels = np.zeros((5, 4, 4), np.int32)
    labels[1:] = 1 + np.arange(64).reshape(4, 4, 4)
    labels[labels > 60] = 0
    if parcels:
        known = {"columns": list(range(60, 0, -1)), "names": {str(label): f"p{label}" for label in range(1, 61)}}
        (folder / "meta.json").write_text(json.dumps({**about, "targets": "parcels", "rois": known}))
    name = "rois.nii.gz" if parcels else "mask.nii.gz"
    nibabel.Nifti1Image(labels if parcels else np.sign(labels), np.eye(4)).to_filename(folder / name)
    places: Any = case_of(Prepared(folder), response()).places
    wanted = np.where(labels > 0, 60 - labels if parcels else labels - 1, -1)
    np.testing.assert_array_equal(places, wanted)
    if not parcels:
        labels[1, 0, 0] = 0
        nibabel.Nifti1Image(np.sign(labels), np.eye(4)).to_filename(folder / name)
        with pytest.raises(DataError, match="has 59 voxels, meta.json says 60"):
            case_of(Prepared(folder), response())


@pytest.mark.parametrize(("window", "test"), [(1, ((0, 260),)), (7, ((0, 260),)), (50, ((10, 100), (130, 255)))])
def test_each_prediction_is_in_its_place(tmp_path: Path, film: Movie, window: int, test: Any):
    prepared = Prepared(write_prepared(tmp_path / "data", film, test))
    made = known(film)
    found = predictions_of(predict(tmp_path / "made", prepared, "test", window, made), prepared)
    rows = np.concatenate([np.arange(240 + first, 240 + last) for first, last in test])
    np.testing.assert_array_equal(found.rows, rows)
    assert list(found.fmri) == ["s0", "s1", "s2"]
    for i, person in enumerate(found.fmri):
        np.testing.assert_array_equal(found.fmri[person], made[i, rows].astype(np.float32))
    assert len(found.missing) == 3


def test_an_average_has_one_name(tmp_path: Path, film: Movie, prepared: Prepared):
    found = predictions_of(predict(tmp_path / "made", prepared, "test", 5, known(film), "average"), prepared)
    assert list(found.fmri) == [AVERAGE]
    np.testing.assert_array_equal(case_fmri(prepared, AVERAGE), case_of(prepared, response()).fmri(AVERAGE))


def test_what_does_not_fit_is_one_line(tmp_path: Path, film: Movie, prepared: Prepared):
    with pytest.raises(UserError, match="accel-train evaluate RUN --split=test"):
        predictions_of(tmp_path, prepared)
    folder = predict(tmp_path / "made", prepared, "test", 1, known(film))
    with pytest.raises(UserError, match="is of the test split, not of validation"):
        predictions_of(folder, prepared, "validation")
    np.save(folder / "fmri.npy", np.zeros((780, 1, 59), np.float32))
    with pytest.raises(DataError, match=r"fmri.npy: has shape \(780, 1, 59\).* evaluate again"):
        predictions_of(folder, prepared)
    about = json.loads((folder / "predictions.json").read_text())
    (folder / "predictions.json").write_text(json.dumps({**about, "runs": ["other", "part2"]}))
    with pytest.raises(DataError, match="does not say which TRs"):
        predictions_of(folder, prepared)
    assert len(rows_of(prepared, "validation")) == 69


# -- commands ----------------------------------------------------------------------------------------------------------


def run_with(root: Path, prepared: Prepared, film: Movie, seed: int) -> Path:
    """A run folder, as far as the commands look at it."""
    root.mkdir()
    (root / "config.yaml").write_text(json.dumps({"task": {"init_args": {"data": str(prepared.folder)}}}))
    predict(root / "evaluation" / "predictions", prepared, "test", 1, known(film, 0.5, seed))
    predict(root / "validation" / "predictions", prepared, "validation", 1, known(film, 0.5, seed))
    return root


def r_of(folder: Path) -> float:
    return json.loads((folder / "report" / "report.json").read_text())["r"]["network"]["visual"]["value"]


def test_report_and_ensemble(
    tmp_path: Path, film: Movie, prepared: Prepared, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "drawn", lambda *of: {})  # figures have a test of their own
    runs = [run_with(tmp_path / f"run{seed}", prepared, film, seed) for seed in (1, 2)]
    assert main(["sherlock", "report", str(runs[0])]) == 0
    said = capsys.readouterr().out
    assert "260 TRs of the test split, 3 people, 60 voxels" in said and "report.json" in said
    assert "missing: no reconstructions: there is no MODALITY.npy among the predictions" in said
    assert "missing: no slices of the brain" in said  # there is no mask.nii.gz
    both = tmp_path / "both"
    assert main(["sherlock", "ensemble", *map(str, runs), f"--out={both}"]) == 0
    assert main(["sherlock", "report", str(both), f"--data={prepared.folder}"]) == 0
    assert r_of(both) > r_of(runs[0]) + 0.03
    with np.load(both / "weights.npz") as file:
        np.testing.assert_allclose(file["weights"].sum(0), 1)
        assert file["weights"].shape == (2, 60)


def test_from_training_to_the_report(
    tmp_path: Path, prepared: Prepared, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """What evaluate writes is what the report looks for."""
    monkeypatch.setattr(files, "drawn", lambda *of: {})
    small: dict[str, Any] = dict(window_trs=4, lags=8, latent=4, encoder_widths=[4], fusion_widths=[], subject_rank=1)
    task = SherlockTask(str(prepared.folder), bottleneck="voxels", decoder_widths=[4], voxel_widths=[4], **small)
    settings: dict[str, Any] = dict(global_batch_size=8, max_steps=2, report_to=[], learning_rate=1e-3)
    Trainer(task, output_dir=str(tmp_path / "run"), **settings).fit()
    evaluate_run(tmp_path / "run", "test")
    assert main(["sherlock", "report", str(tmp_path / "run")]) == 0
    assert "missing: no slices" in (said := capsys.readouterr().out) and said.count("missing:") == 2
    assert "missing: no reconstruction of text: no run of these TRs has it" in said
    written = json.loads((tmp_path / "run" / "report" / "report.json").read_text())
    assert written["people"].keys() == {"s0", "s1", "s2"}
    assert {f"without {name}" for name in ("video", "audio", "tokens", "text")} < written["r"].keys()
    rows = written["reconstruction_error_over_mean"]["tokens"]
    assert rows.keys() == {"network", "shuffled stimulus", "train mean", *(f"lesion of {roi}" for roi in ROIS)}


def test_commands_refuse_in_one_line(
    tmp_path: Path, film: Movie, prepared: Prepared, capsys: pytest.CaptureFixture[str]
):
    run = run_with(tmp_path / "run", prepared, film, 0)

    def refused(*arguments: Any) -> str:
        assert main(["sherlock", *map(str, arguments)]) == 2
        line = capsys.readouterr().err
        assert line.startswith("accel-train: error: ") and line.count("\n") == 1
        return line

    assert "give --data=FOLDER" in refused("report", tmp_path)
    assert "no predictions in" in refused("report", tmp_path, f"--data={prepared.folder}")
    assert "no preprocessed scans" in refused("report", run, f"--data={tmp_path}")
    assert "give at least 2 runs" in refused("ensemble", run, f"--out={tmp_path / 'out'}")
    other = tmp_path / "other"
    other.mkdir()
    assert "--split=validation --out=" in refused("ensemble", run, other, f"--out={tmp_path / 'out'}")
    predict(other / "validation" / "predictions", prepared, "validation", 3, known(film))
    assert "differ in rows" in refused("ensemble", run, other, f"--out={tmp_path / 'out'}")
