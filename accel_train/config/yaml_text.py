"""YAML as configs have it: the scalars of YAML 1.2, and one line of what is wrong with a file."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from accel_train.errors import UserError


class _Loader(yaml.SafeLoader):
    """The scalars of YAML 1.2: 1e-3 is a number; no, 1:30 and dates are text. A key given twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _weigh(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for name, _ in node.value:
            if not isinstance(name, yaml.ScalarNode):
                why = "a key must be a name (is {{ }} a template that was not filled in?)"
                raise yaml.MarkedYAMLError(problem=why, problem_mark=name.start_mark)
            if name.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{name.value} is given twice", problem_mark=name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, KeyError, AttributeError):  # !!int abc
            tag, shown = node.tag.rpartition(":")[2], str(node.value)[:40]
            raise yaml.MarkedYAMLError(problem=f"{shown!r} is no {tag}", problem_mark=node.start_mark) from None


_MANY = 1_000_000


def _weigh(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node means with its aliases written out: a few lines can mean billions, or hold themselves."""
    if id(node) not in known:
        known[id(node)] = _MANY  # until it is known, so that one which holds itself is too many
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        nodes = [n for pair in inner for n in pair] if isinstance(node, yaml.MappingNode) else inner
        known[id(node)] = 1 + sum(_weigh(n, known) for n in nodes)
    if known[id(node)] >= _MANY:
        raise yaml.MarkedYAMLError(problem="this means far too many values", problem_mark=node.start_mark)
    return known[id(node)]


_DIGITS, _EXPONENT = "[0-9][0-9_]*", "(?:[eE][-+]?[0-9]+)"
_SCALARS = {
    "null": "~|null|",
    "bool": "true|True|false|False",
    "int": "[-+]?(?:0|[1-9][0-9_]*)",
    "float": rf"[-+]?(?:{_DIGITS}\.[0-9]*{_EXPONENT}?|{_DIGITS}{_EXPONENT}|\.[0-9]+{_EXPONENT}?|\.inf)|\.nan",
    "merge": "<<",
}


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else."""


for _class in (_Loader, _Dumper):
    for _tag, _pattern in _SCALARS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)


def loads(text: str) -> Any:
    """Raises yaml.YAMLError for everything that cannot be used."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested too deeply") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise yaml.MarkedYAMLError(problem=f"not YAML: line {line} has {error.reason}") from None


def load_mapping(path: Path, name: str, mend: Callable[[str], str] = str) -> dict[str, Any]:
    """The YAML mapping in a file, after ``mend`` has gone over its text; ``name`` begins a line about what is wrong."""
    try:
        tree = loads(mend(_read_text(path)))
    except OSError as error:
        raise UserError(f"{name} {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{name} {path}: {what_is_wrong(error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} {path}: expected lines of KEY: VALUE")
    return tree


_LARGEST = 16 << 20


def _read_text(path: Path) -> str:
    """A file as text; ValueError says why it is none. Nothing that blocks or never ends is opened."""
    about = path.stat()
    piped = stat.S_ISFIFO(about.st_mode) and str(path).startswith(("/dev/", "/proc/"))  # <(...) of a shell
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not (stat.S_ISREG(about.st_mode) or piped):
        raise ValueError("neither a file nor a folder; nothing is read from a pipe or device")
    if about.st_size > _LARGEST:
        raise ValueError(f"not YAML: it has {about.st_size:,} bytes")
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("not YAML in UTF-8: it begins like UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"not YAML: line {line} has the byte 0x{data[error.start]:02x}, which is not UTF-8") from None


def what_is_wrong(error: Exception) -> str:
    """One line about the error, its place first."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    problem = str(error.problem)
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"
    where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
    return " ".join(f"{where}{problem}".split())


def loads_or_text(text: str) -> Any:
    try:
        return loads(text)
    except yaml.YAMLError:
        return str(text)


def dumps(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
