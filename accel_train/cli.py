"""The commands. Nothing heavy is imported before it is known which one is meant."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from accel_train.arguments import Parser
from accel_train.errors import NonFiniteError, UserError
from accel_train.output import forgive

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
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        forgive()
    try:
        return _dispatch(arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"accel-train: error: {error}", file=sys.stderr)
        return 2
    except NonFiniteError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"accel-train: training failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("accel-train: interrupted", file=sys.stderr)
        return 130


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
    from accel_train.optim import suggest
    from accel_train.tasks import TASKS, run_command

    if name in TASKS:
        return run_command(name, rest)
    known = [*COMMANDS, *TASKS]
    raise UserError(f"unknown command {name!r}{suggest(name, known)}; there are {', '.join(known)}")


def _help() -> str:
    from accel_train.tasks import TASKS

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
    from accel_train import config
    from accel_train.values import dumps

    if not rest or {"-h", "--help"} & set(rest):
        print(config.help_text([argument for argument in rest if argument not in ("-h", "--help", "--print_config")]))
        return 0
    task, settings = config.parse([argument for argument in rest if argument != "--print_config"])
    if "--print_config" in rest:
        print(dumps(config.to_dict(task, settings)), end="")
        return 0

    from accel_train.trainer import Trainer

    try:
        result = Trainer(task, settings).fit()
    finally:
        _leave_process_group()
    if os.environ.get("RANK", "0") == "0":
        if result.outcome == "completed" and (summary := _summary(task, result.metrics, result.output_dir)):
            print(f"\n{summary}")
        _say_what_next(result, settings)
        if not result.saved:
            print(f"accel-train: {result.outcome}, but not well: {result.reason}", file=sys.stderr)
    if not result.saved:
        return 1
    return settings.requeue_exit_code if result.by_signal else 0


def _summary(task: Any, metrics: dict[str, float], folder: Path) -> str:
    from accel_train.reporting import Reports, warn

    with Reports(folder)("summary", warn):
        return str(task.summary(metrics) or "")
    return ""


def _say_what_next(result: Any, settings: Any) -> None:
    folder, accel_train, tensorboard = result.output_dir, _tool("accel-train"), _tool("tensorboard")
    print()
    if result.outcome == "completed":
        weights = [name for name in ("model", "best") if (folder / name).is_dir()]
        if weights:
            print(f"  weights        {folder}/{weights[0]}" + "".join(f"   (best: {folder}/best)" for _ in weights[1:]))
        if (folder / "figures").is_dir():
            print(f"  figures        {folder}/figures")
        if (folder / "tensorboard").is_dir():
            print(f"  look           {tensorboard} --logdir {folder}/tensorboard")
        if (folder / "checkpoints").is_dir() and os.listdir(folder / "checkpoints"):
            print(f"  evaluate       {accel_train} evaluate {folder}")
        if settings.max_steps is not None:
            print(f"  train longer   {accel_train} train --config {folder}/config.yaml --max_steps={2 * result.step}")
    else:
        print(f"  go on          {accel_train} train --config {folder}/config.yaml")
        if (folder / "tensorboard").is_dir():
            print(f"  look           {tensorboard} --logdir {folder}/tensorboard")


def _tool(name: str) -> str:
    """How to call a command of this environment from here, activated or not."""
    import shutil

    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside)


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


# -- after and beside training ---------------------------------------------------------------------------------------


def _parser(name: str) -> Parser:
    return Parser(prog=f"accel-train {name}", description=COMMANDS[name])


def _evaluate(rest: list[str]) -> int:
    parser = _parser("evaluate")
    parser.add_argument("run", type=Path, help="run folder, checkpoint, or exported model folder")
    parser.add_argument("--checkpoint", help="best (default where there is one), latest, a step, or a path")
    parser.add_argument("--split", default="validation", help="validation or test")
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="folder for evaluation.json and figures")
    options = parser.parse_args(rest)
    from accel_train.inspection import evaluate_saved, find_saved

    saved = find_saved(options.run, options.checkpoint)
    metrics = evaluate_saved(saved, options.split, options.batch_size, options.out)
    if os.environ.get("RANK", "0") == "0":
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
    options = parser.parse_args(rest)
    from accel_train.inspection import export_run

    print(f"exported to {export_run(options.run, options.checkpoint, options.out)}")
    return 0


def _inspect(rest: list[str]) -> int:
    parser = _parser("inspect")
    parser.add_argument(
        "what", help="a run folder, a checkpoint, a config file, a task's name, or data: a file, a pattern, a URL"
    )
    parser.usage = "accel-train inspect WHAT [OTHERS ...]"
    options, others = parser.parse_known_args(rest)
    from accel_train.inspection import inspect

    print(inspect(options.what, others))
    return 0


def _synth(rest: list[str]) -> int:
    parser = _parser("synth")
    parser.add_argument("task", help="a task's name")
    parser.add_argument("--out", type=Path, required=True, help="an empty or new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=None, help="how many items (the task says of what)")
    parser.usage = "accel-train synth TASK --out DIR [--seed N] [--size N] [--OPTION=VALUE of the task ...]"
    options, others = parser.parse_known_args(rest)
    from accel_train.tasks import find
    from accel_train.values import further_options

    task = find(options.task)
    if not hasattr(task, "synth"):
        raise UserError(f"synth: {options.task} makes its data as it goes and needs none")
    if options.out.exists() and any(options.out.iterdir()):
        raise UserError(f"synth: {options.out} is not empty")
    print(task.synth(options.out, seed=options.seed, size=options.size, **further_options(others, task.synth)))
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
    from accel_train.tracking.merge import merge as merge_runs

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
    from accel_train.tracking.status import describe

    path = options.run / "status.json"
    if not path.is_file():
        raise UserError(f"status: {path} does not exist; is {options.run} a run folder?")
    print(describe(json.loads(path.read_text())))
    return 0


def _ask(command: str, rest: list[str]) -> int:
    parser = _parser(command)
    parser.add_argument("run", type=Path)
    options = parser.parse_args(rest)
    from accel_train.control import request

    if not (options.run / "config.yaml").is_file():
        raise UserError(f"{command}: {options.run} is not a run folder (no config.yaml)")
    status = options.run / "status.json"
    state = json.loads(status.read_text())["state"] if status.is_file() else "running"
    if state != "running":
        print(f"{options.run} is not running ({state}): nothing to {command}")
        return 0
    request(options.run, command)
    print(f"asked {options.run} to {command}; accel-train status {options.run} tells when it has")
    return 0


def _stop(rest: list[str]) -> int:
    return _ask("stop", rest)


def _save(rest: list[str]) -> int:
    return _ask("save", rest)


def _tasks(rest: list[str]) -> int:
    _parser("tasks").parse_args(rest)
    from accel_train.tasks import TASKS

    for name, (path, text) in TASKS.items():
        print(f"{name:<10} {text}\n{'':<10} {path}")
    return 0


def _doctor(rest: list[str]) -> int:
    parser = _parser("doctor")
    parser.add_argument("--launch", action="store_true", help="also start two processes and let them add a number")
    options = parser.parse_args(rest)
    from accel_train.doctor import report

    text, healthy = report(options.launch)
    print(text)
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
