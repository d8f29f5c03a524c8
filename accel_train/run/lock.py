"""One run at a time in a run folder, also where several machines share it and nobody runs a lock daemon.

``run.lock`` says who writes here: host, process, a random token, and a count that grows a few times a minute. It
appears whole by a hard link, which fails if it is there already. Whoever finds one asks whether its process is alive;
where that cannot be asked, on another machine or in another container, whether its count still grows, which compares no
clocks. The lock of the dead is replaced under a lock of its own, named by the dead one's token, so that of several who
notice the death exactly one succeeds. A holder that was taken for dead notices it before it writes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from accel_train.errors import UserError
from accel_train.system import waiting
from accel_train.system.process import status_fields

NAME = "run.lock"
BEAT_S = 20.0
"""Seconds between two signs of life of a holder."""
SILENCE_S = 90.0
"""A holder elsewhere that gives no sign for so long is dead."""
STOPPING_S = 60.0
"""How long a holder that is saving and stopping is waited for: a scheduler may start the next run at once."""
NOTICE_S = 2.0
"""How long a living holder is watched before the start is refused; it may be about to stop."""

_held: set[str] = set()
"""Tokens of the locks that this process holds. A lock that names it with another token is of a run that has ended."""


@dataclass(frozen=True)
class Holder:
    """What a lock file says."""

    token: str
    host: str = ""
    machine: str = ""  # the boot and the process namespace in which ``pid`` means something
    pid: int = 0
    process_started: str = ""
    since: str = ""
    inode: int = 0  # of the lock file; another one is a copy's, as of a run folder that was copied while it ran
    beat: int = 0
    stopping: bool = False

    @classmethod
    def here(cls) -> Holder:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(secrets.token_hex(8), socket.gethostname(), _machine(), pid, _process_started(pid) or "", since)

    @classmethod
    def parse(cls, data: bytes) -> Holder:
        """Text that is no lock, or half of one, gives a holder of whom nothing is known: it may be being written."""
        try:
            fields = json.loads(data)
            beat, stopping = int(fields.pop("beat")), bool(fields.pop("stopping"))
            holder = cls(**fields, beat=beat, stopping=stopping)
            if holder.pid > 0 and holder.token.isalnum():
                return holder
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        return cls(hashlib.sha256(data).hexdigest()[:16])

    def text(self) -> str:
        """One line whose length does not change as ``beat`` grows: overwritten in place, it is never half there."""
        fields = dataclasses.asdict(self) | {"beat": f"{self.beat:09d}", "stopping": int(self.stopping)}
        return json.dumps(fields) + "\n"

    def alive(self) -> bool | None:
        """None: cannot be told from here."""
        if not self.machine or self.machine != _machine():
            return None
        if self.pid == os.getpid() and self.process_started == (_process_started(self.pid) or ""):
            return self.token in _held
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # somebody else's
            pass
        started = _process_started(self.pid)
        return started is None or (started != "" and started == self.process_started)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}" if self.pid else f"an unreadable {NAME}"


def _machine() -> str:
    """This boot of this machine, and this container on it; empty where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_started(pid: int) -> str | None:
    """Its start in clock ticks since boot; empty if it has ended and its parent has not waited for it yet, None if not
    known."""
    fields = status_fields(pid)
    if fields is None:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def look(folder: Path) -> Holder | None:
    """Who holds the lock of this run folder, dead or alive. Takes nothing and waits for nothing."""
    with contextlib.suppress(OSError, UserError):
        return _read(folder / NAME)
    return None


def _read(path: Path) -> Holder | None:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is not a file; move it away")
        with open(path, "rb") as file:
            held = Holder.parse(file.read())
            copied = os.fstat(file.fileno()).st_ino != held.inode
        return dataclasses.replace(held, machine="") if copied else held  # only its beats can tell
    except FileNotFoundError:
        return None


# -- taking ----------------------------------------------------------------------------------------------------------


def take(folder: Path, stopping: Callable[[], bool] = lambda: False) -> RunLock:
    """Lock this run folder, which is made if need be, for this process.

    Args:
        stopping: whether the run is about to end; a next one then waits for it.

    Raises:
        UserError: a living run has it, or the folder cannot be written.
        StoppedError: the run was told to stop while it waited.
    """
    mine = Holder.here()
    _held.add(mine.token)
    made: list[Path] = []
    try:
        while True:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            try:
                before = _acquire(folder / NAME, mine)
                break
            except FileNotFoundError:
                if folder.exists():
                    raise
                # a run that ended before it wrote anything has just removed its folder
    except BaseException as error:
        _held.discard(mine.token)
        _remove_empty(made)
        if isinstance(error, OSError):
            raise UserError(f"output_dir: {folder} cannot be written: {error.strerror or error}") from None
        raise
    return RunLock(folder / NAME, mine, before, made, stopping)


def _acquire(path: Path, mine: Holder) -> Holder | None:
    """Make this lock file ours. Returns the dead holder that it was taken from, if there was one."""
    watch = _Watch()
    began: float | None = None
    said = False
    while not _create(path, mine):
        held = _read(path)
        if held is None:  # released just now
            continue
        if held.token == mine.token:  # ours after all: a file server repeated a request and reported the second one
            return None
        alive = watch.alive(held)
        if alive is False:
            claim = _beside(path, held.token)
            _acquire(claim, mine)
            try:
                now = _read(path)
                if now is not None and now.token == held.token:
                    _replace(path, mine)
                    return held
            finally:
                claim.unlink(missing_ok=True)
        elif alive:
            began = began or time.monotonic()
            if time.monotonic() - began > (STOPPING_S if held.stopping else NOTICE_S):
                raise UserError(_refusal(path.parent, held))
            if held.stopping and not said:
                _say(f"waiting up to {STOPPING_S:g} s for {held}, which is about to stop")
                said = True
            waiting.sleep(0.1)
        else:
            waiting.sleep(watch.pause_s)
    return None


class _Watch:
    """Whether a holder lives, where need be by waiting for its next sign."""

    def __init__(self) -> None:
        self.pause_s = min(1.0, SILENCE_S / 20)
        self.seen: Holder | None = None
        self.looks = 0

    def alive(self, held: Holder) -> bool | None:
        """None: ask again after a pause. Looks are counted, not seconds: a stalled file server proves nobody dead."""
        known = held.alive()
        if known is not None:
            return known
        if self.seen is None or self.seen.token != held.token:
            _say(f"waiting up to {SILENCE_S:g} s to see whether {held} still writes here")
            self.seen, self.looks = held, 0
            return None
        if self.seen.beat != held.beat:
            self.seen, self.looks = held, 0
            return True
        self.looks += 1
        return False if self.looks * self.pause_s >= SILENCE_S else None


def _create(path: Path, mine: Holder) -> bool:
    """False if it is there already."""
    if os.path.lexists(path):
        return False
    new = _write_beside(path, mine)
    try:
        os.link(new, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        with contextlib.suppress(FileExistsError):
            _write_new(path, mine)
            return True
        return False
    finally:
        new.unlink()


def _replace(path: Path, mine: Holder) -> None:
    os.replace(_write_beside(path, mine), path)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name.removeprefix('.')}.{suffix}")


def _write_beside(path: Path, mine: Holder) -> Path:
    new = _beside(path, secrets.token_hex(4))
    _write_new(new, mine)
    return new


def _write_new(path: Path, mine: Holder) -> None:
    with open(path, "x") as file:
        try:
            file.write(dataclasses.replace(mine, inode=os.fstat(file.fileno()).st_ino).text())
            file.flush()
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            raise


def _remove_empty(folders: list[Path]) -> None:
    """A run that ends before it wrote anything leaves no folder behind."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _refusal(folder: Path, held: Holder) -> str:
    return (
        f"output_dir: another run is alive in {folder} ({held}). Wait for its end, end it with "
        f"accel-train stop {folder}, or give another output_dir"
    )


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there is no standard error to print to
        print(f"accel-train: {text}", file=sys.stderr, flush=True)


# -- holding ---------------------------------------------------------------------------------------------------------


class RunLock:
    """A lock that is held. ``taken_from``: the dead holder before, if there was one."""

    def __init__(
        self,
        path: Path,
        mine: Holder,
        taken_from: Holder | None,
        made: list[Path],
        stopping: Callable[[], bool],
    ) -> None:
        self.path, self.mine, self.taken_from = path, mine, taken_from
        self._made, self._stopping = made, stopping
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def lost(self) -> str:
        """Empty while the lock is ours, else what became of it."""
        try:
            held = _read(self.path)
        except OSError:  # cannot be told now; what is about to be written meets the same trouble and says so
            return ""
        except UserError:
            held = None
        if held is not None and held.token == self.mine.token:
            return ""
        what = f"{held} has taken it over" if held is not None else f"its {NAME} is gone"
        return f"{self.path.parent} is no longer this run's: {what}. This run writes nothing more"

    def release(self) -> None:
        """Give it back, unless it is somebody else's by now."""
        self._released.set()
        claim = _beside(self.path, self.mine.token)
        try:
            with contextlib.suppress(OSError, UserError):  # if it stays there, it is the lock of a dead process
                if _create(claim, self.mine):  # nobody takes it over between the look and the removal
                    try:
                        if not self.lost():
                            self.path.unlink()
                    finally:
                        claim.unlink()
                        _remove_empty(self._made)
        finally:  # not before: another run in this process would take it from the dead
            _held.discard(self.mine.token)

    def _beat(self) -> None:
        beat, last, reported = 0, time.monotonic(), False
        while not self._released.wait(min(NOTICE_S / 4, BEAT_S)):
            stopping = self._stopping()
            if stopping != reported or time.monotonic() - last >= BEAT_S:
                beat, last, reported = beat + 1, time.monotonic(), stopping
                with contextlib.suppress(OSError):  # the run itself asks whether the lock is lost
                    self._write(beat, stopping)

    def _write(self, beat: int, stopping: bool) -> None:
        """Overwrite in place, and only the very file that is ours, so never another's."""
        with open(self.path, "r+b", buffering=0) as file:
            held = Holder.parse(file.read())
            if held.token == self.mine.token:
                file.seek(0)
                file.write(dataclasses.replace(held, beat=beat, stopping=stopping).text().encode())
