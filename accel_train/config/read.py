"""From command lines and YAML files to a task and its config. Raises UserError with one line on anything wrong."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accel_train.arguments import arguments_of
from accel_train.classes import same_class, same_optimizer
from accel_train.config.convert import Typed, build, construct, pairs, refuse_unknown
from accel_train.config.habits import OTHER_NAMES, refuse_habits, refuse_old_config, without_value
from accel_train.config.schema import TrainConfig
from accel_train.config.yaml_text import load_mapping, loads_or_text
from accel_train.errors import UserError
from accel_train.registry import TASKS, find
from accel_train.system.expansion import expand, refuse_incomplete
from accel_train.task import DataTools, hook


def parse(arguments: list[str]) -> tuple[Any, TrainConfig]:
    """The task and config that a command line describes."""
    tree = read(arguments)
    refuse_incomplete(tree)
    return _made_of(tree)


def _made_of(tree: dict[str, Any]) -> tuple[Any, TrainConfig]:
    node = tree.pop("task", None)
    if node is None:
        raise UserError("task: missing; give --task=NAME or a YAML file that names it (accel-train tasks lists them)")
    config = settings_for(task_class(node), tree)
    return build_task(node), config


def settings_for(task: type, given: dict[str, Any]) -> TrainConfig:
    """What was given, and for the rest what the task recommends; options of a schedule for that schedule alone.

    A learning rate is recommended for an optimiser. Another one needs another rate (SGD may need a thousand times that
    of Adam), so it is not taken over in silence.

    Raises:
        UserError: as for ``build``, a name that is none, or another optimiser without a learning rate.
    """
    of_task = arguments_of(task)[0]
    refuse_habits(given, of_task)
    elsewhere = {name: f"task.init_args.{name}" for name in of_task}
    refuse_unknown(given, [f.name for f in dataclasses.fields(TrainConfig)], elsewhere=OTHER_NAMES | elsewhere)
    recommended, schedule = dict(task.recommended), "lr_scheduler_type"
    if given.get(schedule) not in (None, recommended.get(schedule)):
        recommended.pop("lr_scheduler_kwargs", None)
    config = build(TrainConfig, expand(merged(recommended, given)))
    rate = task.recommended.get("learning_rate")
    if rate is not None and "learning_rate" not in given and config.optimizer.learning_rate is None:
        meant, found = build(TrainConfig, task.recommended).optimizer.class_path, config.optimizer.class_path
        if not same_optimizer(meant, found):
            raise UserError(f"learning_rate: {rate:g} is what {task.task_name()} recommends for {meant}; with {found}, "
                            "give one (--learning_rate=...)")  # fmt: skip
    return config


def load(folder: Path, given: Sequence[str] = ()) -> tuple[Any, TrainConfig]:
    """The task and config of a run folder or checkpoint, with options over them. Secrets in it may be missing."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: no config.yaml there; is it a run folder?")
    return _made_of(read(["--config", str(path), *given]))


def read(arguments: list[str]) -> dict[str, Any]:
    """One tree of everything given: the files in their order, then the options. Nothing is checked yet.

    Another class drops the ``init_args`` of the one before it, wherever on the command line it stands.
    """
    known = ["config", "task", *(field.name for field in dataclasses.fields(TrainConfig))]
    given = list(pairs(arguments, lambda name: without_value(name, known)))
    tree: dict[str, Any] = {}
    for key, path in given:
        if key == "config":
            _merge(tree, _read_file(path))
    for key, text in sorted(given, key=lambda pair: pair[0] != "task" and not pair[0].endswith("class_path")):
        if key != "config":
            value = loads_or_text(text)
            if key == "task" and not isinstance(value, dict):
                key = "task.class_path"
            *parents, last = key.split(".")
            node = tree
            for name in parents:
                inner = node.get(name)
                if isinstance(inner, str):  # a class by its name alone
                    inner = {"class_path": inner}
                node[name] = inner if isinstance(inner, dict) else {}
                node = node[name]
            _drop_stale(node, {last: text})
            node[last] = value if isinstance(value, (dict, list)) else Typed(text)
    return tree


def _read_file(path: str) -> dict[str, Any]:
    if "://" in path:
        raise UserError(f"--config {path}: a URL; copy the file first")
    file = Path(path).expanduser()
    tree = load_mapping(file, "--config")
    refuse_old_config(tree, file)
    if isinstance(tree.get("task"), str):
        tree["task"] = {"class_path": tree["task"]}
    return tree


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A tree of settings with another one over it."""
    tree = copy.deepcopy(old)
    _merge(tree, new)
    return tree


def _merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    _drop_stale(old, new)
    for name, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(name), dict):
            _merge(old[name], value)
        else:
            old[name] = value


def _drop_stale(old: dict[str, Any], new: dict[str, Any]) -> None:
    if "class_path" in old and "class_path" in new:
        before, after = (TASKS.get(name, (name,))[0] for name in (str(old["class_path"]), str(new["class_path"])))
        if not same_class(before, after):
            old.pop("init_args", None)


# -- tasks -----------------------------------------------------------------------------------------------------------


def build_task(node: dict[str, Any]) -> Any:
    """A task from its ``class_path`` and ``init_args``."""
    cls, name = task_class(node), str(node["class_path"])
    can_be_made = name in TASKS and hook(cls, DataTools, "synth") is not DataTools.synth
    how = f" (accel-train synth {name} --out FOLDER makes data to try)" if can_be_made else ""
    return construct(cls, expand(node.get("init_args") or {}), "task.init_args.", how)


def task_class(node: Any) -> type:
    if not isinstance(node, dict) or not isinstance(node.get("class_path"), str):
        raise UserError(f"task: expected a name, or class_path and init_args, got {node!r}")
    refuse_unknown(node, ["class_path", "init_args"], "task.")
    return find(node["class_path"])
