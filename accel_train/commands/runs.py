"""accel-train runs: what several runs are together. ``table`` shows them side by side (``runs_table.py``); ``merge``
puts the logs of chosen ones in one directory, so that TensorBoard shows these and no others; ``spread`` says how far
their metrics lie apart (``spread.py``)."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from accel_train.command import Parser, program
from accel_train.commands.runs_table import as_csv, as_text, rows_of
from accel_train.commands.spread import spread, table
from accel_train.errors import DataError, UserError
from accel_train.system.writing import writing

EVENTS = "*tfevents*"
TIME, TIME_AS = "%Y%m%d-%H%M%S", "YYYYMMDD-HHMMSS"
MARK = ".merged_from"
"""A file in a copied log directory: where that came from, and that it was made here."""

Mode = Literal["symlink", "copy"]


def add_arguments(parser: Parser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    about = "Settings that differ, state, and the metrics of the best evaluation in training; the best run first."
    showing = actions.add_parser("table", help="what differs between runs, and their best metrics", description=about)
    showing.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="where they are; default: runs")
    showing.add_argument("--metrics", nargs="+", metavar="NAME", default=[], help="shown beside the deciding one")
    showing.add_argument("--csv", action="store_true", help="as CSV, with all metrics")
    about = "What is there stays; repeat it to take in what is new."
    merging = actions.add_parser("merge", help="gather the TensorBoard logs of runs in a directory", description=about)
    merging.add_argument("--dst", type=Path, required=True, help="the directory to fill")
    merging.add_argument("--src-root", type=Path, required=True, help="where the runs are, at any depth")
    merging.add_argument(
        "--mode", choices=["symlink", "copy"], default="symlink", help="default: symlink, which is live"
    )
    merging.add_argument("--since", metavar=TIME_AS, help="only runs that started then or later (local time)")
    merging.add_argument("--match", metavar="REGEX", help="only runs in whose name this is found")
    merging.add_argument("--glob", metavar="PATTERN", help="only runs whose name fits this")
    about = "Of evaluation/evaluation.json where every run has one, else of the last evaluation in training."
    spreading = actions.add_parser("spread", help="mean and spread of the metrics of several runs", description=about)
    spreading.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a completed run")
    spreading.add_argument("--details", action="store_true", help="metrics with a slash in their names, too")


def run(options: argparse.Namespace) -> int:
    if options.action == "spread":
        print(table(spread(options.runs), options.details))
        return 0
    if options.action == "table":
        rows = rows_of(options.folder)
        print(as_csv(rows) if options.csv else as_text(rows, options.metrics) + "\n", end="")
        return 0
    with writing("--dst", options.dst):
        done = merge(options.dst, options.src_root, options.mode, options.since, options.match, options.glob)
    width = max(len(each.log.name) for each in done)
    for each in done:
        print(f"{each.log.name:<{width}}  started {each.log.started:%Y-%m-%d %H:%M:%S}  {each.action}")
    print(f"{program('tensorboard')} --logdir {shlex.quote(str(options.dst))}")
    return 0


@dataclass(frozen=True)
class Log:
    """A log directory of one run.

    Args:
        name: its path below the source root, of ``NAME/tensorboard`` only ``NAME``.
        path: where its event files are, at the top or deeper.
        started: local time.
    """

    name: str
    path: Path
    started: datetime


@dataclass(frozen=True)
class Merged:
    """What was done about one run. ``action``: "linked", "unchanged", or how many files were copied."""

    log: Log
    action: str


def merge(
    dst: Path,
    src_root: Path,
    mode: Mode = "symlink",
    since: str | None = None,
    match: str | None = None,
    glob: str | None = None,
) -> list[Merged]:
    """Put the chosen runs of ``src_root`` into ``dst``, by name. What is there stays; repeating it adds what is new.

    Args:
        mode: "symlink" follows a run that goes on; "copy" holds the event files as they are now.
        since: only runs that started at this local time or later, as ``YYYYMMDD-HHMMSS``.
        match: only runs in whose name this regular expression is found.
        glob: only runs whose name fits this pattern.

    Raises:
        UserError: an argument is wrong, no run is left, or something that was not made here is in the way. Nothing has
            been written then.
    """
    chosen = select(find(src_root, dst), since, match, glob)
    if not chosen:
        raise UserError(f"no run under {src_root} fits what was asked for")
    fresh = {log.name for log in chosen if not _is_made(dst, log, mode)}
    try:
        return [Merged(log, _make(dst / log.name, log.path.resolve(), mode, log.name in fresh)) for log in chosen]
    except OSError as error:  # a full disk, or one that knows no links
        raise UserError(f"--mode {mode}: {error.filename2 or error.filename or dst}: {error.strerror}") from None


def find(root: Path, without: Path | None = None) -> list[Log]:
    """Every log directory below ``root``, by name: run folders (``NAME/tensorboard``) and plain ones."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if _events(root) is not None:
        raise UserError(f"{root}: this is the log of one run; give the folder above it")
    logs = [Log(path.relative_to(root).as_posix(), events, _started(path, events))
            for path, events in _walk(root, without and without.resolve())]  # fmt: skip
    if not logs:
        raise UserError(f"{root}: no TensorBoard files below it")
    return sorted(logs, key=lambda log: log.name)


def select(logs: list[Log], since: str | None, match: str | None, glob: str | None) -> list[Log]:
    """The logs that fit every condition that is given."""
    if since is not None:
        try:
            begin = datetime.strptime(since, TIME)
        except ValueError:
            raise UserError(f"--since: {since!r} is not a time; write {TIME_AS}") from None
        logs = [log for log in logs if log.started >= begin]
    if match is not None:
        try:
            pattern = re.compile(match)
        except re.error as error:
            raise UserError(f"--match: {match!r} is not a regular expression: {error}") from None
        logs = [log for log in logs if pattern.search(log.name)]
    return logs if glob is None else [log for log in logs if fnmatchcase(log.name, glob)]


# -- finding ---------------------------------------------------------------------------------------------------------


def _walk(folder: Path, without: Path | None) -> Iterator[tuple[Path, Path]]:
    """(run, its log directory); what lies inside of a run belongs to it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir() or path.resolve() == without:
            continue
        if (events := _events(path)) is not None:
            yield path, events
        elif not path.is_symlink():  # which may lead back here
            yield from _walk(path, without)


def _events(run: Path) -> Path | None:
    """The log directory of this run, if it is one."""
    if next((run / "tensorboard").rglob(EVENTS), None) is not None:
        return run / "tensorboard"
    return run if next(run.glob(EVENTS), None) is not None else None


def _started(run: Path, events: Path) -> datetime:
    """The time in the run folder; else that in its name, if it begins with one; else when the first event file was
    written."""
    about = run / "environment.json"
    if about.is_file():
        try:
            started = json.loads(about.read_text()).get("started")
            if started is not None:
                return datetime.fromisoformat(started).astimezone().replace(tzinfo=None)
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{about} is damaged: {error}") from None
    if found := re.match(r"\d{8}-\d{6}(?!\d)", run.name):
        with contextlib.suppress(ValueError):  # digits that are no time
            return datetime.strptime(found[0], TIME)
    first = min(events.rglob(EVENTS), key=lambda file: file.name)  # their names begin with the time
    return datetime.fromtimestamp(first.stat().st_mtime)


# -- making ----------------------------------------------------------------------------------------------------------


def _is_made(dst: Path, log: Log, mode: Mode) -> bool:
    """Whether this very run is in ``dst`` already."""
    target, source = dst / log.name, str(log.path.resolve())
    for parent in target.parents:
        if parent.is_relative_to(dst) and parent.exists() and not parent.is_dir():
            raise UserError(f"{parent} is in the way: it is a file")
        if parent != dst and parent.is_relative_to(dst) and parent.is_symlink():
            raise UserError(f"{target}: {parent.name} there is a link to another run; choose another --dst")
    if not os.path.lexists(target):
        return False
    origin = None
    if target.is_symlink():
        origin = "symlink", os.readlink(target)
    elif (target / MARK).is_file():
        origin = "copy", (target / MARK).read_text()
    if origin == (mode, source):
        return True
    what = "was not made by this command" if origin is None else f"is a {origin[0]} of {origin[1]}"
    raise UserError(f"{target} is in the way: it {what}; remove it or choose another --dst")


def _make(target: Path, source: Path, mode: Mode, fresh: bool) -> str:
    if mode == "symlink":
        if fresh:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source, target_is_directory=True)
        return "linked" if fresh else "unchanged"
    if fresh:
        target.mkdir(parents=True, exist_ok=True)
        (target / MARK).write_text(str(source))
    changed = [file for file in sorted(source.rglob(EVENTS)) if _differs(file, target / file.relative_to(source))]
    for file in changed:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    return f"{len(changed)} file{'s' * (len(changed) != 1)} copied" if changed else "unchanged"


def _differs(file: Path, copy: Path) -> bool:
    old, new = (path.stat() if path.exists() else None for path in (copy, file))
    return old is None or new is None or (old.st_mtime_ns, old.st_size) != (new.st_mtime_ns, new.st_size)
