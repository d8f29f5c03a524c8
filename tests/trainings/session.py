"""A notebook, cell by cell: train, stop, look, go on in the same interpreter, use the weights."""

import torch
from bars import Bars, BarsTask

from accel_train import Trainer, load_exported

# %% train, until it is interrupted
settings = dict(output_dir="runs/session", global_batch_size=32, eval_steps="1ep", logging_steps=4, report_to=[])
trainer = Trainer(BarsTask(), max_steps=40, on_step=lambda step: step.number == 10 and trainer.request_stop("enough"),
                  **settings)  # fmt: skip
first = trainer.fit()

# %% look, and go on where it was
print(first.outcome, first.reason, first.step)
second = Trainer(BarsTask(), max_steps=40, **settings).fit()

# %% a longer run, and its curves
third = Trainer(BarsTask(), max_steps=60, **settings).fit()
figure = third.plot("loss", "eval_accuracy")

# %% the weights
_, models, _ = load_exported("runs/session/best")
scores = models["model"].eval()(torch.from_numpy(Bars(5, seed=3).images))
