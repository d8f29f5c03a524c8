"""What the loop costs: CPU time per step of an MLP 32-64-1, batch 64, against the same training written by hand.

    python benchmarks/loop_overhead.py [--rounds 7] [--steps 3300]

All rows train the same model on the same data (AdamW, MSE, clipping at 1.0, cosine schedule, fp32, one thread) and the
last weights must agree: those of the fused AdamW, which the trainer takes, to 1e-6, those of the default one to 1e-3.
The trainer logs every 50 steps to JSONL, TensorBoard and the console. Rows alternate, each in a process of its own, and
the ratio is taken within a round; the first 300 steps are not timed. "pre-batched" is the cheapest data path a person
can write by hand: slices of a shuffled tensor, no DataLoader. "fused" is that with the optimiser that the trainer
takes, so what is left is the loop.
"""

import argparse
import contextlib
import io
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

WARM = 300


def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64 * steps, 32)).astype(np.float32)
    return x, (np.sin(x[:, :4]).sum(1, keepdims=True)).astype(np.float32)


def order(steps: int) -> np.ndarray:
    from accel_train.data.source import IndexedSource

    return IndexedSource(np.empty(64 * steps), 64, seed=0)._permutation(0)


def model():
    import torch
    from torch import nn

    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))


def weigh(net) -> float:
    """A number that depends on every weight."""
    return sum(p.detach().double().abs().sum().item() for p in net.parameters())


def bare(steps: int, loader_kind: str) -> tuple[float, float]:
    """(CPU seconds per step, ``weigh`` at the end)."""
    import torch

    x, y = (torch.from_numpy(a) for a in data(steps))
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True if loader_kind == "fused" else None)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    indices = torch.from_numpy(order(steps))
    if loader_kind == "dataloader":
        dataset = torch.utils.data.TensorDataset(x, y)
        batches = iter(torch.utils.data.DataLoader(dataset, batch_size=64, sampler=indices.tolist()))
    else:
        batches = ((x[i], y[i]) for i in indices.split(64))
    started = 0.0
    for step, (bx, by) in enumerate(batches):
        if step == WARM:
            started = time.process_time()
        loss = torch.nn.functional.mse_loss(net(bx), by)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            loss.item()
    seconds = time.process_time() - started
    return seconds / (steps - WARM), weigh(net)


def ours(steps: int) -> tuple[float, float]:
    import torch

    from accel_train import IndexedSource, Loss, Task, Trainer
    from accel_train.tracking.observer import Observer

    class Rows:
        def __init__(self):
            self.x, self.y = (torch.from_numpy(a) for a in data(steps))

        def __len__(self):
            return len(self.x)

        def read(self, indices):
            rows = torch.from_numpy(indices)
            return {"x": self.x[rows], "y": self.y[rows]}

    class Mlp(Task):
        def build_data(self, split, batch_size, seed):
            return IndexedSource(Rows(), batch_size, seed=0) if split == "train" else None

        def build_model(self):
            return model()

        def loss_step(self, models, batch, totals, objective):
            error = torch.nn.functional.mse_loss(models["model"](batch["x"]), batch["y"], reduction="sum")
            return Loss(error / totals["items"])

    class Timer(Observer):
        started = 0.0

        def on_log(self, record):
            if record["step"] == WARM:
                self.started = time.process_time()
            if record["step"] == steps:
                self.seconds = time.process_time() - self.started

    timer = Timer()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            Mlp(), output_dir=folder, num_train_epochs=1, global_batch_size=64, logging_steps=50, save_steps=None,
            lr_scheduler_type="cosine", learning_rate=1e-3, observers=[timer], check_contract=False,
        )  # fmt: skip
        trainer.fit()
    return timer.seconds / (steps - WARM), weigh(trainer.models["model"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3300)
    parser.add_argument("--row", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        import torch

        torch.set_num_threads(1)
        row = ours(options.steps) if options.row == "ours" else bare(options.steps, options.row)
        print(json.dumps(row))
        return
    rows: dict[str, list[tuple[float, float]]] = {"ours": [], "dataloader": [], "pre-batched": [], "fused": []}
    for round_ in range(options.rounds):
        names = list(rows) if round_ % 2 else list(rows)[::-1]
        for name in names:
            command = [sys.executable, __file__, "--row", name, "--steps", str(options.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    for names, most in ((("ours", "fused"), 1e-6), (tuple(rows), 1e-3)):
        ends = {weights for name in names for _, weights in rows[name]}
        assert max(ends) - min(ends) < most * max(ends), f"the rows did not train the same model: {ends}"
    for name, values in rows.items():
        micro = [1e6 * seconds for seconds, _ in values]
        print(f"{name:<12} {statistics.median(micro):7.0f} us/step   ({min(micro):.0f} to {max(micro):.0f})")
    for name in list(rows)[1:]:
        ratios = [a[0] / b[0] for a, b in zip(rows["ours"], rows[name], strict=True)]
        print(
            f"ratio to bare PyTorch, {name:<12} {statistics.median(ratios):.3f}"
            f"   ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    assert all(math.isfinite(end) for values in rows.values() for _, end in values)


if __name__ == "__main__":
    main()
