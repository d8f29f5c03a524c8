"""accel-train evaluate: metrics and figures of saved weights on held-out data."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from accel_train.command import Parser, add_weights, refuse_unknown
from accel_train.run.reports import summary_of
from accel_train.run.saved import find_saved
from accel_train.system.process import rank
from accel_train.train.measuring import evaluate_saved


def add_arguments(parser: Parser) -> None:
    add_weights(parser)
    parser.add_argument("--split", default="validation", help="validation or test")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="folder for evaluation.json and figures")
    parser.take_others("RUN [OPTION ...] [--task.init_args.NAME=VALUE ...]")


def run(options: argparse.Namespace) -> int:
    refuse_unknown("evaluate", options.others)
    saved = find_saved(options.run, options.checkpoint, options.others, options.trust)
    metrics = evaluate_saved(saved, options.split, options.batch_size, options.out).metrics
    if rank() == 0:
        folder = options.out or Path(os.path.relpath(saved.home)) / "evaluation"
        summary = summary_of(saved.task, metrics, folder)
        print(summary or json.dumps(metrics, indent=1))
        if not summary:  # for programs
            return 0
        print(f"\n  metrics        {folder / 'evaluation.json'}")
        for name in ("figures", "predictions"):
            if (folder / name).is_dir():
                print(f"  {name:<14} {folder / name}")
    return 0
