"""Writing: files and folders in one step, and a line beforehand about folders that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from accel_train.errors import UserError


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """The name of a file to write, which then takes the place of ``path``; nothing is left of it after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str, sync: bool = False, mode: int = 0o666) -> None:
    """Replace a file so that a reader, or a kill, meets either the old text or the new one.

    Args:
        sync: wait for the disk as well, for files that cannot be made again.
        mode: who may read and write it, less what the umask takes away.
    """
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)  # of a process that was killed; a new file has the mode
        with open(
            temporary, "x", encoding="utf-8", newline="\n", opener=lambda p, flags: os.open(p, flags, mode)
        ) as file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())


def replace_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Write a folder beside its final place and swap it in, flushed."""
    temporary = final.with_name(f".{final.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        flush_folder(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(temporary, final)
    shutil.rmtree(old, ignore_errors=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder and its files to disk. Whoever may enter it may read them, as the umask says: safetensors leaves
    its files to their owner alone."""
    mode = folder.stat().st_mode & 0o666
    for path in files_in(folder):
        with contextlib.suppress(OSError):  # some file systems have no modes
            path.chmod(mode)
        flush(path)
    flush(folder)


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def flush(path: Path) -> None:
    """To disk: the content of a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
def writing(name: str, folder: Path) -> Generator[None]:
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
