"""Work that is cut into units: what a job is, by what a unit is known again, and rows of arrays that many write."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from accel_train.errors import UserError


class Unit(NamedTuple):
    """What is done as a whole, by one process: a shot, a film, a block of frames.

    Args:
        name: its own, and the same in every process. What it makes gets this name below OUT.
        inputs: its files: where one has another size or time than when the unit was done, it is done again.
        items: how many it has, for the lines of progress.
        kept: whether what it makes is part of OUT; else it lies in parts/ of the work folder, for the merge alone.
    """

    name: str
    inputs: tuple[Path, ...] = ()
    items: int = 1
    kept: bool = True


class Job(Protocol):
    """The work as each process opens it."""

    @property
    def units(self) -> Sequence[Unit]:
        """All, in the order in which they are merged. They may be done in any order."""
        ...

    def do(self, unit: Unit, path: Path, /) -> dict[str, Any]:
        """Write a file or a folder at ``path``, where there is none, or nothing; return the record of the unit, in
        plain values. What there is gets its name afterwards, in one step.

        Raises:
            DataError: the data of this unit cannot be used. UserError: it cannot be done. Others go on.
        """
        ...

    def merge(self, records: list[dict[str, Any]], folder: Path, /) -> dict[str, Any]:
        """Write to ``folder``, which is empty, what OUT has besides the units, and return what its meta.json says
        besides the plan. ``records``: of all units in their order; ``{"failed": why}`` of those that may be left out.
        """
        ...


OpenJob = Callable[[Path], Job]
"""From the work folder. It can be pickled: each worker process opens its own."""


def plain_hash(content: Any) -> str:
    """128 bits of plain values, in hexadecimal."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def state_of(*paths: Path) -> dict[str, Any] | None:
    """A file, or several that are one, by the name of the first, size and time, so that a change is noticed; None if
    one is not there."""
    try:
        found = [path.stat() for path in paths]
    except FileNotFoundError:
        return None
    return {
        "name": paths[0].name,
        "bytes": sum(each.st_size for each in found),
        "modified_ns": max(each.st_mtime_ns for each in found),
    }


def refuse_no_room(name: str, folder: Path, needed: int) -> None:
    """A UserError if there is no room for so many bytes where ``folder`` is. ``name``: what needs them."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{name} will need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def create_rows(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """A .npy file of zeros, whose rows are to be written in any order."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Written, not mapped: two machines that map the same page of a shared file undo each other's rows, and a full disk
    would be a bus error."""
    offset = np.load(path, mmap_mode="r").offset
    with open(path, "r+b") as file:
        file.seek(offset + first * rows[0].nbytes)
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())
