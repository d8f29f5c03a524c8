"""What digests cost: seconds of a step with and without them, of an MLP of 10M parameters, batch 64, AdamW.

    python benchmarks/digests.py [--rounds 15] [--device cpu|cuda] [--width 1536]

A step is forward, backward, clipping and the fused optimiser. Within a round one step and one digest of all gradients
and all weights are timed (on a CPU in process time, one thread), in changing order; the ratio is taken within a round.
With ``digest_steps`` N a step costs that ratio / N more. On a GPU nothing is waited for between the two events.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from accel_train.train.digests import digest


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds."""
    if device == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="What digests of gradients and weights cost, beside a step.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=1536)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    torch.manual_seed(0)
    width = options.width
    net = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)), nn.Linear(width, 1))
    net.to(options.device)
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    x = torch.randn(64, width, device=options.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        net(x).square().mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    def digests() -> None:
        digest(p.grad for p in parameters if p.grad is not None)
        digest(parameters)

    step()
    digests()
    rows = []
    for number in range(options.rounds):
        order = (step, digests) if number % 2 else (digests, step)
        seconds = {work: timed(work, options.device) for work in order}
        rows.append((seconds[step], seconds[digests]))
    ratios = sorted(mine / its for its, mine in rows)
    one, other = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
    middle, count = statistics.median(ratios), sum(p.numel() for p in parameters)
    print(f"{count:,} parameters in {len(parameters)} tensors on {options.device}, {options.rounds} rounds")
    print(f"step {one:.2f} ms, digests {other:.2f} ms, ratio {middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(f"with digest_steps 100: {middle / 100:.2%} of a step")


if __name__ == "__main__":
    main()
