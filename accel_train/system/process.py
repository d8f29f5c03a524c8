"""What a process can know of itself and of others without importing torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from pathlib import Path
from typing import Any


def rank() -> int:
    """This rank, from torch.distributed once that is set up, before from the launcher; 0 without one."""
    dist = _distributed()
    return int(os.environ.get("RANK", "0")) if dist is None else dist.get_rank()


def world_size() -> int:
    """Number of ranks, from torch.distributed once that is set up, before from the launcher; 1 without one."""
    dist = _distributed()
    return int(os.environ.get("WORLD_SIZE", "1")) if dist is None else dist.get_world_size()


def _distributed() -> Any:
    """accelerate's debug_launcher sets up the process group itself and no RANK."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def status_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on, the third in ``man proc_pid_stat``; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def end_with_parent() -> None:
    """In a worker process: end when the parent has ended, in whatever way, and do not wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), name="parent", daemon=True).start()
