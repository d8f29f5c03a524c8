"""After training: evaluate and export what a run has saved, and say what is in a folder, a config or a task."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.config.convert import load_mapping
from accel_train.config.schema import TrainConfig, build_task, load, merged, parse, read, refuse_unusable, to_dict
from accel_train.config.trust import imports_for
from accel_train.errors import UserError
from accel_train.run.checkpoint import (
    MANIFEST,
    PROGRESS,
    CheckpointFolder,
    files_in,
    followed,
    read_progress,
    verify,
    whole,
)
from accel_train.run.folder import read_described
from accel_train.run.reports import Reports, warn
from accel_train.system.secrets import scrub_tree
from accel_train.system.writing import refuse_unwritable, writing
from accel_train.tracking.records import number, plain, show_terms

if TYPE_CHECKING:
    from torch import nn

    from accel_train.task import Batch, Task

SPLITS = ("train", "validation", "test")
UNITS = {"st": "steps", "ep": "epochs"}
NEITHER = "neither a run folder, a checkpoint nor a model folder"


# -- which weights ---------------------------------------------------------------------------------------------------


@dataclass
class Saved:
    """Weights somewhere on disk, and what is known of the run that they come from."""

    weights: Path  # a checkpoint or an exported model folder
    task: Task
    config: TrainConfig
    info: dict[str, Any]  # step, epoch, metrics, seed
    home: Path  # where results about it belong

    def load_models(self) -> dict[str, nn.Module]:
        from accel_train import contract
        from accel_train.run import folder as run_folder

        models = contract.models_of(self.task)
        run_folder.load_weights(models, self.weights)
        return models


def find_saved(run: Path, checkpoint: str | None = None, given: Sequence[str] = (), trust: bool = False) -> Saved:
    """What ``run`` (a run folder, a checkpoint, an exported model) and ``--checkpoint`` mean; says what is missing.

    Args:
        given: options over its config, as for ``train``.
        trust: also import code that is in no installed package.
    """
    run = followed(Path(run))
    kind = kind_of_folder(run)
    if kind == "":
        raise UserError(f"{run}: {NEITHER if run.exists() else 'no such folder'}")
    if kind != "run":
        if checkpoint is not None:
            raise UserError(f"--checkpoint {checkpoint}: {run} is a {kind} itself; give the run folder to choose")
        with imports_for(run, trust):
            return _from_model(run, given) if kind == "model" else _from_checkpoint(run, given)
    best = run / "best"
    if checkpoint in (None, "best") and kind_of_folder(best) == "model":
        return find_saved(best, None, given, trust)
    if checkpoint is not None and not checkpoint.isdecimal() and checkpoint not in ("best", "latest"):
        return find_saved(Path(checkpoint), None, given, trust)
    return find_saved(CheckpointFolder(run / "checkpoints").find(checkpoint or "latest"), None, given, trust)


def kind_of_folder(path: Path) -> str:
    """``run``, ``checkpoint``, ``model`` or an empty string."""
    if (path / MANIFEST).is_file() or (path / PROGRESS).is_file():
        return "checkpoint"
    if (path / "config.yaml").is_file():
        return "run"
    return "model" if (path / "config.json").is_file() else ""


def _from_checkpoint(path: Path, given: Sequence[str]) -> Saved:
    path = whole(path.resolve())
    task, config = load(path, given)
    progress = read_progress(path)
    position, evaluations = progress["position"], progress["selection"]["evaluations"]
    evaluated = evaluations[-1] if evaluations else {}
    info = {"step": position["step"], "epoch": position["epoch"], "metrics": evaluated, "seed": config.seed}
    # Never inside: a checkpoint with a file that its manifest does not list counts as damaged.
    run = path.parent.parent
    home = run if kind_of_folder(run) == "run" else path.with_name(f"{path.name}.evaluated")
    return Saved(path, task, config, info, home)


def _from_model(path: Path, given: Sequence[str]) -> Saved:
    described = read_described(path)
    info = {key: described.get(key) for key in ("step", "epoch", "metrics", "seed")}
    run = path.resolve().parent
    if kind_of_folder(run) == "run":  # the batch and the precision that the metrics of training were made with
        if to_dict(*load(run))["task"] == described["task"]:
            return Saved(path, *load(run, given), info, run)
    task = build_task(merged({"task": described["task"]}, read(list(given)))["task"])
    return Saved(path, task, TrainConfig(seed=described.get("seed") or 0), info, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(described, dict) or "task" not in described:
        raise UserError(f"{path}: does not describe a model")
    return described


# -- evaluate and export ---------------------------------------------------------------------------------------------


def evaluate_run(
    run: Path, checkpoint: str | None, split: str, batch_size: int | None, out: Path | None, trust: bool = False
) -> dict[str, float]:
    """``evaluate_saved`` of a run folder, a checkpoint, or an exported model.

    Args:
        checkpoint: of a run folder: best (the default where there is one), latest, a step, or a path.
        trust: also import a task that is in no installed package, and not imported yet.
    """
    return evaluate_saved(find_saved(run, checkpoint, trust=trust), split, batch_size, out)


def evaluate_saved(saved: Saved, split: str, batch_size: int | None, out: Path | None) -> dict[str, float]:
    """Metrics of saved weights over a held-out split, the same on any number of ranks.

    Args:
        batch_size: global batch; by default that of training, which repeats the metrics in its log to the last digit.
        out: for evaluation.json and figures; by default ``evaluation`` in the run folder.
    """
    from accel_train.errors import suggest

    if split not in SPLITS:
        raise UserError(f"--split: unknown {split!r}{suggest(split, SPLITS)}; there are {', '.join(SPLITS)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size: {batch_size} is out of range, must be at least 1")
    refuse_unusable(saved.task)
    out = Path(out) if out is not None else saved.home / "evaluation"
    refuse_unwritable("--out", out)
    with _accelerate_as_it_was(), writing("--out", out):
        return _evaluate(saved, split, batch_size, out)


def _evaluate(saved: Saved, split: str, batch_size: int | None, out: Path) -> dict[str, float]:
    from accel_train import contract
    from accel_train.data.loader import Loader
    from accel_train.run import folder as run_folder
    from accel_train.train.evaluation import evaluate, predict
    from accel_train.train.session import start_accelerate
    from accel_train.train.world import Ranks

    task, config = saved.task, dataclasses.replace(saved.config, report_to=[])
    accelerator = start_accelerate(config)
    ranks = Ranks(accelerator)
    batch_size = batch_size or config.global_batch_size
    source = contract.source_of(task, split, batch_size, config.seed)
    if source is None:
        raise UserError(f"{task.task_name()}: there is no {split} data")
    models = saved.load_models()
    for model in models.values():
        model.to(accelerator.device)
    device = accelerator.device
    reading = (config.num_workers, config.worker_type, 2, config.seed)
    loader = Loader(source, device, ranks.rank, ranks.world_size, *reading)
    metrics, sums = evaluate(task, models, loader, accelerator, ranks, config.micro_batch_size)
    ordered = task.predict_data(split, batch_size)
    if ordered is not None:
        loader = Loader(ordered, device, ranks.rank, ranks.world_size, *reading)
        predict(task, models, loader, accelerator, ranks, config.micro_batch_size, out / "predictions")
    if ranks.is_main:
        reports = Reports(out)
        if ordered is not None:
            about: dict[str, Any] = {"split": split, "weights": str(saved.weights)}
            with reports("describe_predictions", warn):
                about |= task.describe_predictions(split)
            run_folder.write_json(out / "predictions" / "predictions.json", scrub_tree(plain(about)))
        record: dict[str, Any] = {
            "weights": str(saved.weights), "step": saved.info["step"], "split": split, "batch_size": batch_size,
            "precision": accelerator.mixed_precision, "metrics": metrics, "baselines": {}, "figures": [],
        }  # fmt: skip
        with reports("baselines", warn):
            record["baselines"] = dict(task.baselines())
        with reports("figures", warn):
            try:
                record["figures"] = list(run_folder.save_figures(out / "figures", task.figures(metrics, sums)))
            except ModuleNotFoundError as error:  # matplotlib is an extra
                record["figures"] = f"none: {error} (pip install -e '.[plots]')"
        run_folder.write_json(out / "evaluation.json", scrub_tree(plain(record)))
    ranks.all_agree(True)  # nobody leaves before rank 0 has written everything
    return metrics


def export_run(run: Path, checkpoint: str | None, out: Path, trust: bool = False) -> Path:
    """Weights as safetensors with what is needed to rebuild the models, for ``accel_train.load_exported``.

    Args:
        trust: also import a task that is in no installed package, and not imported yet.
    """
    from accel_train.run.folder import export_models, whole_state

    refuse_unwritable("--out", Path(out))
    target = Path(out).resolve()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UserError(f"--out {out}: there is something there; give an empty or new folder")
    saved = find_saved(run, checkpoint, trust=trust)
    models = saved.load_models()
    states = {name: whole_state(model) for name, model in models.items()}
    reports = Reports(target)
    described = to_dict(saved.task, saved.config)
    with writing("--out", target):
        export_models(target, saved.task, states, described, saved.info, reports("export", warn))
    with reports("export_programs", warn):
        saved.task.export_programs(models, target)
    return Path(out)


# -- inspect ---------------------------------------------------------------------------------------------------------


def inspect(what: str, others: list[str], trust: bool = False) -> str:
    """What is in a run folder, a checkpoint, an exported model, a config file or a task's data, for a person to read.

    Args:
        others: further options as for ``train``, where ``what`` is a config file or a task.
        trust: also import what a config file names and no installed package has.
    """
    from accel_train.registry import TASKS

    path = Path(what)
    if what not in TASKS and path.is_dir():
        kind = kind_of_folder(path)
        if others and kind:
            raise UserError(f"inspect: {others[0]} has no meaning for a {kind}")
        if kind == "" and (described := _describe_files(what, others)) is not None:
            return described
        if kind == "":
            raise UserError(f"{path}: {NEITHER}")
        return {"run": _show_run, "checkpoint": _show_checkpoint, "model": _show_model}[kind](path)
    if what not in TASKS and (described := _describe_files(what, others)) is not None:
        return described
    if what not in TASKS and path.is_file():
        with imports_for(path, trust):
            return _show_plan(*parse(["--config", what, *others]))
    if path.suffix in (".yaml", ".yml") or "/" in what:
        raise UserError(f"{what}: no such file or folder")
    return _show_data(*parse(["--task", what, *others]))


def _describe_files(what: str, others: list[str]) -> str | None:
    """The task that knows files with this ending describes them; None if there is none."""
    from accel_train.config.convert import further_options
    from accel_train.registry import TASKS, find

    path = Path(what)
    for cls in map(find, TASKS):
        known: tuple[str, ...] = cls.file_types  # pyright: ignore[reportAttributeAccessIssue]
        if path.suffix.lower() in known or any(_holds(path, name) for name in known):
            files = [what, *(other for other in others if not other.startswith("--"))]
            describe = cls.describe_files  # pyright: ignore[reportAttributeAccessIssue]
            return describe(files, **further_options([o for o in others if o.startswith("--")], describe))
    return None


def _holds(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or next(folder.glob(f"*/{name}"), None) is not None


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
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what is damaged may still tell something
        progress = read_progress(path)
        position, selection = progress["position"], progress["selection"]
        lines.append("position     " + ", ".join(f"{name} {value:,}" for name, value in position.items()))
        lines.append(f"made by      {progress['world_size']} process(es)")
        if selection["best"]:
            lines.append(
                f"best so far  {number(selection['best']['value'])} at step {int(selection['best']['step']):,}"
            )
        if selection["evaluations"]:
            last = selection["evaluations"][-1]
            lines.append(f"evaluated    at step {last['step']:,}: {_metrics(last)}")
    return "\n".join([*lines, *_files(path)])


def _show_model(path: Path) -> str:
    described = scrub_tree(read_described(path))
    task = described["task"]
    lines = [f"model folder {path}", f"task         {task['class_path']}"]
    lines += [f"  {name} = {value}" for name, value in task["init_args"].items()]
    lines.append(f"weights of   step {described.get('step') or 0:,}, models {', '.join(described['models'])}")
    if described.get("metrics"):
        lines.append(f"metrics      {_metrics(described['metrics'])}")
    return "\n".join([*lines, *_files(path)])


def _show_plan(task: Task, config: TrainConfig) -> str:
    """The plan of a config, from the very objects that a run would be made of."""
    from accel_train.plan import Duration
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
        lines.append(f"evaluation   {when}, {held_out or 0:,} batches; best by {config.metric_for_best_model}")
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
    preview = task.preview(batch) if hasattr(task, "preview") else _preview(batch)  # pyright: ignore
    return "\n".join([*lines, *([preview] if preview else [])])


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
    if not hasattr(value, "dtype"):
        return type(value).__name__
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


@contextlib.contextmanager
def _accelerate_as_it_was() -> Iterator[None]:
    """A process group that was joined inside is left again."""
    import torch.distributed as dist

    from accel_train.train.world import leave_process_group

    joined_before = dist.is_available() and dist.is_initialized()
    try:
        yield
    finally:
        if not joined_before and dist.is_available() and dist.is_initialized():
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)
            leave_process_group()
