"""Reads batches ahead of the step and hands them over in order, on the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from statistics import median
from typing import Any, Literal

import torch

from accel_train.contents import News
from accel_train.data.draws import Draws
from accel_train.data.processes import Processes, result_of, to_tensors
from accel_train.data.threads import Threads
from accel_train.errors import DataError, UserError
from accel_train.plan import Position
from accel_train.system import waiting
from accel_train.task import Batch, BatchSource, Event

CHEAP_SECONDS = 0.0002
"""A batch that is read faster than this is read in the loop: handing it over between threads would cost more."""
JUDGED = 5
"""Reads whose median is compared with that, so that a pause of the machine is not taken for a slow source."""

_END: Any = object()

Workers = Threads | Processes | None
Place = tuple[int, int, int, int]  # epoch, batch number, rank, world size
Share = Batch | None | list[Batch | None]
"""What a rank has of a global batch; of each of its parts, where they are kept apart (``reduction: fixed``)."""


def batches_of(share: Share) -> list[Batch]:
    """Those that have items."""
    return [batch for batch in (share if isinstance(share, list) else [share]) if batch is not None]


class Loader:
    """This rank's shares of all global batches from a position on, epoch after epoch.

    A data set that draws from global generators is read in the loop too, see ``Draws``. Waiting ends with
    ``StoppedError`` when the run is given up.

    Args:
        num_workers: batches are read by so many threads or processes ahead of the step; 0 reads in the loop itself, as
            do threads where that is cheap, see ``Pace``.
        worker_type: "thread" for readers that release the GIL (numpy, Arrow, h5py), "process" for Python-heavy ones.
        prefetch: finished batches kept waiting per worker.
        seed: what the data set draws from global generators follows from it.
        all_agree: does every rank say so? Where an epoch ends that does not know its length must be agreed. None: this
            rank reads to its own end, whatever the others do, and may have nothing to read.
        name: of the source, for what is said of it.
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
        seed: int = 0,
        all_agree: Callable[[bool], bool] | None = None,
        name: str = "the data set",
    ) -> None:
        self.source, self.device, self.rank, self.world_size = source, device, rank, world_size
        self.num_workers, self.worker_type, self.prefetch = num_workers, worker_type, prefetch
        self.seed, self.all_agree = seed, all_agree
        self._draws = Draws(seed, rank, name, NOT_AHEAD if num_workers else "")
        self._pace = Pace()
        self._handed_out = 0  # to threads

    def batches(self, start: Position, last_epoch: int | None = None) -> Iterator[tuple[int, int, Batch | None]]:
        """(epoch, batch number, share) from ``start`` on; without end unless ``last_epoch`` (exclusive) is given."""
        pending: deque[tuple[int, int, Callable[[], Batch | None]]] = deque()
        workers = self._workers()
        try:
            for epoch, number, get, in_loop in self._jobs(workers, start.epoch, start.batch, last_epoch):
                pending.append((epoch, number, get))
                if in_loop or len(pending) > self._most_ahead:
                    yield self._finish(*pending.popleft())
            while pending:
                yield self._finish(*pending.popleft())
        finally:
            if workers is not None:
                workers.close()

    def events(self) -> list[Event]:
        """What reading found, since the last call, that whoever watches the run should hear of."""
        return self.source.events() + self._draws.events()

    @property
    def _most_ahead(self) -> int:
        return max(self.num_workers, 1) * self.prefetch

    def _workers(self) -> Workers:
        if self.num_workers == 0:
            return None
        if self.worker_type == "thread":
            return Threads(self.num_workers, "loader")
        return Processes(self.num_workers, self.source, self.seed)

    def _jobs(
        self, workers: Workers, epoch: int, number: int, last_epoch: int | None
    ) -> Iterator[tuple[int, int, Callable[[], Batch | None], bool]]:
        """(epoch, batch number, how to get it, whether that is work for the loop itself)."""
        while last_epoch is None or epoch < last_epoch:
            first = number
            scan = self._open(epoch, number)
            for get, in_loop in (
                self._indexed(workers, epoch, number) if scan is None else self._scan(scan, epoch, number)
            ):
                yield epoch, number, get, in_loop
                number += 1
            if number == first == 0 and (self.world_size == 1 or self.all_agree is not None):
                raise DataError(f"epoch {epoch} has no batches: the data is empty")
            epoch, number = epoch + 1, 0

    # -- random access -------------------------------------------------------------------------------------------------

    def _indexed(self, workers: Workers, epoch: int, number: int) -> Iterator[tuple[Callable[[], Batch | None], bool]]:
        steps = self.source.steps(epoch)
        while steps is None or number < steps:
            yield self._submit(workers, (epoch, number, self.rank, self.world_size)), self._in_loop
            number += 1

    @property
    def _in_loop(self) -> bool:
        if self.num_workers == 0:
            return True
        return self.worker_type == "thread" and (not self._pace.ahead or bool(self._draws.found))

    def _submit(self, workers: Workers, place: Place) -> Callable[[], Batch | None]:
        if workers is None or self._in_loop:
            return partial(waiting.interruptibly, self._read_in_loop, place)
        if isinstance(workers, Processes):
            return partial(self._from_process, workers.submit(*place))
        self._pace.hand_over()
        read = lambda: self._pin(self._read(place))  # noqa: E731
        self._handed_out += 1
        if self._handed_out >= 16 and self._handed_out & (self._handed_out - 1) == 0:  # does it draw by now?
            return lambda: self._draws.read(*place[:2], lambda: waiting.result(workers.submit(read)), look=True)
        return partial(self._wait, workers.submit(read))

    def _from_process(self, job: Future[tuple[Batch | None, News | None]]) -> Batch | None:
        batch, news = result_of(job)
        if news is not None and (contents := self.source.content_hashes()) is not None:
            contents.learn(news, of_own_process=True)
        return batch

    def _read(self, place: Place) -> Batch | None:
        return to_tensors(self.source.batch(*place))

    def _read_in_loop(self, place: Place) -> Batch | None:
        draws = self._draws
        if draws.due():
            return draws.read(*place[:2], partial(self._timed, place))
        return self._timed(place)

    def _timed(self, place: Place) -> Batch | None:
        started = time.perf_counter()
        batch = to_tensors(self.source.batch(*place))
        self._pace.took(time.perf_counter() - started)
        return batch

    # -- in sequence ---------------------------------------------------------------------------------------------------

    def _open(self, epoch: int, number: int) -> Iterator[Batch | None] | None:
        ahead = 0 if self._draws.found else self.num_workers
        return self.source.iterate(epoch, number, self.rank, self.world_size, ahead)

    def _scan(
        self, scan: Iterator[Batch | None], epoch: int, number: int
    ) -> Iterator[tuple[Callable[[], Batch | None], bool]]:
        steps = self.source.steps(epoch)
        if steps is not None and self.num_workers > 0 and not self._draws.found:
            for get in self._scan_ahead(scan, epoch, number, steps):
                yield get, False
                number += 1
            if number >= steps:
                return
            again = self._open(epoch, number)
            assert again is not None
            scan = again
        for get in self._scan_in_turn(scan, epoch, number, steps):
            yield get, True

    def _scan_in_turn(
        self, scan: Iterator[Batch | None], epoch: int, number: int, steps: int | None
    ) -> Iterator[Callable[[], Batch | None]]:
        """The shares from ``number`` on, one after another. What does not know its length, a thread has from beginning
        to end, and reads ahead where it is slow; the next epoch begins when the shares of this one have been used."""
        share, first = None, number
        fetcher, jobs = Threads(1, "scan"), deque[Future[Batch | None]]()
        try:
            while steps is None or number < steps:
                if share is not _END:  # a rank whose data have ended has empty shares until all have
                    while self._reads_ahead(steps) and len(jobs) <= self._most_ahead:
                        jobs.append(fetcher.submit(partial(self._fetched, scan)))
                        self._pace.hand_over()
                    share = self._take_in_turn(scan, epoch, number, steps, fetcher, jobs)
                if number == first > 0 and self._draws.found:
                    self._draws.resumed(epoch)
                if steps is None and self._agreed(share is _END):
                    return
                yield partial(to_tensors, None if share is _END else share)
                number += 1
        finally:
            if fetcher.close():
                _close(scan)

    def _fetched(self, scan: Iterator[Batch | None]) -> Batch | None:
        share = next(scan, _END)
        return share if share is _END else self._pin(to_tensors(share))

    def _reads_ahead(self, steps: int | None) -> bool:
        return steps is None and self.num_workers > 0 and self._pace.ahead and not self._draws.found

    def _agreed(self, ended: bool) -> bool:
        return ended if self.all_agree is None else self.all_agree(ended)

    def _take_in_turn(
        self,
        scan: Iterator[Batch | None],
        epoch: int,
        number: int,
        steps: int | None,
        fetcher: Threads,
        jobs: deque[Future[Batch | None]],
    ) -> Batch | None:
        try:
            if jobs:  # what was read ahead comes first, also where nothing more is
                return self._wait(jobs.popleft())
            take = partial(self._take, scan, number, steps)
            if steps is None and self.num_workers > 0:  # of one thread, as a connection to SQLite must be
                return self._draws.read(epoch, number, lambda: waiting.result(fetcher.submit(take)))
            return waiting.interruptibly(self._draws.read, epoch, number, take)
        except Exception as error:
            if steps is None:
                self._agreed(False)  # the others wait to hear whether this rank's data have ended
            raise self._with_place(error, epoch, number) from None

    def _scan_ahead(
        self, scan: Iterator[Batch | None], epoch: int, number: int, steps: int
    ) -> Iterator[Callable[[], Batch | None]]:
        """The shares from ``number`` on, put together and pinned by a thread of their own, in order; all of them, or
        those until they were seen to draw."""
        fetcher = Threads(1, "scan")

        def fetch(n: int) -> Future[Batch | None]:
            return fetcher.submit(lambda: self._pin(to_tensors(self._take(scan, n, steps))))

        def close(cancel: bool = True) -> None:
            if fetcher.close(cancel):
                _close(scan)

        try:
            if self._draws.reads == 0 and number < steps:
                job = self._draws.read(epoch, number, lambda: _settled(fetch(number)), look=True, end=close)
                if self._draws.found:  # read it again, with nothing beside it
                    return
                yield partial(self._wait, job)
                number += 1
            while number < steps and not self._draws.found:
                yield partial(self._wait, fetch(number))
                number += 1
            close(cancel=False)  # the last ones may still be on their way
        finally:
            close()

    def _take(self, scan: Iterator[Batch | None], number: int, steps: int | None) -> Batch | None:
        """The next share of a scan, or ``_END`` if nobody knows where that is.

        Raises:
            DataError: it is not as long as announced.
        """
        started = time.perf_counter()
        share = next(scan, _END)
        self._pace.took(time.perf_counter() - started)
        if steps is not None:
            where = f" on rank {self.rank}" if self.world_size > 1 else ""
            if share is _END:
                raise DataError(f"the data end{where} after {number} of the {steps} batches that steps() announces")
            if number == steps - 1 and next(scan, _END) is not _END:
                raise DataError(f"the data go on{where} after the {steps} batches that steps() announces")
        return share

    # -- handing over --------------------------------------------------------------------------------------------------

    def _wait(self, job: Future[Batch | None]) -> Batch | None:
        """Wait for a thread. Nothing else runs meanwhile, so that it can be seen to draw."""
        if job.done():
            return job.result()
        return self._draws.watch(lambda: waiting.result(job))

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
        if isinstance(error, waiting.StoppedError):
            return error
        if isinstance(error, UserError):
            return DataError(f"{error} (while reading epoch {epoch}, batch {number})")
        error.add_note(f"while reading {self.source.describe(epoch, number)}")
        return error


class Pace:
    """Whether a source is slow enough to be read ahead, in threads: when the median of ``JUDGED`` reads in the loop
    says so. Other work on the machine may have made it slow, so the loop tries again after 256 batches, after four
    times as many, and so on; what that costs a slow source vanishes."""

    def __init__(self) -> None:
        self.ahead = False
        self._seconds: deque[float] = deque(maxlen=JUDGED)
        self._handed_over, self._try_after = 0, 256

    def took(self, seconds: float) -> None:
        """A batch was read in the loop."""
        self._seconds.append(seconds)
        self.ahead = len(self._seconds) == JUDGED and median(self._seconds) > CHEAP_SECONDS

    def hand_over(self) -> None:
        """A batch is read by a thread."""
        self._handed_over += 1
        if self._handed_over == self._try_after:
            self.ahead, self._handed_over, self._try_after = False, 0, 4 * self._try_after
            self._seconds.clear()


NOT_AHEAD = (
    ", and not read ahead by threads (worker_type: process can; one np.random.default_rng((seed, item)) for each item "
    "needs none of this)"
)


def _settled(job: Future[Any]) -> Future[Any]:
    """The same, once it is done, well or badly."""
    try:
        waiting.result(job)
    except waiting.StoppedError:
        raise
    except Exception:
        pass  # whoever asks for the result gets it
    return job


def _close(scan: Iterator[Any]) -> None:
    close = getattr(scan, "close", None)
    if close is not None:  # a generator, with threads of its own perhaps
        close()
