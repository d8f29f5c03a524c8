"""``accel-train gdynet convert``: a config of the GDyNet-ferro trainer, as one for this trainer."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from accel_train.arguments import Range
from accel_train.command import Parser, refuse_existing
from accel_train.config.convert import build
from accel_train.config.plain import flatten
from accel_train.config.read import build_task, settings_for
from accel_train.config.yaml_text import dumps, load_mapping, loads
from accel_train.errors import UserError, suggest
from accel_train.system.writing import writing
from accel_train.tasks.gdynet.task import GDyNetTask

KEYS: dict[str, Any] = {
    "model_type": Literal["gdynet_vanilla", "gdynet_ferro"],
    "model.atom_fea_len": int,
    "model.n_conv": int,
    "model.state_len": int,
    "model.cutoff": float,
    "model.num_gaussians": int,
    "model.tau": int,
    "model.epsilon": float,
    "model.mode": Literal["trunc", "regularize", "clamp"],
    "model.batch_size": int,
    "model.learning_rate": float,
    "data.train_fnames": list[str] | str,
    "data.val_fnames": list[str] | str,
    "data.test_fnames": list[str] | str,
    "training.epochs": int,
    "training.loss_schedule": list[str] | str,
    "training.seed": int,
    "optimization.torch_compile": bool,
    "optimization.compile_mode": str,
    "optimization.mixed_precision": bool,
    "optimization.torchscript": bool,
    "checkpointing.frequency": int,
    "checkpointing.save_best_only": bool,
    "wandb.enabled": bool,
    "wandb.project": str,
    "wandb.entity": str,
    "wandb.run_name": str,
    "output.folder": str,
}
"""Every key that the GDyNet-ferro trainer reads, and the type of its value; null counts as not given."""

_OF_THE_RUN = ("model.batch_size", "model.learning_rate")

OF_THE_TASK = [key for key in KEYS if key.split(".")[0] in ("model_type", "model", "data") and key not in _OF_THE_RUN]
"""Keys that keep their name, as arguments of the task."""

ASSUMED = {
    "model_type": ("gdynet_ferro", "not given: their default"),
    "model.mode": ("trunc", "not given, which they refuse: what their own configs have"),
}
"""What stands for a key of the task that is not given, and why."""

WANDB = {"wandb.project": "WANDB_PROJECT", "wandb.entity": "WANDB_ENTITY", "wandb.run_name": "WANDB_NAME"}

NOT_IN_THEIRS = """
What their config cannot say, and is otherwise here unless you write it:
  task.init_args.lobes   shared: one network for both times; theirs: separate
  task.init_args.norm    layer; theirs: batch, so that the result depends on how a batch is cut
The loss is that of all ranks' pairs together; theirs, the mean of the ranks' own."""


class Change(NamedTuple):
    """A key of theirs, where its value went (None: nowhere), and what there is to say about it."""

    old: str
    new: str | None
    value: Any = None
    why: str = ""

    def __str__(self) -> str:
        shown = f"{self.new}: {json.dumps(self.value, ensure_ascii=False)}" if self.new else "-"
        return f"  {self.old:<28} {shown}" + (f"   # {self.why}" if self.why else "")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("config", type=Path, help="YAML of the GDyNet-ferro trainer")
    parser.add_argument("--out", type=Path, required=True, help="YAML to write")


def run(options: argparse.Namespace) -> int:
    """Convert; prints a line for every key."""
    refuse_existing("convert", options.out)
    changes = convert(read(options.config))
    with writing("--out", options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            f"# Converted from {options.config} by accel-train gdynet convert.\n{dumps(tree(changes))}"
        )
    print(f"{options.config} -> {options.out}", *changes, NOT_IN_THEIRS, sep="\n")
    print("Instead of --mode=train, --resume and --output, it goes on where it stopped; instead of --mode=evaluate:")
    print(f"  accel-train train --config {shlex.quote(str(options.out))} [--output_dir=DIR]")
    print("  accel-train evaluate RUN")
    return 0


# -- reading theirs --------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    """What a file gives, by dotted key, null included.

    Raises:
        UserError: no such file, not YAML, a key that is not in ``KEYS``, or a value of another type.
    """
    given = load_mapping(path, "convert:", _quote_product)
    values = {}
    for key, value in flatten(given).items():
        if key in KEYS:
            values[key] = None if value is None else build(KEYS[key], value, key)
        elif inside := [known for known in KEYS if known.startswith(f"{key}.")]:
            if value:  # a section without keys is nothing
                raise UserError(f"{key}: expected keys, such as {inside[0].partition('.')[2]}, got {value!r}")
        else:
            raise UserError(
                f"{key}: the GDyNet-ferro trainer has no such key{_suggest(key)}; correct it or take it out"
            )
    return values


def _quote_product(text: str) -> str:
    """``loss_schedule: [...] * 3`` is Python; as text it is YAML too."""
    return re.sub(r"(?m)^(\s*loss_schedule:\s*)(\[[^]\n]*\]\s*\*\s*\d+)", lambda m: m[1] + dumps(m[2]).strip(), text)


def _suggest(key: str) -> str:
    """The key of a like name, whatever its section, or else of a like section too."""
    names = {known.rpartition(".")[2]: known for known in KEYS}
    near = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
    return f" (did you mean {names[near[0]]}?)" if near else suggest(key, KEYS)


# -- writing ours ----------------------------------------------------------------------------------------------------


def convert(given: Mapping[str, Any]) -> list[Change]:
    """What becomes of every key of ``read``.

    Raises:
        UserError: a value that the GDyNet-ferro trainer took for another one or that this one refuses.
    """
    changes = [*_task(given), *_run(given)]
    spoken_of = {change.old for change in changes}
    changes += [Change(key, None, why="null: as if it were not there") for key in given if key not in spoken_of]
    ours = tree(changes)
    build_task({**ours.pop("task"), "class_path": f"{GDyNetTask.__module__}.{GDyNetTask.__qualname__}"})
    settings_for(GDyNetTask, ours)
    return changes


def tree(changes: list[Change]) -> dict[str, Any]:
    """Our config."""
    ours: dict[str, Any] = {"task": {"class_path": "gdynet", "init_args": {}}}
    for change in changes:
        if change.new:
            *parents, last = change.new.split(".")
            node = ours
            for name in parents:
                node = node[name]
            node[last] = change.value
    return ours


def _task(given: Mapping[str, Any]) -> Iterator[Change]:
    if given.get("data.train_fnames") is None:
        raise UserError("data.train_fnames: missing; give the folder of a trajectory")
    for key in OF_THE_TASK:
        value, why = given.get(key), ""
        if value is None:
            value, why = ASSUMED.get(key, (None, ""))
        elif key == "model.epsilon":
            why = "of the mean eigenvalue, in float64; theirs: absolute, in float32"
        elif key.startswith("data.") and isinstance(value, str):
            value = [value]
        if value is not None:
            yield Change(key, f"task.init_args.{key.rpartition('.')[2]}", value, why)
    if (schedule := given.get("training.loss_schedule")) is not None:
        yield from _schedule(schedule)
    if (epochs := given.get("training.epochs")) is not None:
        yield Change("training.epochs", "task.init_args.epochs", epochs, "of each phase, as there")


def _schedule(given: list[str] | str) -> Iterator[Change]:
    key, repeat = "training.loss_schedule", 1
    if isinstance(given, str):
        match = re.fullmatch(r"\s*(\[[^]]*\]|[^*\s]+)\s*(?:\*\s*([0-9]+)\s*)?", given)
        listed = loads(match[1]) if match else None
        given = build(list[str], [listed] if isinstance(listed, str) else listed, key)
        repeat = int(match[2] or 1) if match else 1
    for name in given:
        if name not in ("vamp2", "vamp1"):
            near = suggest(name.lower(), ("vamp2", "vamp1"))
            raise UserError(f"{key}: {name!r} is no loss of theirs, which ran it as vamp2{near}; write vamp2 or vamp1")
    yield Change(key, "task.init_args.loss_schedule", given)
    if repeat != 1:
        yield Change(key, "task.init_args.repeat", repeat, "the product of a list, which YAML does not know")


def _run(given: Mapping[str, Any]) -> Iterator[Change]:
    for key in KEYS:
        if (value := given.get(key)) is None:
            continue
        match key.split("."):
            case ["training", "seed"] | ["model", "learning_rate"]:
                yield Change(key, key.rpartition(".")[2], value)
            case ["output", "folder"]:
                yield Change(key, "output_dir", value)
            case ["model", "batch_size"]:
                why = "pairs per rank, as there; as global_batch_size the number of ranks would change nothing"
                yield Change(key, "per_device_batch_size", value, why)
            case ["optimization", _]:
                yield _optimization(key, value, given)
            case ["checkpointing", _]:
                yield _checkpointing(key, value)
            case ["wandb", "enabled"]:
                yield Change(key, "report_to", ["tensorboard", "wandb"] if value else ["tensorboard"])
            case ["wandb", _]:
                set_it = f"in the environment: export {WANDB[key]}={shlex.quote(value)}"
                yield Change(key, None, why=set_it if given.get("wandb.enabled") else "wandb is not enabled")
            case _:  # of the task, or of its phases
                pass


def _optimization(key: str, value: Any, given: Mapping[str, Any]) -> Change:
    if key == "optimization.mixed_precision":
        why = "as there; bf16 needs no loss scale, if the GPU has it" if value else ""
        return Change(key, "mixed_precision", "fp16" if value else "no", why)
    if key == "optimization.torch_compile":
        mode = given.get("optimization.compile_mode") or "default"
        return Change(key, "torch_compile", mode if value else None, "the mode" if value else "")
    if key == "optimization.compile_mode":
        compiled = given.get("optimization.torch_compile")
        return Change(key, None, why="is torch_compile" if compiled else "torch_compile is off")
    why = "accel-train export RUN --out DIR writes the model as a program; theirs skipped it"
    return Change(key, None, why=why if value else "off; accel-train export RUN --out DIR is there any time")


def _checkpointing(key: str, value: Any) -> Change:
    if key == "checkpointing.frequency":
        Range(1).check(key, value)
        return Change(
            key, "save_steps", f"{value}ep", "every so many epochs; the best model is kept whenever it is found"
        )
    why = "the newest, to go on from; the best model is kept beside it" if value else "all, as there"
    return Change(key, "save_total_limit", 1 if value else None, why)
