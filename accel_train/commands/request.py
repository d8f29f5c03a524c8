"""accel-train stop, accel-train save: ask a running run to save and stop, or for a checkpoint now."""

from __future__ import annotations

import argparse
from pathlib import Path

from accel_train.command import Parser
from accel_train.errors import UserError
from accel_train.run.saved import what_it_is_not
from accel_train.system.writing import writing
from accel_train.tracking.status import why_over
from accel_train.train.control import request


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder")


def run(options: argparse.Namespace) -> int:
    command = options.command
    if not (options.run / "config.yaml").is_file():
        raise UserError(f"{command}: {options.run}: {what_it_is_not(options.run)}")
    if why := why_over(options.run):
        print(f"{options.run} is not running ({why}): nothing to {command}")
        return 0
    with writing(command, options.run):
        request(options.run, command)
    print(f"asked {options.run} to {command}; accel-train status {options.run} says when it has")
    return 0
