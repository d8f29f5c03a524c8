"""A GAN with an optimiser for each network and a gradient penalty: points on a ring."""

import numpy as np
import torch
from torch import nn

from accel_train import Loss, Objective, Task, Trainer, from_dataset

ANGLES = np.random.default_rng(1).uniform(0, 2 * np.pi, 512)
RING = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)


def with_noise(point, generator):
    """Fresh noise in every epoch, the same for any cut of a batch."""
    noise = generator.standard_normal(4, np.float32)
    return {"real": point, "noise": noise, "between": np.float32(generator.random())}


class RingTask(Task):
    """Two networks, in turn."""

    recommended = {"optimizers": {"critic": {"class_path": "RMSprop"}, "generator": {"class_path": "Adam"}}}

    def objectives(self):
        return Objective("critic", trains=("critic",), repeats=3), Objective("generator", trains=("generator",))

    def build_data(self, split, batch_size, seed):
        return from_dataset(RING, batch_size, seed, augment=with_noise) if split == "train" else None

    def build_model(self):
        return {name: nn.Sequential(nn.Linear(n, 32), nn.GELU(), nn.Linear(32, m))
                for name, n, m in (("generator", 4, 2), ("critic", 2, 1))}  # fmt: skip

    def loss_step(self, models, batch, totals, objective):
        generator, critic, items = models["generator"], models["critic"], totals["items"]
        made = generator(batch["noise"])
        if objective.name == "generator":
            return Loss(-critic(made).sum() / items)
        mixed = torch.lerp(batch["real"], made.detach(), batch["between"].unsqueeze(1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().sum() / items
        gap = (critic(made.detach()).sum() - critic(batch["real"]).sum()) / items
        return Loss(gap + 10 * penalty, {"gap": gap, "penalty": penalty})


if __name__ == "__main__":
    Trainer(RingTask(), output_dir="runs/ring", max_steps=500, learning_rate=1e-3).fit()
