"""The table of the page: whatever the guide names has a row, and what stands there instead is accepted and does it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from support.small_tasks import Brains

from accel_train import Trainer
from accel_train.config.read import parse
from accel_train.errors import UserError

PAGE = (Path(__file__).parents[3] / "docs/tasks/sherlock.md").read_text()
GUIDE = (
    "create_autoencoder", "SherlockDataset", "split", "preprocess=True", "TrainingConfig", "Trainer", "train()",
    "learning_rate", "batch_size", "num_epochs", "use_mixed_precision", "weight_decay", "reconstruction_weight",
    "fmri_weight", "video_weight", "audio_weight", "text_weight", "scheduler_type", "warmup_epochs", "min_lr",
    "gradient_clip_val", "num_workers", "pin_memory", "checkpoint_dir", "save_every", "early_stopping_patience",
    "resume_from", "ReconstructionLoss", "FMRIMatchingLoss", "loss_type", "CombinedAutoEncoderLoss", "loss_dict",
    "distributed", "local_rank", "world_size", "setup_distributed", "cleanup_distributed", "torchrun", "nnodes",
    "scripts/train.py", "train_config.yaml", "best_val_loss", "train_history", "val_history", "checkpoint_epoch_N.pt",
    "best_checkpoint.pt", "final_checkpoint.pt", "logs/training.log", "TensorBoard", "wandb", "tests/test_training.py",
    "accumulation", "profiler",
)  # fmt: skip
"""Every option, class, file and command that it has."""


@pytest.mark.parametrize("name", GUIDE)
def test_what_the_guide_names_has_a_row(name: str):
    table = PAGE.split("## Every option of the guide")[1]
    assert re.search(rf"\b{re.escape(name)}", table)


def test_its_options_are_accepted_under_our_names(tmp_path):
    """With the guide's values; the batch is that of all GPUs, and step is one of the schedules."""
    task, config = parse([
        "--task=sherlock", "--task.init_args.data=prepared", "--task.init_args.preset=legacy",
        "--learning_rate=1e-4", "--global_batch_size=64", "--per_device_batch_size=32", "--num_train_epochs=100",
        "--optimizer.init_args.weight_decay=1e-5", "--task.init_args.reconstruction_weight=1",
        "--task.init_args.fmri_weight=1", "--task.init_args.video_weight=1", "--task.init_args.audio_weight=1",
        "--task.init_args.text_weight=2", "--task.init_args.fmri_loss_type=cosine", "--lr_scheduler_type=cosine",
        "--warmup_steps=5ep", "--lr_scheduler_kwargs.min_lr=1e-6", "--max_grad_norm=1", "--mixed_precision=fp16",
        "--num_workers=4", f"--output_dir={tmp_path}/checkpoints", "--save_steps=5ep", "--early_stopping_patience=10",
        "--early_stopping_threshold=1e-4", "--eval_steps=1ep", "--resume_from_checkpoint=never",
        "--report_to=[tensorboard,wandb]",
    ])  # fmt: skip
    assert task.init_args["text_weight"] == 2 and task.init_args["fmri_loss_type"] == "cosine"
    assert config.optimizer.init_args["weight_decay"] == 1e-5 and config.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert (config.early_stopping_patience, config.early_stopping_threshold) == (10, 1e-4)
    assert (str(config.warmup_steps), str(config.save_steps), str(config.eval_steps)) == ("5ep", "5ep", "1ep")
    for kind in ("step", "constant"):
        assert parse(["--task=sherlock", "--task.init_args.data=prepared", f"--lr_scheduler_type={kind}"])[1]


def test_gradients_are_clipped_to_their_norm(tmp_path):
    """Of plain descent at a rate of 1, a step is as long as the norm."""

    def after(norm: float) -> np.ndarray:
        settings: dict = dict(max_steps=1, learning_rate=1.0, warmup_steps=0, report_to=[], global_batch_size=8,
                              lr_scheduler_type="constant", optimizer={"class_path": "SGD"})  # fmt: skip
        trainer = Trainer(Brains(), output_dir=str(tmp_path / f"{norm}"), max_grad_norm=norm, **settings)
        trainer.fit()
        weights = [each.detach().flatten() for each in trainer.models["model"].parameters()]
        return np.concatenate([each.numpy() for each in weights])

    assert np.linalg.norm(after(0.03) - after(0.01)) == pytest.approx(0.02, rel=1e-3)


def test_an_optimiser_that_is_not_installed_is_no_other(tmp_path):
    with pytest.raises(UserError, match="bitsandbytes"):
        Trainer(Brains(), output_dir=str(tmp_path), max_steps=1, report_to=[],
                optimizer={"class_path": "bitsandbytes.optim.AdamW8bit"}).fit()  # fmt: skip
