"""accel-train train: a run from its first step to its last, or on from where it was stopped."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

from accel_train.command import program
from accel_train.config.help import help_text
from accel_train.config.plain import to_dict
from accel_train.config.read import parse
from accel_train.config.trust import is_own
from accel_train.config.yaml_text import dumps
from accel_train.run.reports import summary_of
from accel_train.system.process import rank
from accel_train.system.signals import caught
from accel_train.train.control import die_with_launcher

if TYPE_CHECKING:
    from accel_train.config.schema import TrainConfig
    from accel_train.train.result import Result


def run(arguments: list[str]) -> int:
    """Train as ``arguments`` and config files say; with ``--print_config`` or ``--help`` only show what they say."""
    die_with_launcher()  # at once: nobody would stop a run whose launcher was killed while torch is imported
    settings = [each for each in arguments if each not in ("-h", "--help", "--print_config", "--dry_run")]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(help_text(settings))
        return 0
    task, config = parse(settings)
    if "--print_config" in arguments:
        print(dumps(to_dict(task, config)), end="")
        return 0
    if rank() == 0 and sys.stderr.isatty():
        print("loading libraries and data ...", file=sys.stderr, flush=True)  # nothing else is said for some seconds
    with caught() as signals:
        signals.exit_code = config.requeue_exit_code
        with signals.preparing():
            from accel_train.train.rehearsal import rehearse
            from accel_train.train.trainer import Trainer

    if "--dry_run" in arguments:
        return _dry_run(rehearse(task, config))
    result = Trainer(task, config).fit()
    if rank() == 0:
        if result.outcome == "completed" and (summary := summary_of(task, result.metrics, result.output_dir)):
            print(f"\n{summary}")
        _print_what_next(result, config, " --trust" if is_own(type(task)) else "")
        if not result.saved:
            print(f"accel-train: {result.outcome}, but not well: {result.reason}", file=sys.stderr)
    if not result.saved:
        return 1
    return (signals.exit_code or 0) if result.by_signal else 0


def _dry_run(result: Result) -> int:
    if rank() == 0 and result.outcome == "completed":
        evaluated = ", an evaluation" if result.metrics else ""
        print(f"\ndry run: data, {result.step} step{'s' * (result.step > 1)}{evaluated} and a checkpoint are fine; "
              "nothing is kept")  # fmt: skip
    return 0 if result.outcome == "completed" and result.saved else 1


def _print_what_next(result: Result, config: TrainConfig, trust: str) -> None:
    folder, accel_train, tensorboard = result.output_dir, program("accel-train"), program("tensorboard")
    run, curves, file = (shlex.quote(str(folder / name)) for name in ("", "tensorboard", "config.yaml"))
    print()
    if result.outcome == "completed":
        weights = [name for name in ("model", "best") if (folder / name).is_dir()]
        if weights:
            print(f"  weights        {folder}/{weights[0]}" + "".join(f"   (best: {folder}/best)" for _ in weights[1:]))
        if (folder / "figures").is_dir():
            print(f"  figures        {folder}/figures")
        if (folder / "tensorboard").is_dir():
            print(f"  look           {tensorboard} --logdir {curves}")
        if (folder / "checkpoints").is_dir() and os.listdir(folder / "checkpoints"):
            print(f"  evaluate       {accel_train} evaluate {run}{trust}")
        if result.step == config.max_steps and not result.reason:  # no early stopping, no shorter phases or epochs
            print(f"  train longer   {accel_train} train --config {file} --max_steps={2 * result.step}")
    else:
        print(f"  go on          {accel_train} train --config {file}")
        if (folder / "tensorboard").is_dir():
            print(f"  look           {tensorboard} --logdir {curves}")
