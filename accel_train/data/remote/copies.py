"""A folder of whole copies of remote files that several processes share.

All that they share is a kernel lock (``flock``) on the file itself: exclusive on its temporary sibling
while that is downloaded, shared on the copy while it is in use. The locks of a process that dies are gone with it, so
none is ever stale. ``.NAME.about`` beside a copy is what identified its source then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from accel_train.data.remote.identity import Identity
from accel_train.data.remote.requests import (
    LOCAL_TROUBLE,
    SAY_AGAIN_S,
    SAY_S,
    Access,
    attempt,
    current,
    path_of,
    shown,
    split,
)
from accel_train.data.remote.storage import identity
from accel_train.data.remote.transfers import last_answer
from accel_train.errors import AccessError, UserError
from accel_train.system import waiting
from accel_train.system.locking import try_lock
from accel_train.system.waiting import StoppedError
from accel_train.system.writing import write_atomic

log = logging.getLogger(__name__)

POLL_S = 0.1
WAIT_S = 3600.0
"""Longest wait for a file, whoever brings it."""
MARK = ".accel_train-staging"
"""Says that what is in this folder may be deleted."""


class StagingFolder:
    """``folder/pelican/HOST/a/b.parquet`` is a copy of ``pelican://HOST/a/b.parquet``.

    A copy is held by a descriptor with a shared lock; as long as that is open, nobody deletes the file.

    Args:
        folder: on a disk with locks, empty at first.
        stop: ends what is going on.
        count: called with what happened, and how often: files, bytes, found, deleted, retries.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int | None,
        access: Access | None,
        stop: threading.Event,
        count: Callable[[str, int], None],
    ) -> None:
        self.folder, self.max_bytes, self.access = folder, max_bytes, access
        self._stop, self._count = stop, count
        self._room = threading.Lock()
        self._coming = 0  # bytes that this process is downloading
        _claim(folder)

    def path(self, url: str) -> Path:
        """Where the copy of a remote file is, or would be."""
        whole, query = path_of(url)
        scheme, host, path = split(whole)
        host, parts = host.rpartition("@")[2] or "_", [part for part in path.split("/") if part]
        if not parts or {".", ".."} & {host, *parts}:
            raise UserError(f"{shown(url)}: not a name that can be staged")
        if query:
            parts[-1] = f"{hashlib.blake2b(query.encode(), digest_size=8).hexdigest()}-{parts[-1]}"
        return self.folder.joinpath(scheme, host, *parts)

    def bring(self, url: str, make_room: Callable[[int], None]) -> int:
        """A descriptor of the copy. One that is there is trusted if its source says what it said then: the size, and
        the ETag or the time of its last change.

        ``make_room``: called with the bytes before they are downloaded; returns when ``self.make_room`` has reserved
        them. Raises ``AccessError`` if the copy cannot be had.
        """
        target = self.path(url)
        expected = identity(url, self.access, self._pause)
        try:
            return self._bring(url, target, expected, make_room)
        except OSError as error:
            raise self._unusable(url, error) from None

    def _unusable(self, url: str, error: OSError) -> AccessError:
        return AccessError(f"{shown(url)}: cannot be staged to {self.folder}: {error.strerror or error}")

    def _bring(self, url: str, target: Path, expected: Identity, make_room: Callable[[int], None]) -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        part, marker = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.failed")
        size = expected.size or 0
        before, began, said = _inode(marker), time.monotonic(), SAY_S - SAY_AGAIN_S
        while True:
            if (handle := _share(target, expected)) is not None:
                self._count("found", 1)
                return handle
            if _inode(marker) not in (None, before):  # another process had it, and gave up
                raise AccessError(f"{shown(url)}: another process could not stage it: {marker.read_text()}")
            if not _is_locked(part):
                make_room(size)
                try:
                    handle = self._download(url, part, target, marker, expected)
                finally:
                    self._release_room(size)
                if handle is not None:
                    return handle
            waited = time.monotonic() - began
            if waited > WAIT_S:
                raise AccessError(f"{shown(url)}: another process has not staged it within {WAIT_S:g} s")
            if waited > said + SAY_AGAIN_S:
                said = waited
                log.warning(
                    "waiting for another process, which has been bringing %s to %s for %.0f s; at most %g s",
                    shown(url), self.folder, waited, WAIT_S,
                )  # fmt: skip
            self._rest(POLL_S)

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._stop.wait(min(left, POLL_S)) or waiting.given_up():
                raise StoppedError("the staging folder is no longer needed")

    def _download(self, url: str, part: Path, target: Path, marker: Path, expected: Identity) -> int | None:
        """A descriptor of the new copy; None if another process is at it, or was just before."""
        handle = _lock(part)
        if handle is None:
            return None
        if _is_copy(target, expected):
            _discard(part, handle)
            return None
        size = expected.size or 0

        def once(fs: Any, path: str) -> None:
            try:
                fs.get_file(path, str(part), callback=_StopCallback(self._stop))
            except OSError as error:
                here = type(error).__module__ == "builtins" and error.errno in LOCAL_TROUBLE
                if here or not part.parent.is_dir():
                    raise self._unusable(url, error) from None
                raise
            finally:
                if (now := last_answer().identity()) is not None:
                    current(self.access).seen.check(url, now, shown(url))
            came = os.fstat(handle).st_size
            if came != size:
                raise OSError(f"{came} bytes came instead of {size}")

        try:
            attempt(once, url, self.access, self._pause)
            if target.exists() and not _delete(target):
                raise AccessError(
                    f"{shown(url)}: another run uses the copy in {self.folder}, and it is of another version; wait for "
                    "its end or give another staging_dir"
                )
            write_atomic(_about(target), json.dumps(expected.as_json()))
            os.replace(part, target)
            marker.unlink(missing_ok=True)
            fcntl.flock(handle, fcntl.LOCK_SH)
        except BaseException as error:
            with contextlib.suppress(OSError):  # the cause counts, and not that it cannot be written down
                if not isinstance(error, StoppedError):
                    write_atomic(marker, str(error))
            _discard(part, handle)
            raise
        self._count("files", 1)
        self._count("bytes", size)
        if _same(handle, target):
            return handle
        os.close(handle)  # between the two locks it was open to deletion
        return None

    def _pause(self, seconds: float) -> None:
        self._count("retries", 1)
        self._rest(seconds)

    def make_room(self, expected: int, anyway: bool = False) -> bool:
        """Delete copies that nobody uses, the longest unused first. If there is room for so many bytes then, or
        ``anyway``, they are reserved. What other processes are downloading at the moment is not seen."""
        with self._room:
            if self.max_bytes is not None:
                copies = sorted(_copies(self.folder))
                total = sum(size for _, size, _ in copies) + self._coming + expected
                for _, size, path in copies:
                    if total > self.max_bytes and _delete(path):
                        self._count("deleted", 1)
                        total -= size
                if total > self.max_bytes and not anyway:
                    return False
            self._coming += expected
            return True

    def _release_room(self, expected: int) -> None:
        with self._room:
            self._coming -= expected

    def let_go(self, url: str, handle: int, delete: bool) -> None:
        """Done with a copy; delete it if nobody else, in any process, uses it."""
        if delete and _delete(self.path(url), handle):
            self._count("deleted", 1)
        elif os.fstat(handle).st_nlink:
            with contextlib.suppress(OSError):  # a disk that has become read-only
                os.utime(handle)  # by this time the copy that is longest unused is found
        os.close(handle)

    def delete(self, url: str) -> None:
        """Unless somebody uses it."""
        if _delete(self.path(url)):
            self._count("deleted", 1)


class _StopCallback(Callback):
    """Ends a transfer between two chunks."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop = stop

    def relative_update(self, inc: int = 1) -> None:
        if self._stop.is_set() or waiting.given_up():
            raise StoppedError("stopped in a transfer")


# -- files and locks -------------------------------------------------------------------------------------------------


def _claim(folder: Path) -> None:
    """Raises ``UserError`` if this is no folder for copies."""
    mark = folder / MARK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not mark.exists():
            raise UserError(f"{folder} has other files in it, and a staging folder deletes files: give an empty one")
        handle = os.open(mark, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        why = "it is a file" if folder.is_file() else error.strerror or str(error)
        raise UserError(f"staging_dir: {folder} cannot be used: {why}; give another, with room") from None
    try:
        try_lock(handle, fcntl.LOCK_SH)
    except OSError as error:
        raise UserError(f"{folder}: files there cannot be locked ({error.strerror}): give a local disk") from None
    finally:
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    """Is this descriptor (still) of the file at this path?"""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _is_locked(path: Path) -> bool:
    """Has another an exclusive lock on it?"""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(handle)
    finally:
        os.close(handle)


def _lock(path: Path) -> int | None:
    """A descriptor of this file, made if need be, with an exclusive lock; None if another has that."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    if try_lock(handle) and _same(handle, path):
        return handle
    os.close(handle)
    return None


def _share(path: Path, expected: Identity) -> int | None:
    """A descriptor with a shared lock if the copy is there, whole and of this version."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    if try_lock(handle, fcntl.LOCK_SH) and _same(handle, path) and _is_copy(path, expected):
        return handle
    os.close(handle)
    return None


def _about(path: Path) -> Path:
    return path.with_name(f".{path.name}.about")


def _is_copy(path: Path, expected: Identity) -> bool:
    try:
        known = Identity.from_json(json.loads(_about(path).read_text()))
        return path.stat().st_size == expected.size and not known.differs(expected)
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return False


def _discard(part: Path, handle: int) -> None:
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
    os.close(handle)


def _delete(path: Path, held: int | None = None) -> bool:
    """Unless someone else uses it. ``held``: the caller's own descriptor."""
    try:
        handle = os.open(path, os.O_RDWR) if held is None else held
    except FileNotFoundError:
        return False
    try:
        gone = try_lock(handle) and _same(handle, path)
        if gone:
            path.unlink()
            _about(path).unlink(missing_ok=True)
        return gone
    except OSError:  # a disk that has become read-only
        return False
    finally:
        if held is None:
            os.close(handle)


def _copies(folder: Path) -> list[tuple[float, int, Path]]:
    """(time of last use, bytes, path) of all whole files."""
    found = []
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            if not name.startswith("."):
                try:
                    state = path.stat()
                except FileNotFoundError:  # deleted by another rank meanwhile
                    continue
                found.append((state.st_mtime, state.st_size, path))
    return found


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns
