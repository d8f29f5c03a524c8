"""accel-train inspect: what is in a folder, a config file or a task's data, for a person to read."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.command import Parser, add_trust
from accel_train.config.plain import to_dict
from accel_train.config.read import parse, settings_for
from accel_train.config.schema import TrainConfig
from accel_train.config.trust import imports_for
from accel_train.config.yaml_text import load_mapping
from accel_train.errors import DataError, FoundError, UserError, exit_code_of, relative_to, suggest
from accel_train.registry import find
from accel_train.run import identity, mirror
from accel_train.run.checkpoint import CheckpointFolder, read_progress, verify
from accel_train.run.saved import kind_of_folder, what_it_is_not
from accel_train.run.weights import read_described
from accel_train.system.secrets import scrub_tree
from accel_train.system.writing import files_in
from accel_train.task import DataTools, Task, hook
from accel_train.tracking.records import number, plain, show_terms

if TYPE_CHECKING:
    from accel_train.task import Batch

_AS_DATA = "accel-train inspect TASK --task.init_args.NAME=... shows the data of a task"
UNITS = {"st": "steps", "ep": "epochs"}


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "what", help="a run folder, a checkpoint, a config file, a task's name, or data: a file, a pattern, a URL"
    )
    add_trust(parser)
    parser.take_others("WHAT [OTHERS ...]")


def run(options: argparse.Namespace) -> int:
    try:
        print(look_at(os.path.expanduser(options.what), options.others, trust=options.trust))
    except FoundError as report:
        print(report)
        return exit_code_of(report)
    return 0


def inspect(what: str | Path | Task, *, trust: bool = False, **settings: Any) -> str:
    """What ``accel-train inspect`` prints, for a person to read.

    Args:
        what: a run folder, a checkpoint, an exported model, a config file, a file of data, a task's name, or a task,
            of which this is the first batch.
        trust: also import what a config file names and no installed package has.
        settings: as for ``Trainer``, where ``what`` is a config file or a task.

    Raises:
        UserError: there is no such thing, or something in it is wrong, in one line.
    """
    if isinstance(what, Task):
        return _show_data(what, settings_for(type(what), settings))
    return look_at(str(what), [f"--{name}={json.dumps(value, default=str)}" for name, value in settings.items()], trust)


def look_at(what: str, others: list[str], trust: bool = False) -> str:
    """The same, with further options as for ``train``."""
    from accel_train.registry import TASKS

    path = Path(what)
    if what not in TASKS and path.is_dir():
        kind = kind_of_folder(path)
        if others and kind:
            hint = "; accel-train runs table FOLDER compares runs" if kind == "run" else ""
            raise UserError(f"inspect: {others[0]} has no meaning for a {kind}{hint}")
        if kind == "" and (described := _describe_files(what, others)) is not None:
            return described
        if kind == "":
            raise UserError(f"{path}: {what_it_is_not(path)}, and no data that a task knows by name; {_AS_DATA}")
        return {"run": _show_run, "checkpoint": _show_checkpoint, "model": _show_model}[kind](path)
    if what not in TASKS and (described := _describe_files(what, others)) is not None:
        return described
    if what not in TASKS and path.is_file():
        if path.suffix not in ("", ".yaml", ".yml", ".json"):
            raise UserError(f"{what}: neither a config (.yaml) nor a file that a task knows by its ending; {_AS_DATA}")
        with imports_for(path, trust):
            return _show_plan(*parse(["--config", what, *others]))
    if path.suffix in (".yaml", ".yml") or "/" in what:
        raise UserError(f"{what}: no such file or folder{relative_to(path)}")
    if what not in TASKS and "." not in what:
        raise UserError(
            f"inspect: {what!r}: there is no such file or folder{relative_to(path)}, and no task is called so"
            f"{suggest(what, TASKS)}; there are {', '.join(TASKS)}"
        )
    return _show_data(*parse(["--task", what, *others]))


def _describe_files(what: str, others: list[str]) -> str | None:
    """The task that knows files with this name or ending describes them, also those of a folder; None if there is
    none."""
    from accel_train.config.convert import further_options
    from accel_train.registry import TASKS

    known = {name: hook(find(name), DataTools, "file_types") for name in TASKS}
    path = Path(what)
    found = {name: [what] for name, types in known.items() if path.suffix.lower() in types or _holds(path, types)}
    if not found and path.is_dir():
        there = sorted(each for each in path.iterdir() if each.is_file())
        found = {name: [str(each) for each in there if each.suffix.lower() in types] for name, types in known.items()}
    name = next((name for name, files in found.items() if files), None)
    if name is None:
        return None
    files = [*found[name], *(other for other in others if not other.startswith("--"))]
    describe = hook(find(name), DataTools, "describe_files")
    try:
        return describe(files, **further_options([o for o in others if o.startswith("--")], describe))
    except DataError as error:
        raise UserError(f"{error} (read as data of {name}; {_AS_DATA})") from None


def _holds(folder: Path, names: Iterable[str]) -> bool:
    """A file with one of these names, here or one folder further down."""
    return any(
        (folder / name).is_file() or next(folder.glob(f"*/{name}"), None) is not None
        for name in names if not name.startswith(".")
    )  # fmt: skip


def _show_run(folder: Path) -> str:
    from accel_train.tracking.status import describe, read

    if os.path.lexists(folder / "status.json"):
        try:
            lines = describe(read(folder)).splitlines()
        except UserError as error:
            lines = [str(error)]
    else:
        try:
            name = str(load_mapping(folder / "config.yaml", "inspect:")["task"]["class_path"]).rpartition(".")[2]
        except (UserError, KeyError, TypeError):
            name = "config.yaml is damaged"
        lines = [f"{name}: no status.json, so it never began or was moved"]
    checkpoints = CheckpointFolder(folder / "checkpoints")
    steps, marks = checkpoints.steps(), {checkpoints.linked("best"): "best"}
    lines += ["", f"checkpoints in {checkpoints.root}" + ("" if steps else ": none")]
    for step in steps:
        path = checkpoints.path(step)
        damage = verify(path)
        state = "verified" if damage is None else f"DAMAGED: {damage}"
        lines.append(f"  step {step:>10,}  {_size(path):>9}  {state}" + (f"  {marks[step]}" if step in marks else ""))
    if copied := mirror.describe(folder):
        lines.append(copied)
    half = [p.name for p in sorted(checkpoints.root.glob(".writing-*")) if p.is_dir()]
    if half:
        lines.append(f"  unfinished, removed when the run goes on: {', '.join(half)}")
    for name, text in (("best", "the best weights"), ("model", "the last weights")):
        if kind_of_folder(folder / name) == "model":
            described = read_described(folder / name)
            lines.append(f"{text}: {folder / name}, step {described.get('step') or 0:,}")
            if described.get("metrics"):
                lines.append(f"  {_metrics(described['metrics'])}")
    return "\n".join(lines)


def _show_checkpoint(path: Path) -> str:
    damage = verify(path)
    lines = [f"checkpoint {path}: " + ("verified" if damage is None else f"DAMAGED: {damage}")]
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what is damaged may still be readable in part
        progress = read_progress(path)
        position, selection = progress["position"], progress["best_model"]
        lines.append("position     " + ", ".join(f"{name} {value:,}" for name, value in position.items()))
        lines.append(f"made by      {progress['world_size']} process(es)")
        if selection["best"]:
            lines.append(
                f"best so far  {number(selection['best']['value'])} at step {int(selection['best']['step']):,}"
            )
        if selection["evaluations"]:
            last = selection["evaluations"][-1]
            lines.append(f"evaluated    at step {last['step']:,}: {_metrics(last)}")
    return "\n".join([*lines, *identity.describe(path), *_files(path)])


def _show_model(path: Path) -> str:
    described = scrub_tree(read_described(path))
    task = described["task"]
    lines = [f"model folder {path}", f"task         {task['class_path']}"]
    lines += [f"  {name} = {value}" for name, value in task["init_args"].items()]
    lines.append(f"weights of   step {described.get('step') or 0:,}, models {', '.join(described['models'])}")
    if described.get("metrics"):
        lines.append(f"metrics      {_metrics(described['metrics'])}")
    return "\n".join([*lines, *identity.describe(path), *_files(path)])


def _show_plan(task: Task, config: TrainConfig) -> str:
    """The plan of a config, from the very objects that a run would be made of."""
    from accel_train.plan import Duration
    from accel_train.tracking.console import memory_text
    from accel_train.train.session import Session

    # What only a run needs (a GPU's precision, a service's login, a compiler) must not stop a look at the plan.
    bare = dataclasses.replace(config, mixed_precision="no", torch_compile=None, report_to=[], deterministic=False)
    session = Session(task, bare)
    total, batch = session.plan.total_steps, session.global_batch_size
    in_epoch = session.source.steps(0)
    lines = [
        f"task         {to_dict(task, config)['task']['class_path']}",
        f"folder       {session.output_dir}",
        f"steps        {'until stopped' if total is None else f'{total:,}'}"
        + ("" if in_epoch is None else f", {in_epoch:,} in the first epoch"),
        f"batch        {batch:,} items a step over all processes"
        + (f", at most {config.micro_batch_size:,} at once on each" if config.micro_batch_size else "")
        + ("" if total is None else f"; about {total * batch:,} in all"),
        f"precision    {config.mixed_precision or 'as accelerate launch says'}",
    ]
    if session.eval_loader is not None:
        held_out = session.eval_loader.source.steps(0)
        every = Duration.parse(config.eval_steps) if config.eval_steps is not None else None
        when = "at the end" if every is None else f"every {every.count:,} {UNITS[every.unit]}"
        batches = f"{held_out:,} batches" if held_out is not None else "a stream"
        lines.append(f"evaluation   {when}, {batches}; best by {config.metric_for_best_model}")
    lines.append("phases")
    for phase in session.plan.phases:
        length = "to the end" if phase.length is None else f"{phase.length.count:,} {UNITS[phase.length.unit]}"
        names = ", ".join(f"{o.name}" + (f" x{o.repeats}" if o.repeats > 1 else "") for o in phase.objectives)
        lines.append(f"  {length:<12} {names}")
    lines.append("parameters")
    for name, model in session.models.items():
        count = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines.append(f"  {name:<12} {count:,}" + ("" if trained == count else f", {trained:,} of them trained"))
    lines.append(f"memory       {memory_text(session.stepper.memory())}")
    if session.parts is not None:
        parts, items = session.parts.count, session.parts.largest(batch)
        lines.append(
            f"reduction    fixed: {parts:,} passes of {items:,} items, the same bits on 1 to {parts:,} processes; "
            "gradients travel after the last pass, not meanwhile"
        )
    lines.append("learning rate at 0, 25, 50, 75 and 100 % of the steps")
    for group in {id(g): g for g in session.stepper.groups.values()}.values():
        schedule = group.schedule
        places = [0] if total is None else [round(total * part / 4) for part in range(5)]
        rates = "  ".join(f"{schedule(step):.3g}" for step in places)
        after = " before any plateau" if schedule.kind == "plateau" else ""
        warm = f", {schedule.warmup_steps:,} of warm-up" if schedule.warmup_steps else ""
        lines.append(f"  {group.name:<12} {rates}   ({type(group.optimizer).__name__}, {schedule.kind}{warm}{after})")
    return "\n".join(lines)


def _show_data(task: Task, config: TrainConfig) -> str:
    import torch

    from accel_train import contract
    from accel_train.data.loader import Loader
    from accel_train.plan import Position

    source = contract.source_of(task, "train", config.global_batch_size, config.seed)
    if source is None:
        raise UserError(f"{task.task_name()}: there is no train data")
    batches = Loader(source, torch.device("cpu"), num_workers=0).batches(Position())
    batch = next(share for _, _, share in batches if share is not None)
    in_epoch = source.steps(0)
    lines = [f"{task.task_name()}: {' '.join((type(task).__doc__ or '').strip().splitlines()[:1])}"]
    lines += [f"  {name} = {value}" for name, value in scrub_tree(plain(task.init_args)).items()]
    lines.append(f"data         {'without an end' if in_epoch is None else f'{in_epoch:,} batches in the first epoch'}")
    lines.append(f"first batch  {task.size(batch):,} items (global_batch_size {config.global_batch_size})")
    lines += [f"  {name:<16} {_shape(value)}" for name, value in batch.items()]
    preview = hook(task, DataTools, "preview")(batch)
    return "\n".join([*lines, preview or _preview(batch)])


# -- small things ----------------------------------------------------------------------------------------------------


def _preview(batch: Batch, rows: int = 3, width: int = 12) -> str:
    """The first rows of each tensor, for tasks without a ``preview`` of their own."""
    import torch

    lines = []
    for name, value in batch.items():
        if isinstance(value, torch.Tensor) and value.dim():
            for row in value[:rows]:
                flat = row.flatten()[:width].tolist()
                shown = [f"{x:.4g}" if isinstance(x, float) else str(x) for x in flat]
                lines.append(f"  {name:<16} {' '.join(shown)}{' ...' if row.numel() > width else ''}")
    return "\n".join(["first rows", *lines]) if lines else ""


def _shape(value: Any) -> str:
    import torch

    if not hasattr(value, "dtype"):
        return type(value).__name__
    value = torch.as_tensor(value)  # what stays on the host is an array
    text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if value.numel() == 0 or value.is_complex():
        return text
    low, high = value.min().item(), value.max().item()
    show = (lambda x: f"{x:.4g}") if isinstance(low, float) else str
    note = "" if math.isfinite(low) and math.isfinite(high) else "  NOT FINITE"
    return f"{text}  {show(low)} to {show(high)}{note}"


def _metrics(metrics: dict[str, Any] | None) -> str:
    shown = show_terms({k: v for k, v in (metrics or {}).items() if k != "step"})
    return ", ".join(f"{name} {text}" for name, text in shown)


def _files(path: Path) -> list[str]:
    return ["files", *(f"  {_bytes(f.stat().st_size):>9}  {f.relative_to(path)}" for f in files_in(path))]


def _size(path: Path) -> str:
    return _bytes(sum(file.stat().st_size for file in files_in(path)))


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
