"""Values of the right type, from YAML, the command line or Python; a UserError names the key that is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, is_typeddict

import yaml

from accel_train.arguments import arguments_of, bare, hints_of, is_union, parts_of, rules_of
from accel_train.classes import is_file, module_of, path_of, split
from accel_train.config.yaml_text import loads, loads_or_text, what_is_wrong
from accel_train.errors import UserError, suggest
from accel_train.system.expansion import Expanded


class Typed(str):
    """Text from the command line, which may mean a number or a mapping; its key decides."""


class _Mismatch(Exception):
    """A value is not of this type."""


def build(hint: Any, value: Any, key: str = "") -> Any:
    """``value`` as the type ``hint``, in the range that it declares.

    A hint is made of int, float, str, bool, None, Any, Literal, Path and Enum, of list, tuple, set, frozenset,
    Sequence, dict and Mapping of such, of unions, dataclasses and other classes; a class is given by its path, or as
    ``{class_path: ..., init_args: {...}}``.

    Args:
        key: the name of the value, for messages.

    Raises:
        UserError: the value is of another type or out of range, or the hint is none of these.
    """
    if isinstance(value, Typed) and value[:1] + value[-1:] == "[]" and list in [get_origin(h) for h in parts_of(hint)]:
        _refuse_half_a_list(value, key)
    inside: UserError | None = None
    for attempt in _readings(hint, value):
        try:
            made = _read(bare(hint), attempt, key)
        except _Mismatch:
            continue
        except UserError as error:  # another reading may still fit
            inside = inside or error
            continue
        for rule in rules_of(hint):
            rule.check(key, made)
        return made
    raise inside or UserError(f"{key}: expected {kind(hint, ' or ')}, got {value!r}{_meant(bare(hint), value, key)}")


def _meant(hint: Any, value: Any, key: str) -> str:
    """What may have been meant by a value that does not fit."""
    if get_origin(hint) is Literal:
        return suggest(str(value), get_args(hint))
    if dataclasses.is_dataclass(hint) and isinstance(value, str) and "class_path" in hints_of(hint):  # type: ignore[arg-type]
        return f" (did you mean {key}.class_path={value}?)"
    if get_origin(hint) in (list, tuple) and isinstance(value, str) and "," in value and value[0] not in "[{":
        return f" (write '[{value}]')"
    return ""


def construct(cls: type, given: Any, prefix: str, where_from: str = "") -> Any:
    """An instance of a class.

    Args:
        given: arguments of its constructor by name, as a config has them.
        prefix: of their names, in messages.
        where_from: what to say if one is missing.

    Raises:
        UserError: an argument is unknown, missing or wrong.
    """
    if not isinstance(given, dict):
        raise UserError(f"{prefix.rstrip('.')}: expected {{...}}, got {given!r}")
    known, open_ended = arguments_of(cls)
    if not open_ended:
        refuse_unknown(given, known, prefix)
    for name, argument in known.items():
        if argument.default is inspect.Parameter.empty and name not in given:
            raise UserError(f"{prefix}{name}: missing; {cls.__name__} needs it{where_from}")
    hints = {name: argument.annotation for name, argument in known.items()}
    return cls(**{name: build(hints.get(name, Any), value, f"{prefix}{name}") for name, value in given.items()})


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


def pairs(arguments: Iterable[str], valueless: Callable[[str], str] | None = None) -> Iterator[tuple[str, str]]:
    """(key, value) of each ``--KEY=VALUE`` or ``--KEY VALUE``; ``valueless``: what to say of a key without a value."""
    rest, hint = iter(arguments), " (a YAML file is given as --config FILE)" if valueless else ""
    before = ""
    for argument in rest:
        key, equals, value = argument.partition("=")
        if not key.startswith("--"):
            quoted = f" (if it belongs to {before} {argument}', put that in quotes; a list is '[A, B]')"
            raise UserError(f"{argument}: expected --KEY=VALUE{quoted if before and '.y' not in argument else hint}")
        if not equals:
            following = next(rest, "--")
            if following.startswith("--"):
                raise UserError(valueless(key[2:]) if valueless else f"{key}: expected a value, as in {key}=VALUE")
            value = following
        before = f"{key}='{value}"
        yield key[2:], value


def further_options(arguments: Iterable[str], function: Any) -> dict[str, Any]:
    """Options for the keyword arguments of a function, as its type hints want them."""
    parameters, hints = list(inspect.signature(function).parameters.values())[1:], hints_of(function)
    names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    given = {}
    for name, text in pairs(arguments):
        if len(names) < len(parameters) and name not in names:  # it takes any, and judges itself
            given[name] = Typed(text)
            continue
        refuse_unknown([name], names)
        given[name] = build(hints.get(name, Any), Typed(text), name)
    return given


def kind(hint: Any, separator: str = "|") -> str:
    """A type as a person would say it, or type it: ``int or null``, ``[number, number]``."""
    names = {int: "int", float: "number", str: "text", bool: f"true{separator}false", NoneType: "null", Any: "value"}
    hint = bare(hint)
    origin, inner = get_origin(hint), get_args(hint)
    if is_union(hint):
        return separator.join(kind(part, separator) for part in inner)
    if origin is Literal:
        return separator.join(map(str, inner))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return separator.join(member.name for member in hint)
    if origin in (list, Sequence, tuple, set, frozenset):
        parts = [kind(part) for part in inner if part is not ...]
        return f"[{', '.join(parts + ['...'] * (origin is not tuple or ... in inner))}]"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "{...}"
    return names.get(hint) or _written(hint)


def _written(hint: Any) -> str:
    """A type as Python writes it, without ranges: ``tuple[int, ...]``."""
    hint = bare(hint)
    if get_origin(hint) in (tuple, set, frozenset):
        return f"{get_origin(hint).__name__}[{', '.join(map(_written, get_args(hint)))}]"
    return "..." if hint is ... else hint.__name__ if isinstance(hint, type) else str(hint)


def _readings(hint: Any, value: Any) -> list[Any]:
    """What a value may mean, likeliest first: 1e5 may be a whole number, and what looks like a number may be text."""
    types = list(parts_of(hint))
    if isinstance(value, Expanded):  # text where that may be
        return [value] if {Any, str} & set(types) else _readings(hint, Typed(value))
    if isinstance(value, Typed):
        text, loaded = str(value), loads_or_text(value)
        return [text] if types == [str] else [*_readings(hint, loaded), text]
    return [value, int(value)] if type(value) is float and value.is_integer() else [value]


# -- one reading as one type -----------------------------------------------------------------------------------------


def _read(hint: Any, value: Any, key: str) -> Any:
    """Raises _Mismatch if the value is of another type, and UserError for what is wrong within it."""
    origin = get_origin(hint) or hint
    if is_union(hint):
        return _one_of(hint, value, key)
    if origin in _READERS:
        return _READERS[origin](hint, value, key)
    if not isinstance(hint, type) or is_typeddict(hint) or hint.__module__ in ("builtins", "collections.abc"):
        raise UserError(
            f"{key}: a config cannot hold a {_written(hint)}; it can hold numbers, text, paths, lists, tuples, sets, "
            "dictionaries, Literal, Enum, dataclasses, and other classes by their path"
        )
    return _instance(hint, value, key)


def _one_of(hint: Any, value: Any, key: str) -> Any:
    found = str if isinstance(value, Expanded) else type(value)
    if found in (bool, int, float, str) and found in parts_of(hint):
        return value
    inside: UserError | None = None
    for part in parts_of(hint):
        try:
            return _read(part, value, key)
        except _Mismatch:
            continue
        except UserError as error:
            inside = inside or error
    raise inside or _Mismatch


def _anything(hint: Any, value: Any, key: str) -> Any:
    return _mapping(dict[str, Any], value, key) if isinstance(value, dict) else value


def _literal(hint: Any, value: Any, key: str) -> Any:
    for choice in get_args(hint):
        if value == choice and isinstance(value, type(choice)) and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    raise _Mismatch


def _null(hint: Any, value: Any, key: str) -> None:
    if value is not None:
        raise _Mismatch


_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _bool(hint: Any, value: Any, key: str) -> bool:
    found = value if isinstance(value, bool) else _SWITCHES.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise _Mismatch
    return found


def _number(hint: Any, value: Any, key: str) -> Any:
    """A number, also one in quotes; an int is never made of a float."""
    if type(value) not in (int, str, hint):
        raise _Mismatch
    try:
        return hint(value)
    except (ValueError, OverflowError):
        raise _Mismatch from None


def _text(hint: Any, value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise _Mismatch
    return value


def _path(hint: Any, value: Any, key: str) -> Path:
    if not isinstance(value, (str, Path)):
        raise _Mismatch
    return Path(value)


def _collection(hint: Any, value: Any, key: str) -> Any:
    """A list, tuple or set, each item as its hint says; one text stands for a list of it."""
    if isinstance(value, str) and value and value[0] not in "[{" and holds_texts(hint):
        value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise _Mismatch
    origin, inner = get_origin(hint) or hint, get_args(hint) or (Any,)
    if origin is tuple and get_args(hint) and inner[1:] != (...,):
        if len(inner) != len(value):
            raise _Mismatch
    else:
        inner = inner[:1] * len(value)
    made = (build(of, sub, f"{key}[{i}]") for i, (of, sub) in enumerate(zip(inner, value, strict=True)))
    return (list if origin is Sequence else origin)(made)


def holds_texts(hint: Any) -> bool:
    """Whether this is a collection of any length of names: of text, paths or choices."""
    inner = get_args(hint)
    any_length = get_origin(hint) is not tuple or inner[1:] == (...,)
    return any_length and any(part in (str, Path) or get_origin(part) is Literal for part in parts_of((*inner, Any)[0]))


def _mapping(hint: Any, value: Any, key: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _Mismatch
    of_name, of_value = get_args(hint) or (str, Any)
    prefix = f"{key}." if key else ""
    return {
        build(of_name, Typed(str(name)), f"{prefix}{name}"): build(of_value, sub, f"{prefix}{name}")
        for name, sub in value.items()
    }


def _instance(hint: type, value: Any, key: str) -> Any:
    """A dataclass by its fields, an Enum by its name, another class by ``class_path`` and ``init_args``."""
    if isinstance(value, hint):
        return value
    if issubclass(hint, Enum):
        if isinstance(value, str) and value in hint.__members__:
            return hint[value]
        raise _Mismatch
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _Mismatch
        return construct(hint, value, f"{key}." if key else "")
    return _object(hint, value, key)


def _object(hint: type, value: Any, key: str) -> Any:
    dotted = isinstance(value, str) and "." in value and all(map(str.isidentifier, value.split(".")))
    named = dotted or (isinstance(value, str) and is_file(value))
    node = {"class_path": value} if named else value
    if not isinstance(node, dict):
        raise _Mismatch
    refuse_unknown(node, ["class_path", "init_args"], f"{key}.")
    cls = _class(str(node["class_path"]), key) if "class_path" in node else hint
    if not issubclass(cls, hint):
        raise UserError(f"{key}: {node['class_path']} is no {hint.__name__}")
    given = node.get("init_args") or {}
    try:
        made = construct(cls, given, f"{key}.init_args.")
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {cls.__name__} cannot be made: {' '.join(str(error).split())}") from None
    with contextlib.suppress(AttributeError):  # so that the config of a run can say how it was made
        made.written_as = {"class_path": path_of(cls), "init_args": given}
    return made


def imported(path: str, key: str) -> Any:
    """The class or function ``module.name`` or ``FILE.py:name``; a UserError if there is none."""
    where, name = split(path)
    try:
        return getattr(module_of(where), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}: cannot import {path!r}: {error}") from None


def _class(path: str, key: str) -> type:
    found = imported(path, key)
    if not isinstance(found, type):
        raise UserError(f"{key}: {path} is no class")
    return found


_READERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    Any: _anything, object: _anything, Literal: _literal, NoneType: _null, bool: _bool, int: _number, float: _number,
    str: _text, Path: _path, list: _collection, tuple: _collection, set: _collection, frozenset: _collection,
    Sequence: _collection, dict: _mapping, Mapping: _mapping,
}  # fmt: skip
