"""What a step costs on two gloo ranks: a model of 20M parameters, against a DDP loop written by hand.

    python benchmarks/ddp_step.py [--rounds 7] [--steps 40]

All rows train the same MLP on the same batches (fused AdamW, MSE, clipping at 1.0, fp32, one thread a rank) and the
last weights must agree to 1e-6. Rows alternate, each in a pair of processes of its own, and ratios are taken within a
round, of the median step and of the CPU time of both ranks; the first 5 steps are not timed. "by hand" is DDP as it
comes; "by hand, unused" looks for parameters without a gradient, as ours does. In brackets, the spread over rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WARM = 5
WIDTH, LAYERS, BATCH = 1024, 19, 128  # 19 x 1024 x 1025 = 19.9M parameters; 64 items on each rank
ROWS = ("ours", "by hand", "by hand, unused")


def model() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(1)
    return nn.Sequential(*[layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])


def rows(steps: int) -> Any:
    import torch

    return torch.randn(BATCH * steps, WIDTH, generator=torch.Generator().manual_seed(0))


def weigh(net: Any) -> float:
    """A number that depends on every weight."""
    return sum(p.detach().double().abs().sum().item() for p in net.parameters())


def by_hand(steps: int, unused: bool) -> tuple[list[float], float, float]:
    """(moments of the ends of steps, CPU seconds of the timed ones on this rank, ``weigh`` at the end)."""
    import torch
    import torch.distributed as dist

    from accel_train.data.source import IndexedSource

    dist.init_process_group("gloo")
    rank, share = dist.get_rank(), BATCH // 2
    x, net = rows(steps), model()
    ddp = torch.nn.parallel.DistributedDataParallel(net, find_unused_parameters=unused)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    order = torch.from_numpy(IndexedSource(x, BATCH, seed=0)._permutation(0))
    moments, cpu = [], 0.0
    for step, indices in enumerate(order.split(BATCH)):
        if step == WARM:
            cpu = time.process_time()
        batch = x[indices[rank * share : (rank + 1) * share]]
        loss = torch.nn.functional.mse_loss(ddp(batch), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        moments.append(time.perf_counter())
    cpu = time.process_time() - cpu
    end = weigh(net)
    dist.destroy_process_group()
    return moments, cpu, end


def ours(steps: int) -> tuple[list[float], float, float]:
    import torch

    from accel_train import IndexedSource, Loss, Task, Trainer

    moments: list[float] = []
    cpu = [0.0]

    class Rows:
        def __init__(self) -> None:
            self.x = rows(steps)

        def __len__(self) -> int:
            return len(self.x)

        def read(self, indices: Any) -> dict[str, Any]:
            return {"x": self.x[torch.from_numpy(indices)]}

    class Wide(Task):
        def build_data(self, split: str, batch_size: int, seed: int) -> Any:
            return IndexedSource(Rows(), batch_size, seed=0) if split == "train" else None

        def build_model(self) -> Any:
            return model()

        def loss_step(self, models: Any, batch: Any, totals: Any, objective: Any) -> Loss:
            error = torch.nn.functional.mse_loss(models["model"](batch["x"]), batch["x"], reduction="sum")
            return Loss(error / (totals["items"] * WIDTH))

        def after_step(self, *_: Any) -> None:
            moments.append(time.perf_counter())
            if len(moments) == WARM:
                cpu[0] = time.process_time()
            if len(moments) == steps:
                cpu[0] = time.process_time() - cpu[0]

    folder = os.environ["BENCHMARK_FOLDER"]
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            Wide(), output_dir=folder, num_train_epochs=1, global_batch_size=BATCH, logging_steps=50, save_steps=None,
            lr_scheduler_type="constant", learning_rate=1e-3, check_contract=False,
            resume_from_checkpoint="never", optimizer={"init_args": {"weight_decay": 0.01}},
        )  # fmt: skip
        trainer.fit()
    return moments, cpu[0], weigh(trainer.models["model"])


def one(row: str, steps: int) -> None:
    import torch

    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    moments, cpu, end = ours(steps) if row == "ours" else by_hand(steps, row == "by hand, unused")
    seconds = [b - a for a, b in zip(moments[WARM - 1 :], moments[WARM:], strict=False)]
    found = {"step": statistics.median(seconds), "cpu": cpu / (steps - WARM), "end": end}
    Path(os.environ["BENCHMARK_FOLDER"], f"found_{rank}.json").write_text(json.dumps(found))


def pair(row: str, steps: int) -> dict[str, float]:
    """Median seconds and CPU seconds (both ranks) of a step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__,
            "--row", row, "--steps", str(steps),
        ]  # fmt: skip
        environment = os.environ | {"BENCHMARK_FOLDER": folder, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        both = [json.loads(Path(folder, f"found_{rank}.json").read_text()) for rank in range(2)]
    assert both[0]["end"] == both[1]["end"]
    return {"step": both[0]["step"], "cpu": both[0]["cpu"] + both[1]["cpu"], "end": both[0]["end"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one(options.row, options.steps)
        return
    found: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for round_ in range(options.rounds):
        for row in ROWS if round_ % 2 else ROWS[::-1]:
            found[row].append(pair(row, options.steps))
    ends = [each["end"] for each in sum(found.values(), [])]
    assert max(ends) - min(ends) < 1e-6 * max(ends), f"the rows did not train the same model: {ends}"
    for row, values in found.items():
        step, cpu = (_spread([1e3 * value[what] for value in values], 1) for what in ("step", "cpu"))
        print(f"{row:18} step {step} ms, CPU {cpu} ms")
    for row in ROWS[1:]:
        pairs = list(zip(found["ours"], found[row], strict=True))
        step, cpu = (_spread([a[what] / b[what] for a, b in pairs], 3) for what in ("step", "cpu"))
        print(f"ours / {row}: step {step}, CPU {cpu}")


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
