"""A run that is given up waits for no reader, and no reader that is stuck keeps it from ending."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train.data.lanes import LanesSource, read_groups
from accel_train.data.loader import Loader
from accel_train.data.ragged import Ragged
from accel_train.data.source import IndexedSource
from accel_train.plan import Position
from accel_train.system import waiting
from accel_train.task import BatchSource

CPU = torch.device("cpu")
FOR_EVER = threading.Event()


@pytest.fixture(autouse=True)
def stuck_readers_go_at_last():
    before = set(threading.enumerate())
    waiting.begin()
    FOR_EVER.clear()
    yield
    waiting.begin()
    FOR_EVER.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) <= before


class Stuck:
    """Reads well until item 20; ``seconds`` decides whether threads are used."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 40

    def read(self, indices: np.ndarray) -> dict:
        if 20 in indices:
            FOR_EVER.wait()
        time.sleep(self.seconds)
        return {"index": indices}


class StuckScan(BatchSource):
    def __init__(self, steps: int | None) -> None:
        self._steps = steps

    def steps(self, epoch: int) -> int | None:
        return self._steps

    def iterate(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Iterator[dict | None]:
        for number in range(step, 10):
            if number == 5:
                FOR_EVER.wait()
            yield {"index": np.array([number])}


class StuckFormat:
    """One file of four row groups, of which the last cannot be had."""

    def groups(self, path: str) -> list[int]:
        return [10, 10, 10, 10]

    def blocks(self, path: str, group: int, rows: int) -> Iterator[Ragged]:
        if group == 3:
            FOR_EVER.wait()
        yield Ragged({"row": np.arange(10)}, np.zeros(10, np.int64), {})


def lanes() -> LanesSource:
    return LanesSource(["a"], StuckFormat(), batch_size=4, lanes=1, shuffle="none")


WAYS = {
    "indexed, in the loop": (lambda: IndexedSource(Stuck(), 4, shuffle=False), {"num_workers": 0}, 5),
    "indexed, cheap": (lambda: IndexedSource(Stuck(), 4, shuffle=False), {"num_workers": 1}, 5),
    "indexed, threads": (lambda: IndexedSource(Stuck(0.001), 4, shuffle=False), {"num_workers": 2}, 5),
    "scan, threads": (lambda: StuckScan(10), {"num_workers": 1}, 5),
    "scan, in the loop": (lambda: StuckScan(10), {"num_workers": 0}, 5),
    "stream": (lambda: StuckScan(None), {"num_workers": 1}, 5),
    "lanes": (lanes, {"num_workers": 2}, 7),
    "lanes, in the loop": (lanes, {"num_workers": 0}, 7),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_stop_ends_the_wait_for_a_read_that_never_ends(name):
    make, options, read = WAYS[name]
    threading.Timer(0.2, waiting.give_up).start()
    seen, started = [], time.perf_counter()
    with pytest.raises(waiting.StoppedError) as error:
        for _, number, _ in Loader(make(), CPU, **options).batches(Position(), last_epoch=1):
            seen.append(number)
    assert time.perf_counter() - started < 10, "for ever, before"
    assert not hasattr(error.value, "__notes__"), "it says what it is, and nothing about the data"
    assert seen == list(range(read)), "what could be read was handed over"


@pytest.mark.parametrize("name", ["indexed, threads", "scan, threads", "lanes"])
def test_a_consumer_that_stops_leaves_a_stuck_reader_behind(name):
    make, options, read = WAYS[name]
    batches = Loader(make(), CPU, **options).batches(Position(), last_epoch=1)
    for _ in range(read - 1):
        next(batches)
    waiting.give_up()
    started = time.perf_counter()
    batches.close()
    assert time.perf_counter() - started < 10


def test_sizes_of_files_are_not_waited_for():
    class Silent(StuckFormat):
        def groups(self, path: str) -> list[int]:
            FOR_EVER.wait()
            return []

    threading.Timer(0.1, waiting.give_up).start()
    with pytest.raises(waiting.StoppedError):
        read_groups(["a", "b"], Silent())


def test_a_run_that_is_given_up_reads_nothing_more():
    batches = Loader(IndexedSource(Stuck(), 4), CPU, num_workers=0).batches(Position())
    waiting.give_up()
    with pytest.raises(waiting.StoppedError):
        next(batches)


PROGRAM = """
import sys, threading
sys.path.insert(0, {here!r})
from accel_train.system import waiting
import test_stopping as t
make, options, _ = t.WAYS[{name!r}]
threading.Timer(0.2, waiting.give_up).start()
try:
    list(t.Loader(make(), t.CPU, **options).batches(t.Position(), last_epoch=1))
except waiting.StoppedError as error:
    print("ends")
"""


def test_the_interpreter_ends_although_a_reader_is_stuck():
    program = PROGRAM.format(here=str(Path(__file__).parent), name="indexed, threads")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


class Hangs(Stuck):
    """In another process: says that it is there, and reads for ever."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def read(self, indices: np.ndarray) -> dict:
        (self.folder / str(os.getpid())).touch()
        threading.Event().wait()
        return {}


def test_a_worker_process_that_hangs_is_killed(tmp_path):
    def stop_when_it_reads() -> None:
        while not list(tmp_path.iterdir()):
            time.sleep(0.05)
        waiting.give_up()

    threading.Thread(target=stop_when_it_reads).start()
    batches = Loader(IndexedSource(Hangs(tmp_path), 4), CPU, num_workers=1, worker_type="process").batches(Position())
    with pytest.raises(waiting.StoppedError):
        next(batches)
    (pid,) = map(int, [path.name for path in tmp_path.iterdir()])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
