"""What makes up a run of tcn works together: rates, clipping, precision, memory, groups of parameters."""

from __future__ import annotations

import pytest
from support.small_tasks import Disruptions

from accel_train import Trainer
from accel_train.config.read import settings_for
from accel_train.errors import UserError
from accel_train.tasks.tcn.task import TCNTask

PLATEAU = {"lr_scheduler_type": "plateau", "lr_scheduler_kwargs": {"patience": 0, "threshold": 1.0}, "eval_steps": 1}
SGD = {"class_path": "SGD", "init_args": {"momentum": 0.9}}
ADAMW = {"class_path": "AdamW", "init_args": {"weight_decay": 0.1}}


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"warmup_steps": 4, "warmup_start_factor": 0.125}, [0.125, 0.34375, 0.5625, 0.78125, 1.0]),
        ({"lr_scheduler_type": "cosine", "max_steps": 4}, [1.0, 0.853553, 0.5, 0.146447]),
        (PLATEAU, [1.0, 1.0, 0.5, 0.25, 0.125]),
        ({"max_grad_norm": 1e-3}, [1.0] * 5),
        ({"mixed_precision": "bf16"}, [1.0] * 5),
        ({"checkpointing": True}, [1.0] * 5),
        ({"checkpointing": True, "mixed_precision": "bf16", "micro_batch_size": 2}, [1.0] * 5),
        ({"optimizer": SGD}, [1.0] * 5),
        ({"optimizer": {**ADAMW, "no_weight_decay": ["*.bias", "*.g"]}}, [1.0] * 5),
    ],
    ids=["warmup", "cosine", "plateau", "clip", "bf16", "checkpointing", "all for memory", "sgd", "no weight decay"],
)
def test_it_runs(tmp_path, settings, rates):
    task = Disruptions(checkpointing=settings.get("checkpointing", False))
    settings = {name: value for name, value in settings.items() if name != "checkpointing"}
    result = Trainer(
        task, **{"max_steps": 5, "eval_steps": 5, "global_batch_size": 6, "learning_rate": 0.01, "logging_steps": 1,
                 "report_to": [], "warmup_steps": 0, "output_dir": str(tmp_path / "run"), **settings}
    ).fit()  # fmt: skip
    assert result.history["lr"] == pytest.approx([0.01 * rate for rate in rates], rel=1e-5)
    assert result.metrics["loss"] == result.metrics["loss"]


def test_the_rate_is_that_of_the_optimiser():
    """0.0005 is for AdamW. SGD has a rule (0.5 at 192 windows), which needs the batch, and so a person."""
    assert settings_for(TCNTask, {}).learning_rate == 5e-4
    with pytest.raises(UserError, match="recommends for AdamW; with SGD, give one"):
        settings_for(TCNTask, {"optimizer": SGD})
