"""Metrics and figures of saved weights on held-out data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.config.plain import refuse_unusable
from accel_train.errors import UserError, suggest
from accel_train.run.figures import Picture, pictures, save_figures
from accel_train.run.reports import Reports, warn
from accel_train.run.saved import Saved, find_saved
from accel_train.system.secrets import scrub_tree
from accel_train.system.writing import refuse_unwritable, writing
from accel_train.task import Predicts, hook
from accel_train.tracking.records import plain

SPLITS = ("train", "validation", "test")


@dataclass
class Evaluation:
    """Metrics of saved weights, and the folder with what else was found.

    Args:
        metrics: by name, over the whole split.
        folder: with evaluation.json, and figures and predictions where the task has any.
    """

    metrics: dict[str, float]
    folder: Path

    @property
    def figures(self) -> dict[str, Picture]:
        """The task's figures by name; Jupyter shows them as pictures."""
        return pictures(self.folder / "figures")


def evaluate_run(
    run: Path | str,
    split: str = "validation",
    *,
    checkpoint: str | None = None,
    batch_size: int | None = None,
    out: Path | str | None = None,
    trust: bool = False,
) -> Evaluation:
    """Evaluate saved weights, as ``accel-train evaluate`` does: the same metrics on any number of ranks.

    Args:
        run: a run folder, a checkpoint or an exported model.
        split: validation or test (or train, where that has an end).
        checkpoint: of a run folder: best (the default where there is one), latest, a step, or a path.
        batch_size: global batch; by default that of training, which repeats the metrics in its log to the last digit.
        out: for evaluation.json and figures; by default ``evaluation`` in the run folder.
        trust: also import a task that is in no installed package, and not imported yet.

    Raises:
        UserError: there are no such weights or data, in one line.
    """
    return evaluate_saved(find_saved(Path(run), checkpoint, trust=trust), split, batch_size, out)


def evaluate_saved(saved: Saved, split: str, batch_size: int | None, out: Path | str | None) -> Evaluation:
    """The same, of weights that were found."""
    if split not in SPLITS:
        raise UserError(f"--split: unknown {split!r}{suggest(split, SPLITS)}; there are {', '.join(SPLITS)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch_size: {batch_size} is out of range, must be at least 1")
    refuse_unusable(saved.task)
    out = Path(out) if out is not None else saved.home / "evaluation"
    refuse_unwritable("--out", out)
    from accel_train.train.world import accelerate_as_it_was

    with accelerate_as_it_was(), writing("--out", out):
        return Evaluation(_evaluate(saved, split, batch_size, out), out)


def _evaluate(saved: Saved, split: str, batch_size: int | None, out: Path) -> dict[str, float]:
    from accel_train import contract
    from accel_train.data.loader import Loader
    from accel_train.run import folder as run_folder
    from accel_train.train.evaluation import Evaluator
    from accel_train.train.world import Ranks, start_accelerate

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
    evaluator = Evaluator(task, models, accelerator, ranks, config.micro_batch_size, out)
    metrics, sums = evaluator.evaluate(loader)
    ordered = hook(task, Predicts, "predict_data")(split, batch_size)
    if ordered is not None:
        loader = Loader(ordered, device, ranks.rank, ranks.world_size, *reading)
        evaluator.predict(loader, out / "predictions")
    if ranks.is_main:
        reports = Reports(out)
        if ordered is not None:
            about: dict[str, Any] = {"split": split, "weights": str(saved.weights)}
            with reports("describe_predictions", warn):
                about |= hook(task, Predicts, "describe_predictions")(split)
            run_folder.write_json(out / "predictions" / "predictions.json", scrub_tree(plain(about)))
        record: dict[str, Any] = {
            "weights": str(saved.weights), "step": saved.info["step"], "split": split, "batch_size": batch_size,
            "precision": accelerator.mixed_precision, "metrics": metrics, "baselines": {}, "figures": [],
        }  # fmt: skip
        with reports("baselines", warn):
            record["baselines"] = dict(task.baselines())
        with reports("figures", warn):
            footer = f"{saved.weights}, step {saved.info['step']:,}, {split}"
            record["figures"] = save_figures(out / "figures", lambda: task.figures(metrics, sums), footer=footer)
        run_folder.write_json(out / "evaluation.json", scrub_tree(plain(record)))
    ranks.all_agree(True)  # nobody leaves before rank 0 has written everything
    return metrics
