"""A dry run: everything a run does, once, before it takes hours."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from accel_train.config.convert import build
from accel_train.config.schema import PhaseConfig, TrainConfig, WebhookConfig
from accel_train.system.process import rank
from accel_train.task import Task
from accel_train.train.result import Result
from accel_train.train.session import run_dir
from accel_train.train.trainer import Trainer


def rehearse(task: Task, config: TrainConfig) -> Result:
    """One step of every phase on a whole batch, each with an evaluation of one batch and a checkpoint, in a folder
    beside the run folder that is gone afterwards. Nobody is alerted, and no tracker hears of it.

    Raises:
        UserError, and whatever else: what would have ended the run.
    """
    folder = run_dir(task, config)
    folder = folder.with_name(f".{folder.name}.dry_run")
    try:
        return Trainer(task, rehearsal(task, config, folder)).fit()
    finally:
        if rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def rehearsal(task: Task, config: TrainConfig, folder: Path) -> TrainConfig:
    """The config of a dry run of this one."""
    wanted = config.phases or [build(PhaseConfig, dict(phase), "phases") for phase in task.phases()]
    phases = [replace(phase, length="1st", repeat=1) for phase in wanted]
    patience = config.early_stopping_patience
    return replace(
        config, output_dir=str(folder), phases=phases, max_steps=max(1, len(phases)), num_train_epochs=None,
        logging_steps=1, eval_steps=config.eval_steps and 1, limit_eval_batches=1, save_steps=1,
        early_stopping_patience=patience and patience + len(phases), early_stopping_target=None, max_time=None,
        resume_from_checkpoint="never", report_to=[], webhook=WebhookConfig(kinds=[]), tb_sync_to=None,
        checkpoint_mirror=None, profile_steps=None, hang_warning=None,
    )  # fmt: skip
