"""One line for each setting: its default, what it means, what is allowed, and whether it makes another run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from accel_train.arguments import Rule, hints_of
from accel_train.config.convert import build
from accel_train.system.expansion import expand


def setting(default: Any, text: str, rule: Rule | None = None, *, identity: bool = False, heading: str = "") -> Any:
    """A field of a dataclass. Help, checks, the rule for resuming and docs/config.md are made of it.

    Args:
        default: a value, or a class or function that makes one.
        text: what it means, with its unit and its cost.
        rule: which values of its type are allowed.
        identity: with another value it is another run, so that no checkpoint goes on with it.
        heading: of the group of settings that begins here.
    """
    about = {"text": text, "rule": rule, "identity": identity, "heading": heading}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


def about(cls: Any) -> dict[str, Mapping[str, Any]]:
    """What ``setting`` was given for each field of a dataclass; nothing for other fields."""
    return {f.name: f.metadata for f in fields(cls)}


class Checked:
    """A dataclass whose values have the types of its fields and are in range, however it is made."""

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            setattr(self, name, build(hint, expand(getattr(self, name)), name))
