"""Weights that a run has saved, found by the names that a person gives, with the task that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accel_train.config.plain import to_dict
from accel_train.config.read import build_task, load, merged, read
from accel_train.config.schema import TrainConfig
from accel_train.config.trust import imports_for
from accel_train.errors import UserError, relative_to
from accel_train.run.checkpoint import MANIFEST, PROGRESS, CheckpointFolder, followed, read_progress, verified
from accel_train.run.weights import read_described

if TYPE_CHECKING:
    from torch import nn

    from accel_train.task import Task


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
        from accel_train.run import weights

        models = contract.models_of(self.task, None)
        weights.load_weights(models, self.weights)
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
        raise UserError(f"{run}: {what_it_is_not(run)}")
    if kind != "run":
        if checkpoint is not None:
            raise UserError(f"--checkpoint {checkpoint}: {run} is a {kind} itself; give the run folder to choose")
        with imports_for(run, trust):
            return _from_model(run, given) if kind == "model" else _from_checkpoint(run, given)
    best = run / "best"
    if checkpoint in (None, "best") and kind_of_folder(best) == "model":
        return find_saved(best, None, given, trust)
    if checkpoint is not None and not checkpoint.isdecimal() and checkpoint not in ("best", "latest"):
        if not Path(checkpoint).exists():
            raise UserError(f"--checkpoint {checkpoint}: no such folder; it is best, latest, a step, or a path")
        return find_saved(Path(checkpoint), None, given, trust)
    return find_saved(CheckpointFolder(run / "checkpoints").find(checkpoint or "latest"), None, given, trust)


def kind_of_folder(path: Path) -> str:
    """``run``, ``checkpoint``, ``model`` or an empty string."""
    if (path / MANIFEST).is_file() or (path / PROGRESS).is_file():
        return "checkpoint"
    if (path / "config.yaml").is_file():
        return "run"
    return "model" if (path / "config.json").is_file() else ""


def what_it_is_not(path: Path) -> str:
    """Of a path that is none of these, for messages; with the runs that are in it, one of which may be meant."""
    if not path.exists():
        return f"no such folder{relative_to(path)}"
    runs = sorted(each.parent.name for each in path.glob("*/config.yaml"))
    inside = f"; there are runs in it: {', '.join(runs[:5])}{', ...' * (len(runs) > 5)}" if runs else ""
    return f"neither a run folder, a checkpoint nor a model folder{inside}"


def _from_checkpoint(path: Path, given: Sequence[str]) -> Saved:
    path = verified(path.resolve())
    task, config = load(path, given)
    progress = read_progress(path)
    position, evaluations = progress["position"], progress["best_model"]["evaluations"]
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
    task = build_task(merged({"task": described["task"]}, read(list(given)))["task"])
    config = TrainConfig(seed=described.get("seed") or 0)
    if kind_of_folder(run) == "run":  # the batch and the precision that the metrics of training were made with
        trained, settings = load(run, given)
        if to_dict(trained, settings)["task"] == to_dict(task, config)["task"]:
            return Saved(path, trained, settings, info, run)
    return Saved(path, task, config, info, path)
