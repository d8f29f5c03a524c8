"""Files that gzip, bzip2 or xz compressed."""

from __future__ import annotations

import importlib
import shutil
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from accel_train.errors import DataError, UserError

MODULES = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ": "lzma"}
"""By what a file begins with."""


def start(path: Path, size: int = 1 << 16) -> tuple[str | None, bytes]:
    """Which module unpacks the file, None if it is not compressed, and how its content begins."""
    with open(path, "rb") as file:
        first = file.read(size)
    if first.startswith(b"(\xb5/\xfd"):
        raise UserError(f"{path}: it is compressed by zstd: unpack it first")
    how = next((module for magic, module in MODULES.items() if first.startswith(magic)), None)
    if how is None:
        return None, first
    with _opened(path, how) as file:
        return how, file.read(size)


def unpack(path: Path, to: Path) -> Path:
    """The file itself, or, if it is compressed, its content at ``to``. Raises ``DataError`` if that is not whole."""
    how, _ = start(path, 8)
    if how is None:
        return path
    with _opened(path, how) as file, open(to, "wb") as out:
        shutil.copyfileobj(file, out, 1 << 20)
    return to


@contextmanager
def _opened(path: Path, how: str) -> Generator[BinaryIO]:
    module = importlib.import_module(how)
    try:
        with module.open(path) as file:
            yield file
    except OSError as error:
        if error.errno is not None:  # of the disk, not of the content
            raise
        raise DataError(f"{path} cannot be unpacked: {error}") from None
    except (EOFError, zlib.error, getattr(module, "LZMAError", EOFError)) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from None
