"""What people get wrong: each is one line that says what, where and what to do."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from support.viewers import GRID, preprocess, small_study, write_scan

from accel_train.cli import main
from accel_train.tasks.sherlock import render
from accel_train.tasks.sherlock.preprocess import tables


def fails(tmp_path: Path, *options: object) -> str:
    """The one line that a user sees; nothing is left in place of OUT."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        assert main(["sherlock", "preprocess", f"--out={tmp_path / 'out'}", *map(str, options)]) == 2
    assert not (tmp_path / "out").exists()
    (line,) = said.getvalue().splitlines()
    return line.removeprefix("accel-train: error: ")


@pytest.fixture
def study(tmp_path) -> list[str]:
    return small_study(tmp_path)


def scan(tmp_path: Path, subject: int) -> Path:
    return tmp_path / f"fmri/sub-{subject:02d}_bold.nii.gz"


# -- scans -------------------------------------------------------------------------------------------------------------


def test_a_scan_without_time(study, tmp_path):
    write_scan(scan(tmp_path, 2), np.zeros(GRID))
    assert fails(tmp_path, *study).endswith("sub-02_bold.nii.gz: is 3 x 4 x 2, volumes over time have four axes")


def test_scans_of_other_grids(study, tmp_path):
    write_scan(scan(tmp_path, 2), np.zeros((40, 3, 4, 3)))
    assert "sub-02_bold.nii.gz: has 3 x 4 x 3 voxels, sub-01_bold.nii.gz has 3 x 4 x 2" in fails(tmp_path, *study)
    write_scan(scan(tmp_path, 2), np.zeros((40, *GRID)), affine=np.diag([1, 1, 1.5, 1]))
    assert "its affine differs from that of sub-01_bold.nii.gz by up to 0.5 mm" in fails(tmp_path, *study)


def test_viewers_with_different_lengths(study, tmp_path):
    random = np.random.default_rng(0)
    write_scan(scan(tmp_path, 2), random.normal(size=(36, *GRID)))
    assert "sub-02 has 36 volumes of run1, sub-01 has 40; --runs run1=36 takes the first" in fails(tmp_path, *study)
    made = preprocess(tmp_path / "out", *study, "--runs", "run1=36")
    assert made.runs == {"run1": 36}
    assert made.manifest["runs"][0]["trimmed"] == {"clip": 4}
    message = fails(tmp_path / "else", *study, "--runs", "run1=38")
    assert "sub-02 has 36 volumes of run1, --runs says 38; leave the viewer out" in message


def test_runs_in_one_file_that_do_not_add_up(tmp_path):
    write_scan(tmp_path / "fmri/movie_s1.nii", np.random.default_rng(0).normal(size=(40, *GRID)))
    np.save(tmp_path / "a_part1.npy", np.zeros((20, 2)))
    given = ["--fmri", tmp_path / "fmri", "--features", f"clip={tmp_path}"]
    assert "say how long each is, as in --runs part1=946" in fails(tmp_path, *given, "--runs", "part1", "part2")
    message = fails(tmp_path, *given, "--runs", "part1=20", "part2=19")
    assert "s1 has 40 volumes, --runs add up to 39 (part1 20, part2 19)" in message


def test_a_missing_viewer_or_run(study, tmp_path):
    assert "no file is of sub-03; there are sub-01, sub-02" in fails(tmp_path, *study, "--subjects", "sub-01", "sub-03")
    assert "there is no sub-9" in fails(tmp_path, *study, "--held_out_subjects", "sub-9")
    assert "leaves no viewer" in fails(tmp_path, *study, "--held_out_subjects", "sub-01", "sub-02")
    for name in ("sub-01_a1", "sub-01_b2", "sub-02_a1"):
        write_scan(tmp_path / f"more/{name}.nii", np.zeros((40, *GRID)))
    message = fails(tmp_path, "--fmri", tmp_path / "more", *study[2:], "--runs", "a1", "b2")
    assert "sub-02 has no file for run b2" in message
    write_scan(tmp_path / "more/sub-01_a1_again.nii", np.zeros((40, *GRID)))
    assert "are both of a1 of the same viewer" in fails(
        tmp_path, "--fmri", tmp_path / "more", *study[2:], "--runs", "a1"
    )
    assert "there is no .nii" in fails(tmp_path, "--fmri", tmp_path / "clip", *study[2:])
    assert "no such file" in fails(tmp_path, "--fmri", tmp_path / "nowhere", *study[2:])


def test_voxels_that_are_nan_everywhere(study, tmp_path):
    write_scan(scan(tmp_path, 2), np.full((40, *GRID), np.nan))
    assert "sub-02: has 0 volumes in the TRs for training (equal ones at the end" in fails(tmp_path, *study)


def test_brains_that_do_not_lie_in_one_place(study, tmp_path):
    random = np.random.default_rng(0)
    for subject in (1, 2):
        volumes = np.zeros((40, *GRID))
        volumes[:, subject] = random.normal(size=(40, *GRID[1:]))
        write_scan(scan(tmp_path, subject), volumes)
    message = fails(tmp_path, *study)
    assert "no voxel is good in all viewers; each has: sub-01 8, sub-02 8. Are all in one space?" in message


def test_damaged_scans(study, tmp_path):
    path = scan(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "sub-02_bold.nii.gz: volume 0 and on cannot be read: EOFError" in fails(tmp_path, *study)
    path.write_text("no scan")
    assert "sub-02_bold.nii.gz: not a NIfTI image" in fails(tmp_path / "else", *study)


def test_trs_in_headers(study, tmp_path):
    volumes = np.random.default_rng(0).normal(size=(40, *GRID))
    write_scan(scan(tmp_path, 2), volumes, tr_s=2.0)
    message = fails(tmp_path, *study)
    assert "headers do not agree on the TR: 1.5 or 2 s (sub-01_bold.nii.gz, sub-02_bold.nii.gz); give --tr" in message
    assert preprocess(tmp_path / "out", *study, "--tr=1.5").tr_s == 1.5
    for subject in (1, 2):
        write_scan(scan(tmp_path, subject), volumes, tr_s=0.0)
    assert "says no TR; give --tr" in fails(tmp_path / "else", *study)


def test_label_images(study, tmp_path):
    write_scan(tmp_path / "rois.nii", np.ones((2, 2, 2)))
    assert "rois.nii: has 2 x 2 x 2 voxels" in fails(tmp_path, *study, "--rois", tmp_path / "rois.nii")
    write_scan(tmp_path / "rois.nii", np.full(GRID, 0.5))
    assert "labels are whole numbers" in fails(tmp_path, *study, "--rois", tmp_path / "rois.nii")
    write_scan(tmp_path / "rois.nii", np.random.default_rng(0).integers(0, 9, GRID).astype(np.int16))
    (tmp_path / "rois.nii").write_bytes((tmp_path / "rois.nii").read_bytes()[:-10])
    assert "rois.nii: cannot be read: " in fails(tmp_path, *study, "--rois", tmp_path / "rois.nii")
    assert "--parcels needs the label image" in fails(tmp_path, *study, "--parcels")


# -- stimulus ----------------------------------------------------------------------------------------------------------


def test_no_stimulus(study, tmp_path):
    assert "there is no stimulus; give --video" in fails(tmp_path, *study[:2])


def test_movies_that_cannot_be_read(study, tmp_path):
    bad = tmp_path / "film.mp4"
    bad.write_bytes(b"no movie" * 100)
    assert "film.mp4: cannot be read as video" in fails(tmp_path, *study, "--video", bad)
    assert "no such file" in fails(tmp_path, *study, "--video", tmp_path / "other.mp4")
    render.write_movie(bad, np.full((40, 6), 0.5), False)
    assert "film.mp4: holds no audio" in fails(tmp_path, *study, "--video", bad, "--audio", "movie")
    render.write_sound(tmp_path / "film.wav", np.full((40, 6), 0.5))
    message = fails(tmp_path, *study, "--audio", tmp_path / "film.wav", "--mels=600")
    assert "bands are too narrow for windows of 64 ms; give fewer" in message
    assert "--audio movie needs --video" in fails(tmp_path, *study, "--audio", "movie")
    assert "--frame_size is WIDTHxHEIGHT" in fails(tmp_path, *study, "--video", bad, "--frame_size=64")


def test_a_movie_that_ends_before_its_header_says(study, tmp_path):
    film = tmp_path / "film.mkv"
    z = np.random.default_rng(0).random((40, 6))
    render.write_movie(film, z, False)
    film.write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    message = fails(tmp_path, *study, "--video", film, "--tr=1.5")
    assert "film.mkv" in message and ("is the file complete?" in message or "does not say how long" in message)


def test_movies_that_are_not_whole(study, tmp_path):
    film = tmp_path / "film.mp4"
    render.write_movie(film, np.random.default_rng(0).random((40, 6)), True)
    whole = film.read_bytes()
    hole = whole[: len(whole) // 3] + bytes(4000) + whole[len(whole) // 3 + 4000 :]
    for i, (content, text) in enumerate((
        (b"", "film.mp4: cannot be read as video: Invalid data found when processing input; is the file complete?"),
        (whole[: len(whole) // 2], "film.mp4: cannot be read as video"),
        (hole, "film.mp4: cannot be decoded after"),
    )):  # fmt: skip
        film.write_bytes(content)
        assert text in fails(tmp_path / str(i), *study, "--video", film, "--audio", "movie")


def test_sounds_of_another_length(study, tmp_path):
    sound = tmp_path / "film.wav"
    render.write_sound(sound, np.full((20, 6), 0.5))
    message = fails(tmp_path, *study, "--audio", sound)
    assert (
        "the scan takes 60 s by its header's TR of 1.5 s, the audio 30 s; if the header is wrong, give --tr" in message
    )
    made = preprocess(tmp_path / "out", *study, "--audio", sound, "--tr=1.5")
    assert made.runs == {"run1": 20} and any("20 TRs are common" in text for text in made.manifest["found"])
    sound.write_bytes(sound.read_bytes()[:44])
    message = fails(tmp_path / "else", *study, "--audio", sound)
    assert "film.wav: does not say how long its audio is" in message or "film.wav: its sound is empty" in message
    render.write_sound(sound, np.full((40, 6), 0.5))
    message = fails(tmp_path / "else", *study, "--audio", sound, "--audio_frames=200")
    assert message.endswith("--audio_frames 200: a TR of 1.5 s has at most 93, of 16 ms each")


def test_folders_and_files_in_the_wrong_place(study, tmp_path):
    fmri = tmp_path / "fmri"
    assert "--video: " + str(fmri) + " holds no .mp4" in fails(tmp_path, *study, "--video", fmri)
    assert "--annotations: " + str(fmri) + " holds no .xlsx" in fails(tmp_path, *study, "--annotations", fmri)
    assert "is a folder, a file is needed" in fails(tmp_path, *study, "--mask", fmri)
    assert "is a folder, a file is needed" in fails(tmp_path, *study, "--rois", fmri)
    assert "is a folder, a file is needed" in fails(tmp_path, *study, "--video", f"run1={fmri}")
    message = fails(tmp_path, *study, "--video", f"part9={scan(tmp_path, 1)}")
    assert "there is no run part9; there are run1" in message
    assert "cannot be read as video" in fails(tmp_path, *study, "--video", scan(tmp_path, 1))
    (fmri / "sub-03_bold.nii.gz").mkdir()  # is no scan, whatever its name
    assert preprocess(tmp_path / "out", *study).subjects == ["sub-01", "sub-02"]


def test_a_movie_of_another_length(study, tmp_path):
    render.write_movie(tmp_path / "film.mp4", np.full((20, 6), 0.5), False)
    message = fails(tmp_path, *study, "--video", tmp_path / "film.mp4")
    assert "run1: the scan takes 60 s by its header's TR of 1.5 s, the video 30 s; if the header is wrong" in message


def test_features_that_do_not_fit(study, tmp_path):
    np.save(tmp_path / "clip/film2.npy", np.zeros((40, 2)))
    assert "names none of the runs run1" in fails(tmp_path, *study)
    (tmp_path / "clip/film2.npy").unlink()
    (tmp_path / "empty").mkdir()
    assert "holds no .npy" in fails(tmp_path, *study, "--features", f"deep={tmp_path / 'empty'}")
    assert "--features is NAME=VALUE" in fails(tmp_path, *study, "--features", tmp_path / "clip")
    assert "there are no --features other" in fails(tmp_path, *study, "--feature_rate", "other=2")
    assert "rows a second, a number above 0" in fails(tmp_path, *study, "--feature_rate", "clip=fast")
    np.save(tmp_path / "clip/film.npy", np.ones((40, 2)))
    assert "clip: never changes in the TRs for training" in fails(tmp_path, *study)
    np.save(tmp_path / "clip/film.npy", np.full((40, 2), np.inf))
    assert "film.npy: number 0 of TR 0 is inf" in fails(tmp_path / "else", *study)


@pytest.mark.parametrize("rows", [0, 20, 120])
def test_features_with_another_number_of_rows(study, tmp_path, rows):
    """At two a second and not said, they would be three times too slow."""
    np.save(tmp_path / "clip/film.npy", np.random.default_rng(0).normal(size=(rows, 2)))
    message = fails(tmp_path, *study)
    assert f"film.npy: has {rows} rows, run1 has 40 volumes; with a rate, give --feature_rate clip=HZ" in message
    if rows == 120:
        assert preprocess(tmp_path / "out", *study, "--feature_rate", "clip=2").runs == {"run1": 40}


def test_features_that_cannot_be_read(study, tmp_path):
    import h5py

    (tmp_path / "clip/film.npy").write_bytes(b"")
    assert "film.npy: cannot be read: No data left in file" in fails(tmp_path, *study)
    (tmp_path / "clip/film.npy").unlink()
    for i, rate in enumerate((-2.0, np.nan)):
        with h5py.File(tmp_path / "clip/film.h5", "w") as file:
            file["a"] = np.zeros((40, 2))
            file.attrs["rate_hz"] = rate
        assert "film.h5: rate_hz is " in fails(tmp_path / str(i), *study)
    (tmp_path / "clip/film.h5").write_bytes(b"no HDF5")
    assert "film.h5: cannot be read" in fails(tmp_path, *study)


def test_runs_of_other_shapes(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "clip").mkdir()
    for run, width in (("a1", 3), ("b2", 4)):
        write_scan(tmp_path / f"fmri/sub-1_{run}.nii", random.normal(size=(30, *GRID)))
        np.save(tmp_path / f"clip/{run}.npy", random.normal(size=(30, width)))
    message = fails(tmp_path, "--fmri", tmp_path / "fmri", "--runs", "a1", "b2", "--features",
                    f"clip={tmp_path / 'clip'}", "--gap=1")  # fmt: skip
    assert "clip: b2 has float32 [4] a TR, a1 has float32 [3]" in message


# -- annotations -------------------------------------------------------------------------------------------------------


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "annotations.csv"
    path.write_text("\n".join(["start,end,text", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["0,3,a", "9,12,b", "6,9,c"], "row 4: begins at 6 s, after a row that begins at 9 s; times run backwards"),
        (["0,3,a", "9,6,b"], "row 3: ends at 6 s, before it begins at 9 s"),
        (["0,3,a", "x,6,b"], "row 3: 'x' is no time in seconds"),
        (["0,3,a", "9,12,b", "0,3,c"], "has 2 runs (a clock begins again in row 4), there are 1: run1"),
        ([], "has no rows"),
    ],
)
def test_times_of_annotations(study, tmp_path, lines, text):
    message = fails(tmp_path, *study, "--annotations", table(tmp_path, *lines))
    assert "annotations.csv" in message and text in message


def test_columns_of_annotations(study, tmp_path):
    path = table(tmp_path, "0,3,a")
    assert "has no column 'texts' (did you mean text?)" in fails(
        tmp_path, *study, "--annotations", path, "--text_columns", "texts"
    )
    path.write_text("begin,finish\n0,1\n")
    assert "has no columns for start and end" in fails(tmp_path, *study, "--annotations", path)
    path.write_text("onset,end,story\n0,1,a\n")
    assert "which column is the text? Give --text_columns" in fails(tmp_path, *study, "--annotations", path)
    path.write_text("")
    assert "is empty" in fails(tmp_path, *study, "--annotations", path)
    path.write_bytes("start,end,text\n0,3,café\n".encode("latin1"))
    assert "annotations.csv: is not UTF-8; save it as UTF-8, or as .xlsx" in fails(
        tmp_path, *study, "--annotations", path
    )
    path.write_text("start,end,text\n0,60,a\n")
    assert "text: never changes in the TRs for training; is it right? It is from annotations.csv" in fails(
        tmp_path / "else", *study, "--annotations", path
    )
    other = tmp_path / "annotations.xlsx"
    other.write_text("no table")
    assert "annotations.xlsx: cannot be read as a table" in fails(tmp_path, *study, "--annotations", other)
    assert tables.END[0] == "end time (s)"


# -- split, options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--test", "run2"], "--test run2: there is no such run; there are run1"),
        (["--test", "run1:30-50"], "run1 has TRs 0 to 39"),
        (["--test", "run1"], "the last training run has 0"),
        (["--test", "run1:0-20", "--validation", "run1:19-25"], "some of these TRs are held out already"),
        (["--validation", "1.5"], "a share is from 0 (none) to below 1"),
        (["--gap=40"], "no TR is left for training"),
        (["--runs", "a", "a"], "--runs is NAME or NAME=TRS"),
        (["--runs", "a=0"], "--runs is NAME or NAME=TRS"),
        (["--workers=0"], "--workers must be 1 or more"),
        (["--tr=-1"], "--tr is in seconds"),
        (["--preshift=-3"], "--preshift must be 0 or more"),
        (["--preshift=40"], "--preshift 40: a run has 40 volumes only"),
        (["--text_model=/nowhere"], "/nowhere is no folder"),
    ],
)
def test_options(study, tmp_path, options, text):
    assert text in fails(tmp_path, *study, *options)
