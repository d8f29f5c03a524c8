"""The checkpoints of a run a second time, elsewhere: what is there, whose it is, and how it comes back.

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
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from accel_train.config.plain import flatten
from accel_train.data.remote.remote_folder import RemoteFolder
from accel_train.data.remote.requests import MissingError
from accel_train.errors import AccessError, UserError
from accel_train.run.checkpoint import MANIFEST, PROGRESS, CheckpointFolder, entry_of, verify
from accel_train.run.folder import write_json
from accel_train.system import waiting
from accel_train.system.secrets import scrub
from accel_train.system.writing import files_in
from accel_train.task import Event

FILE = "mirror.json"
"""In the mirror, and in the run folder."""
LOGS = ("metrics.jsonl", "digests.jsonl", "events.jsonl")
_KEPT = (*LOGS, "config.yaml", "environment.json", "tracker_id")
_MODELS = ("best", "phases")
LOOK_S = 60.0
"""A run that can go on without its mirror waits at most so long for it when it starts."""
FEW_RETRIES = 3


class ForeignError(UserError):
    """The mirror is another's, and nothing may be written there."""


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
        self.folder = RemoteFolder(f"{place.rstrip('/')}/{output_dir.resolve().name}")
        self.newest: int | None = None
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
            mark = waiting.call(lambda: self._look(allow_changed), None if step is None else LOOK_S)
            for found in self.whole() if mark is not None else ():
                if step is not None and found <= step:
                    break
                if not (reason := self._download(found)):
                    return self._take(found, mark or {})
                self._damaged.add(found)
                self.checkpoints.abandon(found)
                self.emit(Event("warning", f"checkpoint {self.folder}/{self._name(found)}: {reason} - not used"))
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
        mark = self._mark()
        if mark is not None:
            self._refuse_another(mark, allow_changed)
        elif there := {*_KEPT, "checkpoints"} & set(self.folder.names("")):
            raise ForeignError(f"{self.folder} has {min(there)} in it and no {FILE}, so it is no "
                               "mirror; give another checkpoint_mirror")  # fmt: skip
        return mark

    def _refuse_another(self, mark: dict[str, Any], allow_changed: bool) -> None:
        """The run folder knows its mirror by an id. An empty folder takes it for its own if the same is learned."""
        hint = "give another checkpoint_mirror, or another name of output_dir"
        mine = self._id()
        if mine is None and not self.checkpoints.steps():
            old, new = (flatten({name: each.get(name) for name in ("config", "seed")}) for each in (mark, self.about()))
            changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old.keys() | new.keys())
                       if old.get(k) != new.get(k)]  # fmt: skip
            if changed and not allow_changed:
                more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
                raise ForeignError(
                    f"{self.folder} belongs to another run: {'; '.join(changed[:3])}{more}; {hint} "
                    "(--allow_changed_config=true goes on from it)"
                )
        elif mine != mark.get("run"):
            raise ForeignError(
                f"{self.folder} belongs to another run than {self.output_dir} (of "
                f"{mark.get('host')}, since {mark.get('since')}); {hint}"
            )

    def _claim(self, step: int | None) -> None:
        mark = self._look(allow_changed=True)  # whether it may be changed was asked before
        newer = itertools.takewhile(lambda there: step is None or there > step, self._steps())
        if found := [there for there in newer if there not in self._damaged and self._manifest(there) is not None]:
            raise AheadError(f"{self.folder} holds newer checkpoints (step {found[0]:,})")
        for damaged in self._damaged:
            self.folder.remove(f"{self._name(damaged)}/{MANIFEST}")
        self._keep_id((mark or {}).get("run") or self._id() or secrets.token_hex(4))
        self._write_mark((mark or {}).get("files", {}))
        self._claimed = True

    # -- reading -----------------------------------------------------------------------------------------------------

    def whole(self) -> Iterator[int]:
        """Steps of which all was written, newest first."""
        return (step for step in self._steps() if self._manifest(step) is not None)

    def _steps(self) -> list[int]:
        found = (self.checkpoints.step_of(name) for name in self.folder.names("checkpoints"))
        return sorted((step for step in found if step is not None), reverse=True)

    def _manifest(self, step: int) -> dict[str, Any] | None:
        return _json(self.folder.read(f"{self._name(step)}/{MANIFEST}"))

    def _mark(self) -> dict[str, Any] | None:
        data = self.folder.read(FILE)
        mark = _json(data)
        if data is not None and mark is None:
            raise ForeignError(
                f"{self.folder}/{FILE}, which says whose mirror this is, is damaged; remove it if "
                "the mirror is this run's"
            )
        return mark

    def _download(self, step: int) -> str:
        """Into a temporary folder beside the checkpoints; says what is wrong with it."""
        folder, there = self.checkpoints.begin(step), self._name(step)
        try:
            self.folder.get(f"{there}/{MANIFEST}", folder / MANIFEST)
            files = (_json((folder / MANIFEST).read_bytes()) or {}).get("files")
            for name in files if isinstance(files, dict) else ():
                if ".." in name.split("/") or name.startswith("/"):
                    return f"{MANIFEST} names {name!r}"
                self.folder.get(f"{there}/{name}", folder / name)
        except MissingError:  # the manifest knows which
            pass
        return verify(folder) or ""

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
        source, there = self.checkpoints.path(step), self._name(step)
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
            self._keep_id(self._id() or "", step)
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
        kept = {self._best, *itertools.islice(self.whole(), limit)}
        for step in self._steps():
            if step not in kept and not (every and step % every == 0):
                self.folder.remove(f"{self._name(step)}/{MANIFEST}")  # first: a kill leaves no torn one
                self.folder.remove(self._name(step))

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
        mark = self._mark()
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
        mark = {"version": 1, "run": self._id(), "session": self._session, "host": socket.gethostname(),
                "since": self._since, "config": about["config"], "seed": about["seed"], "files": files}  # fmt: skip
        self.folder.write(FILE, json.dumps(mark, indent=1).encode())

    # -- in the run folder -------------------------------------------------------------------------------------------

    def _id(self) -> str | None:
        """By which the mirror of this run is known; None in a folder that has none yet."""
        return (read(self.output_dir) or {}).get("run")

    def _keep_id(self, run: str, step: int | None = None) -> None:
        copied = {"step": step, "copied": datetime.now().astimezone().isoformat(timespec="seconds")} if step else {}
        known = read(self.output_dir) or {}
        new = {**known, "run": run, "url": scrub(str(self.folder)), **copied}
        if new != known:
            write_json(self.output_dir / FILE, new)

    def _name(self, step: int) -> str:
        return f"checkpoints/{self.checkpoints.path(step).name}"


def read(output_dir: Path) -> dict[str, Any] | None:
    """What a run folder says of its mirror: ``run``, ``url``, and ``step`` and ``copied`` of the last copy."""
    with contextlib.suppress(OSError):
        return _json((output_dir / FILE).read_bytes())
    return None


def describe(output_dir: Path) -> str:
    """One line for a person; "" where there is no mirror."""
    known = read(output_dir) or {}
    if "url" not in known:
        return ""
    state = f"step {known['step']:,}, copied {known['copied']}" if known.get("step") else "nothing copied yet"
    return f"mirror {known['url']}: {state}"


def _json(data: bytes | None) -> dict[str, Any] | None:
    """A JSON object; None if it is none."""
    with contextlib.suppress(ValueError):
        found = json.loads(data) if data is not None else None
        return found if isinstance(found, dict) else None
    return None
