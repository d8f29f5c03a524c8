"""accel-train diff: where two runs part, and by what.

Config, data, versions and machines are compared, then digests, logged values and checkpoints, step by step; then both
runs are replayed to the first step that differs. Nothing in RUN_A or RUN_B is changed. Exit code 0: equal as far as
both go; 1: they differ; 2: it cannot be said.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from accel_train.command import Parser, add_trust, refuse_unknown
from accel_train.system.process import rank

if TYPE_CHECKING:
    from accel_train.train.parting import Found, Stretch


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="run folder")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="another one")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    add_trust(parser)
    parser.take_others("RUN_A RUN_B [--json] [--trust] [--task.init_args.NAME=VALUE ...]")


def run(options: argparse.Namespace) -> int:
    refuse_unknown("diff", options.others)
    from accel_train.train.parting import about, found_by_replay, stretch
    from accel_train.train.verifying import Recorded
    from accel_train.train.world import accelerate_as_it_was

    a, b = (Recorded(folder, options.others, options.trust) for folder in (options.run_a, options.run_b))
    lines, known = list(about(a, b)), stretch(a, b)
    found = None
    if not options.json:
        _say([f"A is {a.folder}, B is {b.folder}", *lines, _written(known)])
    if known.apart is not None:
        with accelerate_as_it_was():
            found = found_by_replay(a, b, known)
    if options.json:
        replayed = None if found is None else dataclasses.asdict(found) | {"parting": found.parting._asdict()}
        _say([json.dumps({"about": lines, "written": dataclasses.asdict(known), "replayed": replayed}, indent=1)])
    elif found is not None:
        _say(_replayed(found))
    return 1 if known.apart is not None and rank() == 0 else 0  # a launcher ends all ranks with the first that ends so


def _written(known: Stretch) -> str:
    if known.apart is None:
        return f"equal to step {known.until:,} ({known.compared})"
    equal = f"the weights of step {known.equal:,} are equal" if known.equal else "no step is known to be equal"
    begin = f"the checkpoint of step {known.begin:,}" if known.begin else "the seed"
    return (
        f"{equal}; at step {known.apart:,} {known.shown_by} differ ({known.compared}); both are replayed from {begin}"
    )


def _replayed(found: Found) -> list[str]:
    where = f"step {found.step:,}: " if found.step is not None else ""
    return [f"{where}{found.parting.kind}: {found.parting.text}", *found.notes]


def _say(lines: list[str]) -> None:
    if rank() == 0:
        print("\n".join(lines), flush=True)
