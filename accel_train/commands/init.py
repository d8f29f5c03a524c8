"""accel-train init: example configs and launch files, copied to where you work.

FOLDER/examples has configs of each task (NAME_small.yaml runs on a CPU in minutes), a notebook and a script for SLURM;
FOLDER/accelerate_configs has what ``accelerate launch`` reads. A file that is there stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from accel_train.command import Parser
from accel_train.errors import UserError, suggest
from accel_train.registry import TASKS
from accel_train.system.writing import refuse_unwritable, writing

ALL = "all"
PLACES = ("examples", "accelerate_configs")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("task", nargs="?", default=ALL, help="only the examples of this task; default: all")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="where to; default: here")


def run(options: argparse.Namespace) -> int:
    if options.task not in (ALL, *TASKS):
        raise UserError(f"init: no task {options.task!r}{suggest(options.task, TASKS)}; there are {', '.join(TASKS)}, "
                        f"or all; a folder comes second: accel-train init all {options.task}")  # fmt: skip
    refuse_unwritable("init", options.folder)
    for source, target in _files(options.task, options.folder):
        print(f"  {_copied(source, target):<10}  {target}")
    print(f"\nnext{'' if options.folder == Path() else f', in {options.folder}'}:")
    print(*_next_lines(options.task if options.task != ALL else next(iter(TASKS))), sep="\n")
    if options.task == ALL:
        print("the first lines of every other file say how it is used")
    return 0


def shipped() -> Path:
    """The folder with the files to copy: in the package, as a wheel installs it, or else the clone."""
    package = Path(__file__).parents[1]
    return next(place for place in (package / "shipped", package.parent) if (place / PLACES[0]).is_dir())


def _files(task: str, folder: Path) -> Iterator[tuple[Path, Path]]:
    """(what is copied, where to): files in whose name no other task stands."""
    for place in PLACES:
        for path in sorted((shipped() / place).iterdir()):
            if path.is_file() and (task == ALL or _task_of(path.name) in ("", task)):
                yield path, folder / place / path.name


def _task_of(name: str) -> str:
    """The longest name of a task that stands in the name of a file, or none."""
    return max((task for task in TASKS if re.search(rf"(?:^|[_.]){task}[_.]", name)), key=len, default="")


def _copied(source: Path, target: Path) -> str:
    """Says what was done; a file that is there is never replaced."""
    if os.path.lexists(target):
        same = target.is_file() and target.read_bytes() == source.read_bytes()
        return "there" if same else "yours, kept"
    with writing("init", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return "copied"


def _next_lines(task: str) -> list[str]:
    """The commands in the head of the small example."""
    head = (shipped() / "examples" / f"{task}_small.yaml").read_text().partition("\ntask:")[0]
    return [line.removeprefix("#") for line in head.splitlines() if line.startswith("#   ")]
