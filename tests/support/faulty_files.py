"""A file system of fsspec on which things go wrong."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec

from accel_train.data.remote import requests
from accel_train.data.remote.requests import Access


@dataclass
class Fault:
    """The next so many calls of ``method`` for paths with ``part`` in them, after the first ``after``. ``kind``:
    "refused", "full", "gone" (a connection), "cut" (half of a file arrives), "hang" (until ``Faults.heal``)."""

    kind: str
    method: str = "put_file"
    part: str = ""
    times: int = 10**9
    after: int = 0


@dataclass
class Faults:
    now: list[Fault] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    heal: threading.Event = field(default_factory=threading.Event)

    def fault(self, method: str, path: str) -> Fault | None:
        self.calls.append((method, path))
        for fault in self.now:
            if fault.method == method and fault.part in path and fault.times > 0:
                if fault.after == 0:
                    fault.times -= 1
                    return fault
                fault.after -= 1
        return None

    def count(self, method: str, part: str = "") -> int:
        return sum(name == method and part in path for name, path in self.calls)


class _Faulty:
    def __init__(self, fs: Any, faults: Faults) -> None:
        self._fs, self._faults = fs, faults

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._fs, name)
        if name not in ("put_file", "get_file", "cat_file", "ls", "rm", "size"):
            return real

        def call(*arguments: Any, **named: Any) -> Any:
            fault = self._faults.fault(name, " ".join(str(each) for each in arguments))
            if fault is None:
                return real(*arguments, **named)
            if fault.kind == "refused":
                raise PermissionError(errno.EACCES, "Permission denied (injected), token=abcdefgh123")
            if fault.kind == "full":
                raise OSError(errno.ENOSPC, "No space left on device (injected)")
            if fault.kind == "gone":
                raise ConnectionResetError("Connection reset by peer (injected)")
            if fault.kind == "hang":
                self._faults.heal.wait(60)
                return real(*arguments, **named)
            assert fault.kind == "cut"
            local, there = arguments
            data = Path(local).read_bytes()
            with self._fs.open(there, "wb") as file:
                file.write(data[: len(data) // 2])

        return call


@contextlib.contextmanager
def faulty(*faults: Fault) -> Generator[Faults]:
    """In this process all files behind URLs have these faults; what may be repeated is repeated at once, and once."""
    state, real = Faults(list(faults)), requests.filesystem

    def filesystem(url: str, access: Access | None = None) -> tuple[Any, str]:
        fs, path = real(url, access)
        return _Faulty(fs, state), path

    before = requests.current(None)
    requests.use(Access(retries=1, backoff_s=0.001))
    try:
        with mock.patch.object(requests, "filesystem", filesystem):
            yield state
    finally:
        state.heal.set()
        requests.use(before)


def clear_memory() -> None:
    """memory:// lives as long as the process."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
