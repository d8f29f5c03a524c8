"""What it costs on several ranks that a VAMP loss is that of the whole batch.

    python benchmarks/gdynet_step.py [--ranks 3] [--steps 60] [--rounds 7]

Steps on gloo ranks of the same model and batch, with the moments summed over the ranks and, in turn, without (every
rank then has a loss of its own, as in the GDyNet-ferro trainer). Counted are calls of all_reduce in a step;
timed is CPU time of all ranks per step, medians over interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.multiprocessing as mp


def work(rank: int, ranks: int, folder: str, steps: int, rounds: int, results: Any) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29571", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    import torch

    torch.set_num_threads(1)
    from accel_train.config.read import settings_for
    from accel_train.plan import Position
    from accel_train.tasks.gdynet.task import GDyNetTask
    from accel_train.train.session import Session

    task = GDyNetTask([f"{folder}/train"], [f"{folder}/val"], state_len=3, atom_fea_len=16, n_conv=2, num_gaussians=24)
    config = settings_for(GDyNetTask, {"output_dir": f"{folder}/run", "report_to": [], "global_batch_size": 96})
    session = Session(task, config)
    stepper, summed = session.stepper, session.ranks.sum
    share = next(session.loader.batches(Position()))[2]
    calls, real = [0], dist.all_reduce

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return real(*arguments, **named)

    dist.all_reduce = counted
    taken: dict[str, list[float]] = {"summed": [], "alone": []}
    counts = {}
    for round_ in range(rounds + 1):
        for name in taken:
            session.ranks.sum = summed if name == "summed" else lambda tensor: tensor
            calls[0] = 0
            dist.barrier()
            cpu = time.process_time()
            for step in range(steps):
                stepper.step(replace(session.objectives["vamp2"], step=step), share)
            if round_:
                taken[name].append((time.process_time() - cpu) / steps)
            counts[name] = calls[0] / steps
    results.put((rank, taken, counts))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    from accel_train.tasks.gdynet.synth import synth

    with tempfile.TemporaryDirectory() as temporary:
        synth(Path(temporary) / "data", 0, 400)
        results = mp.get_context("spawn").SimpleQueue()
        arguments = (options.ranks, f"{temporary}/data", options.steps, options.rounds, results)
        mp.spawn(work, arguments, options.ranks, join=True)
        found = [results.get() for _ in range(options.ranks)]
    cpu = {name: [sum(times) for times in zip(*(taken[name] for _, taken, _ in found), strict=True)]
           for name in ("summed", "alone")}  # fmt: skip
    ratios = [a / b for a, b in zip(cpu["summed"], cpu["alone"], strict=True)]
    for name in cpu:
        print(
            f"{name:8} {1e3 * statistics.median(cpu[name]):8.2f} ms CPU a step   all_reduce calls {found[0][2][name]:g}"
        )
    print(f"summed / alone: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
