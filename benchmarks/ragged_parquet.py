"""What reading ragged Parquet costs: events per second as batches of tensors, against a raw scan of the same columns.

    python benchmarks/ragged_parquet.py [--events 1000000] [--rounds 5] [--folder DIR]

The files: per event a primary (4 float32) and muons (lists of 3 float32; 8 on average with a heavy tail to 5,000),
zstd, row groups of 10,000, 16 files; and the same number of events once more as one row group of one file. Every
measurement runs in a process of its own, rounds are interleaved, the page cache is warm, and a ratio is taken within a
round. Not timed: imports, and what ``load_dataset`` does; footers are. Memory is what the process owns (not pages of
files) at its peak, above what it had before. Batches have 8,192 events; the raw scans make no tensors.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.system.memory import keep_freed

BATCH, FILES, ROW_GROUP = 8192, 16, 10_000
COLUMNS = ["primary", "muons"]
USUAL_EVENTS = 5 * BATCH  # of the slow form


# -- data ------------------------------------------------------------------------------------------------------------


def write(path: Path, events: int, seed: int, row_group: int) -> None:
    import pyarrow.parquet as pq

    from accel_train.data.ragged import Ragged
    from accel_train.tasks.muon.data import table

    draw = np.random.default_rng(seed)
    counts = np.minimum(4.5 * draw.pareto(1.5, events), 5000).astype(np.int64)
    muons = int(counts.sum())
    primary = [10 ** draw.uniform(4, 7, events), draw.uniform(0, 1.4, events), np.ones(events), np.full(events, 1e3)]
    muon = [10 ** draw.uniform(0, 4, muons), draw.normal(0, 20, muons), draw.normal(0, 20, muons)]
    rows, flat = (np.stack(columns, 1).astype(np.float32) for columns in (primary, muon))
    content = table(Ragged({"primary": rows}, counts, {"muons": flat}))
    pq.write_table(content, path, compression="zstd", row_group_size=row_group, write_page_checksum=True)


def generate(folder: Path, events: int) -> None:
    done = folder / f"{events}.events"
    if done.exists():
        return
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for i in range(FILES):
        write(folder / "files" / f"{i:02d}.parquet", events // FILES, i, ROW_GROUP)
    write(folder / "huge.parquet", events, FILES, events)
    done.touch()


# -- readers: a generator that has read nothing before its first ``next`` ----------------------------------------------

Batches = Iterator[int]  # events of each


def raw(files: list[str], threads: int) -> Batches:
    """Files side by side; faster than Arrow's own threads, which share out columns or wait for each other."""
    import pyarrow.parquet as pq

    def scan(path: str) -> list[int]:
        with pq.ParquetFile(path, memory_map=True) as file:
            return [len(b) for b in file.iter_batches(BATCH, columns=COLUMNS, use_threads=False)]

    with ThreadPoolExecutor(threads) as pool:
        for sizes in pool.map(scan, files):
            yield from sizes


def scanner(files: list[str]) -> Batches:
    """Arrow's own, with its own threads."""
    import pyarrow.dataset as ds

    for batch in ds.dataset(files).to_batches(columns=COLUMNS, batch_size=BATCH):
        yield len(batch)


def lanes(files: list[str], **options: Any) -> Any:
    from accel_train.data.bad import BadDataPolicy
    from accel_train.data.formats.parquet import Parquet
    from accel_train.data.lanes import LanesSource
    from accel_train.tasks.muon.layout import MuonLayout

    layout = MuonLayout()
    return LanesSource(files, Parquet(layout.columns, layout.decode, BadDataPolicy()), BATCH, **options)


def cache(folder: Path, files: list[str], shuffle: bool) -> Any:
    from accel_train.data.flat_cache import cached

    return cached(folder / "cache", lanes(files, lanes=1, shuffle="none"), {}, BATCH, shuffle=shuffle)


def ours(make: Callable[[], Any], half: bool = False) -> Batches:
    import torch

    from accel_train.data.loader import Loader
    from accel_train.plan import Position

    source = make()
    start = Position(batch=source.steps(0) // 2 if half else 0)
    for _, _, batch in Loader(source, torch.device("cpu"), num_workers=2).batches(start, last_epoch=1):
        assert batch is not None
        yield len(batch["counts"])


def streamed(folder: Path, files: list[str], kind: str) -> Any:
    from datasets import load_dataset

    made = load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder / "hf"))
    return made.select_columns(COLUMNS).with_format(kind)


def hf_arrow(made: Any) -> Batches:
    """Its fastest form: tables, made into tensors by hand, without a copy."""
    import torch

    for table in made.iter(batch_size=BATCH):
        primary, muons = (table.column(name).combine_chunks() for name in COLUMNS)
        counts = torch.from_numpy(muons.value_lengths().to_numpy())
        torch.from_numpy(primary.flatten().to_numpy()).view(-1, 4)
        torch.from_numpy(muons.flatten().flatten().to_numpy()).view(-1, 3)
        yield len(counts)


def hf_torch(made: Any) -> Batches:
    """What most people write."""
    events = 0
    for batch in made.iter(batch_size=BATCH):
        yield len(batch["primary"])
        events += len(batch["primary"])
        if events >= USUAL_EVENTS:
            return


def reader(row: str, folder: Path) -> Batches:
    files, huge = [str(path) for path in sorted((folder / "files").glob("*.parquet"))], [str(folder / "huge.parquet")]
    events = int(next(folder.glob("*.events")).stem)
    if not row.startswith(("hf", "raw")):
        keep_freed()  # as a run does
    if row.startswith("hf"):
        made = streamed(folder, files, "torch" if row == "hf torch" else "arrow")
        if row == "hf arrow, skip to half":
            return hf_arrow(made.skip(events // 2))
        if row == "hf arrow, state of half":
            for _ in zip(range(events // 2 // BATCH), hf_arrow(made), strict=False):
                pass
            state, made = made.state_dict(), streamed(folder, files, "arrow")
            made.load_state_dict(state)
        return hf_torch(made) if row == "hf torch" else hf_arrow(made)
    return {
        "raw, 1 thread": lambda: raw(files, 1),
        "raw, 2 threads": lambda: raw(files, 2),
        "raw, scanner": lambda: scanner(files),
        "lanes, row groups": lambda: ours(lambda: lanes(files, shuffle="row_groups")),
        "lanes, rows": lambda: ours(lambda: lanes(files)),
        "lanes, one huge row group": lambda: ours(lambda: lanes(huge)),
        "lanes from half": lambda: ours(lambda: lanes(files), half=True),
        "cache, in order": lambda: ours(lambda: cache(folder, files, False)),
        "cache, shuffled": lambda: ours(lambda: cache(folder, files, True)),
        "cache, shuffled, from half": lambda: ours(lambda: cache(folder, files, True), half=True),
    }[row]()


ROWS = [
    "raw, 1 thread", "raw, 2 threads", "raw, scanner", "lanes, row groups", "lanes, rows", "lanes, one huge row group",
    "cache, in order", "cache, shuffled", "hf arrow", "hf torch",
]  # fmt: skip
RESUMED = ["lanes from half", "cache, shuffled, from half", "hf arrow, state of half", "hf arrow, skip to half"]


# -- measuring -------------------------------------------------------------------------------------------------------


def owned_bytes() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """[bytes above those at the start], looked at every 5 ms."""
    before, found, done = owned_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], owned_bytes() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()


def measure(row: str, folder: Path) -> dict[str, float]:
    import datasets  # noqa: F401
    import pyarrow
    import pyarrow.dataset
    import torch  # noqa: F401

    import accel_train.data.flat_cache
    import accel_train.data.formats.parquet
    import accel_train.data.loader
    import accel_train.tasks.muon.layout  # noqa: F401

    warnings.simplefilter("ignore")  # of tensors that cannot be written to
    pyarrow.set_cpu_count(2)
    batches = reader(row, folder)
    with peak_memory() as peak:
        started, cpu = time.perf_counter(), time.process_time()
        events = next(batches)
        first = time.perf_counter() - started
        if row not in RESUMED:
            events += sum(batches)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {
        "million_per_s": events / seconds / 1e6, "first_ms": 1e3 * first, "cpu_s": 1e6 * cpu / events,
        "peak_mb": peak[0] / 1e6,
    }  # fmt: skip


def in_process(row: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--row", row, "--folder", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def ratio(found: dict[str, list[dict[str, float]]], a: str, b: str) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios within a round."""
    ratios = [x["million_per_s"] / y["million_per_s"] for x, y in zip(found[a], found[b], strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    def median(row: str, what: str) -> float:
        return statistics.median(one[what] for one in found[row])

    print(f"{'':<27}{'M events/s':>10}{'to raw, 2 threads':>24}{'first, ms':>11}{'CPU s/M':>9}{'peak MB':>9}")
    for row in ROWS:
        middle, low, high = ratio(found, row, "raw, 2 threads")
        print(
            f"{row:<27}{median(row, 'million_per_s'):10.3f}{middle:9.3f} ({low:5.3f}-{high:6.3f})"
            f"{median(row, 'first_ms'):11.0f}{median(row, 'cpu_s'):9.2f}{median(row, 'peak_mb'):9.0f}"
        )
    print("\nto the first batch, from the middle of an epoch on")
    for row in RESUMED:
        print(f"{row:<27}{median(row, 'first_ms'):10.0f} ms")
    print("\nratios within a round")
    for a, b, bar in (
        ("lanes, row groups", "raw, 2 threads", 0.95), ("lanes, rows", "raw, 2 threads", 0.95),
        ("lanes, row groups", "hf arrow", 1.5), ("lanes, row groups", "hf torch", 100),
        ("cache, in order", "lanes, row groups", 4), ("cache, shuffled", "raw, 2 threads", 0.8),
    ):  # fmt: skip
        middle, low, high = ratio(found, a, b)
        print(f"{a:<18} / {b:<18}{middle:8.2f} ({low:.2f}-{high:.2f}), wanted {bar}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where the files are, or are to be kept")
    parser.add_argument("--row", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options.folder)), flush=True)
        os._exit(0)  # streams that are left half read abort a normal exit
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        generate(folder, options.events)
        for event in cache(folder, sorted(map(str, (folder / "files").glob("*.parquet"))), False).events():
            print(event.title.removeprefix(f"{folder}/"))
        found: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS + RESUMED}
        for round_ in range(-1, options.rounds):  # the first one warms the page cache
            for row in list(found)[:: 1 if round_ % 2 else -1]:
                one = in_process(row, folder)
                if round_ >= 0:
                    found[row].append(one)
        report(found)


if __name__ == "__main__":
    main()
