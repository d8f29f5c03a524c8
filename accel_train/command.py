"""Commands: the name of each, and the module that has its options and runs it. A mistake is one line, exit code 2."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from accel_train.errors import UserError, suggest

OF_TASK = ("--task.init_args.", "--task=")
"""How options begin that change a run's task: its data, or its file, were moved."""


class Parser(argparse.ArgumentParser):
    """``prog`` begins with accel-train; what follows names the command in the message of a UserError."""

    usage: str | None

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.register("type", Path, _local_path)
        self._takes_others = False
        self._describe_others: Callable[[Sequence[str]], str] | None = None

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('accel-train ')}: {message}")

    def take_others(self, usage: str, describe: Callable[[Sequence[str]], str] | None = None) -> None:
        """Arguments that this parser does not know are for the command to judge, as ``options.others``.

        Args:
            describe: what ``--help`` says of them, from all arguments.
        """
        self.usage, self._takes_others, self._describe_others = f"{self.prog} {usage}", True, describe

    def options(self, arguments: Sequence[str]) -> argparse.Namespace:
        if not self._takes_others:
            return self.parse_args(arguments)
        if self._describe_others is not None and {"-h", "--help"} & set(arguments):
            self.epilog = self._describe_others(arguments)
        options, others = self.parse_known_args(arguments)
        options.others = others
        return options


def _local_path(text: str) -> Path:
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; this must be a file or folder here, so copy it first")
    return Path(text).expanduser()  # no shell expands the ~ of --out=~/x


@dataclass(frozen=True)
class Command:
    """A command, of the program or of a task. Nothing of it is imported before it is asked for.

    Args:
        name: what it is called.
        help: one line for the list of commands.
        module: has ``add_arguments(parser)`` and ``run(options) -> exit code``, where ``options.command`` is the name;
            its docstring is the text of ``--help``.
        raw: ``run`` is given the list of arguments itself, which are no fixed options, and answers ``--help``.
    """

    name: str
    help: str
    module: str
    raw: bool = False

    def run(self, arguments: Sequence[str], program: str = "accel-train") -> int:
        """The exit code. Raises a UserError for bad arguments."""
        module = importlib.import_module(self.module)
        return module.run(list(arguments) if self.raw else self.parser(program).options(arguments))

    def parser(self, program: str = "accel-train") -> Parser:
        """What reads its arguments; none for one that is raw."""
        module = importlib.import_module(self.module)
        parser = Parser(prog=f"{program} {self.name}", description=(module.__doc__ or "").replace("``", ""))
        parser.set_defaults(command=self.name)
        module.add_arguments(parser)
        return parser


def by_name(*commands: Command) -> dict[str, Command]:
    return {command.name: command for command in commands}


def find_command(commands: Mapping[str, Command], name: str, task: str = "", others: Iterable[str] = ()) -> Command:
    """The command of this name. Raises a UserError that lists all, and ``others`` that may stand in its place."""
    if name in commands:
        return commands[name]
    known, of = [*commands, *others], f"{task}: " if task else ""
    if not task and (name.startswith("--") or name.endswith((".yaml", ".yml"))):
        raise UserError(
            f"{name} comes after a command: accel-train train {name if name[0] == '-' else f'--config {name}'}"
        )
    raise UserError(f"{of}unknown command {name!r}{suggest(name, known)}; there are {', '.join(known)}")


def listed(texts: Mapping[str, str]) -> list[str]:
    """Lines of a help: names and what they are."""
    width = max(10, *map(len, texts))
    return [f"  {name:<{width}} {text}" for name, text in texts.items()]


# -- what many commands have -----------------------------------------------------------------------------------------


def add_trust(parser: Parser) -> None:
    parser.add_argument("--trust", action="store_true", help="run code of a task that is in no installed package")


def refuse_unknown(command: str, others: Iterable[str], known: str | tuple[str, ...] = OF_TASK) -> None:
    """A UserError if one of the ``others`` that a command takes does not begin as those it knows."""
    for other in others:
        if not other.startswith(known):
            raise UserError(f"{command}: unrecognized arguments: {other}")


def add_weights(parser: Parser) -> None:
    """RUN, --checkpoint and --trust, as ``run.saved.find_saved`` takes them."""
    parser.add_argument("run", type=Path, help="run folder, checkpoint, or exported model folder")
    parser.add_argument("--checkpoint", help="best (default where there is one), latest, a step, or a path")
    add_trust(parser)


def refuse_existing(command: str, target: Path) -> None:
    """A UserError if a file that a command is to write is there."""
    if target.exists():
        raise UserError(f"{command}: {target} exists; give another --out, or remove it")


def program(name: str) -> str:
    """How to call a program of this environment from here, activated or not."""
    beside = Path(sys.executable).parent / name
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside)
