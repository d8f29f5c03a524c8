"""Groups of parameters, a body that is frozen at first, averages of the weights: bars again, by a deeper network."""

from bars import BarsTask
from torch import nn
from torch.nn.functional import cross_entropy

from accel_train import Loss, Trainer


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU())
        self.head = nn.Linear(32, 2)

    def forward(self, image, body_learns=True):
        features = self.body(image)
        return self.head(features if body_learns else features.detach())


class FineTunedTask(BarsTask):
    """The head learns first, then the body too, at a tenth of the rate; biases and norms do not decay."""

    recommended = {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2},
                   "optimizer": {"init_args": {"weight_decay": 0.1}}, "ema_decay": 0.98}  # fmt: skip

    def __init__(self, frozen_steps: int = 20):
        self.frozen_steps = frozen_steps

    def build_model(self):
        return Network()

    def parameter_options(self, name, parameter):
        options = {"lr_factor": 0.1} if ".body." in name else {}
        return options | ({"weight_decay": 0.0} if parameter.ndim < 2 else {})

    def loss_step(self, models, batch, totals, objective):
        scores = models["model"](batch["image"], body_learns=objective.step >= self.frozen_steps)
        return Loss(cross_entropy(scores, batch["lies"], reduction="sum") / totals["items"])


if __name__ == "__main__":
    Trainer(FineTunedTask(), output_dir="runs/finetuned", num_train_epochs=10, eval_steps="1ep").fit()
