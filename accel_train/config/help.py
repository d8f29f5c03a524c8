"""The text of ``accel-train train --help``: every option, with what a docstring says of it."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from typing import Any, get_args, get_type_hints

from accel_train.config.convert import kind
from accel_train.config.plain import plain
from accel_train.config.read import arguments_of, read, settings_for, task_class
from accel_train.config.schema import TrainConfig

_HEADINGS = {
    "output_dir": "the run", "global_batch_size": "data", "learning_rate": "optimisation",
    "mixed_precision": "numerics",
    "logging_steps": "log, evaluation, checkpoints", "metric_for_best_model": "the best model, early stopping",
    "max_time": "stopping and resuming", "report_to": "tracking",
}  # fmt: skip
"""The field under which each heading begins."""


def help_text(arguments: list[str]) -> str:
    """Every option with what its docstring says of it, and those of the task if ``arguments`` name one."""
    shown = argparse.ArgumentParser(
        prog="accel-train train",
        usage="accel-train train --config FILE [--KEY=VALUE ...]",
        epilog="A dot in a name is a level in YAML; values are written as there: --report_to='[tensorboard, wandb]'. "
        "~ is the home folder and ${NAME} an environment variable.",
        add_help=False,
    )
    group = shown.add_argument_group("what to train")
    group.add_argument("--config", metavar="FILE", help="YAML with any of these options; several files are merged")
    group.add_argument("--task", metavar="NAME", help="one that `accel-train tasks` lists, or any class: module.Class")
    group.add_argument("--print_config", action="store_true", help="print the whole config as YAML and stop")
    node = read(arguments).get("task")
    defaults = TrainConfig() if node is None else settings_for(task_class(node), {})
    if node is None:
        group.add_argument("--task.init_args.NAME", metavar="VALUE", help="listed by: train --task=NAME --help")
    else:
        cls = task_class(node)
        group = shown.add_argument_group(f"the task, {cls.__name__}")
        for name, p in arguments_of(cls)[0].items():
            _add_option(group, f"task.init_args.{name}", p.annotation, _argument_texts(cls).get(name, ""), p.default)
    for name, default in vars(defaults).items():
        if name in _HEADINGS:
            group = shown.add_argument_group(_HEADINGS[name])
        hint, text = get_type_hints(TrainConfig)[name], _argument_texts(TrainConfig)[name]
        if not dataclasses.is_dataclass(hint):
            _add_option(group, name, hint, text, default)
            continue
        texts = _argument_texts(type(default))
        for inner, inner_hint in get_type_hints(type(default)).items():
            _add_option(group, f"{name}.{inner}", inner_hint, texts[inner], getattr(default, inner))
    return shown.format_help()


def _add_option(group: Any, key: str, hint: Any, text: str, default: Any) -> None:
    fields = [f.name for inner in get_args(hint) if dataclasses.is_dataclass(inner) for f in dataclasses.fields(inner)]
    each = f" Each has {', '.join(fields)}." if fields else ""
    note = "required" if default is inspect.Parameter.empty else f"default: {json.dumps(plain(default))}"
    group.add_argument(f"--{key}", metavar=kind(hint), help=f"{text}{each} ({note})".strip().replace("%", "%%"))


def _argument_texts(cls: type) -> dict[str, str]:
    """The lines ``name: text`` or ``name, name: text`` under ``Args:`` in a docstring, by name."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")[2].splitlines():
        if begins := re.match(r"    (\w[\w, ]*)(?: \(.*?\))?: (.*)", line):
            names = begins[1].split(", ")
            texts |= dict.fromkeys(names, begins[2])
        elif line.startswith("     "):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        else:
            break
    return texts
