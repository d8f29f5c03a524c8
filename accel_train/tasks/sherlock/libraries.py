"""What the sherlock extra brings, imported when it is needed."""

from __future__ import annotations

import importlib
from typing import Any

from accel_train.errors import UserError


def library(name: str) -> Any:
    """A module of a library that this task needs. Raises ``UserError`` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"sherlock needs {name}: pip install -e '.[sherlock]' ({error})") from None
