"""Windows that others have cut, in both of their layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.prebuilt import Prebuilt
from accel_train.tasks.tcn.windows import Stratified, WindowSource

NSUB, COUNT = 20, 5


def windows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X [n, 2, 3, T], target and weight [n, T]: every other is positive in its last 8 steps, 2 do not count."""
    random = np.random.default_rng(0)
    target, weight = np.zeros((COUNT, NSUB), np.float32), np.full((COUNT, NSUB), 0.7, np.float32)
    target[::2, 12:], weight[:, 18:] = 1, 0
    return random.normal(size=(COUNT, 2, 3, NSUB)).astype(np.float32), target, weight


def write_array(folder: Path, values: np.ndarray) -> None:
    folder.mkdir(parents=True)
    values.tofile(folder / "data.ninja")
    (folder / "dtype.ninja").write_text(values.dtype.name)


def write_ninja(folder: Path) -> None:
    for name, array in zip(("X", "target", "weight"), windows(), strict=True):
        write_array(folder / name, array)
        ends = np.arange(1, COUNT + 1) * array[0].size
        write_array(folder / name / "starts", ends - array[0].size)
        write_array(folder / name / "ends", ends)


def write_npz(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i, (x, target, weight) in enumerate(zip(*windows(), strict=True)):
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
    with pytest.raises(UserError, match="windows of 20 samples, receptive field 21"):
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


def test_data_that_are_cut_off(tmp_path):
    write_ninja(tmp_path / "train")
    path = tmp_path / "train" / "X" / "data.ninja"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="X: its data are cut off"):
        Prebuilt(tmp_path, "train", 7)
