"""The arguments of a constructor: their names, their type hints, and the range that a hint may declare."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from accel_train.errors import UserError

LARGE = sys.float_info.max  # so that inf and nan are out of range


class Rule:
    """Which values of the right type are allowed. ``str`` of it is what help says."""

    def check(self, name: str, value: Any) -> None:
        """Raise UserError, which begins with ``name``, unless the value is allowed."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Range(Rule):
    """The finite numbers from ``least`` to ``most``, both included, and below ``below``: in a type hint as
    ``Annotated[int, Range(1)]`` or ``Annotated[float, Range(0, below=1)] | None``. What is no number passes."""

    least: float
    most: float = LARGE
    below: float | None = None

    def check(self, name: str, value: Any) -> None:
        if not isinstance(value, Real):
            return
        number: Any = value
        if not self.least <= number <= self.most or (self.below is not None and number >= self.below):
            raise UserError(f"{name}: {value} is out of range, must be {self}")

    def __str__(self) -> str:
        if self.below is not None:
            return f"from {self.least} to below {self.below}"
        return f"at least {self.least}" if self.most == LARGE else f"from {self.least} to {self.most}"


Count = Annotated[int, Range(1)]


def hints_of(what: Callable[..., Any]) -> dict[str, Any]:
    """Type hints by name, with their ``Annotated``. None for a name whose hint exists only for type checkers.

    Args:
        what: a function, or a dataclass, whose fields may have a ``Rule`` in their metadata.
    """
    if dataclasses.is_dataclass(what):
        hints = get_type_hints(what, include_extras=True)
        rules = {f.name: f.metadata.get("rule") for f in dataclasses.fields(what)}
        return {name: Annotated[hints[name], rule] if rule else hints[name] for name, rule in rules.items()}
    found: dict[str, Any] = {}
    for name, hint in getattr(what, "__annotations__", {}).items():
        one = lambda: None  # noqa: E731 - something with this hint alone, so that each is understood or not
        one.__annotations__ = {name: hint}
        with contextlib.suppress(NameError):
            found |= get_type_hints(one, getattr(inspect.unwrap(what), "__globals__", {}), include_extras=True)
    return found


def arguments_of(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """(Arguments of the constructor by name, whether it takes any others); ``**kwargs`` are those of the base class."""
    known: dict[str, inspect.Parameter] = {}
    open_ended = False
    for base in cls.__mro__[:-1]:
        if "__init__" in vars(base):
            init = vars(base)["__init__"]
            hints = hints_of(base if "__dataclass_fields__" in vars(base) else init)
            parameters = list(inspect.signature(init).parameters.values())[1:]
            for p in parameters:
                if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                    known.setdefault(p.name, p.replace(annotation=hints.get(p.name, Any)))
            open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
            if not open_ended:
                break
    return known, open_ended


def check_arguments(cls: type, given: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError for the first argument that is outside the range which its hint declares.

    Args:
        given: arguments of the constructor by name.
        prefix: of the name, in the message.
    """
    for name, argument in arguments_of(cls)[0].items():
        if name in given:
            check(argument.annotation, given[name], f"{prefix}{name}")


def check(hint: Any, value: Any, key: str) -> None:
    """Raise UserError for one value that is out of range; rules inside a union, list or tuple count too."""
    for rule in rules_of(hint):
        rule.check(key, value)
    for part in parts_of(hint):
        if isinstance(value, (list, tuple)) and (inner := get_args(part)):
            each = inner if get_origin(part) is tuple and inner[1:] != (...,) else inner[:1] * len(value)
            for i, (of, sub) in enumerate(zip(each, value, strict=False)):
                check(of, sub, f"{key}[{i}]")


def rules_of(hint: Any) -> list[Rule]:
    """What a hint allows of its type; the parts of a union may say it too."""
    rules = [rule for rule in getattr(hint, "__metadata__", ()) if isinstance(rule, Rule)]
    return rules + [rule for part in get_args(bare(hint)) if is_union(hint) for rule in rules_of(part)]


def parts_of(hint: Any) -> Iterator[Any]:
    """The types that a hint stands for: those of a union, or itself."""
    hint = bare(hint)
    if is_union(hint):
        for part in get_args(hint):
            yield from parts_of(part)
    else:
        yield hint


def is_union(hint: Any) -> bool:
    return get_origin(bare(hint)) in (Union, UnionType)


def bare(hint: Any) -> Any:
    """Without ``Annotated``."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint
