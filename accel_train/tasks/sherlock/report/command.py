"""``accel-train sherlock report``: whether a trained network predicts brains, and what of it is more than chance.

Reads the predictions that ``accel-train evaluate RUN --split=test`` wrote, and the prepared data. In one table:
the network, banded ridge on the same stimulus, the network without each modality, with a shuffled stimulus, and the
training mean; per region, with intervals over blocks of time; the share of what is possible, of the voxels that are
more than chance, of the moments that are told apart, reconstructions, lesions, and lag scans, which show whether brain
and stimulus are aligned. Written to RUN/report: report.json, maps.npz and figures.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from accel_train.command import Parser
from accel_train.errors import UserError
from accel_train.system.writing import refuse_unwritable, writing


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder with evaluation/predictions, or a folder of predictions")
    parser.add_argument("--data", type=Path, help="the prepared folder (default: that of the run)")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals and of ridge's search (default 0)")
    parser.add_argument("--out", type=Path, help="folder for the results (default: report in the run)")


def run(options: argparse.Namespace) -> int:
    """A table on the terminal, report.json and figures in a folder."""
    from accel_train.tasks.sherlock.data import Prepared
    from accel_train.tasks.sherlock.lag import hrf
    from accel_train.tasks.sherlock.report.files import write
    from accel_train.tasks.sherlock.report.judge import find
    from accel_train.tasks.sherlock.report.read import case_of, predictions_of
    from accel_train.tasks.sherlock.report.summary import summary

    out = options.out or options.run / "report"
    refuse_unwritable("--out", out)
    prepared = Prepared(options.data or data_of(options.run))
    predicted = predictions_of(folder_of(options.run), prepared)
    case = case_of(prepared, hrf(prepared.tr_s, int(32 / prepared.tr_s)).numpy(), predicted.held_out)
    found = find(case, predicted, options.seed, lambda text: print(f"report: {text}", file=sys.stderr))
    about = {**predicted.about, "data": str(prepared.folder), "data_hash": prepared.manifest["hash"]}
    with writing("--out", out):
        names = write(out, case, predicted, found, {**about, "seed": options.seed})
    print(summary(case, predicted, found))
    print(f"\n  report         {os.path.relpath(out / 'report.json')}")
    if names:
        print(f"  figures        {', '.join(names)}")
    return 0


def folder_of(run: Path) -> Path:
    """Where the predictions are."""
    inside = (run / "evaluation" / "predictions", run / "predictions")
    return next((path for path in inside if path.is_dir()), run)


def data_of(run: Path) -> Path:
    """The prepared folder, by the config of a run. Raises a UserError if it does not say."""
    from accel_train.config.yaml_text import loads
    from accel_train.system.expansion import expand

    path = run / "config.yaml"
    config: dict[str, Any] = loads(path.read_text()) if path.is_file() else {}
    data = ((config.get("task") or {}).get("init_args") or {}).get("data")
    if not isinstance(data, str):
        raise UserError(f"report: {run} is no run that says where its data are; give --data=FOLDER")
    return Path(expand(data))
