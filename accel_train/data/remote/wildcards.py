"""Shell wildcards over anything that can list a directory: each directory is listed once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache

Ls = Callable[[str], list[tuple[str, bool]]]
"""A directory to the (name, is it a directory) of what is in it; one that is not there is empty."""


def is_pattern(path: str, question_mark: bool = True) -> bool:
    return re.search(r"[*?\[]" if question_mark else r"[*\[]", path) is not None


def expand(pattern: str, ls: Ls) -> list[str]:
    """Files that match, sorted, each once.

    ``*``, ``?`` and ``[...]`` stand for characters of one name, a component ``**`` for any number of directories. As in
    a shell, a name that begins with a dot matches only where the pattern has the dot, and case matters.
    """
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if is_pattern(part))
    start = "/".join(parts[:fixed]) + ("/" if fixed else "")
    return sorted(set(_files(start, tuple(part for part in parts[fixed:] if part), cache(ls))))


def _files(directory: str, parts: tuple[str, ...], ls: Ls) -> Iterator[str]:
    """``directory``: empty or with a slash at its end."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        yield from _files(directory, rest or ("*",), ls)
        for name, is_directory in ls(directory):
            if is_directory and not name.startswith("."):
                yield from _files(f"{directory}{name}/", parts, ls)
    elif rest and not is_pattern(part):
        yield from _files(f"{directory}{part}/", rest, ls)
    else:
        for name, is_directory in ls(directory):
            if bool(rest) == is_directory and fnmatchcase(name, part) and (part[0] == "." or name[0] != "."):
                yield from _files(f"{directory}{name}/", rest, ls) if rest else (f"{directory}{name}",)
