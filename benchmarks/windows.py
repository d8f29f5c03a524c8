"""What reading windows costs: batches of 48 windows of 160 x 7,813, beside a memory copy, h5py, zarr and a DataLoader.

    python benchmarks/windows.py [--shots 12] [--rounds 7] [--folder DIR]

The data: shots of 53,000 samples of 160 channels as a digitiser gives them, as HDF5 files (float32), preprocessed
(int16), and 64 windows as the prebuilt layout has them (float32). All are below 2 GB together, in a temporary folder
unless --folder says where; what is there is used again.

Warm: files in the page cache; rounds are interleaved, and a ratio is taken within a round; seconds of the CPU beside
those of the clock. The memory copy moves the bytes of a batch to a place that is there already; "into fresh memory" is
what ``array.copy()`` does. A DataLoader reads items from a map of the prebuilt windows and stacks them.

Cold: the files are dropped from the page cache before each epoch's first batches (posix_fadvise, no rights needed; what
stands below the file system may still have them). "by the page" is a map that the kernel was told to read at random, so
that each fault waits for one page: the worst that a kernel's own reading ahead can be. How far that reads is a setting
of the device (/sys/block/*/queue/read_ahead_kb), which is printed: where it is many MB, ours has nothing to add.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import mmap
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from accel_train.command import Command
from accel_train.data.loader import Loader
from accel_train.plan import Position
from accel_train.tasks.tcn.hdf5 import Hdf5Shots, Reading
from accel_train.tasks.tcn.labels import LabelSettings
from accel_train.tasks.tcn.lists import find
from accel_train.tasks.tcn.shots import Shots
from accel_train.tasks.tcn.store import Store
from accel_train.tasks.tcn.windows import Stratified, Windows

ROWS, COLUMNS, SAMPLES, DT_MS = 20, 8, 53_000, 0.1
NSUB, RECEPTIVE_FIELD, BATCH = 7_813, 3_002, 48  # the real ones, at 10 kHz
PREBUILT = 64
SLOW = 2  # batches a round of what is slow
COLD = 3  # batches of a cold epoch

Batches = Iterator[int]  # windows of each


def generate(folder: Path, shots: int) -> None:
    draw = np.random.default_rng(0)
    for number in range(shots):
        path = folder / ("clear" if number % 2 else "disrupt") / f"{number}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            data = file.create_dataset("LFS", (ROWS, COLUMNS, SAMPLES), np.float32)
            for row in range(ROWS):
                data[row] = draw.integers(-2000, 2001, (COLUMNS, SAMPLES)) * np.float32(2**-10)
    last = -50 + SAMPLES * DT_MS
    rows = [f"{number},train,{last - 100}" for number in range(0, shots, 2)]
    (folder / "disrupt" / "meta.csv").write_text("\n".join(["shot,split,t_disruption", *rows]) + "\n")
    rows = [f"{number},train" for number in range(1, shots, 2)]
    (folder / "clear" / "meta.csv").write_text("\n".join(["shot,split", *rows]) + "\n")
    preprocess = Command("preprocess", "", "accel_train.tasks.tcn.preprocess.command")
    given = [f"--{name}={folder / name}" for name in ("disrupt", "clear")]
    preprocess.run([*given, f"--out={folder / 'store'}", f"--dt_ms={DT_MS}"])
    made = np.lib.format.open_memmap(folder / "prebuilt.npy", "w+", np.float32, (PREBUILT, ROWS * COLUMNS, NSUB))
    windows = opened(Store(folder / "store")).data
    for i in range(PREBUILT):
        made[i] = windows.read([i])["x"][0]


def opened(data: Shots) -> Stratified:
    return Stratified(Windows(data, data.shots, NSUB, RECEPTIVE_FIELD, LabelSettings()), BATCH)


# -- who reads -------------------------------------------------------------------------------------------------------


def copies(batch: np.ndarray, place: np.ndarray | None) -> Batches:
    for _ in range(SLOW):
        if place is None:
            batch.copy()
        else:
            np.copyto(place, batch)
        yield len(batch)


def reads(source: Stratified, epoch: int, batches: int) -> Batches:
    """Through ``batch``, so that the next one is announced, too."""
    for step in range(batches):
        yield len((source.batch(epoch, step, 0, 1) or {})["x"])


def loads(source: Stratified, threads: int, batches: int) -> Batches:
    loader = iter(Loader(source, torch.device("cpu"), num_workers=threads).batches(Position()))
    for _, (_, _, batch) in zip(range(batches), loader, strict=False):
        assert batch is not None
        yield len(batch["x"])
    loader.close()  # type: ignore[attr-defined]


def zarr_reads(folder: Path, source: Stratified, epoch: int) -> Batches:
    """One array a shot, chunks of a channel group and 10,000 samples, not compressed."""
    import zarr  # type: ignore[import-not-found]

    data: Any = source.data.data
    arrays = {}
    for shot in data.shots:
        path = folder / f"{shot.number}.zarr"
        if not path.exists():
            chunks = (COLUMNS, 10_000)
            made = zarr.create_array(str(path), shape=(data.channels, shot.samples), chunks=chunks, dtype="int16",
                                     compressors=None)  # fmt: skip
            made[:] = data.read(shot.number, 0, shot.samples)
        arrays[shot.number] = zarr.open_array(str(path), mode="r")
    for step in range(SLOW):
        items = source.indices(epoch, step)
        for number, first in zip(*source.data.place(items), strict=True):
            start = first - RECEPTIVE_FIELD + 1
            arrays[number][:, start : start + NSUB]
        yield len(items)


class Items(torch.utils.data.Dataset):
    """Windows of the prebuilt layout, one at a time."""

    def __init__(self, path: Path) -> None:
        self.x = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.x[i]))


def per_item(items: Items, workers: int) -> Batches:
    loader = torch.utils.data.DataLoader(items, BATCH, shuffle=True, num_workers=workers, drop_last=True)
    for batch in loader:
        yield len(batch)


# -- measuring -------------------------------------------------------------------------------------------------------


def cost(batches: Batches) -> tuple[float, float]:
    """Seconds of the clock and of the CPU for a window."""
    started, used = time.perf_counter(), cpu()
    windows = sum(batches)
    return (time.perf_counter() - started) / windows, (cpu() - used) / windows


def cpu() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def show_warm(rows: dict[str, Callable[[int], Batches]], rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
    for round_ in range(-1, rounds):  # the first one warms the page cache
        for row in list(rows)[:: 1 if round_ % 2 else -1]:
            one = cost(rows[row](max(0, round_)))
            if round_ >= 0:
                found[row].append(one)
    copy = found["memory copy"]
    print(f"\n{'warm':<34}{'ms a batch':>12}{'CPU ms':>9}{'speed / that of a memory copy':>32}")
    for row, costs in found.items():
        clock, used = (1000 * BATCH * statistics.median(each[i] for each in costs) for i in (0, 1))
        ratios = [a[0] / b[0] for a, b in zip(copy, costs, strict=True)]
        print(
            f"{row:<34}{clock:12.1f}{used:9.1f}{statistics.median(ratios):16.3f} ({min(ratios):.3f}-{max(ratios):.3f})"
        )


def warm(folder: Path, rounds: int) -> None:
    source = opened(Store(folder / "store"))
    stored(folder, source)
    files = opened(Hdf5Shots(find(folder / "disrupt", folder / "clear").entries, Reading(dt_ms=DT_MS)))
    items, batch = Items(folder / "prebuilt.npy"), (source.batch(0, 0, 0, 1) or {})["x"].copy()
    place = batch.copy()
    rows: dict[str, Callable[[int], Batches]] = {
        "memory copy": lambda _: copies(batch, place),
        "memory copy into fresh memory": lambda _: copies(batch, None),
        "read": lambda epoch: reads(source, epoch, SLOW),
        "loader, no thread": lambda _: loads(source, 0, SLOW),
        "h5py, not preprocessed": lambda epoch: reads(files, epoch, 1),
        "DataLoader, prebuilt items": lambda _: per_item(items, 0),
        "DataLoader, 1 worker": lambda _: per_item(items, 1),
    }
    if importlib.util.find_spec("zarr") is None:
        print("zarr is not installed (pip install zarr): its row is left out", file=sys.stderr)
    else:
        rows["zarr, int16"] = lambda epoch: zarr_reads(folder, source, epoch)
    show_warm(rows, rounds)
    memory(source, 3)


def drop(folder: Path) -> None:
    """The shots from the page cache; nobody may have mapped them."""
    for path in (folder / "shots").iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(folder: Path, rounds: int) -> None:
    """An epoch's first batches, with and without being announced."""
    found: dict[tuple[int, bool, bool], list[tuple[float, float]]] = {}
    for round_ in range(rounds):
        for by_page in (False, True):
            for threads in (0, 1, 2):
                for ahead in (False, True)[:: 1 if round_ % 2 else -1]:
                    drop(folder)
                    source = opened(Store(folder))
                    if by_page:
                        advise_random(source.data.data)
                    if not ahead:
                        source.data.ahead = None
                    found.setdefault((threads, by_page, ahead), []).append(cost(loads(source, threads, COLD)))
                    del source
    print(f"\n{'cold, through the loader':<34}{'plain: ms':>12}{'announced':>12}{'speed gained':>15}")
    for threads, by_page in dict.fromkeys(key[:2] for key in found):
        sides = [[clock for clock, _ in found[threads, by_page, ahead]] for ahead in (False, True)]
        a, b = (1000 * BATCH * statistics.median(side) for side in sides)
        gains = [x / y for x, y in zip(*sides, strict=True)]
        row = f"{threads} threads{', by the page' if by_page else ''}"
        print(f"{row:<34}{a:12.0f}{b:12.0f}{statistics.median(gains):11.2f} ({min(gains):.2f}-{max(gains):.2f})")


def advise_random(data: Store) -> None:
    for shot in data.shots:
        mapped: Any = data.read(shot.number, 0, shot.samples)
        while not isinstance(mapped, mmap.mmap):
            mapped = mapped.base
        mapped.madvise(mmap.MADV_RANDOM)


def resident() -> dict[str, int]:
    """MB of this process: its own, and mapped pages of files, which the system takes back when it needs them."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(said[name].split()[0]) // 1000 for name in ("RssAnon", "RssFile")}


def memory(source: Stratified, epochs: int) -> None:
    print("\nresident memory, MB, in the loop of two reading threads; a batch has "
          f"{BATCH * ROWS * COLUMNS * NSUB * 2 / 1e6:,.0f}")  # fmt: skip
    loader = iter(Loader(source, torch.device("cpu"), num_workers=2).batches(Position()))
    steps = source.steps(0)
    for epoch in range(epochs):
        for _ in range(steps):
            next(loader)
        print(
            f"  after {(epoch + 1) * steps * BATCH:>6,} windows: "
            + ", ".join(f"{k} {v:,}" for k, v in resident().items())
        )


def stored(folder: Path, source: Stratified) -> None:
    """Bytes on disk for each window that an epoch has."""
    files = [path for path in (folder / "store").rglob("*") if path.is_file()]
    ours = sum(path.stat().st_size for path in files) / len(source.data)
    theirs = (folder / "prebuilt.npy").stat().st_size / PREBUILT + 2 * 4 * NSUB  # and target and weight
    print(
        f"stored bytes for a window: {ours:,.0f} in int16, {theirs:,.0f} prebuilt: {theirs / ours:.2f} times fewer, "
        "wanted 3.2"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shots", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "prebuilt.npy").is_file():
            generate(folder, options.shots)
        warm(folder, options.rounds)
        gc.collect()  # nobody has the files mapped
        settings = Path("/sys/block").glob("[!lrz]*/queue/read_ahead_kb")  # not of loop, ram and zram
        kernel = {path.parts[3]: path.read_text().strip() for path in settings}
        print(f"\nread_ahead_kb: {', '.join(f'{name} {kb}' for name, kb in kernel.items())}")
        cold(folder / "store", options.rounds)


if __name__ == "__main__":
    main()
