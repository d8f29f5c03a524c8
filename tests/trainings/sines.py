"""``datasets`` from a folder, in any order or as a stream: sine waves of unknown frequency."""

import numpy as np
from datasets import Dataset, load_from_disk
from torch import nn

from accel_train import Loss, Task, Trainer, from_dataset, from_iterable


def write_waves(folder):
    for split, size in (("train", 200), ("validation", 50)):
        frequency = np.random.default_rng(size).uniform(1, 4, (size, 1)).astype(np.float32)
        wave = np.sin(frequency * np.linspace(0, 3, 32, dtype=np.float32))
        Dataset.from_dict({"wave": wave, "frequency": frequency[:, 0]}).save_to_disk(f"{folder}/{split}")


class SinesTask(Task):
    """What is the frequency of a wave?"""

    movable = ("folder",)

    def __init__(self, folder: str, stream: bool = False):
        self.folder, self.stream = folder, stream

    def build_data(self, split, batch_size, seed):
        if split == "test":
            return None
        data = load_from_disk(f"{self.folder}/{split}").with_format("torch")
        if self.stream and split == "train":
            shards = data.to_iterable_dataset(num_shards=4).shuffle(seed=seed, buffer_size=50)
            return from_iterable(shards, batch_size, seed)
        return from_dataset(data, batch_size, seed, shuffle=split == "train")

    def build_model(self):
        return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1), nn.Flatten(0))

    def loss_step(self, models, batch, totals, objective):
        return Loss(self.squares(models, batch) / totals["items"])

    def squares(self, models, batch):
        return (models["model"](batch["wave"]) - batch["frequency"]).square().sum()

    def eval_step(self, models, batch):
        return {"squares": self.squares(models, batch), "items": len(batch["wave"])}

    def eval_metrics(self, sums):
        return {"loss": sums["squares"] / sums["items"]}


if __name__ == "__main__":
    write_waves("data/waves")
    Trainer(SinesTask("data/waves", stream=True), output_dir="runs/sines", max_steps=200, eval_steps=50).fit()
