"""The JSON schema of a config file, with which an editor completes, explains and checks YAML as it is typed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from accel_train.arguments import LARGE, Range, arguments_of, bare, hints_of, is_union, rules_of
from accel_train.config.convert import holds_texts
from accel_train.config.help import argument_texts
from accel_train.config.plain import plain
from accel_train.config.schema import TrainConfig
from accel_train.config.setting import about
from accel_train.registry import TASKS, find

Schema = dict[str, Any]

_SIMPLE = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
_VARIABLE: Schema = {"type": "string", "pattern": r"\$\{"}
"""An environment variable stands for any value."""


def config_schema(tasks: Iterable[str] = TASKS) -> Schema:
    """The schema (draft 2020-12) of what ``train --config`` reads. It is no stricter than that, but for numbers in
    quotes and for yes and no in the place of true and false. What is missing may be given on the command line.

    Args:
        tasks: names of built-in tasks, whose arguments are checked too; those of other tasks may be anything.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a config of accel_train",
        "type": "object",
        "properties": {"task": _task(list(tasks)), **_fields(TrainConfig)},
        "additionalProperties": False,
    }


def _task(names: list[str]) -> Schema:
    arguments = [
        {
            "if": {"properties": {"class_path": {"enum": [name, TASKS[name][0]]}}, "required": ["class_path"]},
            "then": {"properties": {"init_args": _arguments(find(name))}},
        }
        for name in names
    ]
    node = {
        "type": "object",
        "properties": {
            "class_path": {"type": "string", "description": "a name, or any class: module.Class", "examples": names},
            "init_args": {"type": ["object", "null"]},
        },
        "required": ["class_path"],
        "additionalProperties": False,
        "allOf": arguments,
    }
    return {"description": "what to train", "anyOf": [{"type": "string", "examples": names}, node]}


def _arguments(cls: type) -> Schema:
    """The arguments of a constructor."""
    known, open_ended = arguments_of(cls)
    texts = argument_texts(cls)
    properties = {
        name: _described(p.annotation, texts.get(name, ""), None if p.default is inspect.Parameter.empty else p.default)
        for name, p in known.items()
    }
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": open_ended}


def _fields(cls: Any) -> dict[str, Schema]:
    """The settings of a dataclass."""
    declared, defaults = about(cls), {f.name: f for f in dataclasses.fields(cls)}
    return {
        name: _described(hint, declared[name].get("text", ""), _default_of(defaults[name]))
        for name, hint in hints_of(cls).items()
    }


def _default_of(field: Any) -> Any:
    made = field.default if field.default is not dataclasses.MISSING else field.default_factory
    return made() if callable(made) else made


def _described(hint: Any, text: str, default: Any) -> Schema:
    shown = {} if default is None or dataclasses.is_dataclass(default) else {"default": plain(default)}
    return {**({"description": text} if text else {}), **shown, **_of(hint)}


def _of(hint: Any) -> Schema:
    """The values that ``convert.build`` takes for a hint."""
    limits: Schema = {}
    for rule in rules_of(hint):
        if isinstance(rule, Range):
            limits["minimum"] = rule.least
            limits |= {"exclusiveMaximum": rule.below} if rule.below is not None else {}
            limits |= {"maximum": rule.most} if rule.most != LARGE else {}
    hint = bare(hint)
    if is_union(hint):
        return {"anyOf": [_of(part) for part in get_args(hint)], **limits}
    found = _plain_of(hint)
    return found if not found or found.get("type") in ("string", "null") else {"anyOf": [found, _VARIABLE], **limits}


def _plain_of(hint: Any) -> Schema:
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if hint in _SIMPLE:
        return {"type": _SIMPLE[hint]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (list, tuple, set, frozenset, Sequence):
        return _array(hint, origin, inner)
    if origin in (dict, Mapping):
        return {"type": "object", **({"additionalProperties": _of(inner[1])} if inner else {})}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": list(hint.__members__)}
    if dataclasses.is_dataclass(hint):
        return {"type": "object", "properties": _fields(hint), "additionalProperties": False}
    return {}  # an object by its class, or anything


def _array(hint: Any, origin: Any, inner: tuple[Any, ...]) -> Schema:
    if origin is tuple and inner and inner[1:] != (...,):
        return {"type": "array", "prefixItems": [_of(part) for part in inner],
                "minItems": len(inner), "maxItems": len(inner)}  # fmt: skip
    array: Schema = {"type": "array", **({"items": _of(inner[0])} if inner else {})}
    return {"anyOf": [array, _of(inner[0])]} if holds_texts(hint) and inner else array
