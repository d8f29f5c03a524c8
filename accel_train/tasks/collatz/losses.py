"""Pieces of the loss that training and evaluation share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from accel_train.task import Batch
from accel_train.tasks.collatz.trajectory import PAD


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the next token, summed over the tokens of each row, [B]."""
    target = tokens[:, 1:].long()
    each = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, reduction="none")
    return each.reshape(target.shape).sum(1)


def by_mode(batch: Batch, value: Tensor) -> Tensor:
    """Per-row values [B] summed over normal and over hard rows, [2]."""
    hard = batch["mode"] > 0
    return torch.stack([(value * ~hard).sum(), (value * hard).sum()])
