"""``sherlock preprocess``: what is stored is what the files hold, and traps are seen (who did the work: tests/laws)."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.viewers import GRID, PREPROCESS, of_synth, preprocess, small_study, write_scan

from accel_train.config.convert import further_options
from accel_train.errors import UserError
from accel_train.tasks.sherlock import truth
from accel_train.tasks.sherlock.data import Prepared
from accel_train.tasks.sherlock.preprocess import nifti
from accel_train.tasks.sherlock.synth import synth

TRS = (60, 50, 40)
QUICK = ("--gap=5", "--frames=2", "--frame_size=16x9", "--text_dim=64")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "synth"
    synth(out, size=2, trs=TRS)
    return out


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory) -> Prepared:
    return preprocess(tmp_path_factory.mktemp("made") / "out", *of_synth(raw, TRS, *QUICK))


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def test_split_and_shapes(made):
    assert made.runs == dict(part1=60, part2=50, part3=40)
    assert made.stretches("test") == [("part3", 0, 40)]
    assert made.stretches("validation") == [("part2", 34, 50)]  # 0.15 of 110
    assert made.stretches("train") == [("part1", 0, 60), ("part2", 0, 29)]
    assert made.stimulus("part2", "video").shape == (50, 2, 9, 16, 3)
    assert made.stimulus("part2", "audio").shape == (50, 6, 40)
    assert made.stimulus("part2", "text").shape == (50, 64)
    assert made.voxels == (truth.brain() > 0).sum() and list(made.rois) == list(truth.ROIS)


def test_the_stimulus_says_what_was_shown(made, raw):
    """Luminance to a grey level, loudness in the band of each tone, words where their segment is."""
    with np.load(raw / "truth.npz") as kept:
        for run in made.runs:
            z = kept[f"latents_{run}"]
            video = made.stimulus(run, "video").astype(float) / 255
            assert abs(video[:, :, :, :7].mean((1, 2, 3, 4)) - z[:, 0]).max() < 0.02
            assert abs(video[:, :, :, 9:].mean((1, 2, 3, 4)) - z[:, 1]).max() < 0.02
            audio = made.stimulus(run, "audio")[:, 1:].mean(1)  # a window of the first part reaches into the TR before
            bands = audio.mean(0).argsort()[-12:]
            for latent in (2, 3):
                r = [np.corrcoef(audio[:, band], np.log(z[:, latent]))[0, 1] for band in bands]
                assert max(r) > 0.999


def test_brains_have_mean_0_and_variance_1_in_the_trs_for_training(made, raw):
    stats = made.statistics("fmri_stats")
    for row, subject in enumerate(made.subjects):
        train = np.concatenate([made.fmri(subject, run)[a:b] for run, a, b in made.stretches("train")])
        assert abs(train.mean(0)).max() < 1e-5 and abs(train.std(0) - 1).max() < 1e-5
        volumes = nifti.read(raw / f"fmri/synth_movie_{subject}.nii.gz", 60, 110)[:, truth.brain().ravel() > 0]
        undone = made.fmri(subject, "part2") * stats["std"][row] + stats["mean"][row]
        np.testing.assert_allclose(undone, volumes, rtol=1e-5)


def test_statistics_of_the_stimulus_make_the_mean_predictor_1(made):
    stats = made.statistics("stimulus_stats")
    for name in made.modalities:
        rows = np.concatenate([made.stimulus(run, name)[a:b] for run, a, b in made.stretches("train")]).astype(float)
        assert ((rows - stats[f"{name}_mean"]) ** 2).mean() / stats[f"{name}_var"] == pytest.approx(1)


def test_images_are_on_the_grid_of_the_scans(made):
    import nibabel

    mask, rois = (np.asarray(nibabel.load(made.folder / f"{name}.nii.gz").dataobj) for name in ("mask", "rois"))
    assert np.array_equal(mask > 0, truth.brain() > 0) and np.array_equal(rois, truth.brain())


def test_another_setting_or_another_file_is_another_folder(raw, made, tmp_path, capsys):
    shutil.copytree(made.folder, tmp_path / "out")
    assert PREPROCESS.run([f"--out={tmp_path / 'out'}", *of_synth(raw, TRS, *QUICK)]) == 0
    assert "already there" in capsys.readouterr().out
    for changed in ("--preshift=3", "--gap=6", "--mels=39", "--tr=1.5"):
        with pytest.raises(UserError, match="made otherwise"):
            PREPROCESS.run([f"--out={tmp_path / 'out'}", *of_synth(raw, TRS, *QUICK, changed)])


def test_a_file_for_each_run_gives_the_same(made, tmp_path):
    synth(tmp_path / "split", size=2, trs=TRS, concatenated=False)
    options = of_synth(tmp_path / "split", TRS, *QUICK)
    other = preprocess(
        tmp_path / "out", *[text.partition("=")[0] if text.startswith("part") else text for text in options]
    )
    for subject in made.subjects:
        for run in made.runs:
            assert np.array_equal(made.fmri(subject, run), other.fmri(subject, run))


def test_all_traps_together(tmp_path, capsys):
    trs = (100, 90, 80)
    traps = ("header_tr", "constant_tail", "odd_rows", "long_stimulus", "unpacked", "bad_voxels", "cartoon")
    synth(tmp_path / "raw", size=3, trs=trs, preshift=3, sound="movie", traps=traps)
    synth(tmp_path / "easy", size=3, trs=trs, preshift=3, traps=("cartoon", "long_stimulus"))
    options = of_synth(tmp_path / "raw", trs, *QUICK, "--preshift=3")
    options[options.index("--audio") + 1] = "movie"
    with pytest.raises(
        UserError, match=r"by its header's TR of 1 s, the video 156 s; if .* give --tr \(it would be 1.56"
    ):
        preprocess(tmp_path / "out", *options)
    made = preprocess(tmp_path / "out", *options, "--tr=1.5")
    found = "\n".join(made.manifest["found"])
    for text in (
        "headers say 1 s a volume; --tr 1.5 is taken",
        "part1: 100 TRs are common to all; cut off at the end: video 4, audio 4",
        "annotations.xlsx: 1 row of zero length, left out",
        "annotations.xlsx: 2 rows without a TR, left out",
        "s2, part3: the last 51 volumes are equal, and count as missing",
        "voxels are kept, 33 that some viewers lack are left out",
        "part1 and part3 begin with the same 20 TRs of video, trained on and held out alike: --drop_start 20 leaves",
    ):
        assert text in found
    assert found in capsys.readouterr().err.replace("found: ", "")
    assert (made.tr_s, made.preshift_trs) == (1.5, 3)
    assert np.isnan(made.fmri("s2", "part3")[-51:]).all() and not np.isnan(made.fmri("s2", "part3")[:-51]).any()

    options = of_synth(tmp_path / "easy", trs, *QUICK, "--preshift=3", "--mask", made.folder / "mask.nii.gz")
    easy = preprocess(tmp_path / "easy_out", *options)
    for subject, run in (("s1", "part1"), ("s2", "part2"), ("s3", "part3")):
        assert np.array_equal(made.fmri(subject, run), easy.fmri(subject, run)), "traps change nothing that is kept"
    assert np.array_equal(made.stimulus("part2", "video"), easy.stimulus("part2", "video"))
    without = preprocess(tmp_path / "dropped", *options, "--drop_start=20")
    assert without.stretches("train")[0] == ("part1", 20, 100) and without.stretches("test") == [("part3", 20, 80)]
    assert "trained on and held out" not in "".join(without.manifest["found"])


@pytest.mark.parametrize("traps", ["[]", "[header_tr,cartoon]"])
def test_the_line_that_synth_prints(tmp_path, traps):
    """With options as ``accel-train synth`` takes them."""
    given = ["--trs=[60, 50]", f"--traps={traps}", "--preshift=2", "--late_trs=1", "--concatenated=false"]
    said = synth(tmp_path / "a set", size=1, **further_options(given, synth))
    program, task, command, *options = shlex.split(said.splitlines()[-1])
    assert (program, task, command) == ("accel-train", "sherlock", "preprocess")
    assert PREPROCESS.run([*options, *QUICK]) == 0
    made = Prepared(tmp_path / "a set-prepared")
    assert made.tr_s == 1.5 and made.preshift_trs == 2 and not any("alike" in text for text in made.manifest["found"])


def test_nothing_of_what_is_held_out_changes_mask_or_statistics(tmp_path):
    options = small_study(tmp_path, subjects=3)
    more = ("--test=run1:30-40", "--validation=run1:20-25", "--held_out_subjects", "sub-03")
    before = preprocess(tmp_path / "before", *options, *more)
    random = np.random.default_rng(9)
    for subject in (1, 2, 3):
        path = tmp_path / f"fmri/sub-{subject:02d}_bold.nii.gz"
        volumes = nifti.read(path, 0, 40).reshape(40, *GRID)
        volumes[20:] = random.normal(50, 20, volumes[20:].shape)  # behind the training TRs 0 to 16
        if subject == 3:
            volumes[:] = random.normal(size=volumes.shape)
            volumes[:, 0, 0, 0] = np.nan
        write_scan(path, volumes)
    film = np.load(tmp_path / "clip/film.npy")
    film[17:] = 7
    np.save(tmp_path / "clip/film.npy", film)
    after = preprocess(tmp_path / "after", *options, *more)
    assert before.stretches("train") == [("run1", 0, 17)]
    assert (before.folder / "mask.nii.gz").read_bytes() == (after.folder / "mask.nii.gz").read_bytes()
    assert np.array_equal(before.fmri("sub-01", "run1")[:17], after.fmri("sub-01", "run1")[:17])
    a, b = before.statistics("stimulus_stats"), after.statistics("stimulus_stats")
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not after.fmri("sub-03", "run1")[:, 0].any(), "what a held-out viewer lacks is 0"
    assert "sub-03: 1 voxels are not finite or do not change; 0 for this held-out viewer" in after.manifest["found"]


def test_fewer_viewers_may_have_more_voxels(tmp_path):
    options = small_study(tmp_path, subjects=3)
    path = tmp_path / "fmri/sub-02_bold.nii.gz"
    volumes = nifti.read(path, 0, 40).reshape(40, *GRID)
    volumes[:, 0, 0, 0] = 5
    volumes[7, 1, 1, 1] = np.inf
    write_scan(path, volumes)
    assert preprocess(tmp_path / "all", *options).voxels == 22
    assert preprocess(tmp_path / "some", *options, "--subjects", "sub-03", "sub-01").subjects == ["sub-03", "sub-01"]
    assert Prepared(tmp_path / "some").voxels == 24


def test_parcels_are_means_of_their_voxels(tmp_path):
    options = small_study(tmp_path)
    labels = np.zeros(GRID, np.int16)
    labels[0], labels[1, 0] = 3, 7
    write_scan(tmp_path / "atlas.nii.gz", labels)
    (tmp_path / "atlas.tsv").write_text("index\tname\n3\tfront\n7\tback\n")
    made = preprocess(tmp_path / "out", *options, "--rois", tmp_path / "atlas.nii.gz", "--parcels")
    assert made.voxels == 2 and {name: v.tolist() for name, v in made.rois.items()} == {"front": [0], "back": [1]}
    volumes = nifti.read(tmp_path / "fmri/sub-01_bold.nii.gz", 0, 40).reshape(40, *GRID)
    (run, first, last), *_ = made.stretches("train")
    means = np.stack([volumes[:, 0].mean((1, 2)), volumes[:, 1, 0].mean(1)], 1)
    expected = (means - means[first:last].mean(0)) / means[first:last].std(0)
    np.testing.assert_allclose(made.fmri("sub-01", run), expected, atol=1e-4)


def test_runs_of_other_scales_are_told_of(tmp_path):
    random = np.random.default_rng(0)
    for run, offset in (("a1", 0), ("b2", 9)):
        write_scan(tmp_path / f"fmri/sub-1_{run}.nii", random.normal(offset, 1, (30, *GRID)))
        (tmp_path / "clip").mkdir(exist_ok=True)
        np.save(tmp_path / f"clip/{run}.npy", random.normal(size=(30, 2)))
    made = preprocess(tmp_path / "out", "--fmri", tmp_path / "fmri", "--runs", "a1", "b2", "--features",
                      f"clip={tmp_path / 'clip'}", "--gap=2")  # fmt: skip
    assert any("b2: its mean is 9" in text for text in made.manifest["found"])


def test_a_run_may_lack_a_modality(raw, tmp_path):
    options = of_synth(raw, TRS, *QUICK, "--video", raw / "stim_part1.mp4", f"part2={raw / 'stim_part2.mp4'}")
    made = preprocess(tmp_path / "out", *options)
    assert made.has("part2", "video") and not made.has("part3", "video")
    assert "part3: has no video" in made.manifest["found"]


def test_a_code_that_comes_in_the_test_alone(raw, tmp_path):
    """Of a codec's, which is no reason to stop in the middle of an evaluation."""
    for run, count in zip(("part1", "part2", "part3"), TRS, strict=True):
        codes = np.random.default_rng(0).integers(0, 9 if run == "part3" else 4, (count, 2, 3), np.int16)
        (tmp_path / "codec").mkdir(exist_ok=True)
        np.save(tmp_path / "codec" / f"{run}.npy", codes)
    made = preprocess(tmp_path / "out", *of_synth(raw, TRS, *QUICK, "--features", f"codec={tmp_path / 'codec'}"))
    counts = made.statistics("stimulus_stats")["codec_counts"]
    assert counts.shape == (2, 9) and counts[:, :4].all() and not counts[:, 4:].any()
    assert int(made.stimulus("part3", "codec").max()) == 8
