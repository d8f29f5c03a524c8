"""accel-train tasks: the tasks by name."""

from __future__ import annotations

import argparse

from accel_train.command import Parser
from accel_train.registry import TASKS


def add_arguments(parser: Parser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> int:
    for name, (path, text) in TASKS.items():
        print(f"{name:<12} {text}\n{'':<12} {path}")
    return 0
