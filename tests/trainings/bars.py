"""A Dataset with augmentation: bars in noise, upright or lying, mirrored and moved at random."""

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from accel_train import Loss, Task, Trainer, from_dataset


class Bars(Dataset):
    """Images [1, 8, 8] and whether the bar in them lies."""

    def __init__(self, size, seed):
        draw = np.random.default_rng(seed)
        self.images = draw.normal(0, 0.5, (size, 1, 8, 8)).astype(np.float32)
        self.lies = draw.integers(0, 2, size)
        for image, lies, place in zip(self.images[:, 0], self.lies, draw.integers(0, 8, size), strict=True):
            (image if lies else image.T)[place] += 1

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], self.lies[i]


def mirrored(item, generator):
    image, lies = item
    return np.roll(image[..., :: generator.choice([-1, 1])], generator.integers(8), axis=-1), lies


class BarsTask(Task):
    """Does the bar lie?"""

    def __init__(self, dropout: float = 0.1):
        self.dropout = dropout

    def build_data(self, split, batch_size, seed):
        if split == "train":
            return from_dataset(Bars(256, seed=1), batch_size, seed, augment=mirrored, names=("image", "lies"))
        return from_dataset(Bars(100, seed=2), batch_size, shuffle=False, names=("image", "lies"))

    def build_model(self):
        convolution = nn.Conv2d(1, 8, 3, padding=1)
        return nn.Sequential(convolution, nn.GELU(), nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(512, 2))

    def loss_step(self, models, batch, totals, objective):
        return Loss(cross_entropy(models["model"](batch["image"]), batch["lies"], reduction="sum") / totals["items"])

    def eval_step(self, models, batch):
        scores = models["model"](batch["image"])
        right = (scores.argmax(1) == batch["lies"]).sum()
        return {"loss": cross_entropy(scores, batch["lies"], reduction="sum"), "right": right, "items": len(scores)}

    def eval_metrics(self, sums):
        return {"loss": sums["loss"] / sums["items"], "accuracy": sums["right"] / sums["items"]}


if __name__ == "__main__":
    Trainer(BarsTask(), output_dir="runs/bars", num_train_epochs=10, eval_steps="1ep").fit()
