"""Writing: a file in one step, and folders that cannot be written to, said in one line before the work is done."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from accel_train.errors import UserError


def write_atomic(path: Path, text: str, sync: bool = False) -> None:
    """Replace a file so that a reader, or a kill, meets either the old text or the new one.

    ``sync`` waits for the disk as well, for files that cannot be made again.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its own name, in one step, when it is whole. The ending is that of ``path``."""
    temporary = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_unwritable(name: str, folder: Path) -> None:
    """A UserError unless a small file can be written into ``folder``, or into the nearest folder above it that exists.

    Nothing is made, which other runs that start at the same time might meet.

    Args:
        name: the option that gave the folder, for the message.
    """
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(bytes(4096))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte
        verb = "written to" if os.path.isdir(folder) else "made"
        raise UserError(f"{name}: {_shown(folder)} cannot be {verb}: {_why(error, folder)}") from None


def refuse_filled(name: str, folder: Path) -> None:
    """A UserError unless ``folder`` is empty or not there yet."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{name}: {_shown(folder)} is not a folder; give an empty or new one")
    if folder.is_dir() and (there := sorted(path.name for path in folder.iterdir())):
        raise UserError(f"{name}: there is {there[0]} in {_shown(folder)} already; give an empty or new folder")


def _existing(folder: Path) -> Path:
    for path in (folder, *folder.parents):
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)
            for part in folder.relative_to(path).parts:
                with contextlib.suppress(FileNotFoundError):
                    os.lstat(path / part)  # raises what is wrong with the name
            return path
    return Path()


@contextlib.contextmanager
def writing(name: str, folder: Path) -> Iterator[None]:
    """Within it, what goes wrong with files below ``folder``, or with a full disk, is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (_full(error) or (isinstance(error, OSError) and _is_below(error.filename, folder))):
            raise
        raise UserError(f"{name}: {_shown(folder)} cannot be written to: {_why(error, folder)}") from error


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def _full(error: Exception) -> bool:
    """Libraries hide the number in their own errors' text."""
    return getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)


def _is_below(filename: object, folder: Path) -> bool:
    """Or one of the folders above it, which could not be made either."""
    if not isinstance(filename, (str, bytes)):
        return False
    path, folder = Path(os.path.abspath(os.fsdecode(filename))), Path(os.path.abspath(folder))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _why(error: Exception, folder: Path) -> str:
    if not isinstance(error, OSError):
        return " ".join(str(error).split())[:200]
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not os.path.isdir(path):
                kind = "a link that leads nowhere" if os.path.islink(path) else "a file"
                return f"{path} is {kind}"
            break
    return error.strerror or str(error)


def _shown(path: Path) -> str:
    text = str(path).replace("\0", "\\0")
    return text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}"
