"""``accel-train tcn preprocess``: HDF5 shots to memory-mapped arrays, from which windows of any length are cut.

Each shot becomes one array of int16 (half the bytes of float32, and nothing is lost of what a digitiser gave), float16
or float32. Any number of processes (--workers), ranks (accelerate launch) and jobs (--shard) share the shots; what was
killed goes on when it is called again. OUT appears by one rename when all of it is written; until then its parts are in
.OUT.preprocess beside it. Length of windows, stride and time of warning are chosen when training.
"""

from __future__ import annotations

import argparse
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from accel_train.command import Parser
from accel_train.data import preprocess
from accel_train.data.units import plain_hash
from accel_train.data.work_folder import WorkFolder
from accel_train.errors import UserError
from accel_train.tasks.tcn import lists
from accel_train.tasks.tcn.preprocess import job
from accel_train.tasks.tcn.quantise import DTYPES
from accel_train.tasks.tcn.shots import SPLITS
from accel_train.tasks.tcn.store import VERSION


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--disrupt", type=Path, help="folder of NUMBER.h5 of disruptive shots, with meta.csv or not")
    parser.add_argument("--clear", type=Path, help="the same of shots that did not disrupt")
    parser.add_argument("--disrupt_list", type=Path, help="9-column shot list of --disrupt")
    parser.add_argument("--clear_list", type=Path, help="9-column shot list of --clear")
    parser.add_argument("--flattop_only", action="store_true", help="segments are the flattop of the shot lists")
    parser.add_argument("--dtype", choices=DTYPES, default="int16", help="of what is stored (default int16)")
    parser.add_argument("--step", type=int, default=1, help="keep every so many samples (default 1)")
    parser.add_argument("--antialias", action="store_true", help="with --step, filter before: causal, 60 dB")
    parser.add_argument("--baseline_ms", type=float, default=40.0, help="the mean of so much at the beginning is "
                        "subtracted, unless the file says it was (default 40)")  # fmt: skip
    parser.add_argument("--forward_fill", action="store_true", help="a value that is missing (NaN) is the last one of "
                        "its channel; without this, such a shot cannot be used")  # fmt: skip
    parser.add_argument("--t0_ms", type=float, help="time of the first sample, whatever file and list say")
    parser.add_argument("--dt_ms", type=float, help="from one sample of a file to the next, whatever file and list say")
    parser.add_argument("--max_bad", type=int, default=0, help="shots that may be unreadable (default 0)")
    preprocess.add_sharing(parser)


def run(options: argparse.Namespace) -> int:
    """Preprocess; prints a summary, and what deserves a warning to stderr."""
    if options.max_bad < 0:
        raise UserError("preprocess: --max_bad must be 0 or more")
    if options.antialias and options.step == 1:
        raise UserError("preprocess: --antialias is for --step above 1")
    found = lists.find(options.disrupt, options.clear, options.disrupt_list, options.clear_list, options.flattop_only)
    plan = _plan(options, found.entries)
    work = WorkFolder(
        options.out,
        plan,
        partial(job.Job, plan=plan, entries=found.entries, left_out=found.left_out),
        partial(job.prepare, entries=found.entries, plan=plan),
        what="shots",
        shard=preprocess.shard_of(options.shard),
        max_bad=options.max_bad,
    )
    return preprocess.run(work, options, _summary, _warnings)


def _plan(options: argparse.Namespace, entries: list[lists.Entry]) -> dict[str, Any]:
    """All that decides what is written, in plain values. Where the files lie, and how new they are, does not: a file
    that was unreadable may be mended while the rest is kept."""
    return {
        "version": VERSION,
        "shots": plain_hash([entry.as_json() for entry in entries]),
        **{name: getattr(options, name) for name in ("dtype", "step", "antialias", "baseline_ms", "t0_ms", "dt_ms")},
        "flattop_only": options.flattop_only,
        "forward_fill": options.forward_fill,
    }


def _summary(meta: dict[str, Any]) -> str:
    counts = Counter((shot["split"], shot["disruptive"]) for shot in meta["shots"])
    splits = ", ".join(f"{name} {counts[name, True]} + {counts[name, False]}" for name in SPLITS)
    stored = meta["options"]["dtype"]
    loss = f"{meta['exact']:.1%} of the channels without loss, the largest error is {meta['largest_error']:.2g} std"
    return (
        f"  {len(meta['shots']):,} shots of {meta['channels']} channels, disruptive + clear: {splits}\n"
        f"  {stored}: {loss}"
    )


def _warnings(meta: dict[str, Any]) -> list[str]:
    texts = [f"{len(meta[kind]):,} {what}, the first: {meta[kind][0]} (all are in meta.json)"
             for kind, what in (("bad", "shots cannot be used"), ("left_out", "shots are left out"))
             if meta[kind]]  # fmt: skip
    if filled := [shot["filled"] for shot in meta["shots"] if shot["filled"]]:
        texts.append(
            f"{sum(filled):,} values were missing in {len(filled):,} shots and are filled (meta.json has each)"
        )
    if constant := meta["norm"]["constant"]:
        texts.append(f"channels {', '.join(map(str, constant))} never change in the training split: dead?")
    there = {(shot["split"], shot["disruptive"]) for shot in meta["shots"]}
    texts += [f"no {'disruptive' if kind else 'clear'} shot in {split}" for split in SPLITS for kind in (True, False)
              if (split, kind) not in there]  # fmt: skip
    return [f"warning: {text}" for text in texts]
