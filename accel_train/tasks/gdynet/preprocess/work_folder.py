"""The files of ``preprocess`` while it works: frames shared by processes and ranks, done once and never half.

``.OUT.preprocess/`` holds plan.json (what is asked), what random access needs, arrays/ (what will be OUT) and done/, a
record per block with its statistics. A record is written after its rows, so what has a record needs not be done again.
Which block is whose follows from its number, hence ranks need no words with each other but these files.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import UserError
from accel_train.system.process import end_with_parent
from accel_train.tasks.gdynet.preprocess import trajectories
from accel_train.tasks.gdynet.preprocess.blocks import Job, describe, find_targets, write_json

WAIT, SAY = 3600.0, 30.0
"""Seconds: how long other ranks wait for rank 0 to prepare, and between two lines of progress."""


@dataclass(frozen=True)
class Files:
    """Where things are, as this call names them."""

    out: Path
    source: Path
    topology: Path | None
    targets: str | None

    @property
    def work(self) -> Path:
        return self.out.with_name(f".{self.out.name}.preprocess")

    def job(self, folder: Path | None = None) -> Job:
        """By the plan in the work folder, or in another that will be it."""
        folder = folder or self.work
        return Job(json.loads((folder / "plan.json").read_text()), folder, self.source, self.topology)


def is_finished(files: Files, plan: dict[str, Any]) -> bool:
    """Whether OUT was made with this plan. Raises ``UserError`` if something else is there."""
    meta = files.out / "meta.json"
    if meta.is_file() and json.loads(meta.read_text()).get("options") == plan:
        return True
    if files.out.exists() and (not files.out.is_dir() or any(files.out.iterdir())):
        raise UserError(f"preprocess: {files.out} exists and was made otherwise; give another --out, or remove it")
    return False


def is_prepared(files: Files, plan: dict[str, Any]) -> bool:
    """Whether work with this plan has begun. Raises ``UserError`` if work with another one has."""
    try:
        begun = json.loads((files.work / "plan.json").read_text())
    except FileNotFoundError:
        return False
    other = [key for key, value in plan.items() if begun.get(key) != value]
    if other:
        raise UserError(
            f"preprocess: {files.work} holds unfinished work with another {' and '.join(other)} ({other[0]} there: "
            f"{begun.get(other[0])}); repeat those options, or remove the folder"
        )
    return True


def wait(files: Files, plan: dict[str, Any]) -> None:
    """For ranks other than 0: until there is something to do, or nothing any more."""
    end = time.monotonic() + WAIT
    while not is_prepared(files, plan) and not is_finished(files, plan):
        if time.monotonic() > end:
            raise UserError(f"preprocess: rank 0 has not prepared {files.work} in {WAIT / 60:.0f} minutes")
        time.sleep(0.2)


def prepare(files: Files, plan: dict[str, Any]) -> None:
    """Make the work folder, by one rename: scan the source, check the options against it, create the arrays."""
    files.out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{files.work.name}.", dir=files.out.parent))
    arrays = made / "arrays"
    try:
        arrays.mkdir()
        (made / "done").mkdir()
        write_json(made / "plan.json", plan)
        trajectories.prepare(files.source, made)
        job = files.job(made)
        np.save(arrays / "atom_types.npy", job.source.types)
        np.save(arrays / "target_index.npy", find_targets(files.targets, job.source))
        needed = sum(job.row_bytes) * len(job.frames)
        if needed > (free := shutil.disk_usage(made).free):
            raise UserError(f"preprocess: {files.out} will need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
        for name, dtype, shape in job.arrays:
            np.lib.format.open_memmap(arrays / name, mode="w+", dtype=dtype, shape=(len(job.frames), *shape)).flush()
        try:
            made.rename(files.work)
        except OSError:  # another call was faster
            if not is_prepared(files, plan):
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def run(files: Files, rank: int, ranks: int, workers: int) -> int:
    """Do this rank's blocks that have no record yet; returns how many frames that were. The first error ends it."""
    job = files.job()
    todo = [block for block in range(rank, job.blocks, ranks) if not job.record(block).exists()]
    total, done, start = sum(len(job.rows(block)) for block in todo), 0, time.monotonic()
    said = start

    def progress(block: int) -> None:
        nonlocal done, said
        done += len(job.rows(block))
        if (now := time.monotonic()) - said > SAY:
            said, rate = now, done / (now - start)
            left = (total - done) / rate / 60
            print(f"rank {rank}: {done:,} of {total:,} frames, {rate:,.1f}/s, {left:.0f} min left", flush=True)

    if workers == 1 or len(todo) < 2:
        for block in todo:
            job.do(block)
            progress(block)
        return done
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), spawn, _start, (files,)) as pool:
        running = {pool.submit(_do, block): block for block in todo}
        try:
            for future in as_completed(running):
                future.result()
                progress(running[future])
        except BrokenProcessPool:
            more = "call again with fewer --workers, what is done is kept"
            raise UserError(f"preprocess: a worker process died (out of memory?); {more}") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return done


def finish(files: Files) -> dict[str, Any] | None:
    """Rename the arrays to OUT if every block is done, and return its meta; None if some are another rank's to do."""
    job = files.job()
    if not all(job.record(block).exists() for block in range(job.blocks)):
        return None
    meta = describe(job)
    write_json(files.work / "arrays" / "meta.json", meta, files.work)
    (files.work / "arrays").rename(files.out)
    tidy(files)
    return meta


def tidy(files: Files) -> None:
    """Remove the work folder, when OUT is there."""
    shutil.rmtree(files.work, ignore_errors=True)


_job: Job | None = None


def _start(files: Files) -> None:
    """A worker begins. It ends with its parent, however that ended."""
    global _job
    end_with_parent()
    _job = files.job()


def _do(block: int) -> None:
    assert _job is not None
    _job.do(block)
