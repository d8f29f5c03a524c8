"""What it costs that the content of data is hashed as it is read: an epoch with, beside an epoch without.

    python benchmarks/identity.py [--rounds 7] [--events 200000] [--frames 1000] [--shots 6] [--folder DIR]

The data are those of ragged_parquet.py, frame_pairs.py and windows.py (and the flat cache of the first), in the page
cache. "first" is the first epoch over some files; in "later" ones, and in all of a session that goes on with files that
nobody has touched ("resumed"), only what is decoded anew (Parquet) is hashed. Each pair of epochs is read one right
after the other, in turn the one with hashes first and the one without; a ratio is taken within a pair, of the clock and
of the seconds of the CPU. On a machine that is not idle the last column says most: of the CPU seconds of an epoch,
which part its threads have spent on hashes.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import frame_pairs
import ragged_parquet
import torch
import windows

from accel_train import mapped
from accel_train.contents import Contents
from accel_train.data.loader import Loader
from accel_train.plan import Position
from accel_train.tasks.gdynet.data import FramePairs, FrameSource, load
from accel_train.tasks.tcn.store import Store

WHICH = {"first": 0, "later": 1, "resumed": 0}
"""Epochs that are read, and their numbers."""


def made(folder: Path, events: int, frames: int, shots: int) -> dict[str, Callable[[], Any]]:
    """How each source is opened, as a session does it."""
    for name, generate, size in (("parquet", ragged_parquet.generate, events), ("frames", frame_pairs.generate, frames),
                                 ("windows", windows.generate, shots)):  # fmt: skip
        if not (folder / name / "done").exists():
            (folder / name).mkdir(parents=True)
            generate(folder / name, size)
            (folder / name / "done").touch()
    files = sorted(map(str, (folder / "parquet" / "files").glob("*.parquet")))
    return {
        "row groups of Parquet": lambda: ragged_parquet.lanes(files),
        "flat cache": lambda: ragged_parquet.cache(folder / "parquet", files, True),
        "pairs of frames": lambda: FrameSource(
            FramePairs(load([str(folder / "frames")], False), frame_pairs.TAU), frame_pairs.PAIRS
        ),
        "windows of shots": lambda: windows.opened(Store(folder / "windows" / "store")),
    }


@contextlib.contextmanager
def timed() -> Generator[list[float]]:
    """CPU seconds that threads spend on contents, without copies that are made on the way."""
    spent, plain = [0.0], {name: getattr(Contents, name) for name in ("due", "look", "look_around")}
    inside = threading.local()

    def copied(arrays: Iterable[Any]) -> Generator[Any]:
        arrays = iter(arrays)
        while True:
            started = time.thread_time()
            array = next(arrays, None)
            spent[0] -= time.thread_time() - started
            if array is None:
                return
            yield array

    def around(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if getattr(inside, "yes", False):
                return method(*args)
            inside.yes, started = True, time.thread_time()
            try:
                if method is plain["look"]:
                    args = (*args[:2], copied(args[2]))
                return method(*args)
            finally:
                spent[0] += time.thread_time() - started
                inside.yes = False

        return call

    for name, method in plain.items():
        setattr(Contents, name, around(method))
    try:
        yield spent
    finally:
        for name, method in plain.items():
            setattr(Contents, name, method)


def epoch(source: Any, number: int) -> tuple[float, float]:
    """Seconds of the clock and of the CPU."""
    loader = Loader(source, torch.device("cpu"), num_workers=1).batches(Position(epoch=number), last_epoch=number + 1)
    used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in loader:
        pass
    took, now = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    return took, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def gone_on(make: Callable[[], Any], before: Contents) -> Any:
    """A session that goes on after another one."""
    source = make()
    source.content_hashes().watch()
    source.content_hashes().go_on(before.state())
    return source


def _share(source: Any, number: int, spent: list[float]) -> float:
    used = epoch(source, number)[1]
    return spent[0] / used


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rounds", 7), ("events", 200_000), ("frames", 1_000), ("shots", 6)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sources = made(options.folder or Path(name), options.events, options.frames, options.shots)
        time.sleep(2 * mapped.SETTLED_NS / 1e9)
        print(f"{'':<26}{'epoch':<8}{'clock, with / without':>28}{'CPU':>24}{'share of the CPU':>20}")
        for source, make in sources.items():
            shares: dict[str, list[float]] = {which: [] for which in WHICH}
            ratios: dict[str, list[tuple[float, float]]] = {which: [] for which in WHICH}
            epoch(make(), 0)  # into the page cache
            for round_ in range(options.rounds):
                alone, pair = make(), {watched: make() for watched in (True, False)}
                for watched in (alone, pair[True]):
                    watched.content_hashes().watch()
                for which, number in WHICH.items():
                    if which == "resumed":
                        alone, pair = (gone_on(make, alone.content_hashes()),
                                       {True: gone_on(make, pair[True].content_hashes()), False: make()})  # fmt: skip
                    with timed() as spent:
                        shares[which].append(_share(alone, number, spent))
                    costs = {}
                    for watched in (True, False)[:: 1 if round_ % 2 else -1]:
                        costs[watched] = epoch(pair[watched], number)
                    ratios[which].append(tuple(a / b for a, b in zip(costs[True], costs[False], strict=True)))
            for which, found in ratios.items():
                share = statistics.median(shares[which])
                shown = [
                    f"{statistics.median(each):.3f} ({min(each):.3f}-{max(each):.3f})"
                    for each in zip(*found, strict=True)
                ]
                print(f"{source:<26}{which:<8}{shown[0]:>28}{shown[1]:>24}{share:>20.2%}", flush=True)


if __name__ == "__main__":
    main()
