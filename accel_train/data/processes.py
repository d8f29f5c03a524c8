"""Processes that read batches. They end with the run, whatever ends it."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy as np
import torch

from accel_train.data.draws import place_key, seed_generators
from accel_train.data.source import described
from accel_train.errors import DataError, UserError, brief
from accel_train.system import memory, waiting
from accel_train.system.process import end_with_parent
from accel_train.system.signals import SIGNALS
from accel_train.task import Batch, BatchSource

T = TypeVar("T")
HOST = "host_"
"""What the host must know of a batch, such as the lengths by which it is cut, would have to be waited for if it came
back from the device: an array whose name begins so stays an array."""


class Processes:
    """So many processes that read batches of one source. It travels once, when a process starts."""

    def __init__(self, count: int, source: BatchSource, seed: int) -> None:
        try:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(count, context, initializer=_start, initargs=(source, seed))
        except OSError as error:  # semaphores live in /dev/shm
            raise UserError(f"{_CANNOT_START}: {brief(error)}") from None

    def submit(self, epoch: int, number: int, rank: int, world_size: int) -> Future[Batch | None]:
        """The share of one batch, as ``BatchSource.batch`` gives it, in shared memory.

        Raises:
            UserError: the source cannot be sent to a process, or none can be started.
        """
        try:
            return self._pool.submit(_read, epoch, number, rank, world_size)
        except BrokenProcessPool:
            raise UserError(_DIED) from None
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UserError(
                f"worker_type: process sends the data set to other processes, and this one cannot be pickled "
                f"({brief(error)}); open what cannot travel in `read`, or set worker_type: thread"
            ) from None
        except (OSError, RuntimeError) as error:
            raise UserError(f"{_CANNOT_START}: {brief(error)}") from None

    def close(self) -> None:
        """Wait for what has begun, but kill it in a run that is given up."""
        manager: Any = self._pool._executor_manager_thread
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        while manager is not None and manager.is_alive():
            manager.join(waiting.SLICE_S)
            if waiting.given_up():
                for process in processes:
                    process.kill()
                manager.join(1.0)
                return


def result_of(job: Future[T]) -> T:
    """What ``submit`` promised, or its error.

    Raises:
        StoppedError: the run is given up.
        UserError: the process that was to read it has died.
    """
    try:
        return waiting.result(job)
    except BrokenProcessPool:
        raise UserError(_DIED) from None


_CANNOT_START = "worker_type: process cannot start its processes (is /dev/shm full? worker_type: thread needs none)"
_DIED = (
    "a worker process died: killed for want of memory, or it could not import the task or the data set "
    "(then its error is above); fewer num_workers, or worker_type: thread"
)


def to_tensors(batch: Batch | None) -> Batch | None:
    """Arrays become tensors, but for those whose name says that they are for the host."""
    if batch is None:
        return None
    if not isinstance(batch, Mapping):
        raise DataError(f"a batch must be a dict of names to arrays or tensors, not {described(batch)}")
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) and not name.startswith(HOST) else value
        for name, value in batch.items()
    }


# -- in a worker process ----------------------------------------------------------------------------------------------

_source: BatchSource | None = None
_seed = 0


def _start(source: BatchSource, seed: int) -> None:
    global _source, _seed
    _source, _seed = source, seed
    for number in SIGNALS:  # they are for the loop: a worker must not die of them
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()
    memory.keep_freed()


def _read(epoch: int, number: int, rank: int, world_size: int) -> Batch | None:
    assert _source is not None
    seed_generators(place_key(_seed, epoch, number, rank))
    batch = to_tensors(_source.batch(epoch, number, rank, world_size))
    try:
        for value in (batch or {}).values():
            if isinstance(value, torch.Tensor) and value.layout == torch.strided:
                value.share_memory_()
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"worker_type: process hands batches over in shared memory, and there is not enough of it in /dev/shm "
            f"({brief(error)}); fewer num_workers, or worker_type: thread"
        ) from None
    return batch
