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
    from accel_train.train.looking import Moment
    from accel_train.train.shares import Share, Update


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
        print("\n".join(lines(moment, options.run, options.top)))
    return 0


def lines(moment: Moment, run: Path, top: int) -> list[str]:
    """What a person reads of a step."""
    begin = f"the checkpoint of step {moment.checkpoint:,}" if moment.checkpoint else "the seed"
    head = f"step {moment.step:,}, epoch {moment.epoch}, replayed from {begin}"
    updates = [line for update in moment.updates for line in ["", *_of_update(update, top, moment.later)]]
    return [head, "", *_of_suspects(moment, run, top), *updates]


def _of_suspects(moment: Moment, run: Path, top: int) -> list[str]:
    if not moment.suspects:
        later = f", now or under the weights of step {moment.later:,}" if moment.later else ""
        return [f"no item stands out from the others, by its values or by its share of the loss{later}"]
    found = ["look at these items first:"]
    for suspect in moment.suspects[:top]:
        found += [f"  {suspect.name}", *(f"    {reason}" for reason in suspect.reasons)]
    if len(moment.suspects) > top:
        found.append(f"  and {len(moment.suspects) - top:,} more")
    first = moment.suspects[0].name
    if first in moment.names:
        at = f"Trainer.at({str(run)!r}, step={moment.step}).parts[{moment.names.index(first)}]"
        found.append(f"the first one in Python: accel_train.{at}")
    return found


def _of_update(update: Update, top: int, later: int) -> list[str]:
    objective, total = update.objective, math.fsum(each.loss for each in update.shares if math.isfinite(each.loss))
    repeated = f", update {objective.repeat + 1} of {objective.repeats}" if objective.repeats > 1 else ""
    found = [f"{objective.name}{repeated}: loss {update.loss:.9g}; shares of {len(update.shares):,} items: {total:.9g}"]
    if not all(each.finite for each in update.shares):
        found[0] += " without those that are not finite"
    elif abs(total - update.loss) > 1e-4 * max(abs(update.loss), 1e-6):
        found.append("  (they differ: an item alone draws other drop-out masks, or is normalised alone by BatchNorm)")
    if update.first_non_finite:
        found.append(f"  first output that is not finite: {update.first_non_finite}")
    columns = f"  {'share':>14}" + (f"  {f'at {later:,}':>14}" if later else "")
    found.append(f"{columns}  item; furthest from the median first")
    found += [_of_share(each, "loss") for each in update.outstanding(top)]
    for term in update.shares[0].terms if len(update.shares) > 1 else ():
        (first,) = update.outstanding(1, term)
        if update.far(term).any() and first.name != update.outstanding(1)[0].name:
            found.append(f"{_of_share(first, term)}, first by {term}")
    found.append(f"  {'gradient':>14}  module (all: {update.norm:.6g})")
    largest = sorted(update.norms.items(), key=lambda each: (math.isfinite(each[1]), -each[1]))
    return found + [f"  {norm:>14.6g}  {name}" for name, norm in largest[:top]]


def _of_share(share: Share, term: str) -> str:
    now = share.loss if term == "loss" else share.terms[term]
    later = f"  {share.later[term]:>14.6g}" if share.later else ""
    return f"  {now:>14.6g}{later}  {share.name}{'' if share.finite else '  NOT FINITE'}"
