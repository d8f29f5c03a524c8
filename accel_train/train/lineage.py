"""What a run remembers of the data it has read and of what it went on from, in its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.data.fingerprint import changed
from accel_train.errors import DataError, UserError
from accel_train.run import folder as run_folder
from accel_train.run import identity
from accel_train.run.checkpoint import CONTENTS, CONTENTS_VALIDATION, read_progress
from accel_train.task import Event
from accel_train.train.session import Session

MEANING = {
    "data": "was trained on other data, and its position means other items now",
    "validation data": "was evaluated on other validation data, which its best metric and early stopping are of",
}


class Lineage:
    """The identity of the weights of a run, at each of its steps."""

    def __init__(self, session: Session) -> None:
        self.session = session
        both = {CONTENTS: session.contents, CONTENTS_VALIDATION: session.validation_contents}
        self._read = {name: contents for name, contents in both.items() if contents is not None}
        self._made: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None
        self._gone_on_from: dict[str, Any] | None = None

    @property
    def made(self) -> dict[str, Any]:
        if self._made is None:
            session = self.session
            self._made = identity.made_of(
                session.task, session.described, session.config.seed, session.data, session.validation,
                session.device.type,
            )  # fmt: skip
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
        self._know(path)

    def _know(self, checkpoint: Path) -> None:
        for name, contents in self._read.items():
            if (checkpoint / name).is_file():
                with np.load(checkpoint / name, allow_pickle=False) as known:
                    contents.go_on(dict(known))

    def differences(self, checkpoint: Path) -> Iterator[tuple[str, str]]:
        """On rank 0: of which data (``MEANING``) a checkpoint knows others than are here now, and what differs."""
        progress, session = read_progress(checkpoint), self.session
        if what := changed(progress.get("data", {}), session.data):
            yield "data", what
        if what := changed(progress.get("validation", {}), session.validation):
            yield "validation data", what

    def expect(self, checkpoint: Path) -> None:
        """A run is trained again on the way to this checkpoint: its data must be those that it was made of. Every rank
        must call it. Raises ``UserError``."""
        session, found = self.session, ""
        if session.ranks.is_main and not session.config.allow_changed_data:
            found = "; ".join(f"{checkpoint} {MEANING[of]}: {what}" for of, what in self.differences(checkpoint))
        if found := session.ranks.from_main(found):
            raise UserError(f"{found}. Give the data of before")
        self._know(checkpoint)

    def begin_with(self, path: Path) -> None:
        """Weights of another run."""
        parent = identity.read(path)
        digest, step = (parent["digest"], parent["step"]) if parent else (None, 0)
        self._before = {"digest": digest, "step": step, "changed": ["another run, which began with its weights"]}

    def at(self, step: int) -> dict[str, Any]:
        """The identity after this step."""
        content, of_validation = (self._content(name) for name in (CONTENTS, CONTENTS_VALIDATION))
        validation = self.session.validation and {**identity.about_data(self.session.validation),
                                                  "content": of_validation}  # fmt: skip
        return {**identity.at_step(self.made, step, self._before),
                "content": content, "validation": validation, "gone_on_from": self._gone_on_from}  # fmt: skip

    def _content(self, name: str) -> dict[str, Any] | None:
        contents = self._read.get(name)
        return contents.about() if contents is not None and contents.blocks else None

    def look_at_files(self, validation: bool = False) -> None:
        """Before what was learned of data, or measured, counts: has anybody written to their files meanwhile? Every
        rank must call it. Raises ``DataError``, on all ranks."""
        contents, found, session = self._read.get(CONTENTS_VALIDATION if validation else CONTENTS), "", self.session
        try:
            for line in contents.look_at_files() if contents is not None else ():
                session.emit(Event("warning", line))
        except DataError as error:
            found = str(error)
        if found := next((each for each in session.ranks.gather(found) if each), ""):
            raise DataError(found)

    def share_contents(self) -> DataError | None:
        """What ranks have read since the last time becomes known to all; an error if two have read different things.
        Every rank must call it."""
        if self.session.ranks.world_size == 1:
            return None
        found = None
        for contents in self._read.values():
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
        for name, contents in self._read.items():
            np.savez(folder / name, **contents.state())  # pyright: ignore[reportArgumentType]
