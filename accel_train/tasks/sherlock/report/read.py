"""Reading what is judged: the prepared folder, and the predictions that ``accel-train evaluate`` wrote."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.features import linear_features
from accel_train.tasks.sherlock.report.case import AVERAGE, EVERYWHERE, Case, Predictions, average

if TYPE_CHECKING:
    from accel_train.tasks.sherlock.data import Prepared

INDEX = "predictions.json"
EVALUATE = "accel-train evaluate RUN --split=test"


# -- the prepared folder ---------------------------------------------------------------------------------------------


def case_of(prepared: Prepared, response: np.ndarray, held_out: Sequence[str] = ()) -> Case:
    """All runs, one after another.

    Args:
        response: of the brain, 0, 1, ... TRs after a stimulus.
        held_out: people who were withheld from training, besides those of the folder.
    """
    train = np.concatenate([np.zeros(trs, bool) for trs in prepared.runs.values()])
    train[rows_of(prepared, "train")] = True
    runs = np.repeat(np.arange(len(prepared.runs)), list(prepared.runs.values()))

    def stimulus(name: str, rows: np.ndarray) -> np.ndarray:
        return _stimulus(prepared, name)[rows]

    statistics = prepared.statistics("stimulus_stats")
    unseen = [person for person in prepared.subjects if person in held_out or person in prepared.held_out]
    return Case(
        prepared.tr_s, prepared.preshift_trs, runs, train, list(prepared.subjects), unseen,
        lambda person: case_fmri(prepared, person, unseen),
        {name: _features(prepared, name, statistics, train) for name in prepared.modalities}, stimulus,
        {name: _mean(name, statistics) for name in prepared.modalities},
        {name: _there(prepared, name) for name in prepared.modalities},
        {EVERYWHERE: np.arange(prepared.voxels), **prepared.rois}, response, _places(prepared),
    )  # fmt: skip


def case_fmri(prepared: Prepared, person: str, held_out: Sequence[str] | None = None) -> np.ndarray:
    """[T, V] of a person, or of ``AVERAGE``: of all that are not held out, by default those of the folder."""
    if person == AVERAGE:
        unseen = prepared.held_out if held_out is None else held_out
        return average(case_fmri(prepared, each) for each in prepared.subjects if each not in unseen)
    return np.concatenate([prepared.fmri(person, run) for run in prepared.runs])


def rows_of(prepared: Prepared, split: str) -> np.ndarray:
    """The rows of a split, int, in order."""
    first = dict(zip(prepared.runs, np.cumsum([0, *prepared.runs.values()]), strict=False))
    parts = [np.arange(a, b) + first[run] for run, a, b in prepared.stretches(split)]
    return np.sort(np.concatenate(parts)) if parts else np.zeros(0, int)


def _stimulus(prepared: Prepared, name: str) -> np.ndarray:
    """[T, ...]; zeros in a run that does not have it."""
    about = prepared.modalities[name]
    return np.concatenate([
        prepared.stimulus(run, name) if prepared.has(run, name) else np.zeros((trs, *about["shape"]), about["dtype"])
        for run, trs in prepared.runs.items()
    ])  # fmt: skip


def _features(prepared: Prepared, name: str, statistics: Mapping[str, np.ndarray], train: np.ndarray) -> np.ndarray:
    codes = statistics[f"{name}_counts"].shape[1] if f"{name}_counts" in statistics else 0
    found = linear_features(_stimulus(prepared, name), prepared.modalities[name]["kind"], codes)
    there = _there(prepared, name)
    found[~there] = found[there & train].mean(0)  # of a run without it nothing is known
    return found


def _there(prepared: Prepared, name: str) -> np.ndarray:
    return np.concatenate([np.full(trs, prepared.has(run, name)) for run, trs in prepared.runs.items()])


def _mean(name: str, statistics: Mapping[str, np.ndarray]) -> np.ndarray:
    """As a TR; of codes the most frequent one of each codebook, for all frames."""
    if f"{name}_counts" in statistics:
        return statistics[f"{name}_counts"].argmax(1)[:, None]
    return statistics[f"{name}_mean"]


def _places(prepared: Prepared) -> np.ndarray | None:
    """int [X, Y, Z], the column of each place on the grid, -1 for none; None without an image, or without nibabel."""
    parcels = prepared.manifest["targets"] == "parcels"
    path = prepared.folder / ("rois.nii.gz" if parcels else "mask.nii.gz")
    if not path.is_file() or importlib.util.find_spec("nibabel") is None:
        return None
    from accel_train.tasks.sherlock.preprocess import nifti

    labels = nifti.grid_of(path)
    found = np.full(labels.shape, -1)
    if parcels:
        for column, label in enumerate(prepared.manifest["rois"]["columns"]):
            found[labels == label] = column
    elif (labels > 0).sum() != prepared.voxels:
        raise DataError(f"{path}: has {(labels > 0).sum()} voxels, meta.json says {prepared.voxels}; preprocess again")
    else:
        found[labels > 0] = np.arange(prepared.voxels)
    return found


# -- predictions -----------------------------------------------------------------------------------------------------


class ByPerson(Mapping[str, np.ndarray]):
    """[n, V] of each person from one file, read when it is asked for; NaN where nothing was predicted."""

    def __init__(self, array: np.ndarray, items: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], rows: int):
        self._array, self._items, self._rows = array, items, rows

    def __getitem__(self, person: str) -> np.ndarray:
        item, place, row = self._items[person]
        found = np.full((self._rows, *self._array.shape[2:]), np.nan, np.float32)
        found[row] = self._array[item, place]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


def predictions_of(folder: Path, prepared: Prepared, split: str | None = None) -> Predictions:
    """Of a folder that has what ``outputs`` of the task gives, as far as it is there.

    Args:
        split: the one that it must be of.

    Raises:
        UserError: there are none. DataError: they do not fit the prepared folder.
    """
    index = folder / INDEX
    if not index.is_file():
        raise UserError(f"report: no predictions in {folder}; {EVALUATE} makes them")
    about = json.loads(index.read_text())
    if split is not None and about.get("split") != split:
        raise UserError(f"report: {folder} is of the {about.get('split')} split, not of {split}")
    try:
        items, rows = _items(about, prepared)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{index}: does not say which TRs of {prepared.folder} the rows are of ({error!r})") from None
    names = list(prepared.modalities)
    shape = len(about["rows"]["tr"]), int(about["window_trs"])
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}

    def people(name: str) -> ByPerson:
        return ByPerson(_open(files[name], (*shape, prepared.voxels)), items, len(rows))

    def of_first(name: str, one: tuple[int, ...]) -> np.ndarray:
        return next(iter(ByPerson(_open(files[name], (*shape, *one)), items, len(rows)).values()))

    if "fmri" not in files:
        raise UserError(f"report: no fmri.npy in {folder}; {EVALUATE} makes it")
    without = {name: people(f"fmri_without_{name}") for name in names if f"fmri_without_{name}" in files}
    made = {name: of_first(name, tuple(prepared.modalities[name]["shape"])) for name in names if name in files}
    lesioned: dict[str, dict[str, np.ndarray]] = {}
    for roi in prepared.rois:
        of_roi = {n: of_first(f"{n}_lesion_{roi}", ()) for n in names if f"{n}_lesion_{roi}" in files}
        lesioned |= {roi: of_roi} if of_roi else {}
    missing = [
        f"no {what}: there is no {file} among the predictions"
        for what, there, file in (
            ("ablation of modalities", without or len(names) < 2, "fmri_without_MODALITY.npy"),
            ("reconstructions", made, "MODALITY.npy"),
            ("lesions", lesioned, "MODALITY_lesion_REGION.npy (bottleneck: voxels)"),
        )
        if not there
    ]
    known = {name: str(about[name]) for name in ("split", "weights") if name in about}
    held_out = list(about.get("held_out_subjects", prepared.held_out))
    return Predictions(rows, people("fmri"), without, made, lesioned, missing, known, held_out)


def _items(
    about: Mapping[str, Any], prepared: Prepared
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]], np.ndarray]:
    """For each person, the item, the place in it and the number of the row of each TR; and the rows."""
    rows = rows_of(prepared, about["split"])
    first = np.cumsum([0, *(prepared.runs[run] for run in about["runs"])])[:-1]
    start = first[np.array(about["rows"]["run"], int)] + np.array(about["rows"]["tr"], int)
    trs = start[:, None] + np.arange(int(about["window_trs"]))
    number = np.searchsorted(rows, trs).clip(max=len(rows) - 1)
    inside = rows[number] == trs  # a window may go beyond its stretch
    subject = np.array(about["rows"]["subject"], int)
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for each in dict.fromkeys(subject.tolist()):
        item, place = np.nonzero(inside & (subject == each)[:, None])
        found[about["subjects"][each] if each >= 0 else AVERAGE] = item, place, number[item, place]
    return found, rows


def _open(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); evaluate again") from None
    if array.shape != shape:
        raise DataError(f"{path}: has shape {array.shape}, the prepared data and {INDEX} say {shape}; evaluate again")
    return array
