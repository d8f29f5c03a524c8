"""What to do about data that cannot be used: say where and stop, or leave it out, count it and say so."""

from __future__ import annotations

import contextlib
import errno
import re
import threading
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, Literal

import numpy as np

from accel_train.data.ragged import Ragged
from accel_train.errors import AccessError, DataError, brief
from accel_train.system.waiting import StoppedError
from accel_train.task import Event


class BadRows(DataError):
    """Some rows of a block cannot be used.

    Args:
        reason: what is wrong with the first of them.
        rows: int64, their numbers within the block.
    """

    def __init__(self, reason: str, rows: np.ndarray) -> None:
        super().__init__(reason)
        self.reason, self.rows = reason, np.asarray(rows, np.int64)


class _Placed(DataError):
    """Says already where it is."""


class BadDataPolicy:
    """The policy, and the count of what was left out (thread-safe).

    Args:
        policy: "raise" stops with one line that says file, row group and row; "skip" leaves out what cannot be used:
            the rows, the rest of the row group, or the file. What is wrong with the machine or on the way to the file
            (network, rights, descriptors, memory) stops either way: ``AccessError``.
    """

    def __init__(self, policy: Literal["raise", "skip"] = "raise") -> None:
        self.policy = policy
        self.left_out: Counter[str] = Counter()
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def _note(self, what: str, number: int, line: str) -> None:
        if self.policy == "raise":
            raise _Placed(f"{line}; mend it, or set on_bad_file=skip to go on without") from None
        with self._lock:
            self.left_out[what] += number
            self._lines.append(line)

    def warn(self, line: str) -> None:
        """Something else that whoever watches the run should hear of."""
        with self._lock:
            self._lines.append(line)

    def events(self) -> list[Event]:
        """What was left out since the last call."""
        with self._lock:
            lines, self._lines = self._lines, []
        if len(lines) > SHOWN:
            total = ", ".join(f"{number:,} {what}" for what, number in self.left_out.items())
            lines[SHOWN:] = [
                f"and {len(lines) - SHOWN} more of the kind" + (f"; left out so far: {total}" if total else "")
            ]
        return [Event("warning", line) for line in lines]

    @contextlib.contextmanager
    def at_stake(self, what: str, where: Any) -> Generator[None]:
        """What cannot be read inside costs one of ``what`` ("files", "row groups"), of which nothing more is read."""
        try:
            yield
        except (_Placed, AccessError, StoppedError):
            raise
        except DataError as error:
            self._note(what, 1, f"{where}: {error}")
        except (*_UNREADABLE, MemoryError) as error:
            if trouble := _trouble(error):
                raise AccessError(f"{where}: cannot be read: {trouble}") from None
            self._note(what, 1, f"{where}: cannot be read: {brief(error)}")

    def decode(self, decode: Callable[[Any], Ragged], batch: Any, place: Any, start: int) -> Ragged:
        """Decode one block (anything with ``len``, ``take`` and columns) of which some rows may have to be left out.

        Adds ``rows["row"]``; ``start`` is the number of the block's first row in its row group.
        """
        kept = np.arange(start, start + len(batch))
        while True:
            try:
                ragged = decode(batch)
                return Ragged({**ragged.rows, "row": kept}, ragged.counts, ragged.flat)
            except BadRows as error:
                row = int(kept[error.rows[0]])
                more = f" (and {len(error.rows) - 1} more rows of this block)" if len(error.rows) > 1 else ""
                self._note("rows", len(error.rows), f"{place}, row {row}: {error.reason}{more}")
                keep = np.setdiff1d(np.arange(len(kept)), error.rows)
                kept, batch = kept[keep], batch.take(keep)


SHOWN = 5  # lines at a time; a bad data set has millions of them
_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError)  # what pyarrow, h5py and datasets raise for broken files


def _trouble(error: BaseException) -> str:
    """What is wrong with this machine or on the way to the file; "" if it is the content."""
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    in_text = re.search(r"errno = (\d+)", str(error))  # where HDF5 has it
    number = getattr(error, "errno", None) or (int(in_text[1]) if in_text else 0)
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many open files ({brief(error)}); raise the limit (ulimit -n), or give fewer lanes or num_workers"
    return brief(error) if number or isinstance(error, ConnectionError | TimeoutError) else ""
