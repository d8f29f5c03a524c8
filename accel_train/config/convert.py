"""Values of the right type, from YAML, the command line or Python; a UserError names the key that is wrong."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import sys
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from accel_train.config.yaml_text import loads, loads_or_text, what_is_wrong
from accel_train.errors import UserError, suggest
from accel_train.system.expansion import Expanded

LARGE = sys.float_info.max  # so that inf and nan are out of range


def check_range(name: str, value: float | None, least: float, most: float = LARGE) -> None:
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
    if isinstance(value, Typed) and value[:1] + value[-1:] == "[]" and list in [get_origin(h) for h in (hint, *inner)]:
        _refuse_half_a_list(value, key)
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
        found = str if isinstance(attempt, Expanded) else type(attempt)
        if hint is Any or found in (inner if origin in (Union, UnionType) else (hint,)):
            return attempt
        if origin is Literal and any(type(attempt) is type(choice) and attempt == choice for choice in inner):
            return attempt
        try:
            return _convert(hint, attempt)
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            why = f": {' '.join(str(error).split())}" if isinstance(attempt, dict) else ""
    near = suggest(str(value), get_args(hint)) if origin is Literal else ""
    raise UserError(f"{key}: expected {kind(hint, ' or ')}, got {value!r}{near}{why}")


def _refuse_half_a_list(text: str, key: str) -> None:
    """[https://host/x?sig=y] is no list to YAML, and surely no name of a file either."""
    try:
        loads(text)
    except yaml.YAMLError as error:
        why = f"this is no list ({what_is_wrong(error)}); quote what is in it, as in ['a', 'b']"
        raise UserError(f"{key}: {text}: {why}") from None


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
    if isinstance(value, Expanded):  # text where that may be
        return [value] if hint is Any or str in (hint, *get_args(hint)) else _readings(hint, Typed(value))
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
