"""Files that stay mapped into memory while they are read: are they still what they were when they were opened?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

SETTLED_NS = 2_000_000_000
"""Clocks of file systems tick: only of a file that was left alone for so long before tells its time of change, later,
that it has not been changed since."""


class MappedFiles:
    """Some files, as they are when this is made, which is before they are mapped.

    Args:
        paths: of local files, in any order that the same data always have.

    Attributes:
        unchanged: whether all of them have been as they were, at every ``changes`` so far.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.paths = [os.path.abspath(path) for path in paths]
        self.unchanged = True
        self._then = np.array([_state(path) for path in self.paths], np.uint64).reshape(-1, 5)
        self._made_ns = time.time_ns()

    def changes(self) -> tuple[list[str], list[str], list[str]]:
        """What has happened since the last call: files that were written to; files that another one has taken the place
        of, or none, so that a map goes on with the content of before; and those of which only the time of change is
        another (owner, rights, a further link; or bytes, if who wrote them has set the time of writing back)."""
        written, replaced, touched = list[str](), list[str](), list[str]()
        for number, path in enumerate(self.paths):
            now, then = np.array(_state(path), np.uint64), self._then[number]
            if (now == then).all():
                continue
            self.unchanged = False
            if (now[:2] != then[:2]).any():
                replaced.append(path)
            elif (now[2:4] != then[2:4]).any():
                written.append(path)
            else:
                touched.append(path)
            self._then[number] = now
        return written, replaced, touched

    def known(self) -> np.ndarray:
        """By which they are known again: device, inode, bytes, times of the last writing and the last change (ns), of
        each file; uint64 [files, 5]. Empty if that could not tell all changes."""
        settled = len(self.paths) > 0 and int(self._then[:, 4].max()) < self._made_ns - SETTLED_NS
        return self._then if settled and self.unchanged else np.zeros((0, 5), np.uint64)


def _state(path: str) -> tuple[int, ...]:
    """Zeros where there is no such file: who maps it says so."""
    try:
        found = os.stat(path)
    except OSError:
        return (0,) * 5
    values = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return tuple(value % 2**64 for value in values)
