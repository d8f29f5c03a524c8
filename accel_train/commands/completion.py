"""accel-train completion: the shell completes commands, options and their choices after this line.

  complete -o default -o nospace -C 'accel-train completion' accel-train

It goes into ~/.bashrc; in ~/.zshrc below

  autoload -U +X bashcompinit && bashcompinit
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from accel_train.arguments import arguments_of, hints_of, parts_of
from accel_train.commands import COMMANDS
from accel_train.errors import UserError
from accel_train.registry import TASKS, commands_of


def run(arguments: list[str]) -> int:
    """With COMP_LINE set, as bash calls it (command, word, word before): the candidates, one a line."""
    if "COMP_LINE" not in os.environ:
        print(f"usage: accel-train completion\n\n{(__doc__ or '').strip()}")
        return 0
    line = os.environ["COMP_LINE"].encode()[: int(os.environ.get("COMP_POINT", 1 << 20))].decode(errors="ignore")
    *before, token = line.split(" ")
    word = arguments[1] if len(arguments) > 1 else token  # bash cuts --task=col at the =, and wants the rest alone
    try:
        found = candidates([each for each in before[1:] if each])
    except UserError:  # a config that cannot be read, say; no place to speak of it
        found = []
    for each in found:
        if each.startswith(token):
            print(each[len(token) - len(word) :])
    return 0


def candidates(before: list[str]) -> list[str]:
    """What may follow these words; a space is part of what needs no value."""
    if not before:
        return [f"{name} " for name in [*COMMANDS, *TASKS, "--help", "--version"]]
    name, *rest = before
    if name == "train":
        return _of_train(rest)
    if name in TASKS:
        if not rest:
            return [f"{each} " for each in commands_of(name)]
        command, rest = commands_of(name).get(rest[0]), rest[1:]
    else:
        command = COMMANDS.get(name)
    return _of_parser(command.parser(), rest) if command is not None and not command.raw else []


def _of_parser(parser: argparse.ArgumentParser, before: list[str]) -> list[str]:
    """Options; where a choice of names stands open, those."""
    found: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            if before and before[0] in action.choices:
                return _of_parser(action.choices[before[0]], before[1:])
            found += [f"{each} " for each in action.choices]
        elif action.dest == "task" and not before:
            found += [f"{each} " for each in TASKS]
        elif before and before[-1] in action.option_strings and action.choices:
            return [f"{each} " for each in action.choices]
        found += [f"{each} " for each in action.option_strings if each.startswith("--")]
    return found


def _of_train(before: list[str]) -> list[str]:
    from accel_train.config.read import read, task_class
    from accel_train.config.schema import TrainConfig

    if before[-1:] == ["--task"]:
        return [f"{name} " for name in TASKS]
    if before[-1:] == ["--config"]:
        return []  # -o default: names of files
    node = read([each for each in before if each not in ("--help", "--print_config", "--dry_run")]).get("task")
    found = ["--config ", "--help ", "--print_config ", "--dry_run ", *(f"--task={name} " for name in TASKS)]
    if node is not None:
        arguments = {name: p.annotation for name, p in arguments_of(task_class(node))[0].items()}
        found += _options(arguments, "task.init_args.")
    return [*found, *_options(hints_of(TrainConfig))]


def _options(hints: dict[str, Any], prefix: str = "") -> Iterable[str]:
    """``--NAME=``, and with each choice where there are some; of a dataclass those of its fields."""
    for name, hint in hints.items():
        parts = list(parts_of(hint))
        if dataclasses.is_dataclass(parts[0]):
            yield from _options(hints_of(parts[0]), f"{prefix}{name}.")  # type: ignore[arg-type]
            continue
        choices = [each for part in parts if get_origin(part) is Literal for each in get_args(part)]
        choices += ["true", "false"] * (bool in parts)
        yield f"--{prefix}{name}="
        yield from (f"--{prefix}{name}={each} " for each in choices)
