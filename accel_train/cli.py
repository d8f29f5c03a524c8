"""The commands. Nothing heavy is imported before it is known which one is meant."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from accel_train.command import Parser
from accel_train.errors import LockLostError, LostRankError, NonFiniteError, OtherRankError, UserError
from accel_train.system.output import forgive
from accel_train.system.process import rank, world_size
from accel_train.system.secrets import scrub
from accel_train.system.signals import active, caught, end_at_once
from accel_train.system.waiting import StoppedError, given_up

COMMANDS = {
    "train": "train a task, or go on with a run",
    "evaluate": "metrics and figures of a run's best model on held-out data",
    "export": "a run's best model as safetensors with what is needed to rebuild it",
    "inspect": "what is in a run folder, a checkpoint, data files, or a task's data",
    "synth": "make a small data set with known truth for a task",
    "runs": "gather the TensorBoard logs of chosen runs in one directory",
    "status": "how a running or finished run stands",
    "stop": "ask a running run to save and stop",
    "save": "ask a running run for a checkpoint now",
    "tasks": "list the tasks",
    "doctor": "what this machine can do",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. 0 done, 1 training failed, 2 something to mend in config or data."""
    program = argv is None
    arguments = list(sys.argv[1:] if program else argv)
    if program:
        forgive()
    code = _trained(arguments, program) if arguments[:1] == ["train"] else _told(arguments)
    if program and world_size() > 1:
        # Gloo's threads outlive the process group, and one that frees a finished sum while Python shuts down aborts the
        # process: a rank that had done everything would count as crashed.
        atexit._run_exitfuncs()
        end_at_once(code)
    return code


def _trained(arguments: list[str], program: bool) -> int:
    with caught(program) as signals:
        code = _told(arguments)
        if program and signals.forced:
            end_at_once(code)
        if "accel_train.train.world" in sys.modules:
            from accel_train.train.world import leave_process_group

            leave_process_group()
    if program and given_up():
        _end_without_those_who_wait(code)
    return code


def _told(arguments: list[str]) -> int:
    """The exit code of a command; errors that a person can mend are one line."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        _say_once(f"error: {error}")
        return 2
    except (LockLostError, NonFiniteError) as error:
        _say_once(f"training failed: {error}")
        return 1
    except LostRankError as error:
        _say_once(f"error: {error}")
        if (signals := active()) is not None and signals.program:
            end_at_once(1)  # to leave the process group would wait for the rank that is gone
        return 1
    except OtherRankError as error:  # the rank that met it prints it
        return error.exit_code
    except StoppedError as error:
        _say_once(str(error))
        code = signals.exit_code if (signals := active()) is not None and signals.reason else None
        return 1 if code is None else code
    except KeyboardInterrupt:
        print("accel-train: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # a mistake in a task, or one of ours: the whole traceback, but no secrets in messages
        parts = traceback.format_exception(error)
        print(*(part if part.startswith("  File ") else scrub(part) for part in parts), sep="", end="", file=sys.stderr)
        return 1


def _say_once(text: str) -> None:
    """On standard error, on the first of the ranks that have the same to say."""
    first = True
    if "RANK" in os.environ:
        from accel_train.train.world import is_first_to_say

        first = is_first_to_say(text)
    if first:
        print(f"accel-train: {scrub(text)}", file=sys.stderr, flush=True)


def _end_without_those_who_wait(code: int) -> None:
    """A thread that still reads what may never come would keep the interpreter from ending."""
    ends = time.monotonic() + 1.0
    others = [thread for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())]
    for thread in others:
        thread.join(max(0.0, ends - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        end_at_once(code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"accel_train {version('accel_train')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name in COMMANDS:
        return globals()[f"_{name}"](rest)
    from accel_train.errors import suggest
    from accel_train.registry import TASKS, run_command

    if name in TASKS:
        return run_command(name, rest)
    known = [*COMMANDS, *TASKS]
    raise UserError(f"unknown command {name!r}{suggest(name, known)}; there are {', '.join(known)}")


def _help() -> str:
    from accel_train.registry import TASKS

    lines = ["usage: accel-train COMMAND ...", "", "commands:"]
    lines += [f"  {name:<10} {text}" for name, text in COMMANDS.items()]
    lines += ["", "tasks (each may have commands of its own: accel-train TASK --help):"]
    lines += [f"  {name:<10} {text}" for name, (_, text) in TASKS.items()]
    lines += [
        "",
        "accel-train COMMAND --help tells more. On several processes:",
        "  accelerate launch --config_file accelerate_configs/multi_gpu.yaml -m accel_train train --config FILE.yaml",
    ]
    return "\n".join(lines)


# -- training --------------------------------------------------------------------------------------------------------


def _train(rest: list[str]) -> int:
    from accel_train.config.plain import to_dict
    from accel_train.config.read import parse
    from accel_train.config.yaml_text import dumps
    from accel_train.train.control import die_with_launcher

    die_with_launcher()  # at once: nobody would stop a run whose launcher was killed while torch is imported
    if not rest or {"-h", "--help"} & set(rest):
        from accel_train.config.help import help_text

        print(help_text([argument for argument in rest if argument not in ("-h", "--help", "--print_config")]))
        return 0
    task, settings = parse([argument for argument in rest if argument != "--print_config"])
    if "--print_config" in rest:
        print(dumps(to_dict(task, settings)), end="")
        return 0

    from accel_train.config.trust import is_own

    with caught() as signals:
        signals.exit_code = settings.requeue_exit_code
        with signals.preparing():
            from accel_train.train.trainer import Trainer

    result = Trainer(task, settings).fit()
    if rank() == 0:
        if result.outcome == "completed" and (summary := _summary(task, result.metrics, result.output_dir)):
            print(f"\n{summary}")
        _say_what_next(result, settings, " --trust" if is_own(type(task)) else "")
        if not result.saved:
            print(f"accel-train: {result.outcome}, but not well: {result.reason}", file=sys.stderr)
    if not result.saved:
        return 1
    return settings.requeue_exit_code if result.by_signal else 0


def _summary(task: Any, metrics: dict[str, float], folder: Path) -> str:
    from accel_train.run.reports import Reports, warn

    with Reports(folder)("summary", warn):
        return str(task.summary(metrics) or "")
    return ""


def _say_what_next(result: Any, settings: Any, trust: str) -> None:
    folder, accel_train, tensorboard = result.output_dir, _tool("accel-train"), _tool("tensorboard")
    run, curves, config = (shlex.quote(str(folder / name)) for name in ("", "tensorboard", "config.yaml"))
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
        if result.step == settings.max_steps and not result.reason:  # no early stopping, no shorter phases or epochs
            print(f"  train longer   {accel_train} train --config {config} --max_steps={2 * result.step}")
    else:
        print(f"  go on          {accel_train} train --config {config}")
        if (folder / "tensorboard").is_dir():
            print(f"  look           {tensorboard} --logdir {curves}")


def _tool(name: str) -> str:
    """How to call a command of this environment from here, activated or not."""
    import shutil

    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside)


# -- after and beside training ---------------------------------------------------------------------------------------


def _parser(name: str) -> Parser:
    return Parser(prog=f"accel-train {name}", description=COMMANDS[name])


def _add_trust(parser: Parser) -> None:
    parser.add_argument("--trust", action="store_true", help="run code of a task that is in no installed package")


def _evaluate(rest: list[str]) -> int:
    parser = _parser("evaluate")
    parser.add_argument("run", type=Path, help="run folder, checkpoint, or exported model folder")
    parser.add_argument("--checkpoint", help="best (default where there is one), latest, a step, or a path")
    parser.add_argument("--split", default="validation", help="validation or test")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="folder for evaluation.json and figures")
    _add_trust(parser)
    parser.usage = "accel-train evaluate RUN [OPTION ...] [--task.init_args.NAME=VALUE ...]"
    options, others = parser.parse_known_args(rest)
    for other in others:
        if not other.startswith("--task.init_args."):
            parser.error(f"unrecognized arguments: {other}")
    from accel_train.commands.evaluate import evaluate_saved
    from accel_train.run.saved import find_saved

    saved = find_saved(options.run, options.checkpoint, others, options.trust)
    metrics = evaluate_saved(saved, options.split, options.batch_size, options.out)
    if rank() == 0:
        folder = options.out or Path(os.path.relpath(saved.home)) / "evaluation"
        summary = _summary(saved.task, metrics, folder)
        print(summary or json.dumps(metrics, indent=1))
        if not summary:  # for programs
            return 0
        print(f"\n  metrics        {folder / 'evaluation.json'}")
        for name in ("figures", "predictions"):
            if (folder / name).is_dir():
                print(f"  {name:<14} {folder / name}")
    return 0


def _export(rest: list[str]) -> int:
    parser = _parser("export")
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", help="best (default where there is one), latest, a step, or a path")
    parser.add_argument("--out", type=Path, required=True)
    _add_trust(parser)
    options = parser.parse_args(rest)
    from accel_train.commands.export import export_run

    print(f"exported to {export_run(options.run, options.checkpoint, options.out, options.trust)}")
    return 0


def _inspect(rest: list[str]) -> int:
    parser = _parser("inspect")
    parser.add_argument(
        "what", help="a run folder, a checkpoint, a config file, a task's name, or data: a file, a pattern, a URL"
    )
    _add_trust(parser)
    parser.usage = "accel-train inspect WHAT [OTHERS ...]"
    options, others = parser.parse_known_args(rest)
    from accel_train.commands.inspect import inspect

    print(inspect(os.path.expanduser(options.what), others, trust=options.trust))
    return 0


def _synth(rest: list[str]) -> int:
    parser = _parser("synth")
    parser.add_argument("task", help="a task's name")
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=None, help="how many items (the task says of what)")
    parser.usage = "accel-train synth TASK --out DIR [--seed N] [--size N] [--OPTION=VALUE of the task ...]"
    options, others = parser.parse_known_args(rest)
    from accel_train.config.convert import further_options
    from accel_train.registry import find
    from accel_train.system.writing import refuse_unwritable, writing
    from accel_train.task import DataTools, hook

    synth = hook(find(options.task), DataTools, "synth")
    refuse_unwritable("--out", options.out)
    if options.out.is_dir() and any(options.out.iterdir()):
        raise UserError(f"synth: {options.out} is not empty")
    with writing("--out", options.out):
        print(synth(options.out, seed=options.seed, size=options.size, **further_options(others, synth)))
    return 0


def _runs(rest: list[str]) -> int:
    parser = _parser("runs")
    merge = parser.add_subparsers(dest="action", required=True, metavar="ACTION").add_parser(
        "merge", help=COMMANDS["runs"], description="What is there stays; repeat it to take in what is new."
    )
    merge.add_argument("--dst", type=Path, required=True, help="the directory to fill")
    merge.add_argument("--src-root", type=Path, required=True, help="where the runs are, at any depth")
    merge.add_argument("--mode", choices=["symlink", "copy"], default="symlink", help="default: symlink, which is live")
    merge.add_argument("--since", metavar="YYYYMMDD-HHMMSS", help="only runs that started then or later (local time)")
    merge.add_argument("--match", metavar="REGEX", help="only runs in whose name this is found")
    merge.add_argument("--glob", metavar="PATTERN", help="only runs whose name fits this")
    options = parser.parse_args(rest)
    from accel_train.commands.runs import merge as merge_runs
    from accel_train.system.writing import writing

    with writing("--dst", options.dst):
        done = merge_runs(options.dst, options.src_root, options.mode, options.since, options.match, options.glob)
    width = max(len(each.log.name) for each in done)
    for each in done:
        print(f"{each.log.name:<{width}}  started {each.log.started:%Y-%m-%d %H:%M:%S}  {each.action}")
    print(f"{_tool('tensorboard')} --logdir {shlex.quote(str(options.dst))}")
    return 0


def _status(rest: list[str]) -> int:
    parser = _parser("status")
    parser.add_argument("run", type=Path)
    options = parser.parse_args(rest)
    from accel_train.tracking.status import describe, read

    print(describe(read(options.run)))
    return 0


def _ask(command: str, rest: list[str]) -> int:
    parser = _parser(command)
    parser.add_argument("run", type=Path)
    options = parser.parse_args(rest)
    from accel_train.system.writing import writing
    from accel_train.tracking.status import why_over
    from accel_train.train.control import request

    if not (options.run / "config.yaml").is_file():
        raise UserError(f"{command}: {options.run} is not a run folder (no config.yaml)")
    if why := why_over(options.run):
        print(f"{options.run} is not running ({why}): nothing to {command}")
        return 0
    with writing(command, options.run):
        request(options.run, command)
    print(f"asked {options.run} to {command}; accel-train status {options.run} tells when it has")
    return 0


def _stop(rest: list[str]) -> int:
    return _ask("stop", rest)


def _save(rest: list[str]) -> int:
    return _ask("save", rest)


def _tasks(rest: list[str]) -> int:
    _parser("tasks").parse_args(rest)
    from accel_train.registry import TASKS

    for name, (path, text) in TASKS.items():
        print(f"{name:<10} {text}\n{'':<10} {path}")
    return 0


def _doctor(rest: list[str]) -> int:
    parser = _parser("doctor")
    parser.add_argument("--launch", action="store_true", help="also start two processes and let them add a number")
    options = parser.parse_args(rest)
    from accel_train.commands.doctor import report

    text, healthy = report(options.launch)
    print(text)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
