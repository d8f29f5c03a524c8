"""``accel-train tcn report``: whether the alarms of a trained network work, on whole shots.

Threshold and alarm rule are chosen on the validation shots and then judged on the test shots: true and false alarms,
warning times, each with an interval over shots. In the same table, chosen and judged alike: trivial models, and two
that see no signal and must be at chance; and the network where sensors fail. Written to RUN/report: report.json and
figures. The network goes through the shots here, so that no predictions need to be made before.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.command import Parser, add_weights, refuse_unknown
from accel_train.errors import UserError
from accel_train.system.writing import refuse_unwritable, writing

if TYPE_CHECKING:
    from torch import nn

    from accel_train.run.saved import Saved
    from accel_train.tasks.tcn.report.judge import Data
    from accel_train.tasks.tcn.task import TCNTask

GIVEN = "--task.init_args."


def add_arguments(parser: Parser) -> None:
    add_weights(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the intervals and of the sensors that fail (default 0)")
    parser.add_argument("--out", type=Path, help="folder for report.json and figures (default: report in the run)")
    parser.take_others(f"RUN [OPTION ...] [{GIVEN}data=FOLDER]")


def run(options: argparse.Namespace) -> int:
    """A table on the terminal, report.json and figures in a folder."""
    import torch

    from accel_train.run.saved import find_saved
    from accel_train.tasks.tcn.report.files import write
    from accel_train.tasks.tcn.report.judge import find
    from accel_train.tasks.tcn.report.summary import summary

    refuse_unknown("report", options.others, GIVEN)
    saved = find_saved(options.run, options.checkpoint, options.others, options.trust)
    task = _task(saved)
    data = read(task)
    out = options.out or Path(os.path.relpath(saved.home)) / "report"
    refuse_unwritable("--out", out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = _load(saved, data).eval().to(device)
    found = find(data, model, task.nsub, options.seed, lambda text: print(f"report: {text}", file=sys.stderr))
    print(f"{os.path.relpath(saved.weights)}, step {saved.info['step']}\n{summary(found)}")
    with writing("--out", out):
        names = write(out, found, {"weights": str(saved.weights), "step": saved.info["step"]})
    print(f"\n  report         {out / 'report.json'}")
    if names:
        print(f"  figures        {', '.join(names)}")
    return 0


def _load(saved: Saved, data: Data) -> nn.Module:
    try:
        return saved.load_models()["model"]
    except UserError as error:
        more = f"{data.folder} has {data.store.channels} channels; are these the data it was trained on?"
        raise UserError(f"{error}. {more}") from None


def _task(saved: Saved) -> TCNTask:
    from accel_train.tasks.tcn.task import TCNTask

    if not isinstance(saved.task, TCNTask):
        raise UserError(f"report: {saved.home} is a run of the task {saved.task.task_name()}, not of tcn")
    return saved.task


def read(task: TCNTask) -> Data:
    """The shots of a task. Raises a UserError if they are not known, or a split has none."""
    from accel_train.tasks.tcn.prebuilt import is_prebuilt
    from accel_train.tasks.tcn.report.judge import SPLITS, Data
    from accel_train.tasks.tcn.windows import Windows

    if is_prebuilt(task.folder):
        raise UserError(
            f"report: {task.folder} holds prebuilt windows, which do not say of which shots they are, so nothing can "
            "be said of alarms; accel-train evaluate gives the numbers over steps"
        )
    splits: dict[str, Windows] = {}
    for split in SPLITS:
        windows = task.windows(split, task.stride if split == "train" else None)
        if not isinstance(windows, Windows) or not len(windows):
            what = "shots" if windows is None else "shot as long as the receptive field"
            raise UserError(
                f"report: {task.folder} has no {split} {what}; it takes shots to train on, to choose on and to judge on"
            )
        splits[split] = windows
    return Data(task.folder, task.store, **splits, balance=task.balance, negatives=task.negatives)
