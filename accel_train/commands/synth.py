"""accel-train synth: a small data set with known truth, for a task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from accel_train.command import Parser
from accel_train.config.convert import further_options
from accel_train.config.help import options_text
from accel_train.registry import find
from accel_train.system.writing import refuse_filled, refuse_unwritable, writing
from accel_train.task import DataTools, hook


def add_arguments(parser: Parser) -> None:
    parser.add_argument("task", help="a task's name")
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=None, help="how many items (the task says of what)")
    parser.take_others("TASK --out DIR [--seed N] [--size N] [--OPTION=VALUE of the task ...]", _task_options)


def _task_options(arguments: Sequence[str]) -> str:
    task = arguments[0]
    if task.startswith("-"):
        return "the options of a task: accel-train synth TASK --help"
    return options_text(hook(find(task), DataTools, "synth"), f"options of {task}", without=("seed",))


def run(options: argparse.Namespace) -> int:
    synth = hook(find(options.task), DataTools, "synth")
    further = further_options(options.others, synth)
    refuse_unwritable("--out", options.out)
    refuse_filled("--out", options.out)
    with writing("--out", options.out):
        print(synth(options.out, seed=options.seed, size=options.size, **further))
    return 0
