"""The text of ``accel-train train --help``: every option, with what its declaration or a docstring says of it."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
from collections.abc import Collection
from typing import Any, get_args

from accel_train.arguments import arguments_of, bare, hints_of, rules_of
from accel_train.config.convert import kind
from accel_train.config.plain import plain
from accel_train.config.read import read, settings_for, task_class
from accel_train.config.schema import TrainConfig
from accel_train.config.setting import about


def help_text(arguments: list[str]) -> str:
    """Every option with its meaning, default and range, and those of the task if ``arguments`` name one."""
    shown = argparse.ArgumentParser(
        prog="accel-train train",
        usage="accel-train train --config FILE [--KEY=VALUE ...]",
        epilog="A dot in a name is a level in YAML; values are written as there: --report_to='[tensorboard, wandb]'. "
        "~ is the home folder and ${NAME} an environment variable.",
        add_help=False,
    )
    group = shown.add_argument_group("what to train")
    group.add_argument("--config", metavar="FILE", help="YAML with any of these options; several files are merged")
    group.add_argument(
        "--task", metavar="NAME", help="one that `accel-train tasks` lists, or any class: module.Class, FILE.py:Class"
    )
    group.add_argument("--print_config", action="store_true", help="print the whole config as YAML and stop")
    group.add_argument("--dry_run", action="store_true", help="try a step and all that follows of each phase")
    node = read(arguments).get("task")
    defaults = TrainConfig() if node is None else settings_for(task_class(node), {})
    if node is None:
        group.add_argument("--task.init_args.NAME", metavar="VALUE", help="listed by: train --task=NAME --help")
    else:
        cls = task_class(node)
        group = shown.add_argument_group(f"the task, {cls.__name__}")
        for name, p in arguments_of(cls)[0].items():
            _add_option(group, f"task.init_args.{name}", p.annotation, argument_texts(cls).get(name, ""), p.default)
    declared = about(TrainConfig)
    for name, hint in hints_of(TrainConfig).items():
        if heading := declared[name]["heading"]:
            group = shown.add_argument_group(heading)
        _add_option(group, name, hint, declared[name]["text"], getattr(defaults, name))
    return shown.format_help()


def options_text(function: Any, heading: str, without: Collection[str] = ()) -> str:
    """The keyword arguments of a function, as ``convert.further_options`` takes them, with what its docstring says."""
    text, documented = inspect.cleandoc(function.__doc__ or ""), argument_texts(function)
    shown = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    group = shown.add_argument_group(heading, text.partition("\n\n")[0].replace("``", ""))
    hints = hints_of(function)
    for p in list(inspect.signature(function).parameters.values())[1:]:
        if p.kind is p.VAR_KEYWORD:
            group.add_argument("--NAME", metavar="VALUE", help=documented.get(p.name, "the task judges it"))
        elif p.name not in without:
            _add_option(group, p.name, hints.get(p.name, Any), documented.get(p.name, ""), p.default)
    return shown.format_help().strip()


def _add_option(group: Any, key: str, hint: Any, text: str, default: Any) -> None:
    """One option; for a dataclass also one for each of its fields."""
    if dataclasses.is_dataclass(default):
        group.add_argument(f"--{key}", metavar=kind(hint), help=text.replace("%", "%%"))
        for name, inner in hints_of(type(default)).items():
            inner_text = about(type(default))[name].get("text", "")
            _add_option(group, f"{key}.{name}", inner, inner_text, getattr(default, name))
        return
    inside = [
        f.name for part in get_args(bare(hint)) if dataclasses.is_dataclass(part) for f in dataclasses.fields(part)
    ]
    each = f" Each has {', '.join(inside)}." if inside else ""
    notes = ["required" if default is inspect.Parameter.empty else f"default: {json.dumps(plain(default))}"]
    note = "; ".join([*notes, *map(str, rules_of(hint))])
    group.add_argument(f"--{key}", metavar=kind(hint), help=f"{text}{each} ({note})".strip().replace("%", "%%"))


def argument_texts(what: Any) -> dict[str, str]:
    """The lines ``name: text`` or ``name, name: text`` under ``Args:`` in a docstring, by name."""
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(what.__doc__ or "").partition("Args:\n")[2].splitlines():
        if begins := re.match(r"    (\w[\w, ]*)(?: \(.*?\))?: (.*)", line):
            names = begins[1].split(", ")
            texts |= dict.fromkeys(names, begins[2])
        elif line.startswith("     "):
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
        else:
            break
    return texts
