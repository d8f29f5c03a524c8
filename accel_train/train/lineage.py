"""What a run remembers of the data it has read and of what it went on from, in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError
from accel_train.run import folder as run_folder
from accel_train.run import identity
from accel_train.run.checkpoint import CONTENTS
from accel_train.task import Event
from accel_train.train.session import Session


class Lineage:
    """The identity of the weights of a run, at each of its steps."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._made: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None
        self._gone_on_from: dict[str, Any] | None = None

    @property
    def made(self) -> dict[str, Any]:
        if self._made is None:
            session = self.session
            self._made = identity.made_of(
                session.task, session.described, session.config.seed, session.data, session.device.type
            )
        return self._made

    def go_on_from(self, path: Path, step: int) -> None:
        """A checkpoint; every rank must call it."""
        session, parent = self.session, identity.read(path)
        if session.ranks.is_main:
            if parent is None:
                session.emit(Event("note", f"{path} says nothing of its identity, since an earlier version wrote it: "
                                           "what its data held is not known"))  # fmt: skip
            self._before = identity.before(parent, self.made, step)
            self._gone_on_from = {"step": step, "digest": parent["digest"] if parent else None}
        known = path / CONTENTS
        if session.contents is not None and known.is_file():
            hashes = np.load(known, allow_pickle=False)
            if hashes.shape == session.contents.hashes.shape and hashes.dtype == np.uint64:
                session.contents.hashes[:] = hashes  # others are of other data, which were allowed

    def begin_with(self, path: Path) -> None:
        """Weights of another run."""
        parent = identity.read(path)
        digest, step = (parent["digest"], parent["step"]) if parent else (None, 0)
        self._before = {"digest": digest, "step": step, "changed": ["another run, which began with its weights"]}

    def at(self, step: int) -> dict[str, Any]:
        """The identity after this step."""
        contents = self.session.contents
        content = contents.about() if contents is not None else None
        return {**identity.at_step(self.made, step, self._before),
                "content": content, "gone_on_from": self._gone_on_from}  # fmt: skip

    def share_contents(self) -> DataError | None:
        """What ranks have read since the last time becomes known to all; an error if two have read different things.
        Every rank must call it."""
        contents = self.session.contents
        if contents is None or self.session.ranks.world_size == 1:
            return None
        found = None
        for news in self.session.ranks.gather(contents.news()):
            try:
                contents.learn(news)
            except DataError as error:
                found = error
        contents.news()
        return found

    def write(self, folder: Path, step: int) -> None:
        """Into a checkpoint, on rank 0."""
        run_folder.write_json(folder / identity.FILE, self.at(step))
        if (contents := self.session.contents) is not None:
            np.save(folder / CONTENTS, contents.hashes)
