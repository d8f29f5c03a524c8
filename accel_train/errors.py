"""The errors of a run, and what is said of them. A ``UserError`` is one that a person can mend: the command line prints
it as one line and exits with code 2."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something in the config, the command or the data is wrong; the message says what, where and what to do."""


class DataError(UserError):
    """A file or record cannot be read as it should. The message names the file and the place in it."""


class FoundError(UserError):
    """What was looked at is wrong. The message is the whole report, which is printed where reports go."""


class AccessError(DataError):
    """Data cannot be reached or have changed. Their content may be good, so they are never left out as bad data."""


class EvaluationError(RuntimeError):
    """An evaluation on held-out data failed."""


class NonFiniteError(RuntimeError):
    """The loss, the gradient or the weights stopped being finite."""


class LostRankError(RuntimeError):
    """Another process of this run is not there any more."""


class OtherRankError(RuntimeError):
    """Another rank met an error, which it reports itself. ``exit_code``: with which all ranks end."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """With which the program ends: 2 if a person can mend it, else 1."""
    return 2 if isinstance(error, UserError) else 1


def brief(error: BaseException) -> str:
    """Its type and the first line of what it says."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def what_is_kept(last_saved: int | None) -> str:
    return "there is no checkpoint" if last_saved is None else f"the last checkpoint is of step {last_saved}"


class LockLostError(RuntimeError):
    """The run folder is another run's by now; nothing more may be written into it."""


def relative_to(path: Any) -> str:
    """`` (relative to FOLDER)`` for a path that the working directory gives its meaning, else nothing."""
    return "" if os.path.isabs(path) else f" (relative to {os.getcwd()})"


def suggest(word: str, names: Iterable[Any]) -> str:
    """`` (did you mean X?)`` if there is a near name, else nothing."""
    near = difflib.get_close_matches(word, [str(name) for name in names], n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near else ""
