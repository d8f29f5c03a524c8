"""The checkpoints of a run a second time, elsewhere: whose they are, how they get there and how they come back.

``URL/NAME`` looks like the run folder NAME: ``checkpoints/step-.../``, the logs, the best models. Of a checkpoint the
manifest is written last, so one without it is not there; whoever reads one verifies it as any other. ``mirror.json``
says which run this is the mirror of, which session of it writes here now, and what the other files must hold.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Generator, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from accel_train.config.plain import flatten
from accel_train.data.remote.requests import MissingError
from accel_train.errors import AccessError, UserError
from accel_train.run.checkpoint import MANIFEST, PROGRESS, CheckpointFolder, entry_of
from accel_train.run.folder import write_json
from accel_train.run.mirror_folder import FILE, ForeignError, MirrorFolder, as_object
from accel_train.system import waiting
from accel_train.system.secrets import scrub
from accel_train.system.writing import files_in
from accel_train.task import Event

LOGS = ("metrics.jsonl", "digests.jsonl", "events.jsonl")
_KEPT = (*LOGS, "config.yaml", "environment.json", "tracker_id")
_MODELS = ("best", "phases")
LOOK_S = 60.0
"""A run that can go on without its mirror waits at most so long for it when it starts."""
FEW_RETRIES = 3


class AheadError(UserError):
    """The mirror has newer checkpoints of this run than this session."""


class OvertakenError(Exception):
    """This checkpoint was removed or written again while it was copied; a newer one comes."""


class Mirror:
    """The mirror of one run folder, which rank 0 uses.

    Args:
        place: a path or a URL; the mirror is in a folder in it that is named like the run folder.
        checkpoints: those of the run folder.
        about: what the run learns from: ``config`` and ``seed``, as plain data.
        emit: hears of what happens at the start.
        lost: why nothing may be written any more; "" while it may.

    Attributes:
        newest: step of the newest checkpoint that this session knows to be there.

    Raises:
        UserError: that is in the run folder itself.
    """

    def __init__(
        self,
        place: str,
        output_dir: Path,
        checkpoints: CheckpointFolder,
        about: Callable[[], dict[str, Any]],
        emit: Callable[[Event], None],
        lost: Callable[[], str] = lambda: "",
    ) -> None:
        self.output_dir, self.checkpoints, self.about, self.emit, self.lost = output_dir, checkpoints, about, emit, lost
        slash = "" if place.endswith("/") else "/"
        self.folder = MirrorFolder(f"{place}{slash}{output_dir.resolve().name}", checkpoints)
        self.newest: int | None = None
        self._run: str | None = None  # by which the run is known there
        self._session = secrets.token_hex(8)
        self._since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._claimed = self._silent = False
        self._best: int | None = None
        self._damaged: set[int] = set()
        self._sent: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}  # state and entry of a file when it was sent
        if self.folder.is_local and Path(self.folder.place).resolve().is_relative_to(output_dir.resolve()):
            raise UserError(f"checkpoint_mirror: {self.folder} is in the run folder; give another place")

    # -- when a run starts -------------------------------------------------------------------------------------------

    def bring_newer(self, step: int | None, allow_changed: bool) -> Path | None:
        """The newest whole checkpoint of the mirror, brought here with what belongs to it, if it is newer than ``step``
        (None: there is none here). Without a checkpoint here the mirror must answer.

        Raises:
            UserError: it is of another run, or cannot be reached and there is nothing else to go on from.
        """
        with self._patience(step):
            seconds = None if step is None else LOOK_S
            mark, newer = waiting.call(lambda: (self._look(allow_changed), self.folder.newer_than(step)), seconds)
            for found in newer if mark is not None else ():
                if not (reason := self.folder.download(found, self.checkpoints.begin(found))):
                    return self._take(found, mark or {})
                self._damaged.add(found)
                self.checkpoints.abandon(found)
                self.emit(Event("warning", f"checkpoint {self.folder}/{self.folder.name(found)}: {reason} - not used"))
            if step is None and self._damaged:
                raise UserError(f"every checkpoint in {self.folder} is damaged; remove them there to start over")
        return None

    def claim(self, step: int | None) -> None:
        """From now on this session writes there, and goes on from ``step``; nothing may be there that is newer.

        Raises:
            UserError: there is, or it is another run's, or nothing can be written there by a run that is new.
        """
        if self._silent:
            return
        with self._patience(step):
            try:
                waiting.call(lambda: self._claim(step), None if step is None else LOOK_S)
            except AheadError as error:
                raise UserError(
                    f"{error} than this run would go on from; go on from there "
                    "(--resume_from_checkpoint=auto), or remove them there, or give another checkpoint_mirror"
                ) from None

    @contextlib.contextmanager
    def _patience(self, step: int | None) -> Generator[None]:
        """A run that has a checkpoint here goes on without its mirror if that cannot be reached."""
        self.folder.retries = None if step is None else FEW_RETRIES
        try:
            yield
        except (AccessError, TimeoutError) as error:
            what = f"{self.folder} gives no answer" if isinstance(error, TimeoutError) else str(error)
            if step is None:
                without = "it is not known what there is to go on from (--checkpoint_mirror=null does without)"
                raise UserError(f"checkpoint_mirror: {what}; {without}") from None
            self._silent = True
            further = "going on without it, and trying again at every checkpoint"
            self.emit(Event("warning", f"checkpoint_mirror: {what}; {further}"))
        except UserError as error:
            raise type(error)(f"checkpoint_mirror: {error}") from None
        finally:
            self.folder.retries = None

    def _look(self, allow_changed: bool) -> dict[str, Any] | None:
        self._run = self._run or (read(self.output_dir) or {}).get("run")
        mark = self.folder.mark()
        if mark is not None:
            self._refuse_another(mark, allow_changed)
        elif there := {*_KEPT, "checkpoints"} & set(self.folder.names("")):
            raise ForeignError(f"{self.folder} has {min(there)} in it and no {FILE}, so it is no "
                               "mirror; give another checkpoint_mirror")  # fmt: skip
        return mark

    def _refuse_another(self, mark: dict[str, Any], allow_changed: bool) -> None:
        """The run folder knows its mirror by an id. An empty folder takes it for its own if the same is learned."""
        hint = "give another checkpoint_mirror, or another name of output_dir"
        if self._run is None and not self.checkpoints.steps():
            old, new = (flatten({name: each.get(name) for name in ("config", "seed")}) for each in (mark, self.about()))
            changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new.keys())
                       if old.get(k) != new.get(k)]  # fmt: skip
            if changed and not allow_changed:
                more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise ForeignError(
                    f"{self.folder} belongs to another run: {'; '.join(changed[:3])}{more}; {hint} "
                    "(--allow_changed_config=true goes on from it)"
                )
        elif self._run != mark.get("run"):
            raise ForeignError(
                f"{self.folder} belongs to another run than {self.output_dir} (of "
                f"{mark.get('host')}, since {mark.get('since')}); {hint}"
            )

    def _claim(self, step: int | None) -> None:
        mark = self._look(allow_changed=True)  # whether it may be changed was asked before
        if newer := [there for there in self.folder.newer_than(step) if there not in self._damaged]:
            raise AheadError(f"{self.folder} holds newer checkpoints (step {newer[0]:,})")
        for damaged in self._damaged:
            self.folder.remove(f"{self.folder.name(damaged)}/{MANIFEST}")
        self._keep_id((mark or {}).get("run") or self._run or secrets.token_hex(4))
        self._write_mark((mark or {}).get("files", {}))
        self._claimed = True

    def _take(self, step: int, mark: dict[str, Any]) -> Path:
        """What was downloaded becomes a checkpoint of the run folder, after all that it is to find there."""
        self._keep_id(mark.get("run", ""))
        for name, entry in mark.get("files", {}).items():
            if name.split("/")[0] in (*_KEPT, *_MODELS) and ".." not in name.split("/"):
                self._take_file(name, entry)
        path = self.checkpoints.put_in_place(step)
        with contextlib.suppress(OSError):
            self.checkpoints.link("latest", step)
        self.newest = step
        self.emit(Event("note", f"resumed from {self.folder}, step {step:,}"))
        return path

    def _take_file(self, name: str, entry: dict[str, Any]) -> None:
        path = self.output_dir / name
        new = path.with_name(f".{path.name}.coming")
        try:
            self.folder.get(name, new)
            if name in LOGS or entry_of(new) == entry:  # a log may be longer by now, and is cut to the checkpoint
                os.replace(new, path)
            else:
                self.emit(Event("warning", f"{self.folder}/{name} is not what it should be: not used"))
        except MissingError:
            self.emit(Event("warning", f"{self.folder}/{name} is missing"))
        finally:
            new.unlink(missing_ok=True)

    # -- writing -----------------------------------------------------------------------------------------------------

    def copy(self, step: int, go_on: Callable[[], None] = lambda: None) -> bool:
        """Copy this checkpoint there, and whatever else is needed to go on from it. False if it is there already.

        Args:
            go_on: called before every file; what it raises ends the copy.

        Raises:
            AccessError, OvertakenError; ForeignError: nothing can be copied any more; AheadError: nor for now.
        """
        source, there = self.checkpoints.path(step), self.folder.name(step)
        self.checkpoints.in_use.add(step)
        try:
            manifest = (source / MANIFEST).read_bytes()
            progress = json.loads((source / PROGRESS).read_bytes())
            self._still_mine(step)
            new = self.folder.read(f"{there}/{MANIFEST}") != manifest
            if new:
                self._copy(source, there, json.loads(manifest)["files"], go_on)
                if (source / MANIFEST).read_bytes() != manifest:
                    raise OvertakenError
                self.folder.put(source / MANIFEST, f"{there}/{MANIFEST}")
        except FileNotFoundError:
            raise OvertakenError from None
        finally:
            self.checkpoints.in_use.discard(step)
        self.newest, self._best = step, (progress["best_model"]["best"] or {}).get("step")
        with contextlib.suppress(OSError):  # a full disk; this is only for people
            self._keep_id(self._run or "", step)
        return new

    def _copy(self, source: Path, there: str, names: Iterable[str], go_on: Callable[[], None]) -> None:
        """All but the manifest."""
        for name in names:
            go_on()
            self.folder.put(source / name, f"{there}/{name}")
        others = self._send_other_files(go_on)
        self._check_mark()
        self._write_mark(others)

    def prune(self) -> None:
        """Remove what the retention of the run folder would not keep, and what is not whole."""
        limit, every = self.checkpoints.limit, self.checkpoints.keep_every
        if limit is None:
            return
        kept = {self._best, *itertools.islice(self.folder.whole(), limit)}
        for step in self.folder.steps():
            if step not in kept and not (every and step % every == 0):
                self.folder.remove(f"{self.folder.name(step)}/{MANIFEST}")  # first: a kill leaves no torn one
                self.folder.remove(self.folder.name(step))

    def _still_mine(self, step: int) -> None:
        if why := self.lost():
            raise ForeignError(why)
        if self._claimed:
            self._check_mark()
            return
        try:
            self._claim(step)
        except AheadError as error:
            raise AheadError(f"{error} than this session; start the run again to go on from there") from None

    def _check_mark(self) -> None:
        mark = self.folder.mark()
        if mark is None:  # somebody has emptied it
            self._sent = {}
        elif mark.get("session") != self._session:
            raise ForeignError(
                f"{self.folder} is written by another session of the run since {mark.get('since')} (on "
                f"{mark.get('host')})"
            )

    def _send_other_files(self, go_on: Callable[[], None]) -> dict[str, dict[str, Any]]:
        """Logs and best models; what each of them holds. One that is replaced at this moment comes with the next
        checkpoint."""
        sent: dict[str, dict[str, Any]] = {}
        models = [file for name in _MODELS for file in files_in(self.output_dir / name)]
        for file in [*(self.output_dir / name for name in _KEPT), *models]:
            name = file.relative_to(self.output_dir).as_posix()
            with contextlib.suppress(FileNotFoundError, MissingError):
                go_on()
                sent[name] = self._send(file, name)
        return sent

    def _send(self, file: Path, name: str) -> dict[str, Any]:
        found = file.stat()
        state = found.st_mtime_ns, found.st_size
        if name not in self._sent or self._sent[name][0] != state:
            with tempfile.TemporaryDirectory() as aside:
                if name in LOGS:  # they grow meanwhile
                    file = Path(shutil.copyfile(file, os.path.join(aside, file.name)))
                entry = entry_of(file)
                self.folder.put(file, name)
            self._sent[name] = state, entry
        return self._sent[name][1]

    def _write_mark(self, files: dict[str, Any]) -> None:
        about = self.about()
        mark = {"version": 1, "run": self._run, "session": self._session, "host": socket.gethostname(),
                "since": self._since, "config": about["config"], "seed": about["seed"], "files": files}  # fmt: skip
        self.folder.write(FILE, json.dumps(mark, indent=1).encode())

    def _keep_id(self, run: str, step: int | None = None) -> None:
        """In the run folder."""
        self._run = run
        copied = {"step": step, "copied": datetime.now().astimezone().isoformat(timespec="seconds")} if step else {}
        known = read(self.output_dir) or {}
        new = {**known, "run": run, "url": scrub(str(self.folder)), **copied}
        if new != known:
            write_json(self.output_dir / FILE, new)


def read(output_dir: Path) -> dict[str, Any] | None:
    """What a run folder says of its mirror: ``run``, ``url``, and ``step`` and ``copied`` of the last copy."""
    with contextlib.suppress(OSError):
        return as_object((output_dir / FILE).read_bytes())
    return None


def describe(output_dir: Path) -> str:
    """One line for a person; "" where there is no mirror."""
    known = read(output_dir) or {}
    if "url" not in known:
        return ""
    state = f"step {known['step']:,}, copied {known['copied']}" if known.get("step") else "nothing copied yet"
    return f"mirror {known['url']}: {state}"
