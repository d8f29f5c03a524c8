"""What a process can know of itself and of others without asking torch."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path


def rank() -> int:
    """As the launcher says; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """As the launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def status_fields(pid: int) -> list[str] | None:
    """Of /proc/PID/stat, from the state on (which is the third of ``man proc_pid_stat``); None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def end_with_parent() -> None:
    """In a worker process: end when the parent has ended, in whatever way, and do not wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), name="parent", daemon=True).start()
