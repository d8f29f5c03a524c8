"""A folder that is made unit by unit, by processes, ranks and jobs, through kills: each once and never half.

``.OUT.COMMAND/`` holds plan.json (what is asked), whatever ``prepare`` leaves there for ``open_job``, and the files of
``unit_files``: content/, which will be OUT, and a marker for each unit that is done. Whose a unit is follows from its
number, so processes share nothing but these files; and what is merged is merged in the order of the units, whoever did
them.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from accel_train.data.unit_files import Failure, UnitFiles
from accel_train.data.unit_processes import Progress, in_processes
from accel_train.data.units import Job, OpenJob, Unit
from accel_train.errors import DataError, UserError
from accel_train.system import process
from accel_train.system.writing import write_atomic

WAIT = 3600.0
"""Seconds for which other ranks wait for rank 0 to prepare."""
HOPELESS = 10
"""Where so many units fail and none can be done, it is not they that are wrong."""
SHOWN = 20
"""Units of which an error says what is wrong with them."""


class Finished(NamedTuple):
    """What meta.json says, and what this process did of it: how many items, in how many seconds."""

    meta: dict[str, Any]
    items: int
    seconds: float


@dataclass(frozen=True)
class WorkFolder:
    """OUT, which appears by one rename when all units are there, and the folder beside it where they are made.

    Args:
        out: the folder to make.
        plan: all that decides what is written, in plain values: the same plan and files give the same bytes.
        open_job: the units and how they are done.
        prepare: fills the work folder with what ``open_job`` needs, and checks the plan against it.
        command: whose work it is, for messages and for the name of the work folder.
        what: items are, in the plural.
        shard: (i, n) for one of n jobs that share the work and start whenever they do, such as those of a SLURM array;
            each of its ranks has its part of that.
        max_bad: so many units may be left out if their data cannot be used; None: there is no option for that.
    """

    out: Path
    plan: dict[str, Any]
    open_job: OpenJob
    prepare: Callable[[Path], None] | None = None
    command: str = "preprocess"
    what: str = "units"
    shard: tuple[int, int] = (0, 1)
    max_bad: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "out", Path(os.path.abspath(self.out)))
        object.__setattr__(self, "plan", json.loads(json.dumps(self.plan)))  # as it comes back from a file

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many parts of the units is this process's."""
        (shard, shards), ranks = self.shard, process.world_size()
        return shard * ranks + process.rank(), shards * ranks

    @property
    def folder(self) -> Path:
        return self.out.with_name(f".{self.out.name}.{self.command}")

    @property
    def _files(self) -> UnitFiles:
        return UnitFiles(self.folder, self.plan)

    def complete(self, workers: int = 1) -> Finished | None:
        """Do what is missing of this process's units, and finish OUT if those of all are there.

        Args:
            workers: processes of each rank.

        Returns:
            None if OUT was there, or others have units to do; a line says so.

        Raises:
            UserError: OUT or the work folder is of another plan, units cannot be done (the others are), or what
                ``prepare`` and ``Job.merge`` raise.
        """
        part, parts = self.share
        if not self._begin():
            return None
        try:
            start = time.monotonic()
            job = self.open_job(self.folder)
            items, failed = self._run(job, workers)
            seconds = time.monotonic() - start
            meta = self._finish(job, failed)
        except FileNotFoundError:
            if not self.is_finished():
                raise
            self._clear()  # what came too late
            print(f"{self.out} is there: another process has finished it")
            return None
        except UserError as error:
            if process.rank() > 0:  # the command line says what is wrong on rank 0 alone, as it mostly is everywhere
                print(f"accel-train: error: rank {process.rank()}: {error}", file=sys.stderr)
            raise
        if isinstance(meta, int):
            rest = f"{meta:,} of {_items(job.units):,} {self.what} are left to others"
            more = "if nobody does, repeat the command with --shard=0/1: it does what is missing"
            print(f"part {part} of {parts} is done; {rest}. Who ends last finishes {self.out}; {more}")
            return None
        return Finished(meta, items, seconds)

    def missing(self) -> list[str]:
        """Names of this process's units that are not done, for another scheduler to give to ``do``; after it,
        ``complete`` merges. None are if OUT is there."""
        if not self._begin():
            return []
        job = self.open_job(self.folder)
        return [job.units[number].name for number in self._todo(job)]

    def do(self, name: str) -> str | None:
        """Do one unit, in any process that sees the folder. What is wrong with it, else None."""
        job = self.open_job(self.folder)
        failure = self._files.do(job, [unit.name for unit in job.units].index(name))
        return None if failure is None else failure.text

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

    # -- the work folder ---------------------------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Make the work folder, or wait until rank 0 has; False, and a line, where OUT is there."""
        prepared = self.is_prepared()  # asked first: when the work folder is gone, OUT is there
        if not self.is_finished():
            if process.rank() > 0:
                self._wait()
            elif not prepared:
                self._prepare()
        if not self.is_finished():
            return True
        self._clear()
        print(f"{self.out} is already there, made with these options")
        return False

    def _wait(self) -> None:
        """On ranks other than 0, until there is something to do, or nothing any more."""
        end = time.monotonic() + WAIT
        while not self.is_prepared() and not self.is_finished():
            if time.monotonic() > end:
                raise UserError(f"{self.command}: rank 0 has not prepared {self.folder} in {WAIT / 60:.0f} minutes")
            time.sleep(0.2)

    def _prepare(self) -> None:
        """Make the work folder, by one rename."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        made = self.out.parent / f"{self.folder.name}.{uuid.uuid4().hex}"
        made.mkdir()
        try:
            (made / "content").mkdir()
            (made / "done").mkdir()
            write_atomic(made / "plan.json", json.dumps(self.plan, indent=1), sync=True)
            if self.prepare is not None:
                self.prepare(made)
            try:
                made.rename(self.folder)
            except OSError:  # another call was faster
                if not self.is_prepared():
                    raise
        except FileNotFoundError:
            if not self.is_finished():  # then what was prepared here is gone already
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _clear(self) -> None:
        """When OUT is there: the work folder, and those in which a call was killed, or is, before they had its name."""
        for folder in (self.folder, *self.out.parent.glob(f"{glob.escape(self.folder.name)}.{'?' * 32}")):
            shutil.rmtree(folder, ignore_errors=True)

    # -- units -------------------------------------------------------------------------------------------------------

    def _todo(self, job: Job) -> list[int]:
        """This process's units without a marker; one that failed is tried again."""
        part, parts = self.share
        mine = range(part, len(job.units), parts)
        return [number for number in mine if not self._files.marker(number, job.units[number]).exists()]

    def _run(self, job: Job, workers: int) -> tuple[int, dict[int, Failure]]:
        """How many items were done, and which units could not be."""
        todo, failed = self._todo(job), dict[int, Failure]()
        progress = Progress(_items(job.units[number] for number in todo), self.what)
        for number, failure in self._results(job, todo, workers):
            if failure is None:
                progress.add(job.units[number].items)
                continue
            failed[number] = failure
            if len(failed) > max(HOPELESS - 1, self.max_bad or 0) and not progress.done:
                break
            progress.fail(f"{self.command}: {failure.text}")
        return progress.done, failed

    def _results(self, job: Job, todo: list[int], workers: int) -> Generator[tuple[int, Failure | None]]:
        """Units as they end, and what is wrong with them."""
        if workers == 1 or len(todo) < 2:
            yield from ((number, self._files.do(job, number)) for number in todo)
            return
        try:
            yield from in_processes(_do_here, todo, workers, _start, (self,))
        except BrokenProcessPool:
            more = "call again with fewer --workers, what is done is kept"
            raise UserError(f"{self.command}: a worker process died (out of memory?); {more}") from None

    # -- OUT ---------------------------------------------------------------------------------------------------------

    def _finish(self, job: Job, failed: dict[int, Failure]) -> dict[str, Any] | int:
        """Merge and give OUT its name if every unit is there; returns its meta, or how many items are others' to do."""
        files = self._files
        records, known = files.records(job.units)
        left = _items(unit for unit, record in zip(job.units, records, strict=True) if record is None)
        bad = failed if left else {**known, **failed}
        leavable = all(each.of_data for each in failed.values())
        if len(bad) > (self.max_bad or 0) or not leavable:
            raise DataError(self._refusal(job, bad, leavable))
        if left:
            return left
        with files.writing() as made:
            meta = {**job.merge([record or {} for record in records], made), "options": self.plan}
            write_atomic(made / "meta.json", json.dumps(meta, indent=1))
            files.publish(made, self.out)
        self._clear()
        return meta

    def _refusal(self, job: Job, bad: dict[int, Failure], leavable: bool) -> str:
        texts = [bad[number].text for number in sorted(bad)]
        allowed, way = "", "mend them and repeat the command"
        if leavable and self.max_bad is not None:
            allowed = f", and --max_bad allows {self.max_bad}"
            way += f", or give --max_bad={len(bad)} to go on without"
        elif len(bad) == 1:
            return texts[0]
        count, total = _items(job.units[number] for number in bad), _items(job.units)
        lines = [*texts[:SHOWN], *([f"and {len(texts) - SHOWN} more"] if texts[SHOWN:] else [])]
        said = (
            f"{self.command}: {count:,} of {total:,} {self.what} cannot be used{allowed}; {way} (what is done is kept):"
        )
        return "\n  ".join([said, *lines])


def _items(units: Iterable[Unit]) -> int:
    return sum(unit.items for unit in units)


_opened: tuple[WorkFolder, Job] | None = None
"""Of a worker, which does many units: opening may take a while."""


def _start(work: WorkFolder) -> None:
    """A worker begins. It ends with its parent, however that ended."""
    global _opened
    process.end_with_parent()
    _opened = work, work.open_job(work.folder)


def _do_here(number: int) -> Failure | None:
    assert _opened is not None
    work, job = _opened
    return work._files.do(job, number)
