"""Kernel locks on files (``flock``): gone with the process that holds them, so none is ever stale."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import time
from collections.abc import Generator
from pathlib import Path

from accel_train.system import waiting

POLL_S, SAY_S = 0.1, 10.0
"""How often it is tried again, and after how many seconds it is said that this process waits."""

log = logging.getLogger(__name__)


def try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock the file of this descriptor, unless another has it."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


@contextlib.contextmanager
def locked(path: Path, waits: str, seconds: float = math.inf, mode: int = 0o666) -> Generator[None]:
    """Inside, no other process is inside too. The file is made if need be.

    Args:
        waits: what is said of a long wait.
        seconds: the longest wait.

    Raises:
        TimeoutError: after so many seconds. OSError: the disk knows no locks.
        StoppedError: the run is given up.
    """
    handle = os.open(path, os.O_CREAT | os.O_RDWR, mode)
    began, said = time.monotonic(), False
    try:
        while not try_lock(handle):
            waited = time.monotonic() - began
            if waited > seconds:
                raise TimeoutError
            if waited > SAY_S and not said:
                said = True
                log.warning(waits)
            waiting.sleep(POLL_S)
        yield
    finally:
        os.close(handle)
