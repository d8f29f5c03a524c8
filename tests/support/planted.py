"""A toy in which one thing is other from some step on, or for one row; the rest is the same to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel_train import IndexedSource
from support.toys import Numbers, Toy


class Rows(Numbers):
    """``plant``: "row" or "label", by which item 3 is other."""

    plant = ""

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        batch = super().read(indices)
        if self.plant == "row":
            batch["x"][indices == 3, 0] *= np.float32(1 + 2e-7)
        if self.plant == "label":
            batch["y"][indices == 3] *= -1
        return batch


class Reordered(IndexedSource):
    """The second epoch in another order."""

    def indices(self, epoch: int, step: int) -> np.ndarray:
        return super().indices(epoch, step)[::-1].copy() if epoch == 1 else super().indices(epoch, step)


class Noise(nn.Dropout):
    seed = 0

    def forward(self, input: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.initial_seed()) // 2 + self.seed)
            return super().forward(input)


class Halved(torch.autograd.Function):
    """What it is given; its gradient by half."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        return gradients[0] / 2


class Long(nn.Module):
    """A sum of so many numbers that threads cut it."""

    def forward(self, input: Tensor) -> Tensor:
        return input + 1e-3 * torch.linspace(-1.0, 1.1, 300_001).sin().sum()


class Planted(Toy):
    """``plant``: what is other, where it has to do with steps after step 10."""

    def __init__(self, plant: str = "", long: bool = False) -> None:
        super().__init__(dropout=0.2)
        self.plant, self.long = plant, long

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        source = super().build_data(split, batch_size, seed)
        if split != "train" or source is None:
            return source
        data = Rows(self.items + (self.plant == "one more row"), split, False)
        data.plant = self.plant
        return (Reordered if self.plant == "order" else IndexedSource)(data, batch_size, seed)

    def build_model(self) -> nn.Sequential:
        noise = Noise(0.2)
        noise.seed = int(self.plant == "drop-out seed")
        return nn.Sequential(nn.Linear(4, 8), nn.GELU(), noise, Long() if self.long else nn.Identity(), nn.Linear(8, 1))

    def loss_step(self, models, batch, totals, objective):
        now = objective.step >= 10
        activation = models["model"].get_submodule("1")
        assert isinstance(activation, nn.GELU)
        activation.approximate = "tanh" if self.plant == "function" and now else "none"
        loss = super().loss_step(models, batch, totals, objective)
        if self.plant == "loss" and now:
            loss = loss._replace(value=loss.value * 1.0001)
        if self.plant == "gradient" and now:
            loss = loss._replace(value=Halved.apply(loss.value))
        return loss

    def after_step(self, models, step):
        if self.plant == "after" and step == 11:
            models["model"].get_parameter("0.bias").data[3] += 1e-3


def bumped(base: float, steps_done: int, done: float, at: int = -1) -> float:
    return base * (2 if steps_done == at else 1)
