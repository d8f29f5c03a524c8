"""The report finds what is in the data, and says what is missing or wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.movie_brain import ROIS, Movie, movie, response

from accel_train.errors import UserError
from accel_train.tasks.sherlock import scores
from accel_train.tasks.sherlock.reconstruction import errors
from accel_train.tasks.sherlock.report import judge
from accel_train.tasks.sherlock.report.case import (
    AVERAGE,
    EVERYWHERE,
    MEAN,
    NETWORK,
    OTHERS,
    RIDGE,
    SHUFFLED,
    Case,
    Predictions,
)
from accel_train.tasks.sherlock.report.files import write
from accel_train.tasks.sherlock.report.summary import summary

PLACES = np.full((5, 6, 4), -1)
PLACES[1:, 1:, 1:] = np.arange(60).reshape(4, 5, 3)
TEST = "test"


def case_of(film: Movie, preshift: int = 0) -> Case:
    """One person is held out. What is seen and heard are the latents themselves."""
    people = {f"s{i}": each for i, each in enumerate(film.people)}
    frames = np.repeat(np.repeat(film.features["video"][:, None, None, :, None], 4, 2), 3, 4)
    stimulus = {"video": np.clip(128 + 30 * frames, 0, 255).astype(np.uint8), "audio": film.features["audio"]}
    return Case(
        1.5, preshift, film.runs, film.train, list(people), ["s2"],
        lambda person: np.mean(film.people[:2], 0) if person == AVERAGE else people[person],
        film.features, lambda name, rows: stimulus[name][rows],
        {name: each[film.train].mean(0) for name, each in stimulus.items()},
        {name: np.ones(len(film.runs), bool) for name in stimulus}, {EVERYWHERE: np.arange(60), **ROIS}, response(),
        PLACES,
    )  # fmt: skip


def predictions_of(film: Movie, case: Case, noise: float = 0.3) -> Predictions:
    """A network that knows all but a little, and its regions go by their own modality."""
    rows, draw = np.flatnonzero(~film.train), np.random.default_rng(0)
    made = (0.6 * film.signal[rows] + noise * draw.normal(size=(len(rows), 60))).astype(np.float32)
    people = dict.fromkeys(case.people, made)
    blind, deaf = made.copy(), made.copy()
    blind[:, ROIS["visual"]] = deaf[:, ROIS["auditory"]] = 0.1 * draw.normal(size=(len(rows), 20))
    without = {"video": dict.fromkeys(people, blind), "audio": dict.fromkeys(people, deaf)}
    stimulus = {name: case.stimulus(name, rows).astype(np.float32) for name in film.features}
    good = {name: each + each.std() * 0.5 * draw.normal(size=each.shape) for name, each in stimulus.items()}
    of_mean = np.broadcast_to(case.mean["video"], good["video"].shape)
    guesses = {"video": of_mean, "audio": good["audio"]}
    bad = {"visual": {n: errors(made, case.stimulus(n, rows), case.mean[n])[:, 0] for n, made in guesses.items()}}
    return Predictions(rows, people, without, good, bad, [], {"split": TEST})


def report(case: Case, predicted: Predictions) -> judge.Found:
    return judge.find(case, predicted, seed=0, say=lambda text: None)


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "RESAMPLES", 100)
        yield


@pytest.fixture(scope="module")
def film() -> Movie:
    return movie(0)


@pytest.fixture(scope="module")
def case(film: Movie) -> Case:
    return case_of(film)


@pytest.fixture(scope="module")
def predicted(film: Movie, case: Case) -> Predictions:
    return predictions_of(film, case)


@pytest.fixture(scope="module")
def found(case: Case, predicted: Predictions) -> judge.Found:
    return report(case, predicted)


# -- what is found -----------------------------------------------------------------------------------------------------


def test_models_are_where_they_must_be(found: judge.Found):
    r = {name: {roi: each.value for roi, each in of_roi.items()} for name, of_roi in found.r.items()}
    assert 0.45 < r[NETWORK]["visual"] < 0.6 and 0.45 < r[RIDGE]["auditory"] < 0.65
    assert abs(r[RIDGE]["null"]) < 0.06 and abs(r[NETWORK]["null"]) < 0.06
    assert abs(r[SHUFFLED]["visual"]) < 0.1
    for name, own, other in (("video", "visual", "auditory"), ("audio", "auditory", "visual")):
        assert abs(r[f"without {name}"][own]) < 0.06
        assert r[f"without {name}"][other] == r[NETWORK][other]
        assert found.better[f"without {name}"][own].low > 0.3
    for each in found.r[NETWORK].values():
        assert each.low < each.value < each.high


def test_ceiling_significance_and_identification(found: judge.Found):
    numbers = found.volumes[NETWORK]
    assert found.ceiling["ceiling/visual"] == pytest.approx(0.6, abs=0.05)
    assert found.ceiling["ceiling/null"] < 0.1 < found.ceiling["ceiling/all"] < 0.6
    assert 0.75 < numbers["of_ceiling/visual"] < 1
    assert numbers["significant/visual"] > 0.95 and numbers["significant/null"] <= 0.15
    assert numbers["r2"] == pytest.approx(2 / 3 * (0.36 - 0.09) - 0.09 / 3, abs=0.05)
    assert found.volumes["train mean"]["r2"] == 0
    assert found.identified[NETWORK][10].two_way > 0.95 and found.identified[NETWORK][10].segments == 26
    assert found.shifts == 260 - 1


def test_ridge_weighs_the_band_of_a_region(found: judge.Found):
    assert found.ridge_bands["visual"]["video"] > 0.7 > 0.3 > found.ridge_bands["auditory"]["video"]


def test_reconstructions_and_lesions(found: judge.Found):
    video = {name: each.value for name, each in found.reconstruction["video"].items()}
    assert 0.2 < video[NETWORK] < 0.35 and video[SHUFFLED] > 1.5
    assert video["lesion of visual"] == pytest.approx(1, abs=1e-6)
    audio = found.reconstruction["audio"]
    assert audio["lesion of visual"] == audio[NETWORK] and audio[NETWORK].low < audio[NETWORK].value


def test_a_lesion_that_matters_where_nothing_is_predicted_is_said(found: judge.Found):
    errors_of = {NETWORK: 0.2, "lesion of null": 0.31, "lesion of visual": 0.9}
    text = {name: scores.Estimate(error, error, error) for name, error in errors_of.items()}
    for share, said in ((0.03, 1), (0.2, 0)):
        numbers = {NETWORK: found.volumes[NETWORK] | {"significant/null": share, "significant/visual": 1.0}}
        warnings = list(judge._idle_lesions(replace(found, volumes=numbers, reconstruction={"text": text})))
        assert len(warnings) == said and all("lesion of null" in each and "by 0.11" in each for each in warnings)


def test_likeness_of_reconstructions(case: Case, predicted: Predictions, found: judge.Found):
    video, audio = found.likeness["video"], found.likeness["audio"]  # which has a vector of 2 numbers a TR here
    assert video[NETWORK]["PSNR"] > video[MEAN]["PSNR"] > video[SHUFFLED]["PSNR"] > 0
    assert video[NETWORK]["SSIM"] > video[SHUFFLED]["SSIM"]
    assert video[MEAN]["SSIM"] > 0.9  # noise in frames of one colour is more unlike than the mean: so it stands beside
    assert audio[NETWORK]["cosine"] > 0.7 > abs(audio[SHUFFLED]["cosine"])
    assert audio[NETWORK]["top-5"] > 4 * audio["chance"]["top-5"] == pytest.approx(4 * 5 / 260)
    said = summary(case, predicted, found)
    assert "video PSNR" in said and "audio top-5" in said and "0.019" in said


def test_people_and_the_one_held_out(case: Case, predicted: Predictions, found: judge.Found):
    assert set(found.people) == {"s0", "s1", "s2"}
    over = found.over_people["visual"]
    assert over.low < over.value < over.high
    (line,) = [line for line in summary(case, predicted, found).splitlines() if line.startswith("s2 (unseen)")]
    assert line.split()[2:] == [f"{r['all']:.3f}" for r in found.people["s2"].values()]
    for person in ("s0", "s2"):  # ridge of s2 was fitted to the mean of s0 and s1
        r = {name: of_roi["visual"] for name, of_roi in found.people[person].items()}
        assert 0.45 < r[NETWORK] < 0.65 and 0.45 < r[RIDGE] < 0.65
        assert r[OTHERS] == pytest.approx(0.36 / np.sqrt(0.36 + 0.64 / 2), abs=0.05)


@pytest.mark.parametrize("declared", [0, 3])
def test_the_lag_scan_says_if_the_file_lies(declared: int):
    film = movie(1, preshift=3)
    case = case_of(film, declared)
    found = report(case, predictions_of(film, case))
    assert found.lags["stimulus"].peaks({"visual": ROIS["visual"]}) == {"visual": 3}
    said = [text for text in found.warnings if "lag scan of the stimulus peaks at +3 TRs" in text]
    assert len(said) == (declared == 0)


def test_a_network_that_learned_nothing_is_called_so(film: Movie, case: Case):
    rows = np.flatnonzero(~film.train)
    noise = np.random.default_rng(0).normal(size=(len(rows), 60)).astype(np.float32)
    found = report(case, Predictions(rows, dict.fromkeys(case.people, noise), missing=["no lesions: none"]))
    assert any("not better than chance" in text for text in found.warnings)
    assert any("banded ridge is at least as good" in text for text in found.warnings)
    assert found.volumes[NETWORK]["significant/all"] <= 0.05
    assert "missing: no lesions: none" in summary(case, Predictions(rows, dict.fromkeys(case.people, noise)), found)


def test_one_person_and_the_average(film: Movie, case: Case):
    """No ceiling for one, that of an average for all."""
    rows = np.flatnonzero(~film.train)
    made = (0.6 * film.signal[rows] + 0.01).astype(np.float32)
    alone = replace(case, people=["s0"], held_out=[])
    found = report(alone, Predictions(rows, {"s0": made}))
    assert "no ceiling: a ceiling from what people have in common takes at least 2 of them" in found.missing
    assert "r/ceiling" in summary(alone, Predictions(rows, {"s0": made}), found)
    found = report(case, Predictions(rows, {AVERAGE: made}))
    assert found.r[NETWORK]["visual"].value == pytest.approx(0.6 / np.sqrt(0.36 + 0.64 / 2), abs=0.03)
    assert np.isnan(found.r[NETWORK]["null"].value)  # constant there


def test_rows_of_the_training_are_refused(film: Movie, case: Case):
    rows = np.flatnonzero(film.train)
    with pytest.raises(UserError, match="trained on"):
        report(case, Predictions(rows, dict.fromkeys(case.people, np.zeros((len(rows), 60), np.float32))))


def test_a_test_that_is_too_short_says_what_it_lacks(film: Movie, case: Case):
    rows = np.arange(240, 270)
    made = (film.signal[rows] + 0.1).astype(np.float32)
    found = report(case, Predictions(rows, dict.fromkeys(case.people, made)))
    assert any(
        text.startswith("no significance of network: circular shifts: a stretch of 30 TRs") for text in found.missing
    )
    assert any(text.startswith("no identification by network") for text in found.missing)
    assert np.isnan(found.r[NETWORK]["visual"].low)  # one block
    summary(case, Predictions(rows, dict.fromkeys(case.people, made)), found)


# -- files -------------------------------------------------------------------------------------------------------------


def test_files(tmp_path: Path, case: Case, predicted: Predictions, found: judge.Found):
    names = write(tmp_path, case, predicted, found, {"seed": 0})
    assert {"models", "lags", "ceiling", "r_slices", "lag_slices", "made_video", "made_audio"} == set(names)
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in names)
    written: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert written["r"][NETWORK]["visual"]["low"] == found.r[NETWORK]["visual"].low
    scan = written["lag_scans"]["stimulus"]
    assert (scan["must_peak_at"], scan["peaks_at"]["visual"]) == (0, 0)
    assert scan["r"]["visual"][scan["shifts"].index(0)] == max(scan["r"]["visual"])
    assert written["seed"] == 0 and written["circular_shifts"] == found.shifts
    with np.load(tmp_path / "maps.npz") as maps:
        assert {"r network", "ceiling", "lag stimulus"} <= set(maps) and maps["ceiling"].shape == (60,)


def test_no_grid_and_no_reconstructions(tmp_path: Path, case: Case, predicted: Predictions, found: judge.Found):
    bare = Predictions(predicted.rows, predicted.fmri)
    assert set(write(tmp_path, replace(case, places=None), bare, found, {})) == {"models", "lags", "ceiling"}


def test_the_table(case: Case, predicted: Predictions, found: judge.Found):
    said = summary(case, predicted, found)
    lines = said.splitlines()
    assert lines[0] == "260 TRs of the test split, 3 people, 60 voxels"
    for start in ("network", "banded ridge", "without video", "shuffled stimulus", "train mean", "ceiling", "chance"):
        assert any(line.startswith(start) for line in lines), start
    assert "lesion of visual" in said and "lag scan of the stimulus peaks at (TRs; must be +0, as declared)" in said
    assert max(map(len, lines)) <= 120
