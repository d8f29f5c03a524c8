"""accel-train status: how a running or finished run stands."""

from __future__ import annotations

import argparse
from pathlib import Path

from accel_train.command import Parser
from accel_train.tracking.status import describe, read


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder")


def run(options: argparse.Namespace) -> int:
    print(describe(read(options.run)))
    return 0
