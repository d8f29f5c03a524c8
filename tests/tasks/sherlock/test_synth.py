"""Synthetic viewers: real formats, the same bytes again, and a truth that holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.sherlock import truth
from accel_train.tasks.sherlock.preprocess import nifti, tables
from accel_train.tasks.sherlock.preprocess.finish import roi_names
from accel_train.tasks.sherlock.synth import LONGER, TAIL, synth

TRS = (30, 24)


def volumes(path: Path) -> np.ndarray:
    return nifti.read(path, 0, nifti.header(path).volumes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "easy"
    assert "2 viewers, 2 parts of 30, 24 TRs" in synth(out, seed=3, size=2, trs=TRS)
    return out


def test_files(folder):
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "stim_part1.mp4", "stim_part1.wav", "stim_part2.mp4", "stim_part2.wav", "annotations.xlsx", "rois.nii.gz",
        "rois.tsv", "truth.npz", "metadata.json", "fmri/synth_movie_s1.nii.gz", "fmri/synth_movie_s2.nii.gz",
    }  # fmt: skip
    header = nifti.header(folder / "fmri/synth_movie_s1.nii.gz")
    assert (header.grid, header.volumes, header.tr_s) == (truth.GRID, sum(TRS), 1.5)
    assert list(roi_names(folder / "rois.nii.gz").values()) == list(truth.ROIS)
    about = json.loads((folder / "metadata.json").read_text())
    assert sum(about["truth"]["voxels"].values()) == (truth.brain() > 0).sum()


def test_annotations_have_a_clock_for_each_part_and_trs_through_all(folder):
    table = tables.read(folder / "annotations.xlsx")
    assert [rows[0].start_s for rows in table.runs] == [0, 0]
    assert [rows[0].tr for rows in table.runs] == [1, TRS[0] + 1]
    assert [rows[-1].end_s for rows in table.runs] == [count * 1.5 for count in TRS]
    assert tables.trs_that_disagree(table.runs, 1.5)[0] == 0


def test_the_same_seed_gives_the_same_data(folder, tmp_path):
    synth(tmp_path / "again", seed=3, size=2, trs=TRS)
    synth(tmp_path / "other", seed=4, size=2, trs=TRS)
    for name in ("fmri/synth_movie_s1.nii.gz", "fmri/synth_movie_s2.nii.gz"):
        assert np.array_equal(volumes(folder / name), volumes(tmp_path / "again" / name))
        assert not np.array_equal(volumes(folder / name), volumes(tmp_path / "other" / name))
    for name in ("stim_part2.mp4", "stim_part2.wav", "rois.nii.gz", "metadata.json"):
        assert (folder / name).read_bytes()[200:] == (tmp_path / "again" / name).read_bytes()[200:], name


def test_more_viewers_change_nothing_for_the_first(folder, tmp_path):
    synth(tmp_path / "more", seed=3, size=3, trs=TRS)
    name = "fmri/synth_movie_s2.nii.gz"
    assert np.array_equal(volumes(folder / name), volumes(tmp_path / "more" / name))


def test_hemodynamics():
    h = truth.hemodynamics()
    assert abs(h.sum() - 1) < 1e-12 and 4.5 < h.argmax() * truth.TR_S / truth.FINE < 5.5 and h.min() < 0


@given(st.integers(0, 1000), st.integers(0, 3), st.integers(1, 40))
def test_blood_knows_no_future(seed, later, changed):
    x = np.random.default_rng(seed).normal(size=(60, 1))
    other = x.copy()
    other[changed:] += 1
    same = np.isclose(truth.blurred(x, later), truth.blurred(other, later), atol=1e-12)[:, 0]
    assert same[: changed + later].all() and not same[changed + later + 2]


def test_a_preshift_moves_the_signal_earlier_and_a_late_region_later():
    random = np.random.default_rng(0)
    labels, z = truth.brain()[truth.brain() > 0], truth.latents(random, 200)[0]
    taken = truth.weights(random, labels)
    plain, shifted, late = (truth.signal(z, labels, taken, roi, shift) for roi, shift in (
        ({}, 0), ({}, 3), ({"auditory": 2}, 0)))  # fmt: skip
    visual, auditory = (np.flatnonzero(labels == 1 + truth.ROIS.index(roi))[0] for roi in ("visual", "auditory"))
    assert np.corrcoef(shifted[:-3, visual], plain[3:, visual])[0, 1] > 0.9999
    assert np.corrcoef(late[2:, auditory], plain[:-2, auditory])[0, 1] > 0.9999
    assert np.array_equal(late[:, visual], plain[:, visual])


def test_reliability_is_the_correlation_with_what_is_shared_and_the_null_region_hears_nothing():
    random = np.random.default_rng(1)
    labels, z = truth.brain()[truth.brain() > 0], truth.latents(random, 400)[0]
    shared = truth.signal(z, labels, truth.weights(random, labels), {}, 0)
    y = truth.measured(random, shared, labels, 0.6)
    hears = labels != 1 + truth.ROIS.index("null")
    assert not shared[:, ~hears].any()
    r = (truth.standard(y[:, hears]) * shared[:, hears]).mean(0)
    assert abs(r.mean() - 0.6) < 0.02 and abs(y.std() - 1) < 0.02


def test_no_linear_model_knows_the_product():
    """Not even of all lags: least squares on another stimulus finds nothing."""
    found = []
    for seed in range(8):
        x, y = [], []
        for part in range(2):
            z = truth.latents(np.random.default_rng((seed, part)), 600)[0]
            x.append(np.concatenate([truth.blurred(z), np.ones((600, 1))], 1))
            y.append(truth.standard(truth.blurred(truth.heard_of(z)["interaction"]))[:, 0])
        found.append(np.corrcoef(x[1] @ np.linalg.lstsq(x[0], y[0])[0], y[1])[0, 1])
    assert abs(np.mean(found)) < 0.1


def test_traps(tmp_path):
    trs = (60, 54)
    traps = ("header_tr", "constant_tail", "odd_rows", "long_stimulus", "unpacked", "bad_voxels", "cartoon")
    said = synth(tmp_path / "out", size=2, trs=trs, preshift=3, traps=traps)
    assert "cartoon" in said
    one, two = tmp_path / "out/fmri/synth_movie_s1.nii", tmp_path / "out/fmri/synth_movie_s2.nii.gz"
    assert nifti.header(one).tr_s == 1.0
    assert np.isnan(volumes(one)).any()
    tail = volumes(two)[-TAIL:]
    assert np.array_equal(tail, np.repeat(tail[:1], TAIL, 0), equal_nan=True)
    table = tables.read(tmp_path / "out/annotations.xlsx")
    assert (table.zero_length, table.without_tr) == (1, 2)
    assert table.runs[1][-1].end_s == (trs[1] + LONGER) * 1.5
    with np.load(tmp_path / "out/truth.npz") as kept:
        start = truth.CARTOON
        assert np.array_equal(kept["latents_part1"][:start], kept["latents_part2"][:start])
        assert not np.array_equal(kept["latents_part1"][:54], kept["latents_part2"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(trs=(8,)), "too short"),
        (dict(trs=(40,), traps=("constant_tail",)), "52 are needed"),
        (dict(size=0), "size"),
    ],
)
def test_refusals(tmp_path, options, text):
    with pytest.raises(UserError, match=text):
        synth(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
