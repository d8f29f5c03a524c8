"""Reads batches ahead of the step and hands them over in order, on the device."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal

import numpy as np
import torch

from accel_train.data.source import BatchSource
from accel_train.errors import DataError, UserError
from accel_train.progress import Position
from accel_train.signals import SIGNALS
from accel_train.task import Batch

CHEAP_SECONDS = 0.0002
"""A batch that is read faster than this is read in the loop: handing it over between threads would cost more."""


class Loader:
    """This rank's shares of all global batches from a position on, epoch after epoch.

    Args:
        num_workers: batches are read by so many threads or processes ahead of the step; 0 reads in the loop itself, as
            do threads until three batches in a row took more than ``CHEAP_SECONDS``.
        worker_type: "thread" for readers that release the GIL (numpy, Arrow, h5py), "process" for Python-heavy ones.
        prefetch: finished batches kept waiting per worker.
    """

    def __init__(
        self,
        source: BatchSource,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 1,
        worker_type: Literal["thread", "process"] = "thread",
        prefetch: int = 2,
    ) -> None:
        self.source, self.device, self.rank, self.world_size = source, device, rank, world_size
        self.num_workers, self.worker_type, self.prefetch = num_workers, worker_type, prefetch
        self._slow_reads = 0  # in a row, in the loop

    def batches(self, start: Position, last_epoch: int | None = None) -> Iterator[tuple[int, int, Batch | None]]:
        """(epoch, batch number, share) from ``start`` on; without end unless ``last_epoch`` (exclusive) is given."""
        ahead = max(self.num_workers, 1) * self.prefetch
        pending: deque[tuple[int, int, Callable[[], Batch | None]]] = deque()
        with self._workers() as workers:
            try:
                for epoch, number, get, in_loop in self._jobs(workers, start.epoch, start.batch, last_epoch):
                    pending.append((epoch, number, get))
                    if in_loop or len(pending) > ahead:
                        yield self._finish(*pending.popleft())
                while pending:
                    yield self._finish(*pending.popleft())
            finally:
                if workers is not None:
                    workers.shutdown(wait=True, cancel_futures=True)

    def _workers(self) -> Any:
        if self.num_workers == 0:
            return _NoWorkers()
        if self.worker_type == "thread":
            return ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader")
        # The source travels once, when a worker starts. Signals are for the loop: a worker must not die of them.
        return ProcessPoolExecutor(
            self.num_workers, get_context("spawn"), initializer=_start_worker, initargs=(self.source,)
        )

    def _jobs(
        self, workers: Executor | None, epoch: int, number: int, last_epoch: int | None
    ) -> Iterator[tuple[int, int, Callable[[], Batch | None], bool]]:
        """(epoch, batch number, how to get it, whether that is work for the loop itself)."""
        while last_epoch is None or epoch < last_epoch:
            scan = self.source.iterate(epoch, number, self.rank, self.world_size, self.num_workers)
            steps = self.source.steps(epoch)
            first = number
            if scan is not None:
                in_loop = self.num_workers == 0 or steps is None
                for get in self._scan_in_loop(scan, epoch, number) if in_loop else self._scan(scan, number, steps):
                    yield epoch, number, get, in_loop
                    number += 1
            else:
                while steps is None or number < steps:
                    yield epoch, number, self._submit(workers, epoch, number), self._in_loop
                    number += 1
            if number == first == 0:
                raise DataError(f"epoch {epoch} has no batches: the data is empty")
            epoch, number = epoch + 1, 0

    def _scan_in_loop(
        self, scan: Iterator[Batch | None], epoch: int, number: int
    ) -> Iterator[Callable[[], Batch | None]]:
        while True:
            try:
                share = next(scan)
            except StopIteration:
                return
            except Exception as error:
                raise self._with_place(error, epoch, number) from None
            yield lambda share=share: _to_tensors(share)
            number += 1

    def _scan(
        self, scan: Iterator[Batch | None], number: int, steps: int | None
    ) -> Iterator[Callable[[], Batch | None]]:
        """The shares from ``number`` to ``steps``, put together and pinned by a thread of their own, in order."""
        fetcher, wanted = ThreadPoolExecutor(1, thread_name_prefix="scan"), False
        try:
            for _ in range(number, steps or 0):
                yield fetcher.submit(lambda: self._pin(_to_tensors(next(scan)))).result
            wanted = True  # the last ones may still be on their way
        finally:
            fetcher.shutdown(wait=True, cancel_futures=not wanted)
            close = getattr(scan, "close", None)
            if close is not None:  # a generator with threads of its own
                close()

    @property
    def _in_loop(self) -> bool:
        return self.num_workers == 0 or (self.worker_type == "thread" and self._slow_reads < 3)

    def _submit(self, workers: Executor | None, epoch: int, number: int) -> Callable[[], Batch | None]:
        place = (epoch, number, self.rank, self.world_size)
        if workers is None or self._in_loop:
            return lambda: self._read_in_loop(place)
        job: Future[Batch | None]
        if self.worker_type == "thread":
            job = workers.submit(lambda: self._pin(_to_tensors(self.source.batch(*place))))
        else:
            job = workers.submit(_read_in_worker, *place)
        return job.result

    def _read_in_loop(self, place: tuple[int, int, int, int]) -> Batch | None:
        started = time.perf_counter()
        batch = _to_tensors(self.source.batch(*place))
        slow = time.perf_counter() - started > CHEAP_SECONDS
        self._slow_reads = self._slow_reads + 1 if slow else 0
        return batch

    def _pin(self, batch: Batch | None) -> Batch | None:
        if batch is None or self.device.type != "cuda":
            return batch
        return {k: v.pin_memory() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}

    def _finish(self, epoch: int, number: int, get: Callable[[], Batch | None]) -> tuple[int, int, Batch | None]:
        try:
            batch = get()
        except Exception as error:
            raise self._with_place(error, epoch, number) from None
        if batch is not None and self.device.type != "cpu":
            batch = {
                k: v.to(self.device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()
            }
        return epoch, number, batch

    def _with_place(self, error: Exception, epoch: int, number: int) -> Exception:
        """The same error, saying which batch it was."""
        if isinstance(error, UserError):
            return DataError(f"{error} (while reading epoch {epoch}, batch {number})")
        error.add_note(f"while reading {self.source.describe(epoch, number)}")
        return error


class _NoWorkers:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def _to_tensors(batch: Batch | None) -> Batch | None:
    if batch is None:
        return None
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


_worker_source: BatchSource | None = None


def _start_worker(source: BatchSource) -> None:
    global _worker_source
    _worker_source = source
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _read_in_worker(epoch: int, number: int, rank: int, world_size: int) -> Batch | None:
    assert _worker_source is not None
    return _to_tensors(_worker_source.batch(epoch, number, rank, world_size))
