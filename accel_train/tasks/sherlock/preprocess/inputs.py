"""Which file is of which run and of which viewer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from accel_train.errors import UserError

NIFTI = (".nii", ".nii.gz")
VIEWER = re.compile(r"(?:^|[_-])(sub-[A-Za-z0-9]+|s\d+)(?=[_.-]|$)")
"""How a name says whose brain it is: sub-03, as in BIDS, or s3."""


def parse_runs(texts: Sequence[str]) -> dict[str, int | None]:
    """NAME or NAME=TRS of each run, in order. Raises ``UserError``."""
    runs: dict[str, int | None] = {}
    for text in texts:
        name, equals, count = text.partition("=")
        if not re.fullmatch(r"\w+", name) or name in runs or (equals and not (count.isdecimal() and int(count))):
            raise UserError(f"preprocess: --runs is NAME or NAME=TRS of each run, each once; not {text!r}")
        runs[name] = int(count) if equals else None
    return runs


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of each. Raises ``UserError``."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            raise UserError(f"preprocess: --{option} is NAME=VALUE, each name once; not {text!r}")
        found[name] = value
    return found


def of_runs(option: str, texts: Sequence[str], runs: Sequence[str], endings: Sequence[str]) -> dict[str, Path]:
    """The file of each run that has one: RUN=FILE, or files and folders in which the name of a file holds that of its
    run; where there is one file and one run, they belong together.

    Raises:
        UserError: a file is not there, belongs to no run, or a run has two.
    """
    found: dict[str, Path] = {}
    loose: list[Path] = []
    for text in texts:
        run, equals, name = text.partition("=")
        if equals and run not in runs and not Path(text).expanduser().exists():
            raise UserError(f"preprocess: --{option} {text}: there is no run {run}; there are {', '.join(runs)}")
        if equals and run in runs:
            if run in found:
                raise UserError(f"preprocess: --{option}: {run} has two files, {found[run]} and {name}")
            found[run] = existing(Path(name), option)
        else:
            loose += _expanded(option, Path(text), endings)
    for path in loose:
        run = next(iter(runs)) if len(runs) == len(loose) == 1 else _run_of(path, runs)
        if run is None:
            raise UserError(f"preprocess: --{option}: {path.name} names none of the runs {', '.join(runs)}; "
                            f"write RUN={path.name}")  # fmt: skip
        if run in found:
            raise UserError(f"preprocess: --{option}: {run} has two files, {found[run]} and {path}")
        found[run] = path
    if texts and not found:
        raise UserError(f"preprocess: --{option}: {' '.join(texts)} holds no {', '.join(endings)} of a run")
    return {run: found[run] for run in runs if run in found}


def brains(texts: Sequence[str], runs: Sequence[str], wanted: Sequence[str] | None) -> dict[str, dict[str, Path]]:
    """The scan of each run of each viewer, in the order of their numbers; the same file where it holds all runs.

    Raises:
        UserError: a viewer or a run of one is missing, or two files are of the same.
    """
    found = _of_viewers("fmri", texts, runs, NIFTI)
    names = sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
    if wanted is not None:
        if missing := [name for name in wanted if name not in found]:
            raise UserError(f"preprocess: --subjects: no file is of {', '.join(missing)}; there are {', '.join(names)}")
        names = list(dict.fromkeys(wanted))
    for name in names:
        if lacking := [run for run in runs if run not in found[name]]:
            raise UserError(f"preprocess: {name} has no file for run {', '.join(lacking)}; leave out the viewer with "
                            "--subjects, or the run")  # fmt: skip
    return {name: {run: found[name][run] for run in runs} for name in names}


def confounds(
    texts: Sequence[str], runs: Sequence[str], viewers: Sequence[str], endings: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """The table of each run of each of these viewers; empty where none is asked for. Raises ``UserError``."""
    if not texts:
        return {}
    found = _of_viewers("confounds", texts, runs, endings)
    for name in viewers:
        if lacking := [run for run in runs if run not in found.get(name, {})]:
            raise UserError(f"preprocess: --confounds: no table is of {name}, {', '.join(lacking)}; there are those of "
                            f"{', '.join(sorted(found))}")  # fmt: skip
    return {name: {run: found[name][run] for run in runs} for name in viewers}


def _of_viewers(
    option: str, texts: Sequence[str], runs: Sequence[str], endings: Sequence[str]
) -> dict[str, dict[str, Path]]:
    """By viewer and run; a file that names no run is of all."""
    found: dict[str, dict[str, Path]] = {}
    for text in texts:
        start, equals, rest = text.partition("=")
        given = start if equals and start in runs else None
        for path in _expanded(option, Path(rest if given else text), endings):
            run = given or _run_of(path, runs)
            mine = found.setdefault(_viewer_of(path, run), {})
            for each in [run] if run else runs:
                if each in mine:
                    raise UserError(f"preprocess: {mine[each].name} and {path.name} are both of {each} of the same "
                                    "viewer; leave one out")  # fmt: skip
                mine[each] = path
    if not found:
        raise UserError(f"preprocess: --{option} {' '.join(texts)}: there is no {' or '.join(endings)}")
    return found


def _expanded(option: str, path: Path, endings: Sequence[str]) -> list[Path]:
    path = path.expanduser()
    if path.is_dir():
        found = (each for each in sorted(path.rglob("*")) if each.name.lower().endswith(tuple(endings)))
        return [each for each in found if each.is_file()]
    return [existing(path, option)]


def existing(path: Path, option: str = "") -> Path:
    """Raises a ``UserError`` unless there is such a file."""
    path = path.expanduser()
    if not path.is_file():
        wrong = "is a folder, a file is needed" if path.is_dir() else "no such file"
        raise UserError(f"preprocess: {f'--{option}: ' if option else ''}{path}: {wrong}")
    return path


def _run_of(path: Path, runs: Sequence[str]) -> str | None:
    """The run whose name stands in that of the file, or of its folder; the longest, as part1 stands in part10."""
    for name in (path.name, path.parent.name):
        if found := [run for run in runs if run.lower() in name.lower()]:
            return max(found, key=len)
    return None


def _viewer_of(path: Path, run: str | None) -> str:
    """What stands in the name of the file, or of its folder; else the name without that of the run."""
    for name in (path.name, path.parent.name):
        if known := VIEWER.search(name):
            return known[1]
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    return re.sub(re.escape(run or ""), "", stem, flags=re.IGNORECASE).strip("_-") or "viewer"
