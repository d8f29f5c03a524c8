"""What ``reduction: fixed`` costs: the same training with it and without, on one process and on four gloo ranks.

    python benchmarks/fixed_reduction.py [--rounds 3] [--steps 15] [--parts 8] [--batch 2048] [--ranks 1 4]

An MLP of 5M parameters (fused AdamW, clipping at 1.0, fp32, one thread a process). Rows alternate, each in processes of
its own, and ratios are taken within a round, of the median step; the first 5 steps are not timed. In brackets, the
spread over rounds. "cut" is the ordinary reduction with micro-batches of the size of a part: what smaller passes alone
cost. With the fixed reduction the last weights must have one SHA-256, whatever the number of ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
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
WIDTH, LAYERS = 512, 19
ROWS = ("ordinary", "cut", "fixed")


def train(row: str, steps: int, batch: int, parts: int) -> dict[str, Any]:
    """Median seconds of a step, and a digest of the weights."""
    import torch
    from torch import nn

    from accel_train import IndexedSource, Loss, Task, Trainer

    torch.set_num_threads(1)
    moments: list[float] = []

    class Rows:
        def __init__(self) -> None:
            self.x = torch.randn(4 * batch, WIDTH, generator=torch.Generator().manual_seed(0))

        def __len__(self) -> int:
            return len(self.x)

        def read(self, indices: Any) -> dict[str, Any]:
            return {"x": self.x[torch.from_numpy(indices)]}

    class Wide(Task):
        def build_data(self, split: str, batch_size: int, seed: int) -> Any:
            return IndexedSource(Rows(), batch_size, seed) if split == "train" else None

        def build_model(self) -> Any:
            return nn.Sequential(*[layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])

        def loss_step(self, models: Any, batch: Any, totals: Any, objective: Any) -> Loss:
            error = nn.functional.mse_loss(models["model"](batch["x"]), batch["x"], reduction="sum")
            return Loss(error / (totals["items"] * WIDTH))

        def after_step(self, *_: Any) -> None:
            moments.append(time.perf_counter())

    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(
            Wide(), output_dir=os.environ["BENCHMARK_FOLDER"], max_steps=steps, global_batch_size=batch,
            save_steps=None, check_contract=False, resume_from_checkpoint="never", report_to=[],
            reduction="fixed" if row == "fixed" else "ordinary", reduction_parts=parts,
            micro_batch_size=batch // parts if row == "cut" else None,
        )  # fmt: skip
        trainer.fit()
    digest = hashlib.sha256()
    for value in trainer.models["model"].state_dict().values():
        digest.update(value.numpy().tobytes())
    seconds = [b - a for a, b in zip(moments[WARM - 1 :], moments[WARM:], strict=False)]
    return {"step": statistics.median(seconds), "end": digest.hexdigest()}


def start(row: str, ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        numbers = ["--steps", str(options.steps), "--batch", str(options.batch), "--parts", str(options.parts)]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        environment = os.environ | {"BENCHMARK_FOLDER": folder, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, *launcher, __file__, "--row", row, *numbers]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(Path(folder, "found.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        found = train(options.row, options.steps, options.batch, options.parts)
        if int(os.environ.get("RANK", "0")) == 0:
            Path(os.environ["BENCHMARK_FOLDER"], "found.json").write_text(json.dumps(found))
        return
    ends: set[str] = set()
    for ranks in options.ranks:
        found: dict[str, list[float]] = {row: [] for row in ROWS}
        for round_ in range(options.rounds):
            for row in ROWS if round_ % 2 else ROWS[::-1]:
                made = start(row, ranks, options)
                found[row].append(made["step"])
                ends |= {made["end"]} if row == "fixed" else set()
        for row, seconds in found.items():
            print(f"{ranks} ranks, {row:8} step {_spread([1e3 * value for value in seconds], 1)} ms")
        for row in ROWS[1:]:
            ratios = [a / b for a, b in zip(found[row], found["ordinary"], strict=True)]
            print(f"{ranks} ranks, {row} / ordinary: {_spread(ratios, 2)}", flush=True)
    assert len(ends) == 1, f"the weights differ: {ends}"
    print(
        f"with the fixed reduction one SHA-256 on {' and '.join(map(str, options.ranks))} ranks: {ends.pop()[:16]}..."
    )


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
