"""``accel-train inspect`` of what is preprocessed and of what is not yet."""

from __future__ import annotations

import numpy as np
import pytest
from support.viewers import GRID, of_synth, preprocess, write_scan

from accel_train.errors import UserError
from accel_train.tasks.sherlock.describe import describe_files
from accel_train.tasks.sherlock.synth import synth

TRS = (40, 30)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw") / "synth"
    synth(out, size=2, trs=TRS, traps=("header_tr", "odd_rows"))
    return out


def test_a_folder_that_is_not_preprocessed(raw):
    text = describe_files([str(raw)], tr=1.5)
    for line in (
        "synth_movie_s1.nii.gz: 70 volumes of 1.5 s (its header says 1) = 105.0 s, 14 x 16 x 12 voxels",
        "stim_part1.mp4: video of 60.0 s = 40.00 TRs",
        "stim_part2.wav: audio of 45.0 s = 30.00 TRs",
        "rois.nii.gz: one volume",
        "1 rows of zero length, 2 without a TR",
        "sherlock preprocess",
    ):
        assert line in text


def test_what_is_wrong_has_its_line(tmp_path):
    (tmp_path / "film.mp4").write_text("no film")
    write_scan(tmp_path / "s1.nii", np.zeros((5, *GRID)))
    (tmp_path / "s2.nii.gz").write_bytes(b"no scan")
    text = describe_files([str(tmp_path)])
    assert "s2.nii.gz: not a NIfTI image" in text
    assert "WRONG" in text and "film.mp4: cannot be read as video" in text and "s1.nii: 5 volumes" in text
    with pytest.raises(UserError, match="no such file"):
        describe_files([str(tmp_path / "nowhere")])


def test_a_preprocessed_folder(raw, tmp_path):
    options = of_synth(raw, TRS, "--tr=1.5", "--gap=3", "--preshift=2", "--held_out_subjects", "s2")
    made = preprocess(tmp_path / "out", *options)
    text = describe_files([str(made.folder)])
    for line in (
        "2 viewers, 976 voxels, TR 1.5 s, moved 2 TRs earlier",
        "runs (TRs): part1 40, part2 30",
        "video        frames, uint8 3 x 36 x 64 x 3 a TR",
        "test         30 TRs: part2 0-30",
        "regions      null 196, visual 195",
        "s2           70 of 70, ISC median 0.",
        "held out",
        "found: headers say 1 s a volume; --tr 1.5 is taken",
        "found: annotations.xlsx: 1 row of zero length, left out",
    ):
        assert line in text
