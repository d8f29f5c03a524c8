"""The directive ``command-help``: what every command of accel-train prints for --help, from the program itself."""

from __future__ import annotations

import contextlib
import io
import os

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from accel_train.cli import main
from accel_train.commands import COMMANDS
from accel_train.errors import UserError
from accel_train.registry import TASKS, commands_of

COLUMNS = "100"


def invocations() -> list[tuple[str, ...]]:
    """Arguments of every call that has a help: the program, its commands, and the commands of tasks."""
    found: list[tuple[str, ...]] = [(), *((name,) for name in COMMANDS)]
    for task in TASKS:
        with contextlib.suppress(UserError):  # a task without commands
            found += [(task, name) for name in commands_of(task)]
    return found


def printed(arguments: tuple[str, ...]) -> str:
    """What ``accel-train ARGUMENTS --help`` prints on a terminal of 100 columns. Raises RuntimeError if it fails."""
    os.environ["COLUMNS"], before = COLUMNS, os.environ.get("COLUMNS")
    try:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            try:
                code = main([*arguments, "--help"])
            except SystemExit as ended:  # of argparse
                code = ended.code
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
    if code not in (0, None):
        raise RuntimeError(f"accel-train {' '.join(arguments)} --help ended with {code}")
    return text.getvalue().rstrip()


class CommandHelp(Directive):
    """A section for each call."""

    def run(self) -> list[nodes.Node]:
        return [self._section(arguments) for arguments in invocations()]

    def _section(self, arguments: tuple[str, ...]) -> nodes.section:
        name = " ".join(("accel-train", *arguments))
        section = nodes.section(ids=[nodes.make_id(name)], names=[name])
        section += nodes.title(text=name)
        section += nodes.literal_block(text=printed(arguments), language="none")
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True}
