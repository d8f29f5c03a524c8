"""Remote files brought to local disk ahead of use, once per node however many ranks need them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accel_train.data.remote import copies
from accel_train.data.remote.copies import POLL_S, StagingFolder
from accel_train.data.remote.requests import Access, is_remote, shown
from accel_train.data.remote.storage import local_path
from accel_train.errors import AccessError
from accel_train.system import waiting
from accel_train.system.waiting import StoppedError

CLOSE_S = 5.0
"""Threads that wait for a server for longer than this are left behind."""

log = logging.getLogger(__name__)


@dataclass
class _File:
    """What this process holds or brings. ``handle``: a descriptor with a shared lock, -1 until it is there."""

    handle: int = -1
    users: int = 0
    error: Exception | None = None


class _PostponedError(Exception):
    """There is no room now, and something else is more urgent."""


class Staging:
    """A folder of copies of remote files, filled by threads in the order in which the files will be needed.

    A copy is at ``folder/pelican/HOST/a/b.parquet``. It is trusted if its source says what it said then (size,
    ETag or time of the last change). Ranks on a node may share the folder: a file is downloaded by one of them, and if
    that fails, those that wait get the error.

    Args:
        folder: on local disk; empty at first.
        ahead: so many files are there, or on their way, before they are needed; 0: a file is brought when asked for.
        max_bytes: copies that nobody uses are deleted, the longest unused first, to stay below. Only a file that is
            waited for may go over it.
        max_files: only the first so many are brought here, and the others are left where they are; None: all.
        delete_after_use: with the last ``release`` on this node, or with ``close``.
        access: how the sources are reached.
    """

    def __init__(
        self,
        folder: str | Path,
        ahead: int = 4,
        max_bytes: int | None = None,
        max_files: int | None = None,
        delete_after_use: bool = False,
        access: Access | None = None,
    ) -> None:
        self.folder, self.ahead, self.max_files = Path(folder), ahead, max_files
        self.delete_after_use = delete_after_use
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._copies = StagingFolder(self.folder, max_bytes, access, self._stop, self._count)
        self._threads: list[threading.Thread] = []
        self._queues: dict[int, list[str]] = {}  # by the share that will need them
        self._shares = 1
        self._chosen: set[str] = set()
        self._files: dict[str, _File] = {}
        self._waiting: Counter[str] = Counter()
        self._sampling = False
        self._kept: set[str] = set()
        names = ("files", "bytes", "found", "deleted", "retries", "over_max_bytes")
        self._counts: dict[str, int] = dict.fromkeys(names, 0)
        self._waited_s = 0.0

    # -- what the reader calls ---------------------------------------------------------------------------------------

    def schedule(self, paths: Sequence[str], share: int = 0, shares: int = 1) -> None:
        """From now on these files will be needed, in this order, by one of so many shares of the data, of which this
        process may read several at once. Local paths are passed over."""
        with self._changed:
            if shares != self._shares:  # the data are cut in another way now
                self._queues, self._shares = {}, shares
            self._queues[share] = [path for path in paths if self._stages(path)]
            wanted = set(self._needed())
            for url, file in list(self._files.items()):
                if url not in wanted and file.users == 0 and (file.handle >= 0 or file.error):
                    self._let_go(url)
            self._start()

    def acquire(self, path: str) -> str:
        """Where to read this file, now that it is there; for each call there must be one ``release``.

        Raises ``AccessError`` with the cause if it cannot be had, or not in time, and ``StoppedError``.
        """
        if not self._stages(path):
            return path if is_remote(path) else local_path(path)
        began = time.monotonic()
        with self._changed:
            self._start()
            queue = next((queue for queue in self._queues.values() if path in queue), None)
            if queue is not None:
                queue.remove(path)
            self._waiting[path] += 1
            try:
                while True:
                    file = self._files.get(path)
                    if file is not None and file.handle >= 0:
                        file.users += 1
                        return str(self._copies.path(path))
                    if self._stop.is_set():
                        raise RuntimeError("the staging folder was closed")
                    if file is not None and file.error is not None:
                        del self._files[path]
                        raise file.error
                    if time.monotonic() > began + copies.WAIT_S:
                        raise AccessError(f"{shown(path)}: not staged to {self.folder} within {copies.WAIT_S:g} s")
                    self._changed.wait(POLL_S)
                    if waiting.given_up():
                        raise StoppedError(f"stopped while {shown(path)} was on its way")
            finally:
                self._waiting -= Counter({path: 1})  # which drops what is zero
                self._changed.notify_all()
                self._waited_s += time.monotonic() - began

    def release(self, path: str) -> None:
        """Done with it, for now."""
        with self._changed:
            file = self._files.get(path)
            if file is None or file.users == 0:
                return
            file.users -= 1
            if file.users == 0:
                if self._sampling:
                    self._kept.add(path)
                needed = self._sampling or path in self._needed()
                self._let_go(path, delete=self.delete_after_use and not needed)
            self._changed.notify_all()

    @contextlib.contextmanager
    def sampling(self) -> Generator[None]:
        """What is released meanwhile will be needed again, and is not deleted."""
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def counters(self) -> dict[str, float]:
        """Since the start: ``files`` and ``bytes`` downloaded, files ``found`` here, ``deleted`` ones, ``retries``,
        ``waited_s`` seconds in ``acquire``, ``over_max_bytes``: how often a file was brought without room for it."""
        with self._changed:
            return {**self._counts, "waited_s": self._waited_s}

    def close(self) -> None:
        """Stop bringing files. With ``delete_after_use`` those are deleted that came too early to be used, and those of
        which only a sample was; what another process uses stays where it is."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        end = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))
        with self._changed:
            for url in list(self._files):
                self._let_go(url, delete=self.delete_after_use)
            for url in self._kept if self.delete_after_use else ():
                self._copies.delete(url)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- the threads -------------------------------------------------------------------------------------------------

    def _stages(self, path: str) -> bool:
        if not is_remote(path):
            return False
        if self.max_files is None or path in self._chosen:
            return True
        if len(self._chosen) < self.max_files:
            self._chosen.add(path)
            return True
        return False

    def _start(self) -> None:
        if not self._threads and not self._stop.is_set():
            for number in range(max(1, min(self.ahead, 4))):
                self._threads.append(threading.Thread(target=self._work, name=f"staging-{number}", daemon=True))
                self._threads[-1].start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while (url := self._next()) is None and not self._stop.is_set():
                    self._changed.wait()
                if url is None or self._stop.is_set():
                    return
                file = self._files[url] = _File()
            try:
                handle, error = self._copies.bring(url, partial(self._make_room, url)), None
            except Exception as failure:
                handle, error = -1, failure
            with self._changed:
                file.handle, file.error = handle, error
                unwanted = url not in self._needed() and not self._waiting[url]
                if unwanted or isinstance(error, _PostponedError):
                    self._let_go(url)
                self._changed.notify_all()

    def _needed(self) -> list[str]:
        """In the order in which they will be, all shares being read equally fast."""
        turns = itertools.zip_longest(*self._queues.values())
        return [path for turn in turns for path in turn if path is not None]

    def _next(self) -> str | None:
        """What to bring now: what is waited for, then what will be needed first."""
        for url in self._waiting:
            if url not in self._files:
                return url
        ahead = 0
        for url in self._needed():
            if ahead >= self.ahead:
                return None
            if url not in self._files:
                return url
            ahead += self._files[url].users == 0
        return None

    def _make_room(self, url: str, size: int) -> None:
        """Wait for room, unless it is this file that is waited for."""
        while not self._copies.make_room(size):
            with self._changed:
                if self._waiting[url]:
                    if not self._counts["over_max_bytes"]:
                        log.warning("%s: more bytes are in use at once than max_bytes allows", self.folder)
                    self._count("over_max_bytes", 1)
                    self._copies.make_room(size, anyway=True)
                    return
                if any(other not in self._files for other in self._waiting):
                    raise _PostponedError
                self._changed.wait(POLL_S)
            if self._stop.is_set() or waiting.given_up():
                raise StoppedError("stopped while there was no room")

    def _count(self, what: str, n: int) -> None:
        with self._changed:
            self._counts[what] += n

    def _let_go(self, url: str, delete: bool = False) -> None:
        file = self._files.pop(url)
        if file.handle >= 0:
            self._copies.let_go(url, file.handle, delete)
