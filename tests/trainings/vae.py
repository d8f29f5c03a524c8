"""A variational autoencoder whose KL term warms up: bars, generated."""

import torch
from bars import Bars
from torch import nn

from accel_train import IndexedSource, Loss, Task, Trainer, keyed


class Images:
    """Images with the noise of each one, a function of the item."""

    def __init__(self, size, seed):
        self.images, self.key = Bars(size, seed).images, keyed.key(seed, "latent")

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return {"image": self.images[indices], "noise": keyed.normal(self.key, indices, 4).astype("float32")}


class VAETask(Task):
    """The weight of the KL term grows to 1 in the first steps."""

    def __init__(self, warmup_steps: int = 50):
        self.warmup_steps = warmup_steps

    def build_data(self, split, batch_size, seed):
        return IndexedSource(Images(256 if split == "train" else 100, seed=len(split)), batch_size, seed)

    def build_model(self):
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8))
        decoder = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8)))
        return {"encoder": encoder, "decoder": decoder}

    def sums(self, models, batch):
        mean, log_std = models["encoder"](batch["image"]).chunk(2, dim=1)
        made = models["decoder"](mean + log_std.exp() * batch["noise"])
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std)
        return 0.5 * (made - batch["image"]).square().sum(), kl.sum()

    def loss_step(self, models, batch, totals, objective):
        error, kl = (each / totals["items"] for each in self.sums(models, batch))
        beta = min(1.0, objective.step / self.warmup_steps)
        return Loss(error + beta * kl, {"error": error, "kl": kl})

    def eval_step(self, models, batch):
        return {"elbo": torch.stack(self.sums(models, batch)), "items": len(batch["image"])}

    def eval_metrics(self, sums):
        error, kl = sums["elbo"] / sums["items"]
        return {"loss": error + kl, "error": error, "kl": kl}


if __name__ == "__main__":
    Trainer(VAETask(), output_dir="runs/vae", num_train_epochs=50, eval_steps="5ep").fit()
