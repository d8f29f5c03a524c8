"""``~``, ``~user`` and ``${NAME}`` in the text of a config: what a run uses, and what it writes down.

``$NAME/`` at the beginning is ``${NAME}/``, and ``$${NAME}`` is the text ``${NAME}`` itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from accel_train.errors import UserError
from accel_train.system.secrets import VARIABLE, remember, was_scrubbed

_BEGINS = re.compile(r"^\$([A-Za-z_]\w*)(?=/)")

_OTHER_LANGUAGES = re.compile(r"(?<!\$)\$\{\w*[.:][^}]*\}")
"""OmegaConf's ${oc.env:NAME} and ${a.b}."""


class Expanded(str):
    """Text in which ``~`` or ``${NAME}`` was replaced.

    Args:
        text: what a run uses.
        written: what was given, and is written into the run folder: it holds on other machines, and no secret.
    """

    written: str

    def __new__(cls, text: str, written: str) -> Expanded:
        made = super().__new__(cls, text)
        made.written = written
        return made

    def __getnewargs__(self) -> tuple[str, str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return str(self), self.written


def expand(tree: Any) -> Any:
    """Plain data with every text in it expanded, and keys as text. Variables that are not set stay as they are."""
    if isinstance(tree, Mapping):
        return {str(name): expand(value) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(expand, tree))
    return _expand_text(tree) if isinstance(tree, str) and not isinstance(tree, Expanded) else tree


def _expand_text(written: str) -> str:
    text = VARIABLE.sub(_value, _BEGINS.sub(r"${\1}", written)).replace("$${", "${")
    if text.startswith("~") and (text != "~" or type(written) is str):  # --key=~ is YAML's null
        text = os.path.expanduser(text)
    return written if text == written else Expanded(text, written)


def _value(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        return match[0]
    remember(match[1], value)
    return value


def refuse_incomplete(tree: Any, key: str = "") -> None:
    """A UserError for the first text in which a secret was taken out, or that cannot be expanded.

    Args:
        tree: plain data, as read or as to be written.
    """
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            refuse_incomplete(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            refuse_incomplete(value, key)
    elif isinstance(tree, str):
        if was_scrubbed(key.rpartition(".")[2], tree):
            how = f"give it again as --{key}=..., or write ${{NAME}} in its place and set the environment variable NAME"
            raise UserError(f"{key}: a secret stood where {tree!r} has ***, and a run folder keeps none; {how}")
        for name in [*VARIABLE.findall(tree), *_BEGINS.findall(tree)]:
            if name not in os.environ:
                raise UserError(f"{key}: {tree!r} needs the environment variable {name}, which is not set")
        if odd := _OTHER_LANGUAGES.search(tree):
            raise UserError(f"{key}: {tree!r}: {odd[0]} is not understood; ${{NAME}} is an environment variable, and "
                            "nothing else is replaced ($${ is the text itself)")  # fmt: skip
        if re.match(r"~[^/]*/", text := _expand_text(tree)):
            raise UserError(f"{key}: {tree!r}: there is no user {text.partition('/')[0][1:]!r}")
