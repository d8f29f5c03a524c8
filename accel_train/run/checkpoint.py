"""Checkpoints that are whole or absent.

A checkpoint is written to a temporary sibling, described by a manifest, flushed to disk and renamed; only then are
older ones removed. Before anything in memory changes, a checkpoint is verified against its manifest, and the newest
one that is whole is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from accel_train.errors import UserError
from accel_train.system.writing import files_in, flush, flush_folder

MANIFEST = "MANIFEST.json"
PROGRESS = "progress.json"
CONTENTS, CONTENTS_VALIDATION = "contents.npz", "contents_validation.npz"
"""Hashes of what was read of the data, and by evaluations, see ``contents.py``."""
VERSION = 2
"""Version of PROGRESS; raised with every change that an older reader, or a newer one, would not understand."""
_HASHES = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""Of files, by the name they have in a manifest. The first is written, since a manifest is there for damage, which it
finds as surely; the others are read."""
_PREFIX, _TEMPORARY = "step-", ".writing-"


@dataclass(frozen=True)
class Damage:
    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class CheckpointFolder:
    """``output_dir/checkpoints``: step-000012000/ folders and the links ``latest`` and ``best``.

    Args:
        limit: keep so many of the newest; None keeps all. The best one and every ``keep_every`` steps stay beside them.
    """

    def __init__(self, root: Path, limit: int | None = None, keep_every: int | None = None) -> None:
        self.root, self.limit, self.keep_every = Path(root), limit, keep_every
        self.in_use = set[int]()  # steps that are being copied elsewhere and stay until that is done

    def path(self, step: int) -> Path:
        return self.root / f"{_PREFIX}{step:09d}"

    def steps(self) -> list[int]:
        """Steps of all finished checkpoints, oldest first."""
        paths = self.root.glob(f"{_PREFIX}*") if self.root.is_dir() else ()
        found = (self.step_of(path.name) for path in paths if path.is_dir())
        return sorted(step for step in found if step is not None)

    def step_of(self, name: str) -> int | None:
        """The step of a finished checkpoint with this name; None if no checkpoint is called so."""
        number = name.removeprefix(_PREFIX)
        return int(number) if number.isdecimal() and name == self.path(int(number)).name else None

    # -- writing -----------------------------------------------------------------------------------------------------

    def temporary(self, step: int) -> Path:
        return self.root / f"{_TEMPORARY}{step:09d}"

    def begin(self, step: int) -> Path:
        """An empty temporary folder to write into (rank 0)."""
        temporary = self.temporary(step)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, step: int) -> Path:
        """Make the temporary folder a checkpoint: manifest, flush, rename (rank 0, after every rank wrote)."""
        write_manifest(self.temporary(step), {"step": step})
        return self.put_in_place(step)

    def put_in_place(self, step: int) -> Path:
        """Make a checkpoint of the temporary folder, which has its manifest."""
        temporary, final = self.temporary(step), self.path(step)
        flush_folder(temporary)
        if os.path.lexists(final) and not final.is_dir():  # a stray thing of that name
            os.replace(final, self.root / f"set-aside-{final.name}")
        if final.exists():  # the same step of the same run, saved again: never without one of the two
            old = self.root / f"{_TEMPORARY}old-{step:09d}"
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
            os.replace(temporary, final)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, final)
        flush(self.root)
        return final

    def abandon(self, step: int) -> None:
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def link(self, name: str, step: int) -> None:
        """Point ``latest`` or ``best`` at a step, atomically. Where there are no symbolic links, by a file that holds
        the name of its folder."""
        new = self.root / f"{_TEMPORARY}{name}"
        new.unlink(missing_ok=True)
        try:
            new.symlink_to(self.path(step).name)
        except (OSError, NotImplementedError):
            new.write_text(self.path(step).name + "\n")
        os.replace(new, self.root / name)

    def linked(self, name: str) -> int | None:
        """The step that ``latest`` or ``best`` means; also where a copy made a file or a folder of the link."""
        link = self.root / name
        try:
            if link.is_symlink():
                target = os.readlink(link)
            elif link.is_dir():
                return int(json.loads((link / MANIFEST).read_text())["step"])
            else:
                target = link.read_text(errors="replace").strip()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        target = target.removeprefix(_PREFIX)
        return int(target) if target.isdecimal() else None

    def prune(self) -> list[int]:
        """Remove what retention does not keep; returns the steps removed."""
        if self.limit is None:
            return []
        steps = self.steps()
        kept = set(steps[-self.limit :]) | {self.linked("best")} | self.in_use
        if self.keep_every:
            kept |= {step for step in steps if step % self.keep_every == 0}
        removed = [step for step in steps if step not in kept]
        for step in removed:  # renamed first, so that a kill half-way leaves no torn folder under a good name
            doomed = self.root / f"{_TEMPORARY}doomed-{step:09d}"
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(self.path(step), doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        return removed

    def set_aside(self, after_step: int) -> list[Path]:
        """Rename every checkpoint newer than the one a run goes on from, so that none is resumed or counted again."""
        moved = []
        for step in self.steps():
            if step > after_step:
                path = self.root / f"set-aside-{self.path(step).name}"
                shutil.rmtree(path, ignore_errors=True)
                os.replace(self.path(step), path)
                moved.append(path)
        for name in ("latest", "best"):
            step = self.linked(name)
            if step is not None and step > after_step:
                (self.root / name).unlink()
        return moved

    def tidy(self) -> None:
        """Remove what a killed run left half-written (rank 0, at start)."""
        for path in self.root.glob(f"{_TEMPORARY}*") if self.root.is_dir() else ():
            step = path.name.removeprefix(f"{_TEMPORARY}old-")
            if step.isdecimal() and path.is_dir():  # killed between two renames: the old one is still the good one
                step = int(step)
                if not self.path(step).exists():
                    os.replace(path, self.path(step))
                    continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()

    def mend_links(self) -> list[str]:
        """Make links again of ``latest`` and ``best`` where a copy made folders of them (rank 0, at start); says what
        was done. A folder is removed only if the checkpoint it is a copy of is whole."""
        done = []
        for name in ("latest", "best"):
            folder = self.root / name
            if folder.is_symlink() or not folder.is_dir():
                continue
            step = self.linked(name)
            if step is not None and not self.path(step).exists() and verify(folder) is None:
                os.replace(folder, self.path(step))
            elif step is not None and _same_manifest(folder, self.path(step)) and verify(self.path(step)) is None:
                doomed = self.root / f"{_TEMPORARY}doomed-{name}"
                os.replace(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)
            else:
                aside = self.root / f"set-aside-{name}"
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(folder, aside)
                done.append(f"{folder} was a folder and no copy of a whole checkpoint: it is {aside.name} now")
                continue
            self.link(name, step)
            done.append(f"{folder} was a copy of {self.path(step).name}: it is a link again")
        return done

    # -- reading -----------------------------------------------------------------------------------------------------

    def newest_verified(self) -> tuple[Path | None, list[Damage]]:
        """The newest checkpoint that verifies, and what is wrong with each newer one."""
        damaged = []
        for step in reversed(self.steps()):
            reason = verify(self.path(step))
            if reason is None:
                return self.path(step), damaged
            damaged.append(Damage(self.path(step), reason))
        return None, damaged

    def find(self, which: str) -> Path:
        """A whole checkpoint by ``latest``, ``best``, a step number or a path; an error says what is wrong with it."""
        if which == "latest":
            path, damaged = self.newest_verified()
            if path is None:
                raise UserError(f"{self.root}: no checkpoint that can be used{_because(damaged)}")
            return path
        if which == "best":
            step = self.linked("best")
            if step is None:
                raise UserError(f"{self.root}: there is no best checkpoint (was there an evaluation?); use latest")
            copy = self.root / which
            return verified(self.path(step) if self.path(step).exists() or not copy.is_dir() else copy)
        return verified(self.path(int(which)) if which.isdecimal() else Path(which))


OF_OTHERS = "weights that another program saved (.pth, .pt) are not read; --init_from=RUN begins with those of a run"


def verified(path: Path) -> Path:
    """The path of this checkpoint, which must verify; of a run folder, its latest. Raises UserError."""
    path = followed(path)
    if not path.exists():
        steps = CheckpointFolder(path.parent).steps()
        there = f"; there are steps {', '.join(map(str, steps[-5:]))}" if steps else ""
        raise UserError(f"checkpoint {path} does not exist{there}")
    if path.is_file():
        raise UserError(f"{path} is a file, and a checkpoint is a folder; {OF_OTHERS}")
    if not (path / MANIFEST).exists() and (path / "checkpoints").is_dir():
        return CheckpointFolder(path / "checkpoints").find("latest")
    if not (path / MANIFEST).exists() and (path / "config.json").exists():
        raise UserError(
            f"{path} is a model folder, from which no run can go on: give a checkpoint, or init_from for its weights"
        )
    reason = verify(path)
    if reason is not None:
        raise UserError(f"checkpoint {path} is damaged: {reason}; use another one or resume_from_checkpoint=auto")
    return path


def followed(path: Path) -> Path:
    """The checkpoint that a path means: itself, or what ``latest`` or ``best`` says where it is a file."""
    step = CheckpointFolder(path.parent).linked(path.name) if path.name in ("latest", "best") else None
    return path if step is None or not path.is_file() else CheckpointFolder(path.parent).path(step)


def _same_manifest(one: Path, other: Path) -> bool:
    try:
        return (one / MANIFEST).read_bytes() == (other / MANIFEST).read_bytes()
    except OSError:
        return False


def _because(damaged: list[Damage]) -> str:
    return "".join(f"; {d.path.name} is damaged: {d.reason}" for d in damaged)


def write_manifest(folder: Path, extra: dict[str, Any]) -> None:
    entries = {str(path.relative_to(folder)): entry_of(path) for path in files_in(folder) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps({"version": 1, **extra, "files": entries}, indent=1))


def entry_of(path: Path) -> dict[str, Any]:
    """By which a file is known again: what a manifest says of it."""
    kind = next(iter(_HASHES))
    return {"size": path.stat().st_size, kind: _hash(path, kind)}


def verify(folder: Path) -> str | None:
    """None if every file is there with its size and hash, else what is wrong, naming the file."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"]
        if not entries:
            return f"{MANIFEST} lists no files"
        for name, entry in entries.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        for name, entry in entries.items():
            kind = next((kind for kind in _HASHES if kind in entry), None)
            if kind is None:
                return f"{MANIFEST} has no hash of {name} that is known here ({', '.join(_HASHES)})"
            if _hash(folder / name, kind) != entry[kind]:
                return f"{name} has been altered (its {kind} differs)"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    unlisted = {str(p.relative_to(folder)) for p in files_in(folder)} - set(entries) - {MANIFEST}
    return f"{sorted(unlisted)[0]} is not in {MANIFEST}" if unlisted else None


def read_progress(path: Path) -> dict[str, Any]:
    """What a checkpoint holds besides tensors.

    Raises:
        UserError: another version of this package wrote it.
    """
    progress = json.loads((path / PROGRESS).read_text())
    if progress.get("version") != VERSION:
        raise UserError(
            f"{path}: another version of accel_train wrote this checkpoint (format {progress.get('version')}, this one "
            f"reads {VERSION}); go on with that one, or start over with --resume_from_checkpoint=never"
        )
    return progress


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _HASHES[kind]).hexdigest()
