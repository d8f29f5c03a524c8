"""Files that another machine has written. A shared file system may show them late, and one that is not shared never."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from accel_train.errors import UserError
from accel_train.run.checkpoint import MANIFEST
from accel_train.system import waiting
from accel_train.system.writing import files_in

PATIENCE_S = 120.0
"""NFS may remember for a minute, unless it is set up otherwise, that something is not there."""
LOOK_S = 0.2


def await_files(folder: Path, sizes: dict[str, int]) -> None:
    """Wait until these files are in ``folder``, and as large as they should be.

    Args:
        sizes: bytes by name, relative to ``folder``.

    Raises:
        UserError: after ``PATIENCE_S``, names the first that is not.
        StoppedError: the run is to stop.
    """
    _await(folder, lambda: next((name for name, size in sizes.items() if _size(folder / name) != size), ""))


def await_checkpoint(folder: Path, manifest: str) -> None:
    """The same for the files of a checkpoint.

    Args:
        manifest: the text of its manifest, as the rank has it that has verified it.
    """
    sizes = {name: entry["size"] for name, entry in json.loads(manifest)["files"].items()}
    _await(folder, lambda: MANIFEST if _text(folder / MANIFEST) != manifest else "")
    await_files(folder, sizes)


def sizes_in(folder: Path) -> dict[str, int]:
    """Of all files in a folder, for ``await_files``."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in files_in(folder)}


def _await(folder: Path, missing: Callable[[], str]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while name := missing():
        if time.monotonic() > ends:
            raise UserError(
                f"{os.uname().nodename} does not see {folder / name} as another machine of this run wrote it, after "
                f"{PATIENCE_S:g} s: output_dir must be a folder that all machines share"
            )
        waiting.sleep(LOOK_S)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
