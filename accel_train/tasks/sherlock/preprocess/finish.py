"""When all units are there: the voxels that all viewers have, their statistics, and the manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.data.units import plain_hash
from accel_train.errors import DataError
from accel_train.tasks.sherlock.data import VERSION, array_hash
from accel_train.tasks.sherlock.preprocess import nifti
from accel_train.tasks.sherlock.preprocess.job import Pieces
from accel_train.tasks.sherlock.preprocess.split import rows_of

SAME_TRS, SAME_PIXELS = 5, 2.0
"""Runs that begin with so many TRs of the same frames, up to a mean difference of so much of 255, share them."""
OFFSET = 0.5
"""A run whose mean is, in the median over voxels, further than so many deviations from that of training is told of."""


class Job(Pieces):
    """The work as each process opens it."""

    def merge(self, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        return describe(self, records, folder)


def describe(job: Pieces, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Write to ``folder`` what needs all units, and return what meta.json says besides the options.

    Raises:
        DataError: no voxel is left, or a viewer has no volume for training.
    """
    header = nifti.header(next(iter(next(iter(job.setup.brains.values())).values())))
    places, found = _mask(job, header, records)
    labels, names, chosen = _labels(job, header, places)
    sums, more = _write_brains(job, folder, places, chosen)
    mask = np.zeros(int(np.prod(header.grid)), np.uint8)
    mask[places] = 1
    nifti.write(folder / "mask.nii.gz", mask, header)
    if job.setup.rois is not None:
        labels_there = nifti.read_labels(job.setup.rois, header).astype(np.int32)
        nifti.write(folder / "rois.nii.gz", labels_there, header)
    modalities = {r["modality"]: {k: r[k] for k in ("kind", "shape", "dtype")} for r in records if "modality" in r}
    _refuse_other_shapes(records)
    np.savez(folder / "stimulus_stats.npz", **_stimulus_stats(job, modalities))
    content = {
        "version": VERSION,
        "tr_s": job.clock.tr_s,
        "preshift_trs": job.setup.preshift,
        "runs": [{"name": run, "trs": count, "trimmed": job.scan["trimmed"][run],
                  "modalities": [s.name for s in job.setup.sources if run in s.files]}
                 for run, count in job.clock.trs.items()],
        "modalities": modalities,
        "subjects": list(job.setup.brains),
        "held_out_subjects": list(job.setup.held_out),
        "voxels": len(labels),
        "targets": "parcels" if job.setup.parcels else "voxels",
        "rois": {"columns": labels.tolist(), "names": names} if job.setup.rois is not None else None,
        "missing": {name: {run: job.missing(name, run) for run in job.setup.runs} for name in job.setup.brains},
        "split": job.scan["split"],
        **sums,
        "files": {
            "fmri": _names(job.setup.brains),
            "confounds": _names(job.setup.confounds),
            "stimulus": _names({source.name: source.files for source in job.setup.sources}),
        },
        "found": [*job.scan["found"], *found, *more, *_shared_beginnings(job)],
    }  # fmt: skip
    hashes = [record["hash"] for record in records if "hash" in record]
    return {**content, "hash": plain_hash([content, hashes])}


# -- voxels ----------------------------------------------------------------------------------------------------------


def _mask(job: Pieces, header: nifti.Header, records: list[dict[str, Any]]) -> tuple[np.ndarray, list[str]]:
    """Places on the grid, ascending, that are finite in every volume of every viewer of training and change in the TRs
    for training; and what was found on the way."""
    volumes = [record for record in records if "subject" in record]
    found = [f"{r['subject']}, {r['run']}: the last {r['tail']} volumes are equal, and count as missing"
             for r in volumes if r["tail"]]  # fmt: skip
    found += [f"{r['subject']}, {r['run']}: {r['empty']} volumes hold no number, and count as missing"
              for r in volumes if r["empty"]]  # fmt: skip
    good = {subject: _good(job, subject) for subject in job.setup.brains}
    training = [subject for subject in good if subject not in job.setup.held_out]
    for subject in training:
        if not good[subject].any():
            raise DataError(f"{subject}: no voxel is finite and changes in the TRs for training; leave it out with "
                            "--subjects")  # fmt: skip
    allowed = np.ones(int(np.prod(header.grid)), bool)
    if job.setup.mask is not None:
        allowed &= nifti.read_labels(job.setup.mask, header) > 0
    if job.setup.parcels and job.setup.rois is not None:
        allowed &= nifti.read_labels(job.setup.rois, header) > 0
    some = allowed & np.any([good[subject] for subject in training], 0)
    kept = allowed & np.all([good[subject] for subject in training], 0)
    if not kept.any():
        counts = ", ".join(f"{subject} {int((good[subject] & allowed).sum())}" for subject in training)
        raise DataError(f"preprocess: no voxel is good in all viewers; each has: {counts}. Are all in one space?")
    for subject in good:
        bad = (some if subject in training else kept) & ~good[subject]
        if bad.any():
            ends = "left out for all" if subject in training else "0 for this held-out viewer"
            found.append(f"{subject}: {int(bad.sum())} voxels are not finite or do not change; {ends}")
    if lost := int((some & ~kept).sum()):
        found.append(f"{int(kept.sum())} voxels are kept, {lost} that some viewers lack are left out")
    return np.flatnonzero(kept), found


def _good(job: Pieces, subject: str) -> np.ndarray:
    raws = [job.open_raw(subject, run) for run in job.setup.runs]
    good = np.all([raw.changes for raw in raws], 0)
    for raw in raws:
        if not raw.missing.all():
            good &= np.isfinite(raw.still)
    train = sum(int((job.clock.train[run] & ~raw.missing).sum()) for run, raw in zip(job.setup.runs, raws, strict=True))
    if train < 2:
        raise DataError(f"{subject}: has {train} volumes in the TRs for training (equal ones at the end count as "
                        "missing, and those without a number); leave it out with --subjects")  # fmt: skip
    return good


def _labels(
    job: Pieces, header: nifti.Header, places: np.ndarray
) -> tuple[np.ndarray, dict[str, str], np.ndarray | None]:
    """Label of each column, names of the labels; and for parcels [voxels, parcels], what each takes of each voxel."""
    if job.setup.rois is None:
        return np.zeros(len(places), np.int64), {}, None
    labels = nifti.read_labels(job.setup.rois, header)[places]
    there = np.unique(labels[labels > 0])
    if not len(there):
        raise DataError(f"{job.setup.rois}: no label lies where there are voxels; is it in the same space?")
    said = roi_names(job.setup.rois)
    names = {str(label): said.get(int(label), f"roi {label}") for label in there.tolist()}
    if not job.setup.parcels:
        return labels, names, None
    shares = (labels[:, None] == there).astype(np.float64)
    return there, names, shares / shares.sum(0)


def roi_names(image: Path) -> dict[int, str]:
    """What the .tsv beside a label image (same name, columns index and name, as in BIDS) calls its labels."""
    table = image.with_name(image.name.removesuffix(".gz").removesuffix(".nii") + ".tsv")
    if not table.is_file():
        return {}
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        return {int(row["index"]): row["name"] for row in rows}
    except (KeyError, ValueError, TypeError):
        raise DataError(f"{table}: must have the columns index and name, with whole numbers as index") from None


def _write_brains(
    job: Pieces, folder: Path, places: np.ndarray, chosen: np.ndarray | None
) -> tuple[dict[str, Any], list[str]]:
    """fmri/ and fmri_stats.npz, a viewer at a time; returns variances and hashes, and what was found."""
    means, deviations, hashes, found = [], [], dict[str, str](), list[str]()
    total: dict[str, list[np.ndarray]] = {}
    for subject in job.setup.brains:
        (own := folder / "fmri" / subject).mkdir(parents=True)
        runs = {run: _columns(job, subject, run, places, chosen) for run in job.setup.runs}
        mean, std = _mean_and_std([values[job.clock.train[run] & ~gone] for run, (values, gone) in runs.items()])
        means.append(mean)
        deviations.append(std)
        for run, (values, missing) in runs.items():
            z = np.nan_to_num((values - mean.astype(np.float32)) / std.astype(np.float32))
            if not missing.all() and (off := float(np.median(np.abs(z[~missing].mean(0))))) > OFFSET:
                found.append(f"{subject}, {run}: its mean is {off:.1f} deviations from that of the TRs for training "
                             "(median over voxels); normalise each run before")  # fmt: skip
            z[missing] = np.nan
            np.save(own / f"{run}.npy", z)
            hashes[f"{subject}/{run}"] = array_hash(z)
            if subject not in job.setup.held_out:
                _add(total, run, z)
    np.savez(folder / "fmri_stats.npz", mean=np.stack(means), std=np.stack(deviations))
    return {
        "fmri_variance": {"per_subject": 1.0, "average": _variance_of_mean(job, total)},
        "fmri_hashes": hashes,
    }, found


def _mean_and_std(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float64 [V] of the rows of all parts, a row at a time, as there may be gigabytes of them. Where there is no mean,
    it is 0, and where nothing changes, the deviation is 1."""
    count, mean = sum(map(len, parts)), np.sum([part.sum(0, dtype=np.float64) for part in parts], 0)
    mean /= count
    squares = np.zeros_like(mean)
    for part in parts:
        for row in part:
            squares += (row - mean) ** 2
    std = np.sqrt(np.nan_to_num(squares / count))
    return np.nan_to_num(mean), np.where(std > 0, std, 1.0)


def _columns(
    job: Pieces, subject: str, run: str, places: np.ndarray, chosen: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    raw = job.open_raw(subject, run)
    values = raw.columns(places)
    return values if chosen is None else (values @ chosen).astype(np.float32), raw.missing


def _add(total: dict[str, list[np.ndarray]], run: str, z: np.ndarray) -> None:
    there = ~np.isnan(z[:, :1])
    total.setdefault(run, [np.zeros(z.shape, np.float32), np.zeros((len(z), 1), np.float32)])
    total[run][0] += np.where(there, z, 0)
    total[run][1] += there


def _variance_of_mean(job: Pieces, total: dict[str, list[np.ndarray]]) -> float:
    """Mean square of the mean over viewers in the TRs for training."""
    rows = np.concatenate([
        (values / np.maximum(counts, 1))[job.clock.train[run] & (counts[:, 0] > 0)]
        for run, (values, counts) in total.items()
    ])  # fmt: skip
    return float(np.square(rows, dtype=np.float64).mean())


# -- stimulus --------------------------------------------------------------------------------------------------------


def _refuse_other_shapes(records: Sequence[dict[str, Any]]) -> None:
    first: dict[str, dict[str, Any]] = {}
    for record in records:
        if "modality" in record:
            known = first.setdefault(record["modality"], record)
            if (known["shape"], known["dtype"]) != (record["shape"], record["dtype"]):
                raise DataError(f"{record['modality']}: {record['run']} has {record['dtype']} {record['shape']} a TR, "
                                f"{known['run']} has {known['dtype']} {known['shape']}")  # fmt: skip


def _stimulus_stats(job: Pieces, modalities: dict[str, Any]) -> dict[str, Any]:
    """NAME_mean float64 [of one TR] and NAME_var, a number: the mean square of what differs from it; of codes
    NAME_counts int64 [codebooks, codes]. Over the TRs for training."""
    stats: dict[str, Any] = {}
    for name, about in modalities.items():
        parts = list(_training_rows(job, name))
        if not parts:
            raise DataError(f"{name}: no run with TRs for training has it")
        if about["kind"] == "codes":
            # as many as there are anywhere: one that comes in a test alone is possible, too
            books, codes = about["shape"][0], 1 + max(int(array.max()) for array in _arrays(job, name).values())
            stats[f"{name}_counts"] = np.array([
                np.sum([np.bincount(part[:, book].ravel(), minlength=codes) for part in parts], 0)
                for book in range(books)
            ])  # fmt: skip
            continue
        count = sum(map(len, parts))
        mean = np.sum([part.sum(0, dtype=np.float64) for part in parts], 0) / count
        squares = np.sum([((row - mean) ** 2).sum() for part in parts for row in part])
        if squares == 0:
            (files,) = (source.files for source in job.setup.sources if source.name == name)
            raise DataError(f"{name}: never changes in the TRs for training; is it right? It is from "
                            f"{', '.join(sorted({path.name for path in files.values()}))}")  # fmt: skip
        stats |= {f"{name}_mean": mean, f"{name}_var": np.float64(squares / (count * mean.size))}
    return stats


def _training_rows(job: Pieces, name: str) -> Iterator[np.ndarray]:
    arrays = _arrays(job, name)
    for each in job.scan["split"]["train"]:
        if each["run"] in arrays:
            yield arrays[each["run"]][each["first"] : each["last"]]


def _arrays(job: Pieces, name: str) -> dict[str, np.ndarray]:
    """Mapped, by run."""
    runs = [run for source, run in job.stimuli.values() if source.name == name]
    return {run: np.load(job.content / "stimulus" / run / f"{name}.npy", mmap_mode="r") for run in runs}


def _shared_beginnings(job: Pieces) -> list[str]:
    """Runs that begin with the same frames: what is in training and in a test alike is no test."""
    frames = [source for source in job.setup.sources if source.kind == "frames"]
    held_out = rows_of([*job.scan["split"]["validation"], *job.scan["split"]["test"]], job.clock.trs)
    found = []
    for source in frames:
        arrays = {run: np.load(job.content / "stimulus" / run / f"{source.name}.npy", mmap_mode="r")
                  for run in source.files}  # fmt: skip
        for a, b in combinations(arrays, 2):
            same = 0
            while same < min(len(arrays[a]), len(arrays[b])) and (
                np.abs(arrays[a][same].astype(float) - arrays[b][same]).mean() < SAME_PIXELS
            ):
                same += 1
            if same < SAME_TRS:
                continue
            leaks = any((job.clock.train[x][:same] & held_out[y][:same]).any() for x, y in ((a, b), (b, a)))
            ends = f", trained on and held out alike: --drop_start {same} leaves them out" if leaks else ""
            found.append(f"{a} and {b} begin with the same {same} TRs of {source.name}{ends}")
    return found


# -- files -----------------------------------------------------------------------------------------------------------


def _names(files: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, str]]:
    return {whose: {run: path.name for run, path in each.items()} for whose, each in files.items()}
