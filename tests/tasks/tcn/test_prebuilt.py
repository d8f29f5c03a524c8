"""Windows that others have cut, in both of their layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import config

from accel_train import TrainConfig, Trainer
from accel_train.commands.inspect import look_at
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.prebuilt import Prebuilt, channels_of
from accel_train.tasks.tcn.task import TCNTask
from accel_train.tasks.tcn.windows import Stratified, WindowSource

NSUB, COUNT = 20, 5


def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X [n, 2, 3, T], target and weight [n, T]: every other is positive in its last 8 steps, 2 do not count."""
    random = np.random.default_rng(0)
    target, weight = np.zeros((COUNT, NSUB), np.float32), np.ones((COUNT, NSUB), np.float32)
    target[::2, 12:], weight[:, 18:] = 1, 0
    return random.normal(size=(COUNT, 2, 3, NSUB)).astype(np.float32), target, weight


def weighted(weights: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, target, weight = windows()
    return x, target, np.where(weight > 0, np.where(target > 0, weights[1], weights[0]), 0).astype(np.float32)


def write_array(folder: Path, values: np.ndarray) -> None:
    folder.mkdir(parents=True)
    values.tofile(folder / "data.ninja")
    (folder / "dtype.ninja").write_text(values.dtype.name)


def write_ninja(folder: Path, weights: tuple[float, float] = (1.0, 1.0)) -> None:
    """``weights``: of negative and positive steps that count."""
    for name, array in zip(("X", "target", "weight"), weighted(weights), strict=True):
        write_array(folder / name, array)
        ends = np.arange(1, COUNT + 1) * array[0].size
        write_array(folder / name / "starts", ends - array[0].size)
        write_array(folder / name / "ends", ends)


def write_npz(folder: Path, weights: tuple[float, float] = (1.0, 1.0)) -> None:
    folder.mkdir(parents=True)
    for i, (x, target, weight) in enumerate(zip(*weighted(weights), strict=True)):
        np.savez_compressed(folder / f"{i + 8}.npz", X=x, target=target, weight=weight)  # 8, 9, 10: not as text sorts


@pytest.fixture(params=[write_ninja, write_npz])
def prebuilt(request, tmp_path) -> Path:
    request.param(tmp_path / "train")
    np.save(tmp_path / "train" / "labels.npy", np.array([1, 0, 1, 0, 1]))
    (tmp_path / "meta.json").write_text(json.dumps({"nsub": NSUB * 10, "data_step": 10, "T_sub": NSUB, "train": COUNT}))
    return tmp_path


def test_a_batch(prebuilt):
    data = Prebuilt(prebuilt, "train", 7)
    assert (len(data), data.channels, data.nsub, data.outputs) == (5, 6, 20, 14)
    batch, (x, target, weight) = data.read(np.array([3, 0])), windows()
    np.testing.assert_array_equal(batch["x"], x[[3, 0]].reshape(2, 6, NSUB))
    np.testing.assert_array_equal(batch["target"], ((target * weight) > 0)[[3, 0], 6:])
    np.testing.assert_array_equal(batch["counts"], (weight > 0)[[3, 0], 6:])
    assert batch["shot"].tolist() == batch["first"].tolist() == [-1, -1]
    assert data.positive.tolist() == [6, 0, 6, 0, 6] and data.counted.tolist() == [12] * 5


def test_sources(prebuilt):
    data = Prebuilt(prebuilt, "train", 7)
    assert WindowSource(data, 2).fingerprint() == {"items": 5}
    assert (data.positive[Stratified(data, 4).indices(0, 0)] > 0).sum() == 2


def test_what_is_not_whole(prebuilt):
    with pytest.raises(DataError, match="val: no such folder"):
        Prebuilt(prebuilt, "validation", 7)
    with pytest.raises(UserError, match="windows of 20 samples are shorter than the receptive field 21"):
        Prebuilt(prebuilt, "train", 21)
    (prebuilt / "meta.json").write_text('{"T_sub": 99}')
    with pytest.raises(DataError, match="says windows of 99 samples, they have 20"):
        Prebuilt(prebuilt, "train", 7)
    np.save(prebuilt / "train" / "labels.npy", np.zeros(4))
    with pytest.raises(DataError, match="5 windows and 4 labels"):
        Prebuilt(prebuilt, "train", 7)
    (prebuilt / "train" / "labels.npy").unlink()
    with pytest.raises(DataError, match="labels.npy: cannot be read"):
        Prebuilt(prebuilt, "train", 7)


def test_a_folder_without_windows(tmp_path):
    (tmp_path / "train").mkdir()
    for read in (lambda: Prebuilt(tmp_path, "train", 7), lambda: channels_of(tmp_path)):
        with pytest.raises(DataError, match="train: has no windows: neither X/ of mmap_ninja nor NUMBER.npz"):
            read()


def test_data_that_are_cut_off(tmp_path):
    write_ninja(tmp_path / "train")
    path = tmp_path / "train" / "X" / "data.ninja"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="X: its data are cut off"):
        Prebuilt(tmp_path, "train", 7)


# -- what the folder says of its windows -----------------------------------------------------------------------------


def say(folder: Path, **said: object) -> Prebuilt:
    (folder / "meta.json").write_text(json.dumps(said))
    return Prebuilt(folder, "train", 7)  # 14 outputs


def test_what_can_be_checked(prebuilt):
    assert say(prebuilt, nsub=200, data_step=10, stride=140, n_train=5).warnings == []
    with pytest.raises(DataError, match="says windows of 30 samples, they have 20"):
        say(prebuilt, nsub=300, data_step=10)
    for name in ("train", "n_train"):
        with pytest.raises(DataError, match="says 6 windows in train, there are 5; make it again"):
            say(prebuilt, **{name: 6})
    made = say(prebuilt, nsub=200, data_step=10, stride=200)
    (event,) = WindowSource(made, 2).events()
    assert "20 steps apart and each has 14 outputs, so 30% of the steps are never scored" in event.title


def test_labels_that_disagree(prebuilt):
    np.save(prebuilt / "train" / "labels.npy", np.array([1, 0, 0, 0, 1]))
    with pytest.raises(DataError, match="says that window 2 is clear, but it has positive steps"):
        Prebuilt(prebuilt, "train", 7)


# -- class weights ---------------------------------------------------------------------------------------------------

SMALL = dict(levels=2, nhid=4, kernel_size=3, dilation_base=3, nrecept_target=13)  # 8 outputs, 6 of them count
WEIGHTS = (0.56, 4.5)  # those of the guide


@pytest.fixture(params=[write_ninja, write_npz])
def heavy(request, tmp_path) -> Path:
    for split in ("train", "test"):
        request.param(tmp_path / split, WEIGHTS)
        np.save(tmp_path / split / "labels.npy", np.array([1, 0, 1, 0, 1]))
    return tmp_path


@pytest.mark.parametrize("balance", ["batch", "dataset"])
def test_two_sources_of_balance_are_refused(heavy, balance):
    with pytest.raises(UserError) as error:
        TCNTask(str(heavy), **SMALL, balance=balance).build_data("train", 4, 0)
    text = str(error.value)
    assert f"balance: {balance}, but the weights in" in text and "such as 4.5" in text and "\n" not in text
    assert "weigh positive steps twice" in text and "balance=none trains with those weights alone" in text
    held_out = TCNTask(str(heavy), **SMALL, balance=balance).windows("test")  # where steps count alike
    assert isinstance(held_out, Prebuilt) and not held_out.weighted


def test_weights_are_those_of_the_loss(heavy):
    """sum of weight * cross-entropy over the steps that count, over how many those are."""
    task = TCNTask(str(heavy), **SMALL, balance="none")
    source = task.build_data("train", 4, 0)
    assert source is not None
    models = {"model": task.build_model(source).eval()}
    batch = {name: torch.from_numpy(array) for name, array in (source.batch(0, 0, 0, 1) or {}).items()}
    objective = task.objectives()[0]
    value = task.loss_step(models, batch, task.totals(models, batch, objective), objective).value
    logits, target = models["model"](batch["x"], batch["scale"], batch["offset"]), batch["target"]
    each = torch.where(target, WEIGHTS[1], WEIGHTS[0]) * torch.nn.functional.softplus(
        torch.where(target, -logits, logits)
    )
    torch.testing.assert_close(value, each[batch["counts"]].mean())


def test_a_run_and_no_distances(heavy):
    """Nobody knows how far from a disruption these windows are, and which are of clear shots."""
    settings = config(heavy / "run", max_steps=2, eval_steps=2, global_batch_size=4)
    task = TCNTask(str(heavy), **SMALL, balance="none")
    Trainer(task, TrainConfig(**settings)).fit()
    source = task.build_data("test", 4, 0)
    assert source is not None
    batch = {name: torch.from_numpy(array) for name, array in (source.batch(0, 0, 0, 1) or {}).items()}
    models = {"model": task.build_model(task.build_data("train", 4, 0))}
    with torch.no_grad():
        found = task.eval_metrics(task.eval_step(models, batch))
    assert not [name for name in found if name.startswith("step_fpr/")]
    assert TCNTask(str(heavy), **SMALL).build_model(None).mean.shape[0] == 6, "as whoever loads weights asks for it"


def test_inspect(heavy):
    text = look_at(str(heavy), [f"--{name}={value}" for name, value in SMALL.items()] + ["--balance=none"])
    lines = text.splitlines()
    assert lines[0].endswith(": prebuilt, 6 channels") and "windows of 20 samples, of which 8" in lines[1]
    assert lines[3].split() == ["train", "?", "?", "5", "3", "30", "60.0%"] and lines[4].split()[0] == "test"
