"""Files by path or URL, local and remote: expanding wildcards, reading, copying. What fails on the way is tried again.

Remote files go through fsspec (pelican://, osdf://, s3://, https://, memory://, ...). A local path stays a string, so
that it can be mapped into memory.
"""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from urllib.parse import unquote

from accel_train.data.remote import wildcards
from accel_train.data.remote.identity import Identity, of_info
from accel_train.data.remote.requests import Access, MissingError, attempt, current, is_remote, shown, split
from accel_train.data.remote.transfers import last_answer
from accel_train.errors import AccessError, UserError, relative_to
from accel_train.system import waiting


def local_path(path: str) -> str:
    return os.path.normpath(path.removeprefix("file://"))


def expand(patterns: Sequence[str], access: Access | None = None) -> list[str]:
    """Files for these paths, URLs and patterns (``*``, ``?``, ``[...]``, ``**``): sorted, each once.

    Remote names without a wildcard are taken as they are. Raises ``UserError`` for a pattern that matches no file and
    for a local file that is not there.
    """
    ls = cache(lambda url: _list_remote(url, access))
    found: set[str] = set()
    for pattern in patterns:
        found.update(_expand_remote(pattern, ls) if is_remote(pattern) else _expand_local(local_path(pattern)))
    return sorted(found)


_ELSEWHERE = (
    "in a container or on another machine, is the directory mounted there? Remote files are named pelican://HOST/PATH"
)


def _expand_local(path: str) -> list[str]:
    if os.path.isdir(path):
        raise UserError(f"{path} is a directory: name the files in it, as in {os.path.join(path, '*.parquet')}")
    literal = os.path.lexists(path) or not wildcards.is_pattern(path)
    files = [path] if literal else wildcards.expand(path, _list_local)
    files = [file for file in files if _is_file(file)]
    if not files:
        what = f"no {'file matches' if wildcards.is_pattern(path) else 'such file'}{relative_to(path)}"
        raise UserError(f"{path}: {what}; {_ELSEWHERE}")
    return files


def _is_file(path: str) -> bool:
    """Is there a file to read? Raises ``UserError`` for what would be waited for when it is opened, and what leads
    nowhere."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if os.path.islink(path):
            raise UserError(f"{path}: a link that leads nowhere ({error.strerror})") from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return False
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a file but a pipe, a socket or a device; name only files")
    return True


def _list_local(directory: str) -> list[tuple[str, bool]]:
    real = os.path.realpath(directory)

    def leads_back(entry: os.DirEntry[str]) -> bool:
        return entry.is_symlink() and (real + os.sep).startswith(os.path.join(os.path.realpath(entry), ""))

    try:
        with os.scandir(directory or ".") as entries:
            return [(entry.name, os.path.isdir(entry)) for entry in entries if not leads_back(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{directory or '.'}: cannot be listed: {error.strerror}") from None


def _expand_remote(url: str, ls: wildcards.Ls) -> list[str]:
    scheme, host, path = split(url)
    root = f"{scheme}://{host}"
    if not wildcards.is_pattern(path, question_mark=not scheme.startswith("http")):  # there, ? begins a query
        return [f"{root}{path}"]
    files = [f"{root}{file}" for file in wildcards.expand(path, lambda directory: ls(f"{root}{directory}"))]
    if not files:
        raise UserError(f"{url}: no file matches; check the directory and the pattern")
    return files


def _list_remote(url: str, access: Access | None) -> list[tuple[str, bool]]:
    def once(fs: Any, path: str) -> list[tuple[str, bool]]:
        found = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in fs.ls(path, detail=True)]
        own = (path.rstrip("/"), unquote(path).rstrip("/"))
        # Some list a file, or a directory in itself, by its own name.
        names = [(name.rpartition("/")[2], is_directory) for name, is_directory in found if name not in own]
        if not url.startswith(("http://", "https://")):
            return names
        # A page links to other orders of itself too.
        return [(_readable(name), is_directory) for name, is_directory in names if not name.startswith("?")]

    try:
        return attempt(once, url, access)
    except MissingError:
        return []


def _readable(name: str) -> str:
    """A name in a URL as a person writes it in a pattern; what would mean something else there stays quoted."""
    return unquote(name).replace("%", "%25").replace("?", "%3F")


def place(path: str) -> Any:
    """A key that is the same for all names of one file."""
    if is_remote(path):
        return path
    found = os.stat(local_path(path))
    return found.st_dev, found.st_ino


def open_file(path: str, access: Access | None = None) -> str | RemoteFile:
    """What ``pyarrow.parquet.ParquetFile`` takes: the path itself if local, else a file that is read by ranges."""
    return RemoteFile(path, access) if is_remote(path) else local_path(path)


def size(path: str, access: Access | None = None) -> int:
    """Bytes of a file. Raises ``MissingError``."""
    if not is_remote(path):
        try:
            return os.path.getsize(local_path(path))
        except FileNotFoundError:
            raise MissingError(f"{path}: no such file") from None

    found = identity(path, access).size
    assert found is not None
    return found


def identity(url: str, access: Access | None = None, pause: Callable[[float], Any] = waiting.sleep) -> Identity:
    """What a remote file is known by now; its size is known. Raises ``MissingError``, or ``ChangedError`` if it is not
    what it was."""

    def once(fs: Any, there: str) -> Identity:
        info = fs.info(there)
        return of_info(info, last_answer().server)

    found = attempt(once, url, access, pause)
    if found.size is None:
        raise AccessError(f"{shown(url)}: the server does not say how large it is")
    current(access).seen.check(url, found, shown(url))
    return found


def known(url: str, access: Access | None = None) -> Identity:
    """What a remote file was known by at the first look, or is now."""
    return current(access).seen.get(url) or identity(url, access)


def put(local: str, url: str, access: Access | None = None) -> None:
    """Copy a local file to a URL; what was there is replaced."""
    with waiting.to_the_end():  # the last copy is made when a run has been told to stop
        attempt(lambda fs, there: fs.put_file(local, there), url, access)


LOOK_S = 1.0


class RemoteFile(io.RawIOBase):
    """A remote file for reading. Every read is a request of its own for just these bytes, repeated if it fails.

    A file that changes is refused (``ChangedError``): over HTTP each answer shows it, elsewhere it is checked every
    ``LOOK_S`` seconds.

    fsspec's own file objects stay with a cache server that fails, and take a short answer for the end of the file.
    """

    def __init__(self, url: str, access: Access | None = None) -> None:
        self._url, self._access = url, access
        self._size = size(url, access)
        self._position = 0
        self._looked = time.monotonic()

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._position, 0)
        n = left if size is None or size < 0 else min(size, left)
        start, end = self._position, self._position + n
        data = attempt(lambda fs, path: self._range(fs, path, start, end), self._url, self._access) if n else b""
        self._position = end
        return data

    def _range(self, fs: Any, path: str, start: int, end: int) -> bytes:
        try:
            data = fs.cat_file(path, start=start, end=end)
        finally:
            self._check(fs, path)
        if len(data) == self._size:  # the server does not know ranges
            data = data[start:end]
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        return data

    def _check(self, fs: Any, path: str) -> None:
        now = last_answer().identity()
        if now is None and not last_answer().requests and time.monotonic() > self._looked + LOOK_S:
            now, self._looked = of_info(fs.info(path)), time.monotonic()
        if now is not None:
            current(self._access).seen.check(self._url, now, shown(self._url))

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
