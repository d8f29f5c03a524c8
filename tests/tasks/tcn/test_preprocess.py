"""``tcn preprocess``: from HDF5 to arrays, and what is wrong said in a line (who did the work: tests/laws)."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.shots import write_file, write_shots

from accel_train.command import Command
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn import store as store_module
from accel_train.tasks.tcn.hdf5 import Hdf5Shots, Reading
from accel_train.tasks.tcn.labels import LabelSettings
from accel_train.tasks.tcn.lists import find
from accel_train.tasks.tcn.store import Store
from accel_train.tasks.tcn.windows import Windows

PREPROCESS = Command("preprocess", "", "accel_train.tasks.tcn.preprocess.command")


def preprocess(root: Path, out: Path, *options: str) -> int:
    folders = [f"--{name}={root / name}" for name in ("disrupt", "clear") if (root / name).is_dir()]
    return PREPROCESS.run([*folders, f"--out={out}", "--dt_ms=1", *options])


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_shots(tmp_path_factory.mktemp("raw"), count=8)


def physical(data, shot) -> np.ndarray:
    stored = data.read(shot.number, 0, shot.samples).astype(np.float64)
    return stored * data.scale(shot.number)[:, None] + data.offset(shot.number)[:, None]


def read_directly(root: Path, **options) -> Hdf5Shots:
    return Hdf5Shots(find(root / "disrupt", root / "clear").entries, Reading(dt_ms=1.0, **options))


@pytest.mark.parametrize("dtype, off", [("int16", 1e-6), ("float16", 2e-2), ("float32", 1e-6)])
def test_what_is_stored_is_what_the_files_hold(raw, tmp_path, dtype, off, capsys):
    assert preprocess(raw, tmp_path / "out", f"--dtype={dtype}") == 0
    made, direct = Store(tmp_path / "out"), read_directly(raw)
    assert str(made.shots) == str(direct.shots)  # NaN is not equal to itself
    assert made.channels == 6 and made.dtype == dtype
    for shot in made.shots:
        np.testing.assert_allclose(physical(made, shot), physical(direct, shot), atol=off * 30)
        assert abs(physical(made, shot)[:, :40].mean()) < off * 30, "the baseline is subtracted"
    np.testing.assert_allclose(made.mean, direct.mean, atol=off * 30)
    np.testing.assert_allclose(made.std, direct.std, rtol=1e-2)
    made.verify()
    assert ("100.0% of the channels without loss" in capsys.readouterr().out) == (dtype != "float16")


def test_int16_gives_the_file_back(raw, tmp_path):
    """The value in the file = stored * scale + offset + baseline."""
    preprocess(raw, tmp_path / "out")
    made = Store(tmp_path / "out")
    direct = read_directly(raw, baseline_ms=0.0)
    scale, offset, baseline = (made.per_shot(name) for name in ("scale", "offset", "baseline"))
    for row, shot in enumerate(made.shots):
        stored = made.read(shot.number, 0, shot.samples)
        back = (stored * scale[row][:, None] + (offset + baseline)[row][:, None]).astype(np.float32)
        x = direct.read(shot.number, 0, shot.samples)
        assert np.abs(back - x).max() <= 2.0**-22 * np.abs(x).max()


def test_segments_and_labels(raw, tmp_path):
    preprocess(raw, tmp_path / "out")
    for shot in Store(tmp_path / "out").shots:
        assert (shot.t0_ms, shot.dt_ms, shot.samples, shot.start) == (-50.0, 1.0, 400, 40)
        assert shot.stop == (390 if shot.disruptive else 400)
    made = Windows(data := Store(tmp_path / "out"), data.split("train"), 64, 17, LabelSettings(twarn_ms=30))
    assert made.positive.sum() == 30 * sum(shot.disruptive for shot in data.split("train"))


def test_a_file_that_was_decimated_gives_the_windows_of_the_raw_one(tmp_path):
    """As others decimate: the baseline subtracted, every tenth sample kept."""
    raw, decimated = write_shots(tmp_path / "raw", count=4, samples=1000), tmp_path / "decimated"
    shutil.copytree(raw, decimated)
    direct = Hdf5Shots(find(raw / "disrupt", raw / "clear").entries, Reading(dt_ms=1.0))
    for shot in direct.shots:
        values = physical(direct, shot)[:, ::10].reshape(2, 3, -1).astype(np.float32)
        folder = decimated / ("disrupt" if shot.disruptive else "clear")
        write_file(folder / f"{shot.number}.h5", values, effective_fs_hz=100.0, baseline_length=40)
    folders = [f"--disrupt={decimated / 'disrupt'}", f"--clear={decimated / 'clear'}"]
    PREPROCESS.run([*folders, f"--out={tmp_path / 'a'}", "--dtype=float32"])
    folders = [f"--disrupt={raw / 'disrupt'}", f"--clear={raw / 'clear'}"]
    PREPROCESS.run([*folders, f"--out={tmp_path / 'b'}", "--dtype=float32", "--step=10", "--dt_ms=1"])
    read = [Store(tmp_path / "a"), Store(tmp_path / "b"),
            Hdf5Shots(find(raw / "disrupt", raw / "clear").entries, Reading(10, dt_ms=1.0))]  # fmt: skip
    batches = []
    for data in read:
        windows = Windows(data, data.shots, 30, 9, LabelSettings(twarn_ms=40))
        batch = windows.read(np.arange(len(windows)))
        batch["x"] = batch["x"] * batch["scale"][..., None] + batch["offset"][..., None]
        batches.append(batch)
    for other in batches[1:]:
        for name in ("target", "counts", "shot", "first"):
            np.testing.assert_array_equal(other[name], batches[0][name])
        inside = batches[0]["counts"].any(1)
        np.testing.assert_allclose(other["x"][inside], batches[0]["x"][inside], atol=1e-4)


def test_pca_files_either_way_around(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float32)
    for number, data in ((1, values), (2, values.T)):
        write_file(tmp_path / "clear" / f"{number}.h5", data)
    (tmp_path / "clear" / "meta.csv").write_text("shot,split\n1,train\n2,train\n")
    preprocess(tmp_path, tmp_path / "out", "--dtype=float32", "--baseline_ms=0")
    made = Store(tmp_path / "out")
    for number in (1, 2):
        np.testing.assert_array_equal(made.read(number, 0, 300), values)
        direct = Hdf5Shots(find(None, tmp_path / "clear").entries, Reading(baseline_ms=0.0, dt_ms=1.0))
        np.testing.assert_array_equal(direct.read(number, 3, 9), values[:, 3:9])


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_missing_values_may_be_filled_from_the_past(raw, tmp_path, dtype, capsys):
    """As if the file had held the last value; and it is said. What was never there cannot be filled."""
    gaps, held, never = (shutil.copytree(raw, tmp_path / name) for name in ("gaps", "held", "never"))
    for root in (gaps, held, never):
        with h5py.File(root / "disrupt" / "100.h5", "r+") as file:
            data = file["LFS"]
            data[0, 1, 50:70] = data[0, 1, 49] if root == held else np.nan
            data[1, 2, -5:] = data[1, 2, -6] if root == held else np.nan
            if root == never:
                data[0, 0, :3] = np.nan
    with pytest.raises(DataError, match="channel 1: 20 of 400 values are not finite"):
        preprocess(gaps, tmp_path / "refused", f"--dtype={dtype}")
    capsys.readouterr()
    for root in (gaps, held):
        assert preprocess(root, tmp_path / f"{root.name}-out", f"--dtype={dtype}", "--forward_fill") == 0
    assert capsys.readouterr().err.splitlines()[0] == (
        "warning: 25 values were missing in 1 shots and are filled (meta.json has each)"
    )
    made, same = Store(tmp_path / "gaps-out"), Store(tmp_path / "held-out")
    for shot in made.shots:
        np.testing.assert_array_equal(physical(made, shot), physical(same, shot))
    with pytest.raises(DataError, match="channel 0: 3 of 400 values are not finite"):
        preprocess(never, tmp_path / "never-out", f"--dtype={dtype}", "--forward_fill")


def test_antialiasing_is_an_option(raw, tmp_path):
    preprocess(raw, tmp_path / "plain", "--step=4", "--dtype=float32")
    preprocess(raw, tmp_path / "filtered", "--step=4", "--antialias", "--dtype=float32")
    plain, filtered = Store(tmp_path / "plain"), Store(tmp_path / "filtered")
    assert str(plain.shots) == str(filtered.shots) and plain.shots[0].samples == 100
    assert np.abs(physical(plain, plain.shots[0]) - physical(filtered, plain.shots[0])).max() > 1e-3
    assert plain.manifest["hash"] != filtered.manifest["hash"]


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(raw, tmp_path) -> Path:
    """101 is cut off, 103 has other channels, 105 a NaN."""
    root = tmp_path / "broken"
    shutil.copytree(raw, root)
    with open(root / "clear" / "101.h5", "r+b") as file:
        file.truncate(3000)
    write_file(root / "clear" / "103.h5", np.ones((4, 400), np.float32))
    values = np.ones((2, 3, 400), np.float32)
    values[1, 2, 7] = np.nan
    write_file(root / "clear" / "105.h5", values)
    return root


def test_bad_files_are_an_error_beyond_a_limit(broken, raw, tmp_path, capsys):
    with pytest.raises(UserError) as error:
        preprocess(broken, tmp_path / "out", "--max_bad=2")
    lines = str(error.value).splitlines()
    assert "3 of 8 shots cannot be used, and --max_bad allows 2" in lines[0] and len(lines) == 4
    assert "101.h5: cannot be read: OSError" in lines[1]
    assert "103.h5: has 4 channels, the shots before it have 6" in lines[2]
    assert "105.h5: channel 5: 1 of 400 values are not finite" in lines[3]
    assert not (tmp_path / "out").exists()
    shutil.copy(raw / "clear" / "103.h5", broken / "clear" / "103.h5")  # one is mended, the rest left out
    assert preprocess(broken, tmp_path / "out", "--max_bad=2") == 0
    said = capsys.readouterr()
    assert "2 shots cannot be used, the first:" in said.err and "1 shots here" in said.out
    made = Store(tmp_path / "out")
    assert [shot.number for shot in made.shots] == [100, 102, 103, 104, 106, 107]
    assert ["101.h5" in made.manifest["bad"][0], "105.h5" in made.manifest["bad"][1]] == [True, True]
    assert sorted(path.name for path in (tmp_path / "out" / "shots").iterdir()) == [
        f"{shot.number}.npy" for shot in made.shots
    ]


def test_bad_files_read_directly(broken):
    entries = find(broken / "disrupt", broken / "clear").entries
    with pytest.raises(UserError, match="2 shots cannot be used, 1 may"):
        Hdf5Shots(entries, Reading(dt_ms=1.0), max_bad=1)
    assert len(Hdf5Shots(entries, Reading(dt_ms=1.0), max_bad=2).bad) == 2


def test_nothing_can_be_read(tmp_path):
    (tmp_path / "clear").mkdir()
    (tmp_path / "clear" / "1.h5").write_bytes(b"x")
    with pytest.raises(UserError, match="none of 1 files can be read; the first: .*1.h5"):
        preprocess(tmp_path, tmp_path / "out")


def test_another_plan_is_refused(raw, tmp_path):
    preprocess(raw, tmp_path / "out")
    with pytest.raises(UserError, match="exists and was made otherwise"):
        preprocess(raw, tmp_path / "out", "--step=2")


@pytest.mark.parametrize(
    "options, text",
    [
        (["--antialias"], "--antialias is for --step above 1"),
        (["--step=0"], "step: must be 1 or more"),
        (["--baseline_ms=-1"], "baseline_ms: must be 0 or more"),
        (["--dt_ms=0"], "dt_ms: must be above 0"),
        (["--max_bad=-1"], "--max_bad must be 0 or more"),
    ],
)
def test_options_that_make_no_sense(raw, tmp_path, options, text):
    with pytest.raises(UserError, match=text):
        preprocess(raw, tmp_path / "out", *options)


def test_segments_that_are_empty_and_disruptions_far_from_the_record(raw, tmp_path):
    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    (root / "disrupt" / "meta.csv").write_text("shot,split,t_disruption\n100,train,-20\n102,train,900\n104,train,350\n")
    with pytest.raises(UserError, match="line 2: t_disruption is '-20', must be a number above 0"):
        preprocess(root, tmp_path / "out")
    (root / "disrupt" / "meta.csv").write_text(
        "shot,split,t_disruption,t_last\n100,train,30,-20\n102,train,900,\n104,train,350,nan\n"
    )
    with pytest.raises(UserError) as error:
        preprocess(root, tmp_path / "out")
    assert "100.h5: its segment is empty: it begins at -10 ms and should end at -20 ms" in str(error.value)
    assert "102.h5: disrupts at 900 ms, but the record ends at 350 ms: is dt right?" in str(error.value)


def test_dead_channels_and_missing_classes_are_said(tmp_path, capsys):
    values = np.random.default_rng(0).normal(size=(2, 2, 200)).astype(np.float32)
    values[1, 0] = 0.25
    write_file(tmp_path / "clear" / "7.h5", values)
    (tmp_path / "clear" / "meta.csv").write_text("shot,split\n7,train\n")
    preprocess(tmp_path, tmp_path / "out")
    said = capsys.readouterr().err
    assert "channels 2 never change in the training split" in said
    assert "no disruptive shot in train" in said and "no clear shot in test" in said
    assert Store(tmp_path / "out").std[2] == 1.0


# -- the store -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("store") / "out"
    preprocess(raw, out)
    return out


@pytest.fixture
def store(stored, tmp_path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "store"))


def test_no_store(tmp_path):
    with pytest.raises(
        UserError, match="no preprocessed shots .no meta.json.; make it with accel-train tcn preprocess"
    ):
        Store(tmp_path)


def test_a_store_of_another_version(store):
    meta = json.loads((store / "meta.json").read_text())
    (store / "meta.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(UserError, match="made by version 99"):
        Store(store)


def test_an_array_that_is_not_what_the_manifest_says(store):
    np.save(store / "shots" / "100.npy", np.zeros((6, 9), np.int16))
    with pytest.raises(UserError, match="100.npy: is int16 .6, 9., the manifest says int16 .6, 400."):
        Store(store).read(100, 0, 5)
    (store / "shots" / "102.npy").unlink()
    with pytest.raises(UserError, match="102.npy: cannot be read"):
        Store(store).read(102, 0, 5)


def test_one_changed_bit_is_found(store):
    path = store / "shots" / "103.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="103.npy: changed since it was made"):
        Store(store).verify()


def test_a_store_goes_to_another_process_by_name(store):
    import pickle

    opened = Store(store)
    sent = pickle.dumps(opened)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).read(100, 3, 9), opened.read(100, 3, 9))


def test_ranges_that_are_fetched_ahead(store, monkeypatch):
    """Those bytes of the file that ``read`` gives; nothing if they are there, and no error without the file."""
    opened, told = Store(store), []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, kind: told.append((start, size)), raising=False)
    monkeypatch.setattr(store_module, "_cached", lambda *place: False)
    opened.ahead(101, 30, 70)
    data = (store / "shots" / "101.npy").read_bytes()
    found = np.array([np.frombuffer(data[start : start + size], np.int16) for start, size in told])
    np.testing.assert_array_equal(found, opened.read(101, 30, 70))
    told.clear()
    monkeypatch.setattr(store_module, "_cached", lambda *place: True)
    opened.ahead(101, 30, 70)
    (store / "shots" / "102.npy").unlink()
    opened.ahead(102, 30, 70)
    monkeypatch.delattr(os, "posix_fadvise")
    opened.ahead(101, 30, 70)
    assert told == []


def test_what_was_just_read_is_in_the_cache(store):
    with open(store / "shots" / "101.npy", "rb") as file:
        file.read()
        assert store_module._cached(file.fileno(), 200) or not hasattr(os, "RWF_NOWAIT")
        assert not store_module._cached(file.fileno(), 10**9), "behind the end"
