"""Where weights come from: identity.json, in every checkpoint and exported model.

It says what the weights follow from (config, seed, data, code, versions, kind of device) and the step. Its ``digest``
is of that alone, so that a run that was interrupted has the identity of one that was not. Where something was changed
on the way, ``before`` names the identity that was gone on from: a chain, with a link for each change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.config.plain import flatten
from accel_train.config.schema import TrainConfig
from accel_train.system.secrets import scrub_tree

if TYPE_CHECKING:
    from accel_train.task import Task

FILE = "identity.json"
HEADER = "identity"
"""Of the header of exported safetensors: the digest."""
VERSION = 1
UNKNOWN = {"digest": None, "changed": ["not known: an earlier version of accel_train wrote it"]}
_ASIDE = ("digest", "content", "validation", "gone_on_from")
"""What the digest is not of: it depends on interruptions, or on how much was read."""
_NO_MATTER = {"output_dir", "seed", "micro_batch_size", "memory_guard", "num_workers", "worker_type", "check_contract"}
_NO_MATTER_FROM = "logging_steps"
"""This setting and all behind it: log, evaluation, stopping and resuming, tracking."""
_LENGTH = {"max_steps", "num_train_epochs"}
_EVALUATION = {"eval_steps", "limit_eval_batches", "metric_for_best_model", "greater_is_better"}


def made_of(
    task: Task, config: dict[str, Any], seed: int, data: dict[str, Any], validation: dict[str, Any], device: str
) -> dict[str, Any]:
    """What the weights of a run follow from, at any step.

    Args:
        config: as config.yaml has it.
        data, validation: the fingerprints of what is trained on, and of what is evaluated on the way.
        device: its kind: cpu, cuda.
    """
    return {
        "version": VERSION,
        "config": _canonical(config, task.movable),
        "seed": seed,
        "data": about_data(data) | ({"validation": _digest(validation)} if _asks_evaluations(config) else {}),
        "versions": _versions(),
        "device": device,
        "code": _code_of(type(task)),
    }


def at_step(made: dict[str, Any], step: int, before: dict[str, Any] | None) -> dict[str, Any]:
    """The identity of the weights after a step."""
    found = {**made, "step": step, "before": before}
    return {"digest": _digest(found), **found}


def before(parent: dict[str, Any] | None, made: dict[str, Any], step: int) -> dict[str, Any] | None:
    """The link to what a run goes on from, whose identity is ``parent`` (None: it has none): its own link, if it is the
    same run, else one that says what has changed."""
    if parent is None:
        return {**UNKNOWN, "step": step}
    old, new = (flatten({name: each.get(name) for name in made}) for each in (parent, made))
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not changed:
        return parent["before"]
    said = [f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}" for name in changed[:10]]
    return {"digest": parent["digest"], "step": step, "changed": said + ["..."] * (len(changed) > 10)}


def read(folder: Path) -> dict[str, Any] | None:
    """The identity in a checkpoint, a model folder or (of its newest checkpoint) a run folder; None without one."""
    newest = sorted((folder / "checkpoints").glob("step-*"))
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(((newest or [folder])[-1] / FILE).read_text())
        return found if isinstance(found, dict) and {"digest", "step", "before"} <= found.keys() else None
    return None


def describe(folder: Path) -> list[str]:
    """Where the weights in a checkpoint or a model folder come from, in a few lines."""
    known = read(folder)
    if known is None:
        return ["identity     not known: an earlier version of accel_train wrote it"]
    if (why := _wrong(folder, known)) != "":
        return [f"identity     NOT TO BE TRUSTED: {why}"]
    data, validation = known["data"], known.get("validation")
    lines = [
        f"identity     {known['digest'][:16]}, step {known['step']:,}, seed {known['seed']}, on {known['device']}",
        *_of_data("data", data, known.get("content")),
        *(_of_data("validation", validation, validation["content"]) if validation else ()),
    ]
    lines.append("  versions   " + ", ".join(f"{name} {version}" for name, version in known["versions"].items()))
    if code := known["code"]:
        lines.append(f"  task code  {len(code['files'])} files, sha256 {code['sha256'][:16]}")
    if link := known["before"]:
        lines.append(f"  before     step {link['step']:,} of {(link['digest'] or 'unknown')[:16]}; changed since:")
        lines += [f"    {line}" for line in link["changed"]]
    return lines


def _of_data(what: str, data: dict[str, Any], content: dict[str, Any] | None) -> Iterator[str]:
    counted = [f"{data[name]:,} {name}" for name in ("files", "rows", "items", "streams") if name in data]
    yield f"  {what:<10} {', '.join([*counted, 'fingerprint ' + data['digest'][:16]])}"
    if content:
        read_all = f"all {content['blocks']:,} blocks, {content['algorithm']} {content['digest']}"
        part = f"{content['read']:,} of {content['blocks']:,} blocks have been read"
        yield f"  content    {read_all if content['digest'] else part}"


def _wrong(folder: Path, known: dict[str, Any]) -> str:
    """Why an identity is not that of the weights beside it; "" if it is."""
    if _digest({name: value for name, value in known.items() if name not in _ASIDE}) != known["digest"]:
        return f"{FILE} was altered (its digest differs)"
    for path in sorted(folder.glob("*.safetensors")):
        named = _header(path).get(HEADER)
        if named not in (None, known["digest"]):
            return f"{path.name} is of another identity ({named[:16]}) than {FILE}"
    return ""


def _header(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):  # whoever reads the weights says so
        return {}


# -- its parts -------------------------------------------------------------------------------------------------------


def _canonical(config: dict[str, Any], movable: tuple[str, ...]) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    kept = set(names[: names.index(_NO_MATTER_FROM)]) - _NO_MATTER
    if str(config["lr_scheduler_type"]) == "constant":
        kept -= _LENGTH
    if _asks_evaluations(config):
        kept |= _EVALUATION
    task = config["task"]
    arguments = {name: value for name, value in task["init_args"].items() if name not in movable}
    known = {"task": {**task, "init_args": arguments}} | {name: config[name] for name in names if name in kept}
    return scrub_tree(_without_folders(known))


def _asks_evaluations(config: dict[str, Any]) -> bool:
    """Whether learning rates may depend on what evaluations found."""
    schedule = str(config["lr_scheduler_type"])
    return schedule == "plateau" or "." in schedule


def _without_folders(value: Any) -> Any:
    """Of absolute paths the last name alone."""
    if isinstance(value, dict):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if isinstance(value, str) and (value.startswith(("/", "~")) or "/" in value.partition(":")[0]):
        return value.rstrip("/").rpartition("/")[2]
    return value


def about_data(data: dict[str, Any]) -> dict[str, Any]:
    """Counts, and a digest, of a fingerprint."""
    counts: dict[str, Any] = {name: data[name] for name in ("items", "streams") if name in data}
    if files := data.get("files"):
        counts |= {"files": len(files), "rows": sum(file["rows"] for file in files)}
    generated = {"generated": data["generated"]} if "generated" in data else {}
    return {**counts, **generated, "digest": _digest(data)}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in ("accel_train", "torch", "accelerate", "numpy"):
        found[package] = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _code_of(cls: type) -> dict[str, Any] | None:
    """A hash of the source of a task: of all files of its package, or of its file alone; None in a notebook."""
    module = sys.modules.get(cls.__module__)
    try:
        path = Path(inspect.getsourcefile(cls) or "")
    except (TypeError, OSError):
        return None
    if module is None or not path.is_file():
        return None
    folder = path.parent
    paths = sorted(folder.rglob("*.py")) if getattr(module, "__package__", None) else [path]
    together, names = hashlib.sha256(), list[str]()
    for name, content in _contents(paths, folder):
        names.append(name)
        together.update(f"{name}\n{len(content)}\n".encode() + content)
    return {"files": names, "sha256": together.hexdigest()}


def _contents(paths: list[Path], folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
