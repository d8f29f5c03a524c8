"""What can go wrong with worker processes is one line."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train.data import processes
from accel_train.data.loader import Loader
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.plan import Position


class Items:
    def __len__(self) -> int:
        return 8

    def read(self, indices: np.ndarray) -> dict:
        return {"index": indices}


class Locked(Items):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Deadly(Items):
    def read(self, indices: np.ndarray) -> dict:
        os._exit(9)


def first(data: Items) -> None:
    loader = Loader(IndexedSource(data, 4), torch.device("cpu"), num_workers=1, worker_type="process")
    next(loader.batches(Position()))


def test_a_data_set_that_cannot_be_pickled():
    with pytest.raises(UserError, match=r"cannot be pickled \(TypeError: cannot pickle '_thread.lock' object\)"):
        first(Locked())

    class Local(Items):
        pass

    with pytest.raises(UserError, match=r"cannot be pickled \(AttributeError: Can't pickle local object"):
        first(Local())


def test_a_worker_that_dies():
    with pytest.raises(UserError, match=r"^a worker process died: .* \(while reading epoch 0, batch 0\)$"):
        first(Deadly())


def test_no_semaphores(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", full)
    with pytest.raises(UserError, match="cannot start its processes .*dev/shm full.*No space left on device"):
        first(Items())


def test_shared_memory_is_full(monkeypatch):
    def full(_: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    monkeypatch.setattr(processes, "_source", IndexedSource(Items(), 4))
    with pytest.raises(UserError, match="not enough of it in /dev/shm .*No space left on device"):
        processes._read(0, 0, 0, 1)


PROGRAM = """
import sys, time
sys.path.insert(0, {here!r})
import torch, test_processes as t
if __name__ == "__main__":
    source = t.IndexedSource(t.WhoReads(), 4)
    batches = t.Loader(source, torch.device("cpu"), num_workers=1, worker_type="process").batches(t.Position())
    print(int(next(batches)[2]["pid"]), flush=True)
    time.sleep(100)
"""


class WhoReads(Items):
    def read(self, indices: np.ndarray) -> dict:
        return {"pid": np.array(os.getpid())}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_worker_outlives_a_run_that_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(here=str(Path(__file__).parent)))
    run = subprocess.Popen([sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    pid = int(run.stdout.readline())
    assert lives(pid)
    run.kill()
    run.communicate()
    for _ in range(1000):
        if not lives(pid):
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it waits for work for ever")
