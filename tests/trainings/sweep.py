"""A sweep: the same training at several rates, and the runs side by side."""

from bars import BarsTask

from accel_train import Trainer
from accel_train.cli import main

RATES = 1e-4, 1e-3, 1e-2
SETTINGS = dict(max_steps=20, global_batch_size=32, eval_steps=10)

if __name__ == "__main__":
    for rate in RATES:
        Trainer(BarsTask(), output_dir=f"runs/sweep/{rate}", learning_rate=rate, **SETTINGS).fit()
    main(["runs", "table", "runs/sweep"])
