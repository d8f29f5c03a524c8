"""Command lines whose mistakes are told like all others: in one line, with exit code 2."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from accel_train.errors import UserError


class Parser(argparse.ArgumentParser):
    """``prog`` begins with accel-train; what follows names the command in the message of a UserError."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register("type", Path, lambda text: Path(text).expanduser())  # no shell expands the ~ of --out=~/x

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('accel-train ')}: {message}")
