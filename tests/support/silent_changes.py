"""Changes of these data that leave names, sizes and times as they are; a hundred with their seeds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.kinds import write_parquet

Change = Callable[[Path, np.random.Generator], None]


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
