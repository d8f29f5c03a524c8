"""Weighing the classes once lets a network learn; weighing them twice makes it say 1 everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.shots import InMemory, shot
from support.small_tasks import Disruptions

from accel_train import Loss, Trainer

SHIFT = 100  # of what is stored, whose deviation is 577, once a step is positive: hard to see, even over 13 steps

SPLITS = ("train", "validation")


class Weak(Disruptions):
    """Shots of which 18 % of the steps are positive."""

    def __init__(self, **options):
        super().__init__(negatives=None, nhid=8, **options)
        self.memory = InMemory([shot(i, 130.0, samples=190, stop=180, split=SPLITS[i % 2]) for i in range(80)])
        for each in self.memory.shots:
            self.memory.values[each.number][:, each.index(100.0) :] += SHIFT
        self.memory.std = np.full(3, 0.5 * 577)


class Twice(Weak):
    """As ``dataset`` and ``batch`` multiplied: weights of the data set in the loss of a batch, over again."""

    def loss_step(self, models, batch, totals, objective):
        share = models["model"].positive_share
        of_step = torch.where(batch["target"], 0.5 / share, 0.5 / (1 - share))
        steps, positives = totals["steps"], totals["positive"]
        of_batch = torch.where(batch["target"], 0.5 * steps / positives, 0.5 * steps / (steps - positives))
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            self._logits(models, batch), batch["target"].float(), reduction="none"
        )
        return Loss((each * of_step * of_batch * batch["counts"]).sum().float() / steps)


def at_a_half(task, folder):
    """Positive share of the validation steps, accuracy, and recall of each class, where the model says 50 %."""
    trainer = Trainer(task, output_dir=str(folder), max_steps=80, global_batch_size=20, learning_rate=1e-2,
                      max_grad_norm=0.3, report_to=[], check_contract=False)  # fmt: skip
    trainer.fit()
    with torch.no_grad():
        data = task.build_data("validation", 1000, 0).batch(0, 0, 0, 1)
        batch = {name: torch.as_tensor(value) for name, value in data.items()}
        said = task._logits({"model": trainer.models["model"].eval()}, batch) > 0
    target, counts = batch["target"], batch["counts"]
    positive, negative = said[target].float().mean(), (~said[counts & ~target]).float().mean()
    share = target.sum() / counts.sum()
    return float(share), float(share * positive + (1 - share) * negative), float(positive), float(negative)


@pytest.mark.parametrize("balance", ["batch", "dataset"])
def test_one_source_of_balancing_learns(tmp_path, balance):
    share, accuracy, positive, negative = at_a_half(Weak(balance=balance), tmp_path)
    assert min(positive, negative) > 0.5 and accuracy > 2.5 * share


def test_two_of_them_say_one_everywhere(tmp_path):
    share, accuracy, positive, negative = at_a_half(Twice(), tmp_path)
    assert positive > 0.97 and negative < 0.1
    assert share == pytest.approx(0.18, abs=0.03) and accuracy == pytest.approx(share, abs=0.08)
