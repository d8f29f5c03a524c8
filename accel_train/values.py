"""Values of the right type, from YAML, the command line or Python; a UserError names the key that is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from accel_train.errors import UserError
from accel_train.optim import suggest

LARGE = sys.float_info.max  # so that inf and nan are out of range


def in_range(name: str, value: float | None, least: float, most: float = LARGE) -> None:
    """Raise UserError unless the value, if there is one, lies between these, both included."""
    if value is not None and not least <= value <= most:
        bound = f"at least {least}" if most == LARGE else f"from {least} to {most}"
        raise UserError(f"{name}: {value} is out of range, must be {bound}")


class Typed(str):
    """Text from the command line, which may mean a number or a mapping; its key decides."""


def build(hint: Any, value: Any, key: str = "") -> Any:
    """``value`` as the type ``hint``; dictionaries become dataclasses, and lists and dictionaries are looked into."""
    origin, inner = get_origin(hint), get_args(hint)
    prefix = f"{key}." if key else ""
    if isinstance(value, dict) and isinstance(hint, type) and dataclasses.is_dataclass(hint):
        hints = get_type_hints(hint)
        refuse_unknown(value, hints, prefix)
        return hint(**{name: build(hints[name], sub, f"{prefix}{name}") for name, sub in value.items()})
    if isinstance(value, dict) and (origin is dict or hint is Any):
        return {str(name): build(inner[1] if inner else Any, sub, f"{prefix}{name}") for name, sub in value.items()}
    if origin is list and isinstance(value, (list, tuple)):
        return [build(inner[0], sub, f"{key}[{i}]") for i, sub in enumerate(value)]
    if origin is tuple and isinstance(value, (list, tuple)):
        of = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(of) == len(value):
            return tuple(build(h, sub, f"{key}[{i}]") for i, (h, sub) in enumerate(zip(of, value, strict=True)))
    why = ""
    for attempt in _readings(hint, value):
        if hint is Any or type(attempt) in (inner if origin in (Union, UnionType) else (hint,)):
            return attempt
        if origin is Literal and any(type(attempt) is type(choice) and attempt == choice for choice in inner):
            return attempt
        try:
            return _convert(hint, attempt)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            why = f": {' '.join(str(error).split())}" if isinstance(attempt, dict) else ""
    near = suggest(str(value), get_args(hint)) if origin is Literal else ""
    raise UserError(f"{key}: expected {kind(hint, ' or ')}, got {value!r}{near}{why}")


def refuse_unknown(
    given: Iterable[Any], known: Iterable[str], prefix: str = "", elsewhere: Mapping[str, str] | None = None
) -> None:
    """A UserError for a name that is not known; ``elsewhere``: names that are known by a longer key."""
    options = {**(elsewhere or {}), **{name: prefix + name for name in known}}
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
            hint = f" (did you mean {options[near[0]]}?)" if near else ""
            raise UserError(f"{prefix}{name}: no such option{hint}")


def hints_of(function: Any) -> dict[str, Any]:
    """Type hints; none where a name exists only for type checkers."""
    try:
        return get_type_hints(function)
    except NameError:
        return {}


def further_options(arguments: Iterable[str], function: Any) -> dict[str, Any]:
    """``--name=value`` for the keyword arguments of a function, as its type hints want them."""
    parameters, hints = list(inspect.signature(function).parameters.values())[1:], hints_of(function)
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    given = {}
    for argument in arguments:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals:
            raise UserError(f"{argument}: write --NAME=VALUE")
        if len(names) < len(parameters) and name not in names:  # it takes any, and judges itself
            given[name] = Typed(text)
            continue
        refuse_unknown([name], names)
        given[name] = build(hints.get(name, Any), Typed(text), name)
    return given


def kind(hint: Any, separator: str = "|") -> str:
    """A type as a person would say it: ``int or null``."""
    names = {int: "int", float: "number", str: "text", bool: f"true{separator}false", NoneType: "null", Any: "value"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return separator.join(kind(part, separator) for part in inner)
    if origin is Literal:
        return separator.join(map(str, inner))
    if origin is list:
        return "[...]"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "{...}"
    return names.get(hint) or (str(hint) if inner else getattr(hint, "__name__", str(hint)))


def _readings(hint: Any, value: Any) -> list[Any]:
    """What a value may mean, likeliest first: 1e5 may be a whole number, and what looks like a number may be text."""
    if isinstance(value, Typed):
        text, loaded = str(value), loads_or_text(value)
        return [text] if hint is str else [*_readings(hint, loaded), text]
    return [value, int(value)] if type(value) is float and value.is_integer() else [value]


def _convert(hint: Any, value: Any) -> Any:
    """jsonargparse knows every kind of type hint, also a class that is given as class_path and init_args."""
    import jsonargparse

    if value is None:  # to jsonargparse that is always a value
        raise TypeError("null")
    one = jsonargparse.ArgumentParser(exit_on_error=False)
    one.add_argument("--value", type=hint)
    return one.instantiate(one.parse_object({"value": value})).value


# -- YAML ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """The scalars of YAML 1.2: 1e-3 is a number; no, 1:30 and dates are text. A key given twice is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for name, _ in node.value:
            if name.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{name.value} is given twice", problem_mark=name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


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
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), None)  # pyright: ignore


def loads(text: str) -> Any:
    return yaml.load(text, _Loader)


def load_mapping(path: Path, name: str, mend: Callable[[str], str] = str) -> dict[str, Any]:
    """The YAML mapping in a file, after ``mend`` has gone over its text; ``name`` begins a line about what is wrong."""
    try:
        tree = loads(mend(path.read_text()))
    except OSError as error:
        raise UserError(f"{name} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{name} {path}: {where}{getattr(error, 'problem', None) or 'not YAML'}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{name} {path}: expected lines of KEY: VALUE")
    return tree


def loads_or_text(text: str) -> Any:
    try:
        return loads(text)
    except yaml.YAMLError:
        return str(text)


def dumps(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
