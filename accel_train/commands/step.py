"""accel-train step: look at one step of a run, as it was: its items, their shares of the loss, where a NaN began.

The run is replayed from its newest checkpoint before step N, in a folder of its own; nothing need have been logged.
In a notebook: ``Trainer.at(RUN, step=N)``.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from accel_train.command import Parser, add_trust, refuse_unknown
from accel_train.system.process import rank

if TYPE_CHECKING:
    from accel_train.train.looking import Moment, Update


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("step", type=int, help="number of the step, from 1, as in the log")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="show so many items and modules (10)")
    add_trust(parser)
    parser.take_others("RUN N [--top N] [--task.init_args.NAME=VALUE ...]")


def run(options: argparse.Namespace) -> int:
    refuse_unknown("step", options.others)
    from accel_train.train.looking import look
    from accel_train.train.world import accelerate_as_it_was

    with accelerate_as_it_was():
        moment = look(options.run, options.step, options.others, options.trust)
    if rank() == 0:
        print("\n".join(lines(moment, options.top)))
    return 0


def lines(moment: Moment, top: int) -> list[str]:
    """What a person reads of a step."""
    begin = f"the checkpoint of step {moment.checkpoint:,}" if moment.checkpoint else "the seed"
    head = f"step {moment.step:,}, epoch {moment.epoch}, replayed from {begin}"
    updates = [line for update in moment.updates for line in ["", *_of_update(update, top)]]
    return [head, *(f"  unusual: {line}" for line in moment.unusual[:top]), *updates]


def _of_update(update: Update, top: int) -> list[str]:
    objective, total = update.objective, math.fsum(each.loss for each in update.shares if math.isfinite(each.loss))
    repeated = f", update {objective.repeat + 1} of {objective.repeats}" if objective.repeats > 1 else ""
    found = [f"{objective.name}{repeated}: loss {update.loss:.9g}; shares of {len(update.shares):,} items: {total:.9g}"]
    if abs(total - update.loss) > 1e-4 * max(abs(update.loss), 1e-6):
        found.append("  (they differ where an item alone draws otherwise: drop-out, BatchNorm; or what is not finite)")
    if update.first_non_finite:
        found.append(f"  first output that is not finite: {update.first_non_finite}")
    found.append(f"  {'share':>14}  item; what is furthest from the median comes first")
    found += [f"  {each.loss:>14.6g}  {each.name}" + ("" if each.finite else "  NOT FINITE")
              for each in update.outstanding(top)]  # fmt: skip
    for term in update.shares[0].terms if len(update.shares) > 1 else ():
        (first,) = update.outstanding(1, term)
        if first.name not in {each.name for each in update.outstanding(1)}:
            found.append(f"  {first.terms[term]:>14.6g}  {first.name}, of {term}")
    found.append(f"  {'gradient':>14}  module (all: {update.norm:.6g})")
    largest = sorted(update.norms.items(), key=lambda each: (math.isfinite(each[1]), -each[1]))
    return found + [f"  {norm:>14.6g}  {name}" for name, norm in largest[:top]]
