"""A folder that is made piece by piece, by processes and ranks, through kills: each piece once and never half.

``.OUT.COMMAND/`` holds plan.json (what is asked), content/ (what will be OUT), whatever ``prepare`` leaves there for
``open_job``, and done/, a record for each piece. A record is written after its piece, so what has a record needs not be
done again. Which piece is whose follows from its number, hence ranks share nothing but these files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from accel_train.errors import DataError, UserError, relative_to
from accel_train.system import process
from accel_train.system.writing import write_atomic

WAIT, SAY = 3600.0, 30.0
"""Seconds: how long other ranks wait for rank 0 to prepare, and between two lines of progress."""


class Job(Protocol):
    """The work as each process opens it. Pieces count from 0, and may be done in any order."""

    pieces: int

    def items(self, piece: int, /) -> int:
        """How many items a piece has, for the lines of progress."""
        ...

    def do(self, piece: int, /) -> dict[str, Any]:
        """Write a piece below content/, where no other piece writes; return its record, in plain values."""
        ...


OpenJob = Callable[[Path], Job]
"""From the work folder. It can be pickled: each worker process opens its own."""


class Finished(NamedTuple):
    """What meta.json says, and what this rank did of it: how many items, in how many seconds."""

    meta: dict[str, Any]
    items: int
    seconds: float


@dataclass(frozen=True)
class WorkFolder:
    """OUT, which appears by one rename when all pieces are there, and the folder beside it where they are made.

    Args:
        out: the folder to make, an absolute path.
        plan: all that decides what is written, in plain values: the same plan gives the same bytes.
        command: whose work it is, for messages and for the name of the work folder.
        unit: what items are, in the plural.
        shard: (i, n) for one of n jobs that share the work and start whenever they do, such as those of a SLURM array;
            each of its ranks has its part of that.
    """

    out: Path
    plan: dict[str, Any]
    command: str = "preprocess"
    unit: str = "items"
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", json.loads(json.dumps(self.plan)))  # as it comes back from a file

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many parts of the pieces is this process's."""
        (shard, shards), ranks = self.shard, process.world_size()
        return shard * ranks + process.rank(), shards * ranks

    @property
    def folder(self) -> Path:
        return self.out.with_name(f".{self.out.name}.{self.command}")

    def complete(
        self,
        prepare: Callable[[Path], None],
        open_job: OpenJob,
        describe: Callable[[Any, list[dict[str, Any]]], dict[str, Any]],
        workers: int = 1,
    ) -> Finished | None:
        """Do this rank's pieces that are not done yet, and finish OUT if they were the last.

        Args:
            prepare: on rank 0, fills the work folder with what ``open_job`` needs, and checks the plan against it.
            describe: from the job and the records of all pieces, what meta.json says besides the plan.
            workers: processes of each rank.

        Returns:
            None if OUT was there, or another rank finishes it; a line says so.

        Raises:
            UserError: OUT or the work folder is of another plan, or what ``prepare`` and ``Job.do`` raise.
        """
        rank, (part, parts) = process.rank(), self.share
        prepared = self.is_prepared()  # asked first: when the work folder is gone, OUT is there
        if self.is_finished():
            shutil.rmtree(self.folder, ignore_errors=True)
            print(f"{self.out} is already there, made with these options")
            return None
        if rank > 0:
            self.wait()
        elif not prepared:
            self.prepare(prepare)
        start = time.monotonic()
        try:
            items = self.run(open_job, workers)
            seconds = time.monotonic() - start
            meta = self.finish(open_job, describe)
        except FileNotFoundError:
            if not self.is_finished():
                raise
            return None  # another rank had finished it
        except UserError as error:
            if rank > 0:  # what the command line says on rank 0 alone, as it is mostly the same everywhere; not here
                print(f"accel-train: error: rank {rank}: {error}", file=sys.stderr)
            raise
        if meta is None:
            print(f"rank {part} of {parts} has done its {self.unit}; the last to end finishes {self.out}. If that does "
                  "not come about, repeat the command: it does what is missing")  # fmt: skip
            return None
        return Finished(meta, items, seconds)

    def is_finished(self) -> bool:
        """Whether OUT was made with this plan. Raises ``UserError`` if something else is there."""
        meta = self.out / "meta.json"
        if meta.is_file() and json.loads(meta.read_text()).get("options") == self.plan:
            return True
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(
                f"{self.command}: {self.out} exists and was made otherwise; give another --out, or remove it"
            )
        return False

    def is_prepared(self) -> bool:
        """Whether work with this plan has begun. Raises ``UserError`` if work with another one has."""
        try:
            begun = json.loads((self.folder / "plan.json").read_text())
        except FileNotFoundError:
            return False
        other = [key for key, value in self.plan.items() if begun.get(key) != value]
        if other:
            raise UserError(
                f"{self.command}: {self.folder} holds unfinished work with another {' and '.join(other)} ({other[0]} "
                f"there: {begun.get(other[0])}); repeat those options, or remove the folder"
            )
        return True

    def wait(self) -> None:
        """Wait, on ranks other than 0, until there is something to do, or nothing any more."""
        end = time.monotonic() + WAIT
        while not self.is_prepared() and not self.is_finished():
            if time.monotonic() > end:
                raise UserError(f"{self.command}: rank 0 has not prepared {self.folder} in {WAIT / 60:.0f} minutes")
            time.sleep(0.2)

    def prepare(self, fill: Callable[[Path], None]) -> None:
        """Make the work folder, by one rename."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=self.out.parent))
        try:
            (made / "content").mkdir()
            (made / "done").mkdir()
            write_atomic(made / "plan.json", json.dumps(self.plan, indent=1), sync=True)
            fill(made)
            try:
                made.rename(self.folder)
            except OSError:  # another call was faster
                if not self.is_prepared():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def run(self, open_job: OpenJob, workers: int) -> int:
        """Do this rank's pieces that have no record yet; returns how many items they have. The first error ends it."""
        job = open_job(self.folder)
        part, parts = self.share
        mine = range(part, job.pieces, parts)
        todo = [piece for piece in mine if not _record(self.folder, piece).exists()]
        progress = _Progress(sum(map(job.items, todo)), self.unit)
        if workers == 1 or len(todo) < 2:
            for piece in todo:
                _do(job, self.folder, piece)
                progress.add(job.items(piece))
            return progress.done
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(todo)), spawn, _start, (open_job, self.folder)) as pool:
            running = {pool.submit(_do_here, piece): piece for piece in todo}
            try:
                for future in as_completed(running):
                    future.result()
                    progress.add(job.items(running[future]))
            except BrokenProcessPool:
                more = "call again with fewer --workers, what is done is kept"
                raise UserError(f"{self.command}: a worker process died (out of memory?); {more}") from None
            finally:
                pool.shutdown(cancel_futures=True)
        return progress.done

    def finish(self, open_job: OpenJob, describe: Callable[..., dict[str, Any]]) -> dict[str, Any] | None:
        """Rename content/ to OUT if every piece is done, and return its meta; None if some are another rank's to do."""
        job = open_job(self.folder)
        paths = [_record(self.folder, piece) for piece in range(job.pieces)]
        if not all(path.exists() for path in paths):
            return None
        meta = {**describe(job, [json.loads(path.read_text()) for path in paths]), "options": self.plan}
        content = self.folder / "content"
        written = self.folder / f"meta-{self.share[0]}.json"  # another rank may rename content/ at this moment
        write_atomic(written, json.dumps(meta, indent=1), sync=True)
        written.replace(content / "meta.json")
        content.rename(self.out)
        shutil.rmtree(self.folder, ignore_errors=True)
        return meta


def forget(folder: Path, piece: int) -> None:
    """A piece is to be done again when the command is repeated. ``folder``: the work folder."""
    _record(folder, piece).unlink(missing_ok=True)


# -- what a job needs ------------------------------------------------------------------------------------------------


def parse_shard(text: str) -> tuple[int, int]:
    """``I/N`` of an option, I from 0. Raises ``UserError``."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UserError(f"--shard is I/N with I from 0 to N - 1, as in 0/8; not {text!r}")
    return int(index), int(count)


def refuse_no_room(name: str, folder: Path, needed: int) -> None:
    """A UserError if there is no room for so many bytes where ``folder`` is. ``name``: what needs them."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(f"{name} will need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def create_rows(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """A .npy file of zeros, whose rows are to be written in any order."""
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()


def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Written, not mapped: two machines that map the same page of a shared file undo each other's rows, and a full disk
    would be a bus error."""
    offset = np.load(path, mmap_mode="r").offset
    with open(path, "r+b") as file:
        file.seek(offset + first * rows[0].nbytes)
        file.write(rows.data)
        file.flush()
        os.fsync(file.fileno())


# -- pieces ----------------------------------------------------------------------------------------------------------


class _Progress:
    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done = total, unit, 0
        self._start = self._said = time.monotonic()

    def add(self, items: int) -> None:
        """A line, now and then."""
        self.done += items
        if (now := time.monotonic()) - self._said > SAY:
            self._said, rate = now, self.done / (now - self._start)
            left = (self.total - self.done) / rate / 60
            text = f"{self.done:,} of {self.total:,} {self.unit}, {rate:,.1f}/s, {left:.0f} min left"
            print(f"rank {process.rank()}: {text}", flush=True)


def _record(folder: Path, piece: int) -> Path:
    return folder / "done" / f"{piece:08d}.json"


def _do(job: Job, folder: Path, piece: int) -> None:
    record = job.do(piece)
    write_atomic(_record(folder, piece), json.dumps(record, indent=1), sync=True)


_opened: tuple[Job, Path] | None = None


def _start(open_job: OpenJob, folder: Path) -> None:
    """A worker begins. It ends with its parent, however that ended."""
    global _opened
    process.end_with_parent()
    _opened = open_job(folder), folder


def _do_here(piece: int) -> None:
    assert _opened is not None
    _do(*_opened, piece)


@contextmanager
def opened(folder: Path, version: int, command: str, what: str) -> Generator[dict[str, Any]]:
    """The meta.json of a folder that is finished; what else is in it is read within.

    Args:
        version: of what is in such folders, which meta.json says.
        command: what makes them, such as "tcn preprocess".
        what: is in them, for messages.

    Raises:
        DataError: there is none, it is damaged, or it was made by another version.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        if manifest["version"] != version:
            raise ValueError(f"made by version {manifest['version']} of preprocess, this reads {version}")
        yield manifest
    except FileNotFoundError as error:
        more = f"make it with accel-train {command}, from files of accel-train synth {command.split()[0]} to try"
        more += relative_to(folder)
        raise DataError(f"{folder}: no preprocessed {what} (no {Path(error.filename).name}); {more}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a folder of preprocessed {what}: {error}") from None
