"""What the commands that preprocess share: --workers and --shard, and a folder that they have made, opened."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accel_train.command import Parser
from accel_train.data.work_folder import WorkFolder
from accel_train.errors import DataError, UserError, relative_to
from accel_train.system import process
from accel_train.system.writing import refuse_unwritable, writing

ARRAY = "SLURM_ARRAY_TASK_"


def add_sharing(parser: Parser) -> None:
    parser.add_argument("--workers", type=int, default=1, help="processes (of each rank; default 1)")
    parser.add_argument("--shard", metavar="I/N", help="do part I of N, from 0 (default: in a SLURM array the part of "
                        "this job, else all, 0/1)")  # fmt: skip


def run(
    work: WorkFolder,
    options: argparse.Namespace,
    summary: Callable[[dict[str, Any]], str],
    remarks: Callable[[dict[str, Any]], list[str]],
) -> int:
    """Do what ``--workers`` processes can; print a summary of meta.json if OUT is finished, and remarks to stderr."""
    if options.workers < 1:
        raise UserError(f"{work.command}: --workers must be 1 or more")
    refuse_unwritable("--out", work.out.parent)
    with writing("--out", work.folder):
        finished = work.complete(options.workers)
    if finished is not None:
        print(
            f"{options.out}: {finished.items:,} {work.what} here in {finished.seconds:,.1f} s\n{summary(finished.meta)}"
        )
        for text in remarks(finished.meta):
            print(text, file=sys.stderr)
    return 0


def shard_of(asked: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which of how many parts: as ``--shard`` says, else a SLURM array, and a line says so. Raises ``UserError``."""
    if asked is not None:
        index, slash, count = asked.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"--shard is I/N with I from 0 to N - 1, as in 0/8; not {asked!r}")
        return int(index), int(count)
    if f"{ARRAY}ID" not in environment:
        return 0, 1
    try:
        number, count, first, last = (int(environment[f"{ARRAY}{name}"]) for name in ("ID", "COUNT", "MIN", "MAX"))
        step = (last - first) // max(count - 1, 1) or 1
        if first + (count - 1) * step != last or (number - first) % step or not first <= number <= last:
            raise ValueError
    except (KeyError, ValueError):
        said = ", ".join(f"{name}={value}" for name, value in sorted(environment.items()) if name.startswith(ARRAY))
        raise UserError(
            f"the numbers of this SLURM array have gaps ({said}), so give --shard=I/N; 0/1 does all"
        ) from None
    index = (number - first) // step
    if count > 1 and process.rank() == 0:
        print(f"SLURM array: part {index} of {count} (--shard=0/1 does all)")
    return index, count


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
