"""plain_accelerate.py as a task: data, network and loss stay, the loop is gone."""

from plain_accelerate import data, network
from torch.nn.functional import cross_entropy

from accel_train import Loss, Task, Trainer, from_dataset

SETTINGS = dict(
    num_train_epochs=10, learning_rate=3e-3, lr_scheduler_type="cosine", logging_steps=10, eval_steps="1ep",
    save_steps="1ep",
)  # fmt: skip


class ConvertedTask(Task):
    """Is the point outside the sphere?"""

    def build_data(self, split, batch_size, seed):
        train = split == "train"
        return from_dataset(data(1000, 1) if train else data(500, 2), batch_size, seed, train, names=("x", "y"))

    def build_model(self):
        return network()

    def loss_step(self, models, batch, totals, objective):
        return Loss(cross_entropy(models["model"](batch["x"]), batch["y"], reduction="sum") / totals["items"])

    def eval_step(self, models, batch):
        scores = models["model"](batch["x"])
        loss = cross_entropy(scores, batch["y"], reduction="sum")
        return {"loss": loss, "right": (scores.argmax(1) == batch["y"]).sum(), "items": len(scores)}

    def eval_metrics(self, sums):
        return {"loss": sums["loss"] / sums["items"], "accuracy": sums["right"] / sums["items"]}


if __name__ == "__main__":
    Trainer(ConvertedTask(), output_dir="runs/converted", **SETTINGS).fit()
