"""Confounds: what is left of a voxel is what least squares leave, and a table that does not fit is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.viewers import GRID, PREPROCESS, preprocess, small_study, write_scan

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.data import Prepared
from accel_train.tasks.sherlock.preprocess.confounds import read, regress_out

NAMES = ("trans_x", "trans_x_derivative1", "rot_z", "cosine00", "framewise_displacement", "csf")


def write_table(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(columns), *("\t".join(map(str, line)) for line in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def columns_of(seed: int, rows: int) -> dict[str, Any]:
    """As fMRIPrep has them: derivatives are n/a in the first row."""
    draw = np.random.default_rng(seed)
    found: dict[str, Any] = {name: draw.normal(size=rows).tolist() for name in NAMES}
    for name in ("trans_x_derivative1", "framewise_displacement"):
        found[name][0] = "n/a"
    return found


# -- regression --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 6))
def test_what_is_left_is_orthogonal_to_every_confound(seed: int, columns: int, missing: int):
    """And has the mean it had; constant and repeated columns change nothing; what was not measured stays."""
    draw = np.random.default_rng(seed)
    confounds = draw.normal(100, 3, (30, columns))
    volumes = draw.normal(1000, 20, (30, 5)).astype(np.float32)
    measured = np.ones(30, bool)
    measured[draw.choice(30, missing, False)] = False
    found = volumes.copy()
    regress_out(found, measured, np.column_stack([np.ones(30), confounds, 2 * confounds[:, :2]]))
    design = np.column_stack([np.ones(measured.sum()), confounds[measured]])
    fitted = design @ np.linalg.lstsq(design, volumes[measured].astype(float), rcond=None)[0]
    wanted = volumes[measured] - fitted + volumes[measured].mean(0)
    np.testing.assert_allclose(found[measured], wanted, atol=2e-3)
    np.testing.assert_array_equal(found[~measured], volumes[~measured])


def test_voxels_that_are_not_finite_harm_no_others():
    draw = np.random.default_rng(0)
    volumes, confounds = draw.normal(size=(20, 4)).astype(np.float32), draw.normal(size=(20, 2))
    bad = volumes.copy()
    bad[3, 1], bad[4, 2] = np.nan, np.inf
    for each in (volumes, bad):
        regress_out(each, np.ones(20, bool), confounds)
    np.testing.assert_array_equal(bad[:, [0, 3]], volumes[:, [0, 3]])
    assert not np.isfinite(bad[:, 1:3]).all(0).any()
    regress_out(bad, np.zeros(20, bool), confounds)  # nothing was measured


# -- tables ------------------------------------------------------------------------------------------------------------


def test_columns_are_chosen_by_name(tmp_path):
    path = write_table(tmp_path / "confounds.tsv", columns := columns_of(0, 12))
    names, values = read(path, None)
    assert names == ["trans_x", "trans_x_derivative1", "rot_z", "cosine00"]
    np.testing.assert_array_equal(values[:, 0], columns["trans_x"])
    assert values[0, 1] == values[1, 1] == columns["trans_x_derivative1"][1]
    assert read(path, ["csf", "trans_*", "csf"])[0] == ["csf", "trans_x", "trans_x_derivative1"]


def test_a_table_of_fmriprep_itself():
    folder = Path(pytest.importorskip("nilearn").__file__).parent / "interfaces" / "fmriprep" / "data"
    for name, cosines in (("test_desc-confounds_regressors", 4), ("test-v21_desc-confounds_timeseries", 0)):
        names, values = read(folder / f"{name}.tsv", None)
        assert len(names) - sum(each.startswith("cosine") for each in names) == 24
        assert sum(each.startswith("cosine") for each in names) >= cosines
        assert values.shape == (30, len(names)) and np.isfinite(values).all()


@pytest.mark.parametrize(
    ("change", "patterns", "text"),
    [
        ({}, ["csf", "white_matter"], "has no columns white_matter; choose by --confound_columns among trans_x, "),
        ({"rot_z": "n/a"}, None, "rot_z has no number; leave the column out by --confound_columns"),
        ({"csf": [1, 2, 3, "n/a", *range(8)]}, ["csf"], "row 5: csf is no number"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, change, patterns, text):
    columns = columns_of(0, 12) | {name: [x] * 12 if isinstance(x, str) else x for name, x in change.items()}
    with pytest.raises(UserError) as caught:
        read(write_table(tmp_path / "confounds.tsv", columns), patterns)
    assert str(caught.value).startswith(str(tmp_path / "confounds.tsv")) and text in str(caught.value)


def test_what_is_no_table(tmp_path):
    (tmp_path / "empty.tsv").write_text("")
    (tmp_path / "binary.tsv").write_bytes(bytes(range(256)))
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    for name, text in (("empty", "cannot be read"), ("binary", "cannot be read"), ("other", "has no columns trans_")):
        with pytest.raises((DataError, UserError), match=f"{name}.tsv: {text}"):
            read(tmp_path / f"{name}.tsv", None)


# -- preprocess --------------------------------------------------------------------------------------------------------


def study(folder: Path, trs: int = 40) -> list[str]:
    """Viewers whose BOLD is theirs and what their head does; a table of each."""
    given = small_study(folder, trs=trs)
    for subject in (1, 2):
        columns = columns_of(subject, trs)
        write_table(folder / f"fmriprep/sub-{subject:02d}_task-film_desc-confounds_timeseries.tsv", columns)
        own = np.random.default_rng(subject).normal(5, 2, (trs, *GRID))
        moved = own + 50 * np.array(columns["trans_x"])[:, None, None, None]
        write_scan(folder / f"fmri/sub-{subject:02d}_bold.nii.gz", moved.astype(np.float32))
    return given


def drift_of(made: Prepared, folder: Path) -> float:
    """How much of the motion is in what is stored."""
    motion = [read(path, ["trans_x"])[1][:, 0] for path in sorted((folder / "fmriprep").iterdir())]
    volumes = [made.fmri(subject, "run1") for subject in made.subjects]
    return max(abs(np.corrcoef(x, v)[0, 1]) for x, y in zip(motion, volumes, strict=True) for v in y.T)


def test_motion_is_gone_after_preprocess(tmp_path):
    given = study(tmp_path)
    with_motion = preprocess(tmp_path / "with", *given)
    without = preprocess(tmp_path / "without", *given, "--confounds", tmp_path / "fmriprep")
    assert drift_of(with_motion, tmp_path) > 0.99 and drift_of(without, tmp_path) < 1e-5
    (said,) = [text for text in without.manifest["found"] if text.startswith("confounds")]
    assert said == "confounds: 4 columns are regressed out of each run (trans_*, rot_*, cosine*)"
    assert "sub-01_task-film_desc-confounds_timeseries.tsv" in str(without.manifest["files"]["confounds"])
    for subject, (first, last) in ((each, without.stretches("train")[0][1:]) for each in without.subjects):
        assert abs(without.fmri(subject, "run1")[first:last].std(0) - 1).max() < 1e-5


def test_runs_in_one_file_have_tables_of_their_own(tmp_path):
    draw = np.random.default_rng(0)
    columns = {run: columns_of(i, trs) for i, (run, trs) in enumerate({"part1": 40, "part2": 30}.items())}
    motion = np.concatenate([each["trans_x"] for each in columns.values()])
    write_scan(tmp_path / "fmri/movie_s1.nii", draw.normal(5, 2, (70, *GRID)) + 50 * motion[:, None, None, None])
    for run, each in columns.items():
        write_table(tmp_path / f"tables/s1_{run}_confounds.tsv", each)
        (tmp_path / "clip").mkdir(exist_ok=True)
        np.save(tmp_path / f"clip/{run}.npy", draw.normal(size=(34, 2)))  # part1 is cut off after 34
    given = [
        "--fmri",
        tmp_path / "fmri",
        "--features",
        f"clip={tmp_path / 'clip'}",
        "--gap=2",
        "--runs",
        "part1=40",
        "part2=30",
    ]
    made = preprocess(tmp_path / "out", *given, "--confounds", tmp_path / "tables")
    assert made.runs == {"part1": 34, "part2": 30}
    for run, each in columns.items():
        r = np.corrcoef(each["trans_x"][: made.runs[run]], made.fmri("s1", run).T)[0, 1:]
        assert abs(r).max() < 1e-5
    swapped = [f"part1={tmp_path}/tables/s1_part2_confounds.tsv", f"part2={tmp_path}/tables/s1_part1_confounds.tsv"]
    with pytest.raises(DataError, match=r"s1_part2_confounds.tsv: has 30 rows, s1 has 40 volumes of part1 in movie_s1"):
        preprocess(tmp_path / "other", *given, "--confounds", *swapped)


def test_another_choice_of_columns_is_another_folder(tmp_path):
    given = [*study(tmp_path), "--confounds", tmp_path / "fmriprep"]
    preprocess(tmp_path / "out", *given)
    for changed in (["--confound_columns", "trans_*"], ["--confounds", *(tmp_path / "fmriprep").iterdir()]):
        call = [f"--out={tmp_path / 'out'}", *map(str, [*given, *changed])]
        if "--confound_columns" in changed:
            with pytest.raises(UserError, match="made otherwise"):
                PREPROCESS.run(call)
        else:
            assert PREPROCESS.run(call) == 0  # the same files


@pytest.mark.parametrize(
    ("spoil", "options", "text"),
    [
        (lambda f: write_table(f, columns_of(2, 39)), [], "has 39 rows, sub-02 has 40 volumes of run1 in sub-02_bold"),
        (Path.unlink, [], "--confounds: no table is of sub-02, run1; there are those of sub-01"),
        (lambda f: f.write_text(""), [], "cannot be read as a table"),
        (None, ["--confound_columns", "tissue"], "has no columns tissue"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, spoil, options, text):
    given = study(tmp_path)
    if spoil is not None:
        spoil(tmp_path / "fmriprep/sub-02_task-film_desc-confounds_timeseries.tsv")
    with pytest.raises(UserError) as caught:
        preprocess(tmp_path / "out", *given, "--confounds", tmp_path / "fmriprep", *options)
    assert text in str(caught.value) and "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_columns_without_tables_and_too_many_of_them(tmp_path):
    given = study(tmp_path)
    with pytest.raises(UserError, match="--confound_columns needs the tables, --confounds"):
        preprocess(tmp_path / "out", *given, "--confound_columns", "csf")
    for subject in (1, 2):
        many = {f"a_comp_cor_{i:02d}": np.random.default_rng(i).normal(size=40) for i in range(40)}
        write_table(tmp_path / f"fmriprep/sub-{subject:02d}_task-film_desc-confounds_timeseries.tsv", many)
    with pytest.raises(DataError, match="40 confounds leave nothing of 40 volumes; choose fewer"):
        preprocess(tmp_path / "out", *given, "--confounds", tmp_path / "fmriprep", "--confound_columns", "a_comp_cor_*")
