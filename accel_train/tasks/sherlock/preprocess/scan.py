"""What the headers of all files say, compared: TR, lengths, grids. From it follows which TRs there will be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.preprocess import confounds, nifti
from accel_train.tasks.sherlock.preprocess.sources import Clock, Features, Source
from accel_train.tasks.sherlock.preprocess.split import rows_of, split

FAR, FAR_ROWS = 0.1, 0.2
"""A scan and a movie whose lengths differ by a larger share do not have the same TR, and features no row for each."""
MOST_TR_S = 100.0


@dataclass(frozen=True)
class Setup:
    """What is asked, with its files.

    Args:
        runs: names and, where they are given, TRs.
        brains: file of each run of each viewer.
        tr_s: in seconds; None takes that of the headers.
        preshift: TRs by which volumes were moved earlier; only written down.
        test, validation, gap, drop_start: as ``split`` takes them.
        held_out: viewers of whom nothing is used in training.
        mask: image of the voxels to keep at most.
        rois: label image; ``parcels`` averages the voxels of each label.
        confounds: table of each run of each viewer, none if empty; which columns are regressed out of the volumes.
    """

    runs: dict[str, int | None]
    brains: dict[str, dict[str, Path]]
    sources: tuple[Source, ...]
    tr_s: float | None
    preshift: int
    test: tuple[str, ...]
    validation: tuple[str, ...]
    gap: int
    drop_start: int
    held_out: tuple[str, ...]
    mask: Path | None
    rois: Path | None
    parcels: bool
    confounds: dict[str, dict[str, Path]]
    confound_columns: tuple[str, ...] | None


def scan(setup: Setup) -> dict[str, Any]:
    """Plain values: tr_s, trs and trimmed of each run, first (volume of each run of each viewer's file), split, found.

    Raises:
        DataError: files that do not go together. UserError: a split that cannot be.
    """
    headers = {path: nifti.header(path) for each in setup.brains.values() for path in each.values()}
    known = next(iter(headers.values()))
    for path, each in headers.items():
        nifti.refuse_other_grid(known, path, each.grid, each.affine)
    for path in (setup.mask, setup.rois):
        if path is not None:
            nifti.read_labels(path, known)
    tr_s, found = _tr(setup.tr_s, list(headers.values()))
    lengths, first = _lengths(setup, headers)
    if setup.preshift >= min(lengths.values()):
        raise UserError(f"preprocess: --preshift {setup.preshift}: a run has {min(lengths.values())} volumes only")
    trs: dict[str, int] = {}
    trimmed: dict[str, dict[str, int]] = {}
    for run, volumes in lengths.items():
        there = {"fmri": volumes}
        for source in setup.sources:
            if run in source.files and (count := source.length(run, tr_s)) is not None:
                there[source.name] = count
        _refuse_other_tr(run, there, tr_s, setup.tr_s is not None)
        _refuse_other_rate(setup.sources, run, there, tr_s)
        trs[run] = min([*there.values(), setup.runs[run] or volumes])
        trimmed[run] = {name: count - trs[run] for name, count in there.items() if count > trs[run]}
        if trs[run] < 1:
            raise DataError(f"preprocess: run {run} has no TR that all have: {_listed(there)}")
        if trimmed[run]:
            found.append(f"{run}: {trs[run]} TRs are common to all; cut off at the end: {_listed(trimmed[run])}")
        if lacking := [source.name for source in setup.sources if run not in source.files]:
            found.append(f"{run}: has no {', '.join(lacking)}")
    found += _confounds(setup, headers, trs)
    parts = split(trs, setup.test, setup.validation, setup.gap, setup.drop_start)
    clock = clock_of({"tr_s": tr_s, "trs": trs, "split": parts})
    for source in setup.sources:
        found += source.found(clock)
    return {"tr_s": tr_s, "trs": trs, "trimmed": trimmed, "first": first, "split": parts, "found": found}


def clock_of(scanned: dict[str, Any]) -> Clock:
    return Clock(scanned["tr_s"], scanned["trs"], rows_of(scanned["split"]["train"], scanned["trs"]))


def _tr(asked: float | None, headers: Sequence[nifti.Header]) -> tuple[float, list[str]]:
    said: dict[float, Path] = {}
    for each in headers:
        said.setdefault(round(each.tr_s, 4), each.path)
    if asked is not None:
        other = [value for value in said if abs(value - asked) > 1e-3]
        return asked, [f"headers say {_or(other)} s a volume; --tr {asked:g} is taken"] if other else []
    if len(said) > 1:
        files = ", ".join(path.name for path in said.values())
        raise DataError(f"preprocess: headers do not agree on the TR: {_or(said)} s ({files}); give --tr")
    (value,) = said
    if not 0 < value < MOST_TR_S:
        said_of = "no TR" if value <= 0 else f"a TR of {value:g} s, which cannot be"
        raise DataError(f"{headers[0].path}: its header says {said_of}; give --tr")
    return value, []


def _lengths(setup: Setup, headers: dict[Path, nifti.Header]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Volumes of each run, and where it begins in the file of each viewer."""
    runs, lengths, first = setup.runs, dict[str, int](), dict[str, dict[str, int]]()
    whose = dict[str, str]()
    for subject, files in setup.brains.items():
        if len(runs) > 1 and len(set(files.values())) == 1:
            counts, first[subject] = _concatenated(subject, headers[next(iter(files.values()))], runs)
        else:
            counts, first[subject] = (
                {run: headers[path].volumes for run, path in files.items()},
                dict.fromkeys(files, 0),
            )
        for run, count in counts.items():
            asked = runs[run]
            if asked is not None and count < asked:
                raise DataError(f"{files[run]}: {subject} has {count} volumes of {run}, --runs says {asked}; leave the "
                                f"viewer out with --subjects, or give {run}={count} for all")  # fmt: skip
            if asked is None and lengths.get(run, count) != count:
                least = min(count, lengths[run])
                raise DataError(f"{files[run]}: {subject} has {count} volumes of {run}, {whose[run]} has "
                                f"{lengths[run]}; --runs {run}={least} takes the first of all")  # fmt: skip
            lengths[run], whose[run] = min(count, lengths.get(run, count)), subject
    return lengths, first


def _concatenated(
    subject: str, header: nifti.Header, runs: dict[str, int | None]
) -> tuple[dict[str, int], dict[str, int]]:
    counts = {run: count for run, count in runs.items() if count is not None}
    if len(counts) < len(runs):
        raise UserError(f"{header.path}: holds several runs; say how long each is, as in --runs part1=946 part2=1030")
    if sum(counts.values()) != header.volumes:
        raise DataError(f"{header.path}: {subject} has {header.volumes} volumes, --runs add up to "
                        f"{sum(counts.values())} ({_listed(counts)})")  # fmt: skip
    starts = np.cumsum([0, *counts.values()]).tolist()
    return counts, dict(zip(counts, starts, strict=False))


def _confounds(setup: Setup, headers: dict[Path, nifti.Header], trs: dict[str, int]) -> list[str]:
    """What is taken of the tables, which must have a row for each volume, and leave something of them."""
    counts = set[int]()
    for subject, tables in setup.confounds.items():
        for run, path in tables.items():
            names, rows = confounds.read(path, setup.confound_columns)
            scan = setup.brains[subject][run]
            shared = len(setup.runs) > 1 and len(set(setup.brains[subject].values())) == 1
            volumes = setup.runs[run] if shared else headers[scan].volumes
            if len(rows) != volumes:
                raise DataError(
                    f"{path}: has {len(rows)} rows, {subject} has {volumes} volumes of {run} in {scan.name}"
                )
            if len(names) + 2 > trs[run]:
                raise DataError(f"{path}: {len(names)} confounds leave nothing of {trs[run]} volumes; choose fewer by "
                                "--confound_columns")  # fmt: skip
            counts.add(len(names))
    if not counts:
        return []
    columns = ", ".join(setup.confound_columns or confounds.COLUMNS)
    return [f"confounds: {_or(sorted(counts))} columns are regressed out of each run ({columns})"]


def _refuse_other_tr(run: str, there: dict[str, int], tr_s: float, asked: bool) -> None:
    for name, count in there.items():
        if not asked and abs(count / there["fmri"] - 1) > FAR and name in ("video", "audio"):
            seconds = count * tr_s
            raise DataError(f"preprocess: {run}: the scan takes {there['fmri'] * tr_s:.0f} s by its header's TR of "
                            f"{tr_s:g} s, the {name} {seconds:.0f} s; if the header is wrong, give --tr (it would be "
                            f"{seconds / there['fmri']:.3g}), else --tr {tr_s:g} to cut off")  # fmt: skip


def _refuse_other_rate(sources: Sequence[Source], run: str, there: dict[str, int], tr_s: float) -> None:
    """Features that do not say their rate must have a row for each TR."""
    for source in sources:
        if isinstance(source, Features) and run in source.files and source.rate(run) is None:
            rows, volumes = there[source.name], there["fmri"]
            if abs(rows / volumes - 1) > FAR_ROWS:
                raise DataError(f"{source.files[run]}: has {rows} rows, {run} has {volumes} volumes; with a rate, give "
                                f"--feature_rate {source.name}=HZ (it would be {rows / volumes / tr_s:.3g}; "
                                f"{1 / tr_s:.6g} takes a row for each TR, and cuts off)")  # fmt: skip


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _or(values: Any) -> str:
    return " or ".join(f"{value:g}" for value in values)
