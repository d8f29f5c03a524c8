"""How far two cuts of the same run part by rounding, and which parameters do.

    python benchmarks/cuts.py [--steps 5]

Trains collatz, muon and gdynet on small synthetic data for some steps, each batch whole and in quarters: with the
default optimiser (AdamW), with plain SGD, and with AdamW in float64. Printed are the largest relative difference of any
logged loss, the largest difference of a weight, and the tensors in which weights differ by more than a hundredth of the
learning rate, with how many of their elements do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from accel_train import Trainer
from accel_train.config.read import build_task

LEARNING_RATE = 1e-3


def tasks(folder: Path) -> dict[str, tuple[dict[str, Any], int]]:
    """Class and arguments, and the global batch."""
    small = dict(d_model=64, num_layers=2, nhead=4, dim_feedforward=128, dropout=0.0, max_len=128, prefix=64)
    lobes = dict(atom_fea_len=16, n_conv=2, num_gaussians=24, state_len=3, epochs=3)
    files = {"train_fnames": [f"{folder}/gdynet/train"], "val_fnames": [f"{folder}/gdynet/val"]}
    return {
        "collatz": (small, 128),
        "muon": (dict(files=f"{folder}/muon/*.parquet", hidden_dim=64, critic_steps=3), 512),
        "gdynet": (files | lobes, 64),
    }


def train(name: str, arguments: dict[str, Any], float64: bool, **settings: Any) -> tuple[dict[str, Any], Any]:
    task = build_task({"class_path": name, "init_args": arguments})
    if float64:
        real = task.build_model

        def build_model(train: Any) -> Any:
            models = real(train)
            for model in models.values() if isinstance(models, dict) else [models]:
                model.double()
            return models

        task.build_model = build_model
    with tempfile.TemporaryDirectory() as run, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            task, output_dir=run, eval_steps=0, save_steps=None, logging_steps=1, report_to=[], **settings
        )
        history = trainer.fit().history
    weights = {f"{m}.{n}": p.detach() for m, model in trainer.models.items() for n, p in model.named_parameters()}
    return weights, history


def compare(name: str, arguments: dict[str, Any], batch: int, steps: int, float64: bool, **settings: Any) -> None:
    settings |= {"max_steps": steps, "global_batch_size": batch, "learning_rate": LEARNING_RATE}
    (one, history), (other, cut) = (
        train(name, arguments, float64, micro_batch_size=limit, **settings) for limit in (None, batch // 4)
    )
    losses = [key for key in history if key == "loss" or key.endswith("_loss")]
    apart = {key: max(abs(a - b) / abs(a) for a, b in zip(history[key], cut[key], strict=True)) for key in losses}
    differ = {key: (weight - other[key]).abs() for key, weight in one.items()}
    print(f"  losses {', '.join(f'{key} {value:.1e}' for key, value in apart.items())}")
    print(f"  weights {max(float(d.max()) for d in differ.values()):.1e}")
    many = {key: int((d > LEARNING_RATE / 100).sum()) for key, d in differ.items()}
    for key, count in sorted(many.items(), key=lambda pair: -pair[1])[:5]:
        if count:
            print(f"    {key}: {count} of {differ[key].numel()}, at most {float(differ[key].max()):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    from accel_train.tasks.gdynet.synth import synth as frames
    from accel_train.tasks.muon.synth import synth as bundles

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        frames(folder / "gdynet", 0, 400)
        bundles(folder / "muon", 0, 2000)
        for name, (arguments, batch) in tasks(folder).items():
            for label, float64, optimizer in (
                ("AdamW", False, "AdamW"),
                ("SGD", False, "SGD"),
                ("float64", True, "AdamW"),
            ):
                print(f"{name}, {label}, {options.steps} steps, whole and in quarters")
                kinds = {"optimizer": {"class_path": optimizer}, "optimizers": {}}
                compare(name, arguments, batch, options.steps, float64, **kinds)


if __name__ == "__main__":
    main()
