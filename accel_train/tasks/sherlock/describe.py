"""``accel-train inspect`` of a preprocessed folder, and of files that are not preprocessed yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.sherlock.data import Prepared, named_stretches

FILE_TYPES = (".nii", ".gz", ".mp4", ".m4v", ".wav", ".xlsx", "fmri_stats.npz", "annotations.xlsx", "*.nii.gz", "*.nii")
"""What ``describe_files`` knows: endings, and files by which a folder is known."""


def describe_files(files: list[str], tr: float | None = None) -> str:
    """The text that ``accel-train inspect`` prints.

    Args:
        files: preprocessed folders; or scans, movies, sounds and annotations, and folders of them.
        tr: seconds of a volume, in place of what headers say.
    """
    parts = []
    for name in files:
        folder = Path(name)
        parts.append(prepared(folder) if (folder / "fmri_stats.npz").is_file() else _raw(folder, tr))
    return "\n".join(parts)


def prepared(folder: Path) -> str:
    """Alignment, coverage, voxels, what was found, and whether viewers share anything."""
    data = Prepared(folder)
    lines = [f"{folder}:", summary(data.manifest), "measured volumes and correlation with the mean of the others (ISC)"]
    for subject in data.subjects:
        isc, measured, trs = _isc(data, subject)
        held_out = ", held out" if subject in data.held_out else ""
        shown = "" if isc is None else (f", ISC median {np.median(isc):.3f}, 95 % of the voxels below "
                                        f"{np.quantile(isc, 0.95):.3f}")  # fmt: skip
        lines.append(f"  {subject:<12} {measured:,} of {trs:,}{shown}{held_out}")
    return "\n".join([*lines, *(f"found: {text}" for text in data.manifest["found"])])


def summary(meta: dict[str, Any]) -> str:
    """What a manifest says, in lines."""
    runs = ", ".join(f"{run['name']} {run['trs']}" for run in meta["runs"])
    shift = f", moved {meta['preshift_trs']} TRs earlier" if meta["preshift_trs"] else ""
    lines = [
        f"  {len(meta['subjects'])} viewers, {meta['voxels']:,} {meta['targets']}, TR {meta['tr_s']:g} s{shift}",
        f"  runs (TRs): {runs}",
    ]
    for name, about in meta["modalities"].items():
        where = [run["name"] for run in meta["runs"] if name in run["modalities"]]
        only = "" if len(where) == len(meta["runs"]) else f", only of {', '.join(where)}"
        shape = " x ".join(map(str, about["shape"]))
        lines.append(f"  {name:<12} {about['kind']}, {about['dtype']} {shape} a TR{only}")
    lines += [f"  {name:<12} {trs:,} TRs: {words}" for name, words, trs in named_stretches(meta)]
    if meta["rois"] is not None and meta["targets"] == "voxels":
        columns = np.array(meta["rois"]["columns"])
        counts = ", ".join(f"{name} {int((columns == int(i)).sum())}" for i, name in meta["rois"]["names"].items())
        lines.append(f"  regions      {counts}")
    return "\n".join(lines)


def _isc(data: Prepared, subject: str) -> tuple[np.ndarray | None, int, int]:
    """[V] correlation over the TRs of all runs with the mean of the other viewers; volumes measured, and all."""
    mine, rest = [], []
    for run in data.runs:
        volumes = data.fmri(subject, run)
        others = [data.fmri(name, run) for name in data.subjects if name != subject]
        there = np.all([data.measured(name, run) for name in data.subjects], 0)
        if others and there.sum() > 2:
            mine.append(_standard(volumes[there]))
            rest.append(_standard(np.mean([other[there] for other in others], 0)))
    trs = sum(data.runs.values())
    measured = sum(int(data.measured(subject, run).sum()) for run in data.runs)
    if not mine:
        return None, measured, trs
    return (np.concatenate(mine) * np.concatenate(rest)).mean(0), measured, trs


def _standard(x: np.ndarray) -> np.ndarray:
    x = x - x.mean(0)
    return x / np.maximum(x.std(0), 1e-12)


# -- what is not preprocessed yet --------------------------------------------------------------------------------------


def _raw(path: Path, tr: float | None) -> str:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    lines = [line for file in files if (line := _line(file, tr)) is not None]
    hint = "accel-train sherlock preprocess makes arrays of it; lengths of a run must agree"
    return "\n".join([f"{path}:", *lines, hint])


def _line(path: Path, tr: float | None) -> str | None:
    """What a file holds; None for others than scans, movies, sounds and tables. What is wrong with it is its line."""
    name, ending = path.name.lower(), path.suffix.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            return f"  {path.name}: {_scan(path, tr)}"
        if ending in (".mp4", ".m4v", ".wav"):
            return f"  {path.name}: {_movie(path, 'audio' if ending == '.wav' else 'video', tr)}"
        if name.startswith("annotations") or ending == ".xlsx":
            return f"  {path.name}: {_table(path)}"
    except UserError as error:
        return f"  WRONG: {error}"
    return None


def _scan(path: Path, tr: float | None) -> str:
    from accel_train.tasks.sherlock.preprocess import nifti

    shape = nifti.shape_of(path)
    if len(shape) == 3:
        return f"one volume, {' x '.join(map(str, shape))} voxels (a mask, labels?)"
    header = nifti.header(path)
    said = tr or header.tr_s
    other = f" (its header says {header.tr_s:g})" if tr and abs(header.tr_s - tr) > 1e-3 else ""
    return (f"{header.volumes:,} volumes of {said:g} s{other} = {header.volumes * said:,.1f} s, "
            f"{' x '.join(map(str, header.grid))} voxels")  # fmt: skip


def _movie(path: Path, kind: str, tr: float | None) -> str:
    from accel_train.tasks.sherlock.preprocess import movie

    seconds = movie.duration_s(path, kind)
    return f"{kind} of {seconds:,.1f} s" + (f" = {seconds / tr:,.2f} TRs" if tr else "")


def _table(path: Path) -> str:
    from accel_train.tasks.sherlock.preprocess import tables

    table = tables.read(path)
    runs = ", ".join(f"{len(rows)} rows to {max((row.end_s for row in rows), default=0):,.1f} s" for rows in table.runs)
    return f"{len(table.runs)} runs: {runs}; {table.zero_length} rows of zero length, {table.without_tr} without a TR"
