"""accel-train verify: train stretches of a run once more, from its checkpoints, and compare every bit.

Nothing in RUN is changed. Exit code 0: verified; 1: refuted, with the first difference; 2: it cannot be done here.
Several ranks: accelerate launch ... -m accel_train verify RUN.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from accel_train import keyed
from accel_train.command import Parser, add_trust, refuse_unknown
from accel_train.errors import UserError
from accel_train.system.process import rank

if TYPE_CHECKING:
    from accel_train.train.verifying import Interval, Recorded


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--steps", metavar="A:B", help="steps A to B, from the newest checkpoint at or before A (0: the "
                       "seed); default: those before the newest checkpoint")  # fmt: skip
    which.add_argument("--sample", type=int, metavar="N", help="N intervals between checkpoints, always the same ones")
    which.add_argument("--all", action="store_true", help="every step since the seed")
    parser.add_argument(
        "--topology", choices=("same", "any"), default="same",
        help="same: bit for bit, on as many ranks and the same device; any: up to rounding, and says how far",
    )  # fmt: skip
    add_trust(parser)
    parser.take_others("RUN [--steps A:B | --sample N | --all] [--topology any] [--task.init_args.NAME=VALUE ...]")


def run(options: argparse.Namespace) -> int:
    refuse_unknown("verify", options.others)
    from accel_train.train.verifying import Recorded, check
    from accel_train.train.world import accelerate_as_it_was

    recorded = Recorded(options.run, options.others, options.trust)
    intervals = chosen(recorded, options.steps, options.sample, options.all)
    _say(_what_is_kept(recorded, intervals))
    refuted = 0
    with accelerate_as_it_was():
        for interval in intervals:
            verdict = check(recorded, interval, options.topology)
            refuted += bool(verdict.found)
            _say(str(verdict))
    if len(intervals) > 1:
        _say(f"{len(intervals) - refuted} of {len(intervals)} intervals verified")
    return 1 if refuted and rank() == 0 else 0  # a launcher ends all ranks with the first that ends so


def chosen(recorded: Recorded, steps: str | None, sample: int | None, everything: bool) -> list[Interval]:
    """The intervals that these options name, in order. Raises a UserError for what is not there."""
    if steps is not None:
        if not (found := re.fullmatch(r"(\d+):(\d+)", steps.replace("_", "").replace(",", ""))):
            raise UserError(f"--steps {steps}: give two steps, as in --steps 12000:13000")
        return recorded.intervals(int(found[1]), int(found[2]))
    if everything:
        return recorded.intervals()
    if sample is None:
        return recorded.newest()
    if sample < 1:
        raise UserError(f"--sample {sample}: out of range, must be at least 1")
    there = recorded.intervals()
    drawn = sorted(there, key=lambda each: keyed.key("verify", each.start, each.end))[:sample]
    return sorted(drawn, key=lambda each: each.start)


def _what_is_kept(recorded: Recorded, intervals: list[Interval]) -> str:
    steps = [f"{step:,}" for step in recorded.steps]
    shown = ", ".join(steps if len(steps) < 7 else [*steps[:2], "...", *steps[-3:]]) or "none"
    todo = sum(each.end - each.start for each in intervals)
    return f"{recorded.folder} has checkpoints of steps {shown} and log lines to step {recorded.logged:,}; {todo:,} " \
           "steps are trained again"  # fmt: skip


def _say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)
