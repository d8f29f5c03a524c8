"""A folder of whole files elsewhere: a path, or a URL that fsspec can write to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from accel_train.data.remote.requests import MissingError, attempt, current, shown
from accel_train.errors import AccessError, UserError, brief
from accel_train.system.waiting import StoppedError
from accel_train.system.writing import replacing

T = TypeVar("T")


class RemoteFolder:
    """Files by their names below ``place``, such as ``a/b.json``. What fails on the way is tried again, as for data.

    All methods raise ``AccessError`` in one line, ``UserError`` if nothing here can reach such a URL, and
    ``StoppedError``.

    Attributes:
        retries: how often during an outage; None: as often as for data.
    """

    def __init__(self, place: str) -> None:
        self.is_local = "://" not in place or place.startswith("file://")
        self.place = os.path.abspath(place.removeprefix("file://")) if self.is_local else place
        self.retries: int | None = None

    def __str__(self) -> str:
        """For messages."""
        return self.place if self.is_local else shown(self.place)

    def put(self, file: Path, name: str) -> None:
        """Copy a file there; what was there is replaced."""
        size = file.stat().st_size

        def once(fs: Any, there: str) -> None:
            with _in_place(there) if self.is_local else contextlib.nullcontext(there) as target:
                fs.put_file(str(file), target)
            if (arrived := fs.size(there)) != size:
                raise OSError(f"{arrived} bytes arrived instead of {size}")

        try:
            self._attempt(once, name)
        except MissingError:  # what it would be written into
            raise AccessError(f"{self}/{name} cannot be written: there is no such place") from None

    def write(self, name: str, data: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            self.put(Path(file.name), name)

    def get(self, name: str, file: Path) -> None:
        """Raises ``MissingError``."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._attempt(lambda fs, there: fs.get_file(there, str(file)), name)

    def read(self, name: str) -> bytes | None:
        """None if it is not there."""
        with contextlib.suppress(MissingError):
            return self._attempt(lambda fs, there: fs.cat_file(there), name)
        return None

    def names(self, folder: str) -> list[str]:
        """What is in a folder; nothing, if that is not there."""
        with contextlib.suppress(MissingError):
            found = self._attempt(lambda fs, there: fs.ls(there, detail=False), folder)
            return sorted(name.rstrip("/").rpartition("/")[2] for name in found)
        return []

    def remove(self, name: str) -> None:
        """A file, or a folder with all that is in it."""
        with contextlib.suppress(MissingError):
            self._attempt(lambda fs, there: fs.rm(there, recursive=True), name)

    def _attempt(self, do: Callable[[Any, str], T], name: str) -> T:
        url = f"file://{self.place}/{name}" if self.is_local else f"{self.place.rstrip('/')}/{name}"
        access = current(None)
        if self.retries is not None:
            access = dataclasses.replace(access, retries=self.retries)

        def afresh(fs: Any, there: str) -> T:
            fs.invalidate_cache()  # another machine may have written
            return do(fs, there)

        try:
            return attempt(afresh, url, access)
        except (UserError, StoppedError):
            raise
        except FileNotFoundError:  # with a cause of its own, by which ``attempt`` judges it
            raise MissingError(f"{shown(url)}: no such file") from None
        except Exception as error:  # of a library whose errors are not known here
            raise AccessError(f"{shown(url)}: {brief(error)}") from None


@contextlib.contextmanager
def _in_place(path: str) -> Generator[str]:
    """What stores of objects do by themselves: the folder is made, and a file is there when it is whole."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as temporary:
        yield str(temporary)
