"""Command lines whose mistakes are told like all others: in one line, with exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn

from accel_train.errors import UserError


class Parser(argparse.ArgumentParser):
    """``prog`` begins with accel-train; what follows names the command in the message of a UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('accel-train ')}: {message}")
