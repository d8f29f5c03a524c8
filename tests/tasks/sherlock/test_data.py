"""Windows of a preprocessed folder: each TR once, and no stimulus of the future."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.viewers import GRID, preprocess, write_scan

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.data import Items, Prepared
from accel_train.tasks.sherlock.preprocess import nifti

TRS = {"a1": 30, "b2": 24, "c3": 20}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Prepared:
    """Three viewers, the third held out; s2 lacks the last 8 volumes of b2. clip counts TRs; only a1 and c3 have it."""
    folder, random = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    for subject in (1, 2, 3):
        for run, trs in TRS.items():
            volumes = random.normal(5, 2, (trs, *GRID))
            if (subject, run) == (2, "b2"):
                volumes[-8:] = 5
            write_scan(folder / f"fmri/s{subject}_{run}.nii.gz", volumes)
    for name in ("clip", "deep"):
        (folder / name).mkdir()
        for i, (run, trs) in enumerate(TRS.items()):
            if name == "deep" or run != "b2":
                np.save(folder / name / f"{run}.npy", 1000.0 * (i + 1) + np.arange(trs)[:, None] * [1, 1])
    return preprocess(
        folder / "out", "--fmri", folder / "fmri", "--runs", *TRS, "--features", f"clip={folder / 'clip'}",
        f"deep={folder / 'deep'}", "--gap=2", "--validation", "b2:14-24", "--held_out_subjects", "s3",
    )  # fmt: skip


def everything(items: Items) -> dict[str, np.ndarray]:
    return items.read(np.arange(len(items)))


def test_every_volume_of_a_split_once(made):
    batch = everything(Items(made, "train"))
    assert batch["fmri"].shape == (2 * (30 + 12), 1, made.voxels) and batch["measured"].all()
    places = list(zip(batch["subject"].tolist(), batch["run"].tolist(), batch["tr"].tolist(), strict=True))
    assert places == [(s, r, t) for s in (0, 1) for r, n in ((0, 30), (1, 12)) for t in range(n)]
    for row in (0, 5, 50, 83):
        subject, run, tr = places[row]
        expected = made.fmri(made.subjects[subject], list(TRS)[run])[tr]
        assert np.array_equal(batch["fmri"][row, 0], expected)
        assert batch["stimulus/deep"][row, 0, 0] == 1000 * (run + 1) + tr


@given(window=st.integers(1, 40), lags=st.integers(0, 12), split=st.sampled_from(["train", "validation", "test"]),
       average=st.booleans())  # fmt: skip
def test_windows_tile_a_split_and_see_what_came_before(made, window, lags, split, average):
    items = Items(made, split, window, lags, "average" if average else "per_subject")
    batch = everything(items)
    assert batch["stimulus/deep"].shape == (len(items), lags + window, 2) and batch["fmri"].dtype == np.float32
    inside = batch["present"][:, lags:]
    trs = batch["tr"][:, None] + np.arange(-lags, window)
    seen = sorted(zip(*(x.tolist() for x in (
        np.repeat(batch["subject"], window)[inside.ravel()], np.repeat(batch["run"], window)[inside.ravel()],
        trs[:, lags:][inside])), strict=True))  # fmt: skip
    expected = [(s, list(TRS).index(run), t) for s in ([-1] if average else [0, 1])
                for run, first, last in made.stretches(split) for t in range(first, last)]  # fmt: skip
    if items.unmeasured == 0:
        assert seen == sorted(expected)
    assert set(seen) <= set(expected) and len(seen) == len(set(seen))
    assert np.array_equal(batch["present"][:, :lags], trs[:, :lags] >= 0)
    code = 1000 * (batch["run"][:, None] + 1) + trs
    assert np.array_equal(batch["stimulus/deep"][..., 0], np.where(batch["present"], code, 0))
    assert not batch["measured"][~inside].any() and not batch["fmri"][~batch["measured"]].any()


def test_volumes_that_were_moved_earlier_see_the_stimulus_of_their_time(made):
    moved = Prepared(made.folder)
    moved.preshift_trs = 2
    batch, plain = everything(Items(moved, "train", 5, 3)), everything(Items(made, "train", 5, 3))
    for name in ("fmri", "measured", "subject", "run", "tr"):
        assert np.array_equal(batch[name], plain[name])
    trs = batch["tr"][:, None] + 2 + np.arange(-3, 5)
    lengths = np.array([made.runs[run] for run in TRS])[batch["run"]][:, None]
    assert np.array_equal(batch["present"][:, 3:], batch["measured"] & (trs < lengths)[:, 3:])
    code = 1000 * (batch["run"][:, None] + 1) + trs
    assert np.array_equal(batch["stimulus/deep"][..., 0], np.where(batch["present"], code, 0))


def test_missing_volumes(made):
    items = Items(made, "validation")
    assert len(items) == 2 * 10 - 8 and items.unmeasured == 8
    batch = everything(Items(made, "validation", window_trs=4))
    assert batch["measured"].sum() == 2 * 10 - 8 and batch["present"].sum() == 10 + 4  # one window of s2 has volumes
    assert not np.isnan(batch["fmri"]).any()


def test_the_mean_over_viewers(made):
    batch = everything(Items(made, "validation", target="average"))
    one, two = (made.fmri(name, "b2")[14:] for name in ("s1", "s2"))
    expected = np.where(np.isnan(two), one, (one + two) / 2)
    np.testing.assert_allclose(batch["fmri"][:, 0], expected, rtol=1e-6)
    assert (batch["subject"] == -1).all() and batch["measured"].all()


def test_a_modality_that_a_run_lacks(made):
    batch = everything(Items(made, "train"))
    b2 = batch["run"] == 1
    assert list(made.modalities) == ["clip", "deep"]
    assert np.array_equal(batch["available"], np.stack([~b2, np.ones(len(b2), bool)], 1))
    assert not batch["stimulus/clip"][b2].any() and batch["stimulus/clip"][~b2].all()
    assert list(everything(Items(made, "train", modalities=["deep"]))) == [
        "stimulus/deep", "fmri", "measured", "present", "available", "subject", "run", "tr"
    ]  # fmt: skip


def test_held_out_viewers_are_there_when_asked_for(made):
    assert made.held_out == ["s3"]
    batch = everything(Items(made, "test", subjects=made.held_out))
    assert (batch["subject"] == 2).all() and len(batch["tr"]) == 20


def test_mean_squares_of_what_is_trained_on(made):
    for target in ("per_subject", "average"):
        batch = everything(Items(made, "train", target=target))
        assert np.square(batch["fmri"]).mean() == pytest.approx(made.fmri_variance[target], rel=1e-5)


def test_another_process_gets_the_place_not_the_content(made):
    made.fmri("s1", "a1")
    text = pickle.dumps(Items(made, "train"))
    assert len(text) < 10_000
    again = pickle.loads(text)
    assert np.array_equal(everything(again)["fmri"], everything(Items(made, "train"))["fmri"])
    assert again.fingerprint() == Items(made, "train").fingerprint()


def test_the_stimulus_is_stored_once_however_many_viewers(made, tmp_path):
    """And nothing of it depends on them."""
    folder = made.folder.parent
    one = preprocess(
        tmp_path / "one", "--fmri", *sorted((folder / "fmri").glob("s1_*")), "--runs", *TRS, "--features",
        f"clip={folder / 'clip'}", f"deep={folder / 'deep'}", "--gap=2", "--validation", "b2:14-24",
    )  # fmt: skip

    def stimuli(data: Prepared) -> dict[str, bytes]:
        return {str(p.relative_to(data.folder)): p.read_bytes() for p in (data.folder / "stimulus").rglob("*.npy")}

    assert stimuli(one) == stimuli(made) and len(stimuli(one)) == 5


def test_wrong_names_and_sizes(made):
    for arguments, text in (
        (("trian",), "did you mean train"), (("train", 0), "1 volume or more"), (("train", 1, -1), "0 lags or more"),
        (("train", 1, 0, "average", ["s9"]), "there is no 's9'"),
        (("train", 1, 0, "average", None, ["film"]), "there is no 'film'; there are clip, deep"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=text):
            Items(made, *arguments)


def test_damaged_folders(made, tmp_path):
    with pytest.raises(DataError, match="make it with accel-train sherlock preprocess"):
        Prepared(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(made.folder, copy)
    np.save(copy / "fmri/s1/a1.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match=r"a1.npy: is float32 \(3, 2\), the manifest says float32 \(30, 24\)"):
        Prepared(copy).fmri("s1", "a1")
    (copy / "fmri/s1/a1.npy").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        Prepared(copy).fmri("s1", "a1")
    meta = json.loads((copy / "meta.json").read_text())
    (copy / "meta.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(DataError, match="made by version 99"):
        Prepared(copy)


def test_real_scans_that_a_package_ships(tmp_path):
    """Two runs of one session, 10 x 10 x 18 x 40, int16, of nitime."""
    nitime = pytest.importorskip("nitime")
    ships = Path(nitime.__file__).parent / "data"
    if not (ships / "fmri1.nii.gz").is_file():
        pytest.skip("this nitime ships no scans")
    (tmp_path / "clip").mkdir()
    for run in ("fmri1", "fmri2"):
        np.save(tmp_path / f"clip/{run}.npy", np.random.default_rng(0).normal(size=(40, 3)))
    made = preprocess(
        tmp_path / "out", "--fmri", ships / "fmri1.nii.gz", ships / "fmri2.nii.gz", "--runs", "fmri1", "fmri2",
        "--features", f"clip={tmp_path / 'clip'}", "--gap=5",
    )  # fmt: skip
    header = nifti.header(ships / "fmri1.nii.gz")
    assert made.subjects == ["viewer"]
    assert made.tr_s == pytest.approx(header.tr_s) and made.runs == {"fmri1": 40, "fmri2": 40}
    train = made.fmri(made.subjects[0], "fmri1")[slice(*made.stretches("train")[0][1:])]
    assert abs(train.mean(0)).max() < 1e-4 and 100 < made.voxels <= 1800
