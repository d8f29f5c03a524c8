"""What is in a mirror: checkpoints that are whole or not there, and whose they are."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accel_train.data.remote.remote_folder import RemoteFolder
from accel_train.data.remote.requests import MissingError
from accel_train.errors import UserError
from accel_train.run.checkpoint import MANIFEST, CheckpointFolder, verify

FILE = "mirror.json"
"""In the mirror, and in the run folder."""


class ForeignError(UserError):
    """The mirror is another's, and nothing may be written there."""


class MirrorFolder(RemoteFolder):
    """Steps are given newest first.

    Args:
        checkpoints: those of the run folder, whose names are those of the mirror.
    """

    def __init__(self, place: str, checkpoints: CheckpointFolder) -> None:
        super().__init__(place)
        self._checkpoints = checkpoints

    def name(self, step: int) -> str:
        return f"checkpoints/{self._checkpoints.path(step).name}"

    def steps(self) -> list[int]:
        """Of all checkpoints that have been begun."""
        found = (self._checkpoints.step_of(name) for name in self.names("checkpoints"))
        return sorted((step for step in found if step is not None), reverse=True)

    def whole(self) -> Iterator[int]:
        """Of those whose manifest is there, which comes last."""
        return (step for step in self.steps() if as_object(self.read(f"{self.name(step)}/{MANIFEST}")) is not None)

    def newer_than(self, step: int | None) -> list[int]:
        return list(itertools.takewhile(lambda found: step is None or found > step, self.whole()))

    def mark(self) -> dict[str, Any] | None:
        """Whose mirror this is."""
        data = self.read(FILE)
        mark = as_object(data)
        if data is not None and mark is None:
            raise ForeignError(
                f"{self}/{FILE}, which says whose mirror this is, is damaged; remove it if the mirror is this run's"
            )
        return mark

    def download(self, step: int, folder: Path) -> str:
        """A checkpoint into an empty folder of this machine; says what is wrong with it."""
        there = self.name(step)
        with contextlib.suppress(MissingError):  # of which the manifest tells
            self.get(f"{there}/{MANIFEST}", folder / MANIFEST)
            files = (as_object((folder / MANIFEST).read_bytes()) or {}).get("files")
            for name in files if isinstance(files, dict) else ():
                if ".." in name.split("/") or name.startswith("/"):
                    return f"{MANIFEST} names {name!r}"
                self.get(f"{there}/{name}", folder / name)
        return verify(folder) or ""


def as_object(data: bytes | None) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    with contextlib.suppress(ValueError):
        found = json.loads(data) if data is not None else None
        return found if isinstance(found, dict) else None
    return None
