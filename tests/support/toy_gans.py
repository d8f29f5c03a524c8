"""Toy tasks of two networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from accel_train import IndexedSource, Loss, Objective, Task, keyed
from support.faults import fault, here, spoil, unread
from support.toys import Numbers


class Pairs(Numbers):
    def __init__(self, items: int, float64: bool) -> None:
        super().__init__(items, "pairs", float64)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        unread("train")
        drawn = keyed.normal(self.key, indices, 5).astype(self.dtype)
        return {"index": indices, "x": drawn[:, :2] + 1, "z": drawn[:, 2:]}


class Gan(Task):
    """Two networks, written as one writes a GAN: a critic with a gradient penalty, and a generator."""

    def __init__(self, items: int = 50, float64: bool = False, repeats: int = 2) -> None:
        self.items, self.float64, self.repeats = items, float64, repeats

    def objectives(self):
        return (Objective("critic", ("critic",), self.repeats), Objective("generator", ("generator",)))

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        return IndexedSource(Pairs(self.items, self.float64), batch_size, seed) if split == "train" else None

    def build_model(self):
        models = {
            "generator": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)),
            "critic": nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)),
        }
        return {name: model.double() if self.float64 else model for name, model in models.items()}

    def loss_step(self, models, batch, totals, objective):
        fault(batch)
        generator, critic, items = models["generator"], models["critic"], totals["items"]
        if objective.name == "generator":
            return Loss(spoil(-critic(generator(batch["z"])).sum() / items), {})
        with torch.no_grad():
            made = generator(batch["z"])
        between = (0.3 * batch["x"] + 0.7 * made).requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        penalty = ((slope.square().sum(1).add(1e-12).sqrt() - 1) ** 2).sum() / items
        gap = (critic(made) - critic(batch["x"])).sum() / items
        return Loss(spoil(gap + 2 * penalty), {"gap": gap, "penalty": penalty})


class Silent(Gan):
    """The generator's loss reaches nothing where a job says so."""

    def loss_step(self, models, batch, totals, objective):
        loss = super().loss_step(models, batch, totals, objective)
        return Loss(loss.value.detach()) if objective.name == "generator" and here("detached") else loss
