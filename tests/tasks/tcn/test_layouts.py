"""The layouts that the task reads: the same windows from each, told apart by content, and mistakes in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import config, weights_files
from support.shots import write_file, write_shots

from accel_train import TrainConfig, Trainer
from accel_train.command import Command
from accel_train.commands.inspect import look_at
from accel_train.config.convert import construct
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.hdf5 import Hdf5Shots
from accel_train.tasks.tcn.layouts import RawFiles, layout_of, open_shots
from accel_train.tasks.tcn.task import TCNTask

PREPROCESS = Command("preprocess", "", "accel_train.tasks.tcn.preprocess.command")
SMALL = dict(nsub=40, twarn_ms=30.0, levels=2, nhid=4, kernel_size=3, dilation_base=3, nrecept_target=13)
RAW = {"dt_ms": 1.0}


def task(data: Path, raw: dict[str, object] | None = None, **options: object) -> TCNTask:
    return construct(TCNTask, {"data": str(data), **SMALL, **options, **({"raw": raw} if raw else {})}, "")


def every_batch(made: TCNTask, split: str) -> dict[str, np.ndarray]:
    windows = made.windows(split)
    assert windows is not None
    return windows.read(np.arange(len(windows)))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return write_shots(tmp_path_factory.mktemp("raw"), count=20, samples=400)


@pytest.fixture
def copied(raw, tmp_path) -> Path:
    return shutil.copytree(raw, tmp_path / "copied")


# -- the same windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, step", [("float32", 1), ("float32", 5), ("int16", 5)])
def test_windows_of_files_are_those_of_the_preprocessed_folder(raw, tmp_path, dtype, step):
    """z bit by bit as float32 are stored: what is read is what was stored, and the statistics are those of the same."""
    folders = [f"--disrupt={raw / 'disrupt'}", f"--clear={raw / 'clear'}"]
    PREPROCESS.run([*folders, f"--out={tmp_path / 'out'}", f"--dtype={dtype}", f"--step={step}", "--dt_ms=1"])
    sizes = {"nsub": 24} if step > 1 else {}
    with pytest.raises(UserError, match=f"raw.step: 3, but .*out was preprocessed with {step}; leave it out"):
        task(tmp_path / "out", RAW | {"step": 3}).store  # noqa: B018
    stored, direct = (task(data, RAW | {"step": step}, **sizes) for data in (tmp_path / "out", raw))
    assert layout_of(tmp_path / "out", RawFiles()) == "preprocessed" and layout_of(raw, RawFiles()) == "hdf5"
    for split in ("train", "validation", "test"):
        one, other = every_batch(stored, split), every_batch(direct, split)
        for name in ("target", "counts", "shot", "first", "onset_ms", "dt_ms"):
            np.testing.assert_array_equal(one[name], other[name])
        one, other = (each["x"] * each["scale"][..., None] + each["offset"][..., None] for each in (one, other))
        if dtype == "float32":
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, atol=1e-4)
    for name in ("mean", "std"):
        np.testing.assert_allclose(getattr(direct.store, name), getattr(stored.store, name), rtol=1e-5, atol=1e-5)


def test_other_folders_and_lists(raw, tmp_path):
    """As the guide calls them: decimated files beside others, below one folder or anywhere."""
    home = tmp_path / "data"
    shutil.copytree(raw / "disrupt", home / "dsrpt_decimated")
    shutil.copytree(raw / "clear", tmp_path / "elsewhere")
    options = RAW | {"disrupt": "dsrpt_decimated", "clear": str(tmp_path / "elsewhere")}
    assert str(task(home, options).store.shots) == str(task(raw, RAW).store.shots)
    assert all(shot.disruptive for shot in task(home, RAW | {"disrupt": "dsrpt_decimated"}).store.shots)
    with pytest.raises(UserError, match="gone: no such folder"):
        task(home, RAW | {"disrupt": "dsrpt_decimated", "clear": "gone"}).store  # noqa: B018


def table(path: Path) -> Path:
    """Four shots of two signals every ms; the even ones disrupt at 90 ms, and 100 and 101 are for training."""
    lines = ["shot,time,time_until_disrupt,ip,li,split"]
    for number in (100, 101, 102, 103):
        for i in range(100):
            until = f"{0.09 - i / 1000:.3f}" if number % 2 == 0 else ""
            lines.append(
                f"{number},{i / 1000:.3f},{until},{np.sin(i + number):.6f},{i % 7},{'train' if number < 102 else 'val'}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table(tmp_path):
    made = task(table(tmp_path / "shots.csv"), RAW)
    windows = made.windows("train")
    assert windows is not None and made.windows("test") is None
    assert windows.channels == 2 and windows.positive.sum() == 30
    model = made.build_model(made.build_data("train", 4, 0))
    assert model.mean.shape[0] == 2


@pytest.mark.parametrize("layout", ["hdf5", "table"])
def test_a_run(raw, tmp_path, layout):
    made = task(raw if layout == "hdf5" else table(tmp_path / "shots.csv"), RAW)
    settings = config(tmp_path / "run", max_steps=3, eval_steps=3, global_batch_size=4)
    result = Trainer(made, TrainConfig(**settings)).fit()
    assert np.isfinite(result.metrics["loss"]) and "step_fpr/clear" in result.metrics


READERS = [pytest.param((2, "thread")), pytest.param((1, "process"), marks=pytest.mark.slow)]


@pytest.mark.parametrize("readers", READERS)
@pytest.mark.parametrize("stored", [True, False])
def test_readers_change_nothing(raw, tmp_path, stored, readers):
    """Neither threads, which take the memory of batches that are gone, nor processes."""
    data, options = raw, RAW
    if stored:
        data, options = tmp_path / "out", None
        PREPROCESS.run([f"--disrupt={raw / 'disrupt'}", f"--clear={raw / 'clear'}", f"--out={data}", "--dt_ms=1"])
    weights = []
    for number, kind in ((0, "thread"), readers):
        settings = config(tmp_path / f"{kind}-{number}", max_steps=12, eval_steps=6, global_batch_size=6)
        settings |= {"num_workers": number, "worker_type": kind, "micro_batch_size": 4}
        Trainer(task(data, options), TrainConfig(**settings)).fit()
        weights.append(weights_files(settings["output_dir"]))
    assert weights[0] == weights[1]


# -- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_kept_and_never_those_of_other_data(copied, tmp_path, monkeypatch):
    path = tmp_path / "norm.npz"
    made = task(copied, RAW | {"norm_stats": str(path)})
    computed = made.store.mean, made.store.std
    first = path.read_bytes()
    monkeypatch.setattr(Hdf5Shots, "_compute_norm", None)  # would fail
    again = task(copied, RAW | {"norm_stats": str(path)}).store
    np.testing.assert_array_equal([again.mean, again.std], computed)
    with pytest.raises(DataError, match="norm.npz: is of other files or options than these; delete it"):
        task(copied, RAW | {"norm_stats": str(path), "step": 2}).store.mean  # noqa: B018
    monkeypatch.undo()
    train = next(shot for shot in made.store.shots if shot.split == "train" and not shot.disruptive)
    write_file(copied / "clear" / f"{train.number}.h5", np.ones((2, 3, 400), np.float32))
    with pytest.raises(DataError, match="is of other files"):
        task(copied, RAW | {"norm_stats": str(path)}).store.mean  # noqa: B018
    path.unlink()
    task(copied, RAW | {"norm_stats": str(path)}).store.mean  # noqa: B018
    assert path.read_bytes() != first


def test_statistics_of_another_tool(raw, tmp_path):
    np.savez(tmp_path / "theirs.npz", mean_flat=np.full((2, 3), 2.0), std_flat=np.full((2, 3), 3.0))
    made = task(raw, RAW | {"norm_stats": str(tmp_path / "theirs.npz")})
    assert made.store.mean.tolist() == [2.0] * 6 and made.store.std.tolist() == [3.0] * 6
    np.savez(tmp_path / "few.npz", mean=np.zeros(4), std=np.ones(4))
    with pytest.raises(DataError, match="mean 4 and std 4 must be of 6 channels"):
        task(raw, RAW | {"norm_stats": str(tmp_path / "few.npz")}).store.mean  # noqa: B018
    (tmp_path / "none.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="none.npz: not an .npz with mean and std"):
        task(raw, RAW | {"norm_stats": str(tmp_path / "none.npz")}).store.mean  # noqa: B018


def test_a_changed_list_is_another_data_set(copied):
    before = task(copied, RAW).store.fingerprint()
    meta = copied / "disrupt" / "meta.csv"
    meta.write_text(meta.read_text().replace("104,train,340", "104,train,330"))
    changed = task(copied, RAW).store.fingerprint()
    assert changed != before != task(copied, RAW | {"step": 2}).store.fingerprint()
    moved = copied.rename(copied.with_name("moved"))
    assert task(moved, RAW).store.fingerprint() == changed


# -- what is wrong ---------------------------------------------------------------------------------------------------


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_none_of_the_layouts(tmp_path):
    with pytest.raises(UserError) as error:
        open_shots(tmp_path, RawFiles())
    text = message(error)
    for what in ("tcn preprocess", "HDF5 files (disrupt/ and clear/", "a table", "prebuilt windows (train/, test/)"):
        assert what in text
    for path in (tmp_path / "gone", tmp_path / "file.txt"):
        (tmp_path / "file.txt").touch()
        with pytest.raises(UserError, match="no such folder|not a folder"):
            open_shots(path, RawFiles())


def test_options_without_a_meaning(raw, tmp_path):
    with pytest.raises(UserError, match="raw.signals: .'ip'. has no meaning where data are hdf5"):
        task(raw, {"signals": ["ip"]}).store  # noqa: B018
    path = table(tmp_path / "shots.csv")
    with pytest.raises(UserError, match="raw.step: 3 has no meaning where data are table"):
        task(path, RAW | {"step": 3}).store  # noqa: B018
    with pytest.raises(UserError, match="raw.dt_ms: .*shots.csv is a table, whose rows may be uneven"):
        task(path).store  # noqa: B018
    (tmp_path / "pre" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="raw.step: 2 has no meaning where data are prebuilt"):
        task(tmp_path / "pre", {"step": 2}).windows("train")
    with pytest.raises(UserError, match="step: 0 is out of range"):
        task(raw, {"step": 0})


def test_corrupt_files(copied):
    with open(copied / "clear" / "101.h5", "r+b") as file:
        file.truncate(3000)
    with pytest.raises(DataError) as error:
        task(copied, RAW).windows("train")
    assert "1 shots cannot be used, 0 may (raw.max_bad)" in message(error) and "101.h5: cannot be read" in message(
        error
    )
    made = task(copied, RAW | {"max_bad": 1})
    source = made.build_data("train", 4, 0)
    assert source is not None
    assert "1 shots cannot be used, the first: " in source.events()[0].title and not source.events()


def test_a_file_that_breaks_in_the_middle_of_a_run(copied):
    made = task(copied, RAW)
    windows = made.windows("train")
    with open(copied / "disrupt" / "104.h5", "r+b") as file:
        file.truncate(3000)
    with pytest.raises(DataError, match="disrupt/104.h5: cannot be read: .*; mend it, or move it away"):
        windows.read(np.arange(len(windows)))


def test_channels_that_do_not_match(copied):
    write_file(copied / "clear" / "103.h5", np.ones((4, 400), np.float32))
    with pytest.raises(DataError, match="103.h5: has 4 channels, the shots before it have 6"):
        task(copied, RAW).windows("train")


def test_channels_that_are_not_numbers(copied):
    made = task(copied, RAW)
    train = next(shot for shot in made.store.shots if shot.split == "train" and not shot.disruptive)
    values = np.ones((2, 3, 400), np.float32)
    values[1, 2, 200] = np.nan
    write_file(copied / "clear" / f"{train.number}.h5", values)
    for ask in (lambda: made.store.mean, lambda: made.windows("train").read(np.arange(len(made.windows("train"))))):
        with pytest.raises(DataError, match=rf"clear/{train.number}.h5: channel 5: 1 of \d+ values are not finite"):
            ask()


def test_shots_that_are_too_short(copied):
    write_file(copied / "clear" / "105.h5", np.ones((2, 3, 50), np.float32))  # 10 ms after the baseline
    made = task(copied, RAW)
    split = next(shot.split for shot in made.store.shots if shot.number == 105)
    windows = made.windows(split)
    assert windows is not None and 105 not in windows.read(np.arange(len(windows)))["shot"]
    source = made.build_data(split, 4, 0)
    assert source is not None
    (event,) = source.events()
    assert event.title.startswith(f"{split}: 1 of ") and "the first 105, are shorter than the receptive" in event.title


def test_a_split_without_a_positive(copied):
    meta = copied / "disrupt" / "meta.csv"
    meta.write_text(meta.read_text().replace(",train,", ",test,"))
    with pytest.raises(UserError, match="train: none of the .* windows is with a positive step") as error:
        task(copied, RAW).build_data("train", 4, 0)
    message(error)
    made = task(copied, RAW, negatives=None)
    with pytest.raises(UserError, match="train: 0 of the .* steps that count are positive"):
        made.build_model(made.build_data("train", 4, 0))


def test_rows_that_are_missing_and_times_that_disagree(copied):
    meta = copied / "disrupt" / "meta.csv"
    rows = meta.read_text().splitlines()
    meta.write_text("\n".join(row for row in rows if not row.startswith("102")) + "\n998,train,10\n")
    made = task(copied, RAW)
    assert 102 not in [shot.number for shot in made.store.shots]
    (event, *_) = made.build_data("train", 4, 0).events()
    assert event.title.startswith("2 shots are left out, the first: ") and "102.h5: not in " in event.title
    numbers = [int(row.split(",")[0]) for row in rows[1:]]
    lines = [f"{n} 1 -50 350 1 9 0 300 {150 if n == 104 else 340}" for n in numbers]
    (copied / "list.txt").write_text("\n".join(["# Shot", *lines]) + "\n")
    with pytest.raises(DataError, match="shot 104: the shot list says it disrupts at 150 ms, meta.csv at 340 ms"):
        task(copied, RAW | {"disrupt_list": "list.txt"}).store  # noqa: B018


# -- inspect ---------------------------------------------------------------------------------------------------------

OPTIONS = [f"--{name}={value}" for name, value in SMALL.items()]


def test_inspect(copied, tmp_path):
    with open(copied / "clear" / "101.h5", "r+b") as file:
        file.truncate(3000)
    shutil.copy(copied / "clear" / "103.h5", copied / "disrupt" / "104x.h5")
    text = look_at(str(copied), [*OPTIONS, "--raw.dt_ms=1", "--raw.max_bad=1"])
    made = task(copied, RAW | {"max_bad": 1})
    windows = made.windows("train")
    lines = text.splitlines()
    assert lines[0].endswith(": hdf5, 6 channels") and "receptive field 13" in lines[1]
    train = next(line for line in lines if line.startswith("  train")).split()
    shots = made.store.split("train")
    disruptive = sum(shot.disruptive for shot in shots)
    counted, positive = windows.counted.sum(), windows.positive.sum()
    assert train[1:] == [str(disruptive), str(len(shots) - disruptive), str(len(windows)),
                         str((windows.positive > 0).sum()), f"{counted:,}", f"{positive / counted:.1%}"]  # fmt: skip
    assert "records 400 to 400 (median 400) ms long" in text
    assert "1 shots cannot be used:\n    " in text and "101.h5: cannot be read" in text
    assert "1 shots are left out:\n    " in text and "104x.h5: its name is no shot number" in text
    folders = [f"--disrupt={copied / 'disrupt'}", f"--clear={copied / 'clear'}"]
    PREPROCESS.run([*folders, f"--out={tmp_path / 'out'}", "--dt_ms=1", "--max_bad=1"])
    stored = look_at(str(tmp_path / "out"), OPTIONS).splitlines()
    assert stored[0].endswith(": preprocessed, 6 channels") and stored[1:6] == lines[1:6]
    assert any("101.h5" in line for line in stored)
    with pytest.raises(UserError, match="nsubs: no such option .did you mean nsub"):
        look_at(str(copied), ["--nsubs=3"])


def test_inspect_a_table(tmp_path):
    text = look_at(str(table(tmp_path / "shots.csv")), [*OPTIONS, "--raw.dt_ms=1"])
    assert "shots.csv: table, 2 channels" in text and "  validation" in text and "  test" not in text
