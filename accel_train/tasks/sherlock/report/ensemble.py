"""``accel-train sherlock ensemble``: the predictions of several runs as one, each voxel with weights of its own.

The weights are chosen on the validation, so each run needs its predictions of both splits:

    accel-train evaluate RUN --split=validation --out=RUN/validation
    accel-train evaluate RUN --split=test

OUT then holds predictions, which ``accel-train sherlock report OUT --data=FOLDER`` judges, and weights.npz.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.command import Parser
from accel_train.errors import DataError, UserError
from accel_train.system.writing import refuse_unwritable, writing

if TYPE_CHECKING:
    from accel_train.tasks.sherlock.data import Prepared

CHUNK = 64  # items at once


def add_arguments(parser: Parser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, at least 2")
    parser.add_argument("--data", type=Path, help="the prepared folder (default: that of the first run)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the predictions")


def run(options: argparse.Namespace) -> int:
    from accel_train.run.folder import write_json
    from accel_train.tasks.sherlock.data import Prepared
    from accel_train.tasks.sherlock.report.command import data_of, folder_of

    folders = [folder_of(each) for each in options.runs]
    refuse_unwritable("--out", options.out)
    prepared = Prepared(options.data or data_of(options.runs[0]))
    weights = weights_of([each / "validation" / "predictions" for each in options.runs], prepared)
    about = _same_rows(folders)
    out = options.out / "predictions"
    with writing("--out", options.out):
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "fmri.npy", folders, weights)
        np.savez_compressed(options.out / "weights.npz", weights=weights, runs=np.array([str(r) for r in options.runs]))
        write_json(out / "predictions.json", {**about, "weights": f"ensemble of {len(folders)} runs"})
    for each, mean in zip(options.runs, weights.mean(1), strict=True):
        print(f"  {mean:6.1%}  {each}")
    print(f"{options.out}: mean weights as above; accel-train sherlock report {options.out} --data={prepared.folder}")
    return 0


def weights_of(folders: list[Path], prepared: Prepared) -> np.ndarray:
    """float64 [runs, V], by how well each voxel of the validation is predicted.

    Args:
        folders: of predictions of the validation.

    Raises:
        UserError: one is missing, or fewer than 2. DataError: they are of different TRs or people.
    """
    from accel_train.tasks.sherlock.ensembles import ensemble_weights
    from accel_train.tasks.sherlock.report.read import case_fmri, predictions_of

    if len(folders) < 2:
        raise UserError("ensemble: give at least 2 runs")
    for folder in folders:
        if not folder.is_dir():
            how = f"accel-train evaluate {folder.parents[1]} --split=validation --out={folder.parent}"
            raise UserError(f"ensemble: no predictions of the validation in {folder}; {how}")
    _same_rows(folders)
    of_runs = [predictions_of(folder, prepared, "validation") for folder in folders]
    people = list(of_runs[0].fmri)
    true = np.concatenate([case_fmri(prepared, person)[of_runs[0].rows] for person in people])
    return ensemble_weights([np.concatenate([each.fmri[p] for p in people]) for each in of_runs], true)


def _same_rows(folders: list[Path]) -> dict[str, Any]:
    """What predictions.json says. Raises a UserError where there is none, a ``DataError`` if folders differ."""
    known: list[dict[str, Any]] = []
    for folder in folders:
        if not (folder / "predictions.json").is_file():
            raise UserError(f"ensemble: no predictions in {folder}; accel-train evaluate RUN --split=test makes them")
        known.append(json.loads((folder / "predictions.json").read_text()))
        for key in ("split", "rows", "window_trs", "subjects", "runs", "held_out_subjects"):
            if known[-1].get(key) != known[0].get(key):
                raise DataError(f"ensemble: {folder} and {folders[0]} differ in {key}; they must predict the same rows")
    return known[0]


def _write(path: Path, folders: list[Path], weights: np.ndarray) -> None:
    from accel_train.system.writing import replacing
    from accel_train.tasks.sherlock.ensembles import ensemble

    arrays = [np.load(folder / "fmri.npy", mmap_mode="r", allow_pickle=False) for folder in folders]
    with replacing(path) as temporary:
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, arrays[0].shape)
        for first in range(0, len(out), CHUNK):
            at = slice(first, first + CHUNK)
            out[at] = ensemble([array[at] for array in arrays], weights)
        out.flush()
