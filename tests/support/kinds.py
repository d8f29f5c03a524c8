"""Small data of every kind that a run may read, in a folder: how they are made, and how a session opens them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

from accel_train import IndexedSource, from_dataset
from accel_train.command import Command
from accel_train.config.convert import construct
from accel_train.data import held
from accel_train.task import BatchSource
from accel_train.tasks.gdynet.synth import synth as gdynet_synth
from accel_train.tasks.gdynet.task import GDyNetTask
from accel_train.tasks.muon import synth as muon_synth
from accel_train.tasks.muon.task import MuonTask
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.tasks.tcn.task import TCNTask
from support.shots import write_shots
from support.viewers import small_study

WINDOWS: dict[str, Any] = dict(nsub=40, twarn_ms=30.0, levels=2, nhid=4, kernel_size=3, dilation_base=3,
                               nrecept_target=13)  # fmt: skip


def make_muon(folder: Path, layout: Any = "list") -> None:
    muon_synth.write(folder, 3, primaries=15, files=3, row_group=20, layout=layout, log10_energy=(5.0, 6.5))
    for path in folder.glob("*.parquet"):
        write_parquet(path, pq.read_table(path))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Of one size, whatever the values are."""
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=20, write_statistics=False)


def make_gdynet(folder: Path) -> None:
    gdynet_synth(folder / "data", seed=3, size=40, clusters=3)


def make_shots(folder: Path, dtype: str = "") -> None:
    write_shots(folder / "raw", count=8, samples=200)
    if dtype:
        given = [f"--{name}={folder / 'raw' / name}" for name in ("disrupt", "clear")]
        Command("preprocess", "", "accel_train.tasks.tcn.preprocess.command").run(
            [*given, f"--out={folder / 'made'}", "--dt_ms=1", f"--dtype={dtype}"]
        )
        shutil.rmtree(folder / "raw")


def make_prebuilt(folder: Path) -> None:
    random = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    for i in range(5):
        target, weight = np.zeros(40, np.float32), np.ones(40, np.float32)
        target[30 : 40 if i % 2 == 0 else 30] = 1
        x = random.normal(size=(6, 40)).astype(np.float32)
        np.savez(folder / "train" / f"{i}.npz", X=x, target=target, weight=weight)
    np.save(folder / "train" / "labels.npy", np.array([1, 0, 1, 0, 1]))


def make_table(folder: Path) -> None:
    folder.mkdir(parents=True)
    rows = [f"{shot},{i / 100:.2f},{'' if shot % 2 else (40 - i) / 100},{i * shot % 7},train"
            for shot in range(4) for i in range(41)]  # fmt: skip
    (folder / "shots.csv").write_text("\n".join(["shot,time,time_until_disrupt,ip,split", *rows]) + "\n")


def make_sherlock(folder: Path) -> None:
    options = small_study(folder / "study")
    Command("preprocess", "", "accel_train.tasks.sherlock.preprocess.command").run(
        [f"--out={folder / 'made'}", *options]
    )
    shutil.rmtree(folder / "study")


def make_arrays(folder: Path) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    np.save(folder / "x.npy", random.normal(size=(50, 4)).astype(np.float32))
    np.save(folder / "y.npy", random.integers(0, 9, 50))


class Own:
    """Arrays of one's own, mapped or in memory."""

    def __init__(self, folder: Path, mode: Any = "r") -> None:
        self.x, self.y = (np.load(folder / f"{name}.npy", mmap_mode=mode) for name in ("x", "y"))

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": self.x[indices], "y": self.y[indices]}


def tensors(folder: Path) -> TensorDataset:
    own = Own(folder, None)
    return TensorDataset(torch.from_numpy(own.x), torch.from_numpy(own.y))


def muon_cache(folder: Path) -> BatchSource | None:
    """A cache knows its files by their paths, too: if they were elsewhere, it would be made anew."""
    with contextlib.chdir(folder):
        return construct(MuonTask, {"files": "*.parquet", "cache_dir": str(folder / "cache")}, "").build_data(
            "train", 64, 0
        )


def muon(folder: Path, **options: Any) -> BatchSource | None:
    kind = "h5" if any(folder.glob("*.h5")) else "parquet"
    return construct(MuonTask, {"files": f"{folder}/*.{kind}", "lanes": 2, **options}, "").build_data("train", 64, 0)


def pairs(folder: Path) -> list[Any]:
    return [*zip(*tensors(folder).tensors, strict=True)]


def train_data(task: Any, options: dict[str, Any]) -> BatchSource | None:
    return construct(task, options, "").build_data("train", 8, 0)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], BatchSource | None]]] = {
    "muon": (make_muon, muon),
    "muon hdf5": (lambda folder: make_muon(folder, "hdf5"), muon),
    "muon cache": (make_muon, muon_cache),
    "gdynet": (make_gdynet,
               lambda folder: train_data(GDyNetTask, {"train_fnames": [str(folder / "data" / "train")], "tau": 3})),
    "tcn": (lambda folder: make_shots(folder, "int16"),
            lambda folder: train_data(TCNTask, {"data": str(folder / "made"), **WINDOWS})),
    "tcn hdf5": (make_shots,
                 lambda folder: train_data(TCNTask, {"data": str(folder / "raw"), "raw": {"dt_ms": 1.0}, **WINDOWS})),
    "tcn prebuilt": (make_prebuilt, lambda folder: train_data(TCNTask, {"data": str(folder), **WINDOWS})),
    "tcn table": (make_table, lambda folder: train_data(
        TCNTask, {"data": str(folder / "shots.csv"), "raw": {"dt_ms": 10.0}, **WINDOWS, "nsub": 20})),
    "sherlock": (make_sherlock, lambda folder: train_data(
        SherlockTask, {"data": str(folder / "made"), "window_trs": 4, "lags": 2})),
    "own, mapped": (make_arrays, lambda folder: IndexedSource(Own(folder), 8)),
    "own, in memory": (make_arrays, lambda folder: IndexedSource(Own(folder, None), 8)),
    "own, large": (make_arrays, lambda folder: IndexedSource(Own(folder), 8)),
    "own, tensors": (make_arrays, lambda folder: from_dataset(tensors(folder), 8, names=("x", "y"))),
    "own, a list": (make_arrays, lambda folder: from_dataset(pairs(folder), 8, names=("x", "y"))),
}  # fmt: skip


def opened(kind: str, folder: Path) -> BatchSource:
    with pytest.MonkeyPatch.context() as patch:
        if "large" in kind:
            patch.setattr(held, "AT_START", 100)
            patch.setattr(held, "BLOCK_BYTES", 64)
        source = KINDS[kind][1](folder)
        assert source is not None
        if (contents := source.content_hashes()) is not None:
            contents.watch()
    return source


def read_all(source: BatchSource) -> None:
    scan = source.iterate(0, 0, 0, 1, 0)
    if scan is not None:
        assert sum(1 for _ in scan) > 0
        return
    for step in range(source.steps(0) or 0):
        source.batch(0, step, 0, 1)
