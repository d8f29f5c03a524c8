"""A config as plain data: as it is written down, and how two of them differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from accel_train.classes import path_of, same_class, same_optimizer
from accel_train.config.schema import TrainConfig
from accel_train.system.expansion import Expanded, expand, refuse_incomplete
from accel_train.system.secrets import scrub_tree

_MAY_CHANGE = {f.name for f in dataclasses.fields(TrainConfig) if not f.metadata["identity"]}


def to_dict(task: Any, config: TrainConfig) -> dict[str, Any]:
    """Plain data from which the run can be rebuilt: what ``config.yaml`` holds. ``***`` stands where secrets were."""
    return scrub_tree({"task": _task_node(task), **plain(dataclasses.asdict(config))})


def refuse_unusable(task: Any, config: TrainConfig | None = None) -> None:
    """A UserError if a secret was taken out of these settings and not given again, or a variable in them is not set."""
    refuse_incomplete({"task": _task_node(task), **(plain(dataclasses.asdict(config)) if config else {})})


def _task_node(task: Any) -> dict[str, Any]:
    return {"class_path": path_of(type(task)), "init_args": plain(task.init_args)}


def plain(value: Any) -> Any:
    """The value as YAML and JSON have it: lists for tuples and sets, names for enums, text for paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(sub) for name, sub in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(sub) for sub in value]
    if isinstance(value, Enum):
        return value.name
    if (node := getattr(value, "written_as", None)) is not None:  # an object that a config describes
        return plain(node)
    if isinstance(value, Expanded):
        return value.written
    return value if value is None or type(value) in (bool, int, float, str) else str(value)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for name, sub in tree.items() for k, v in flatten(sub, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): tree}


def differences(old: dict[str, Any], new: dict[str, Any], movable: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """What changed on resume: (harmless or deliberate, what makes it another run), as lines ``key: old -> new``.

    Args:
        movable: arguments of the task that may change; what may change of the rest is declared in its settings.
    """
    before, after = flatten(old), flatten(new)
    free, identity = [], []
    for name in sorted(before.keys() | after.keys()):
        of_optimizer = name.startswith("optimizer") and name.endswith(".class_path")
        same = same_optimizer if of_optimizer else same_class
        if (of_optimizer or name == "task.class_path") and same(str(before.get(name)), str(after.get(name))):
            continue
        if expand(before.get(name)) != expand(after.get(name)):
            line = f"{name}: {before.get(name)} -> {after.get(name)}"
            first, *rest = name.split(".")
            may = first in _MAY_CHANGE or (rest[:1] == ["init_args"] and rest[1:2] and rest[1] in movable)
            (free if may else identity).append(line)
    return free, identity
