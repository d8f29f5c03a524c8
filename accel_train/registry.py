"""The built-in tasks by short name. Importing this imports none of them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

from accel_train.classes import module_of, split
from accel_train.command import Command, find_command, listed
from accel_train.errors import UserError, suggest

TASKS = {
    "collatz": (
        "accel_train.tasks.collatz.task.CollatzTask",
        "transformer on Collatz parity sequences, made as it goes",
    ),
    "collatz_step": (
        "accel_train.tasks.collatz.step.task.LongStepTask",
        "transformer that calculates the long Collatz step of a number in digits, exactly or not at all",
    ),
    "muon": (
        "accel_train.tasks.muon.task.MuonTask",
        "conditional WGAN-GP for bundles of muons in ragged Parquet, local or remote",
    ),
    "gdynet": (
        "accel_train.tasks.gdynet.task.GDyNetTask",
        "slow dynamics of atoms' surroundings from trajectories: graph network, VAMP losses in phases",
    ),
    "tcn": (
        "accel_train.tasks.tcn.task.TCNTask",
        "disruptions of a tokamak from its imaging signals: causal dilated convolutions on long records",
    ),
    "sherlock": (
        "accel_train.tasks.sherlock.task.SherlockTask",
        "video, audio and text of a film to the BOLD of who watches it, and back: autoencoder through a brain",
    ),
}
"""Short name -> (class path, one line of what it is)."""


def class_path(name: str) -> str:
    """A short name, or any path, as the path of a class."""
    if name in TASKS:
        return TASKS[name][0]
    if name.endswith(".py"):
        raise UserError(f"task: {name} is a file; give {name}:Class")
    if "." in name.strip("."):
        return name
    raise UserError(f"task: unknown {name!r}{suggest(name, TASKS)}; there are {', '.join(TASKS)}, or give module.Class "
                    "or FILE.py:Class")  # fmt: skip


def find(name: str) -> type:
    """The class itself; modules are also looked for in the working directory."""
    from accel_train.task import Task

    where, attribute = split(class_path(name))
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = module_of(where)
    except (ImportError, SyntaxError, TypeError) as error:  # TypeError: a relative name
        raise UserError(f"task: cannot import {name!r}: {error}") from None
    cls = getattr(found, attribute, None)
    if isinstance(cls, type) and issubclass(cls, Task):
        return cls
    if where == "__main__":
        raise UserError(f"task: {name!r} was defined in a notebook, an interactive session or a script that is not "
                        "running here; save it in a file and give --task=FILE.py:Class")  # fmt: skip
    tasks = [n for n, c in vars(found).items() if isinstance(c, type) and issubclass(c, Task) and c is not Task]
    what = "is not a Task" if hasattr(found, attribute) else "does not exist"
    raise UserError(f"task: {name!r} {what}{suggest(attribute, tasks)}")


def commands_of(name: str) -> dict[str, Command]:
    """The commands that the ``commands`` module of a built-in task lists in COMMANDS."""
    package = class_path(name).removesuffix(".task." + class_path(name).rpartition(".")[2])
    if importlib.util.find_spec(f"{package}.commands") is None:
        raise UserError(f"{name} has no commands of its own")
    return importlib.import_module(f"{package}.commands").COMMANDS


def run_command(name: str, arguments: list[str]) -> int:
    """``accel-train NAME COMMAND ...``"""
    commands = commands_of(name)
    if not arguments or arguments[0] in ("-h", "--help"):
        usage = f"usage: accel-train {name} COMMAND ... (--help says more)"
        print(usage, "", *listed({each: command.help for each, command in commands.items()}), sep="\n")
        return 0
    return find_command(commands, arguments[0], name).run(arguments[1:], f"accel-train {name}")
