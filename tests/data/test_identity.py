"""A hundred silent changes of data, of all tasks and of one's own: each is noticed at the start or when it is read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.shots import write_shots
from support.viewers import small_study
from torch.utils.data import TensorDataset

from accel_train import IndexedSource, from_dataset
from accel_train.command import Command
from accel_train.config.convert import construct
from accel_train.contents import Contents
from accel_train.data import held
from accel_train.data.fingerprint import changed, unknown
from accel_train.data.loader import Loader
from accel_train.errors import DataError, UserError
from accel_train.plan import Position
from accel_train.task import BatchSource
from accel_train.tasks.collatz import data as collatz_data
from accel_train.tasks.collatz.step import data as step_data
from accel_train.tasks.collatz.step.task import LongStepTask
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.gdynet.synth import synth as gdynet_synth
from accel_train.tasks.gdynet.task import GDyNetTask
from accel_train.tasks.muon import synth as muon_synth
from accel_train.tasks.muon.task import MuonTask
from accel_train.tasks.sherlock.task import SherlockTask
from accel_train.tasks.tcn.task import TCNTask

Change = Callable[[Path, np.random.Generator], None]
WINDOWS: dict[str, Any] = dict(nsub=40, twarn_ms=30.0, levels=2, nhid=4, kernel_size=3, dilation_base=3,
                               nrecept_target=13)  # fmt: skip


# -- data of all kinds -----------------------------------------------------------------------------------------------


def make_muon(folder: Path, layout: Any = "list") -> None:
    muon_synth.write(folder, 3, primaries=15, files=3, row_group=20, layout=layout, log10_energy=(5.0, 6.5))
    for path in folder.glob("*.parquet"):
        write_parquet(path, pq.read_table(path))


def write_parquet(path: Path, table: pa.Table) -> None:
    """Of one size, whatever the values are."""
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=20, write_statistics=False)


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
    "gdynet": (lambda folder: gdynet_synth(folder / "data", seed=3, size=40, clusters=3) and None,
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


# -- changes that leave names, sizes and times as they are -----------------------------------------------------------


def other(value: Any) -> Any:
    """The next number that a float32 can hold."""
    return np.nextafter(np.float32(value), np.float32(np.inf))


def nudge(pattern: str, where: Any = ...) -> Change:
    """One value in one of these .npy files, by as little as it can be."""

    def change(folder: Path, random: np.random.Generator) -> None:
        paths = sorted(folder.glob(pattern))
        array = np.lib.format.open_memmap(paths[random.integers(len(paths))], "r+")
        part = array[where]
        at = tuple(int(random.integers(n)) for n in part.shape)
        part[at] = other(part[at]) if part.dtype.kind == "f" else part[at] ^ 1
        array.flush()

    return change


def swap(pattern: str) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        one, other = sorted(folder.glob(pattern))[:2]
        os.rename(one, folder / "aside")
        os.rename(other, one)
        os.rename(folder / "aside", other)

    return change


def of_parquet(edit: Callable[[pa.Table, np.random.Generator], pa.Table]) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        paths = sorted(folder.glob("*.parquet"))
        path = paths[random.integers(len(paths))]
        write_parquet(path, edit(pq.read_table(path), random))

    return change


def a_value(table: pa.Table, random: np.random.Generator) -> pa.Table:
    rows = table["primary"].to_pylist()
    rows[random.integers(len(rows))][3] += 1
    return table.set_column(table.schema.get_field_index("primary"), "primary", pa.array(rows, table["primary"].type))


def one_more(pattern: str) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        path = sorted(folder.glob(pattern))[-1]
        shutil.copy2(path, path.with_name(f"zz{path.name}"))

    return change


def one_less(pattern: str) -> Change:
    return lambda folder, random: sorted(folder.glob(pattern))[-1].unlink()


def renamed(pattern: str) -> Change:
    """So that the files are in another order."""

    def change(folder: Path, random: np.random.Generator) -> None:
        path = sorted(folder.glob(pattern))[0]
        os.rename(path, path.with_name(f"zz{path.name}"))

    return change


def in_hdf5(pattern: str, name: str, first: int = 0) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        paths = sorted(folder.glob(pattern))
        with h5py.File(paths[random.integers(len(paths))], "r+") as file:
            data: Any = file[name]
            at = tuple(int(random.integers(first if i == data.ndim - 1 else 0, n)) for i, n in enumerate(data.shape))
            data[at] = other(data[at])

    return change


def in_text(pattern: str, before: str, after: str) -> Change:
    assert len(before) == len(after)

    def change(folder: Path, random: np.random.Generator) -> None:
        path = sorted(folder.glob(pattern))[0]
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return change


def in_meta(edit: Callable[[Any], None]) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        path = folder / "made" / "meta.json"
        meta = json.loads(path.read_text())
        edit(meta)
        path.write_text(json.dumps(meta, indent=1))

    return change


def in_npz(pattern: str, name: str) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        paths = sorted(folder.glob(pattern))
        path = paths[random.integers(len(paths))]
        with np.load(path) as file:
            arrays = dict(file)
        at = tuple(int(random.integers(n)) for n in arrays[name].shape)
        arrays[name][at] = other(arrays[name][at])
        np.savez(path, **arrays)

    return change


def of_rows(edit: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(folder: Path, random: np.random.Generator) -> None:
        for name in ("x", "y"):
            np.save(folder / f"{name}.npy", edit(np.load(folder / f"{name}.npy")))

    return change


def other_split(meta: Any) -> None:
    shot = next(shot for shot in meta["shots"] if shot["split"] == "train")
    shot["split"] = "test"


def earlier(meta: Any) -> None:
    next(shot for shot in meta["shots"] if shot["disruptive"])["t_disruption_ms"] -= 1


def shorter(meta: Any) -> None:
    meta["split"]["train"][0]["first"] += 1


OWN: dict[str, tuple[int, Change]] = {
    "a value": (4, nudge("x.npy")),
    "a label": (2, nudge("y.npy")),
    "cut": (1, of_rows(lambda array: array[:-1])),
    "two rows swapped": (1, of_rows(lambda array: np.concatenate([array[:2][::-1], array[2:]]))),
}
CHANGES: dict[str, dict[str, tuple[int, Change]]] = {
    "muon": {
        "a value": (8, of_parquet(a_value)),
        "swapped": (1, swap("*.parquet")),
        "one more": (1, one_more("*.parquet")),
        "one less": (1, one_less("*.parquet")),
        "another order": (1, renamed("*.parquet")),
        "the last row group cut": (1, of_parquet(lambda table, _: table.slice(0, len(table) - 1))),
        "two rows swapped": (
            2, of_parquet(lambda table, _: pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)]))
        ),
    },
    "muon hdf5": {
        "a value": (4, in_hdf5("*.h5", "muons", 2)),
        "a primary": (2, in_hdf5("*.h5", "primaries", 2)),
        "swapped": (1, swap("*.h5")),
    },
    "muon cache": {
        "a value": (4, nudge("cache/flat/flat.muons.npy")),
        "a primary": (2, nudge("cache/flat/rows.primary.npy")),
        "a file": (1, one_less("*.parquet")),
    },
    "gdynet": {
        "a distance": (5, nudge("data/train/nbr_dists.npy", slice(0, 20))),
        "a direction": (3, nudge("data/train/atom_directions.npy", slice(0, 20))),
        "a type": (1, nudge("data/train/atom_types.npy")),
        "a target": (1, nudge("data/train/target_index.npy")),
        "another trajectory": (1, lambda folder, _: shutil.copytree(folder / "data/val", folder / "data/train",
                                                                    dirs_exist_ok=True) and None),
    },
    "tcn": {
        "a value": (5, nudge("made/shots/10[46].npy", np.s_[:, 60:120])),
        "swapped": (1, swap("made/shots/10[46].npy")),
        "a scale": (2, nudge("made/scale.npy")),
        "an offset": (1, nudge("made/offset.npy")),
        "a mean": (1, in_npz("made/norm.npz", "mean")),
        "another split": (1, in_meta(other_split)),
        "another time": (1, in_meta(earlier)),
    },
    "tcn hdf5": {
        "a value": (4, in_hdf5("raw/disrupt/10[46].h5", "LFS", 100)),
        "swapped": (1, swap("raw/disrupt/10[46].h5")),
        "another split": (1, in_text("raw/disrupt/meta.csv", "106,train", "106,tests")),
        "another time": (1, in_text("raw/disrupt/meta.csv", "140", "139")),
    },
    "tcn prebuilt": {
        "a value": (4, in_npz("train/*.npz", "X")),
        "swapped": (1, swap("train/[02].npz")),
        "one less": (1, one_less("train/*.npz")),
    },
    "tcn table": {
        "a value": (1, in_text("shots.csv", ",6,train", ",5,train")),
        "another shot": (1, in_text("shots.csv", "\n3,", "\n4,")),
    },
    "sherlock": {
        "a volume": (4, nudge("made/fmri/*/*.npy", slice(0, 10))),
        "a stimulus": (4, nudge("made/stimulus/*/*.npy", slice(0, 10))),
        "a mean": (1, in_npz("made/stimulus_stats.npz", "clip_mean")),
        "another split": (1, in_meta(shorter)),
        "viewers swapped": (1, swap("made/fmri/*")),
    },
    "own, mapped": OWN,
    "own, in memory": OWN,
    "own, large": OWN,
    "own, tensors": OWN,
    "own, a list": OWN,
}  # fmt: skip
CASES = [(kind, name, seed) for kind, named in CHANGES.items() for name, (times, _) in named.items()
         for seed in range(times)]  # fmt: skip


# -- noticed? --------------------------------------------------------------------------------------------------------


def opened(kind: str, folder: Path) -> BatchSource:
    source = KINDS[kind][1](folder)
    assert source is not None
    if (contents := source.content_hashes()) is not None:
        contents.watched = True
    return source


def read_all(source: BatchSource) -> None:
    scan = source.iterate(0, 0, 0, 1, 0)
    if scan is not None:
        assert sum(1 for _ in scan) > 0
        return
    for step in range(source.steps(0) or 0):
        source.batch(0, step, 0, 1)


@pytest.fixture(scope="module")
def first_session(tmp_path_factory):
    """Of each kind a folder, its fingerprint and the hashes of an epoch."""

    @cache
    def get(kind: str) -> tuple[Path, dict[str, Any], np.ndarray | None]:
        folder = tmp_path_factory.mktemp("data") / "made"
        KINDS[kind][0](folder)
        source = opened(kind, folder)
        found = json.loads(json.dumps(source.fingerprint()))
        read_all(source)
        contents = source.content_hashes()
        hashes = contents.hashes.copy() if contents is not None else None
        assert unknown(source, found) == [] and (hashes is None or hashes.any())
        return folder, found, hashes

    return get


def difference(kind: str, folder: Path, before: dict[str, Any], hashes: np.ndarray | None) -> str:
    """What a session that goes on with this folder says; "" for nothing."""
    try:
        source = opened(kind, folder)
        if what := changed(before, json.loads(json.dumps(source.fingerprint()))):
            return what
        if (contents := source.content_hashes()) is not None and hashes is not None:
            contents.hashes[:] = hashes
        read_all(source)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def small_is_large(request, monkeypatch):
    if "large" in str(request.node.name):
        monkeypatch.setattr(held, "AT_START", 100)
        monkeypatch.setattr(held, "BLOCK_BYTES", 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_moved_is_the_same(kind, first_session, tmp_path):
    folder, before, hashes = first_session(kind)
    shutil.copytree(folder, tmp_path / "moved")
    assert difference(kind, tmp_path / "moved", before, hashes) == ""


@pytest.mark.parametrize("kind, name, seed", CASES)
def test_a_silent_change_is_noticed(kind, name, seed, first_session, tmp_path):
    folder, before, hashes = first_session(kind)
    there = shutil.copytree(folder, tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in there.rglob("*") if path.is_file()}
    CHANGES[kind][name][1](there, np.random.default_rng((seed, len(name))))
    for path, time in times.items():
        if path.exists():
            os.utime(path, ns=(time, time))
    assert difference(kind, there, before, hashes) != ""


def test_there_are_a_hundred():
    assert len(CASES) >= 100


@pytest.mark.parametrize("task, module", [(CollatzTask, collatz_data), (LongStepTask, step_data)])
def test_generated_data_are_known_by_the_version_of_their_rule(task, module, monkeypatch):
    before = task().build_data("train", 8, 1).fingerprint()
    assert changed(before, task().build_data("train", 8, 1).fingerprint()) == ""
    assert "generated was" in changed(before, task().build_data("train", 8, 2).fingerprint())
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert "generated was" in changed(before, task().build_data("train", 8, 1).fingerprint())


def test_what_changes_on_the_way_is_one_line(first_session, tmp_path):
    folder, before, hashes = first_session("gdynet")
    there = shutil.copytree(folder, tmp_path / "data")
    array = np.lib.format.open_memmap(there / "data" / "train" / "nbr_dists.npy", "r+")
    array[7, 0, 0] = np.nextafter(array[7, 0, 0], np.float32(9))
    array.flush()
    said = difference("gdynet", there, before, hashes)
    assert "train, frame 7: content differs from what this run read before (xxh3_64 " in said
    assert "allow_changed_data" in said


def test_worker_processes_tell_what_they_read(first_session, tmp_path):
    folder, _, hashes = first_session("gdynet")
    assert hashes is not None
    there = shutil.copytree(folder, tmp_path / "data")
    nudge("data/train/nbr_dists.npy", np.s_[20:21])(there, np.random.default_rng(0))
    source = opened("gdynet", there)
    contents = source.content_hashes()
    assert contents is not None
    contents.hashes[:] = hashes
    loader = Loader(source, torch.device("cpu"), num_workers=1, worker_type="process")
    with pytest.raises(DataError, match="train, frame 20: content differs"):
        for _ in loader.batches(Position(), last_epoch=1):
            pass


def test_ranks_tell_each_other():
    first, second = Contents(5, "block {}".format), Contents(5, "block {}".format)
    for contents, blocks in ((first, (0, 1)), (second, (1, 2))):
        contents.watched = True
        for block in blocks:
            contents.look(block, np.arange(block))
    news = [first.news(), second.news()]
    for each in (first, second):
        for found in news:
            each.learn(found)
    assert np.array_equal(first.hashes, second.hashes) and first.about()["read"] == 3
    second.look(3, np.arange(3))
    second.hashes[0] += np.uint64(1)
    with pytest.raises(DataError, match="block 0: content differs"):
        second.learn(news[0])
