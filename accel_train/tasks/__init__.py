"""The built-in tasks by short name. Importing this imports none of them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

from accel_train.errors import UserError

TASKS = {
    "collatz": ("accel_train.tasks.collatz.task.CollatzTask", "transformer on Collatz parity sequences made as it goes"),
}
"""Short name -> (class path, one line of what it is)."""


def class_path(name: str) -> str:
    """A short name, or any dotted path, as the dotted path of a class."""
    if name in TASKS:
        return TASKS[name][0]
    if "." in name:
        return name
    near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(f"task: unknown {name!r}{hint}; there are {', '.join(TASKS)}, or give module.Class")


def find(name: str) -> type:
    """The class itself."""
    module, _, attribute = class_path(name).rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"task: cannot import {name!r}: {error}") from None


def commands(name: str) -> Any:
    """The module with a task's own commands (``accel-train NAME COMMAND``), or None."""
    package = class_path(name).removesuffix(".task." + class_path(name).rpartition(".")[2])
    spec = importlib.util.find_spec(f"{package}.commands")
    return importlib.import_module(f"{package}.commands") if spec else None


def expand_arguments(arguments: list[str]) -> list[str]:
    """Short task names in command-line arguments and in the YAML files they name, written as class paths."""
    import yaml

    expanded, files = [], False
    for i, argument in enumerate(arguments):
        previous = arguments[i - 1] if i else ""
        if match := re.fullmatch(r"--(task(?:\.class_path)?)=([\w.]+)", argument):
            argument = f"--{match[1]}={_checked(match[2])}"
        elif previous in ("--task", "--task.class_path"):
            argument = _checked(argument)
        elif match := re.fullmatch(r"--config=(.+)", argument):
            argument, files = f"--config={_expand_file(match[1], yaml)}", True
        elif previous == "--config":
            argument, files = _expand_file(argument, yaml), True
        expanded.append(argument)
    return expanded


def _checked(name: str) -> str:
    find(name)  # a task that cannot be imported is said so here, in one line
    return class_path(name)


def _expand_file(path: str, yaml: Any) -> str:
    """The YAML text of a file with its task's name made a class path (jsonargparse takes text for a path)."""
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"--config {path}: expected key: value lines")
    task = tree.get("task")
    if isinstance(task, str):
        tree["task"] = {"class_path": _checked(task)}
    elif isinstance(task, dict) and "class_path" in task:
        task["class_path"] = _checked(str(task["class_path"]))
    return yaml.safe_dump(tree, sort_keys=False)


def arguments_of_all_tasks() -> list[str]:
    """``task.init_args.NAME`` and ``NAME`` of every built-in task that can be imported."""
    names: list[str] = []
    for name in TASKS:
        parameters = inspect.signature(find(name)).parameters
        names += [f"task.init_args.{p}" for p in parameters] + list(parameters)
    return names
