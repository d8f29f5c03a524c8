"""What the tcn task gains by its form of a dilated convolution, and whether its stream keeps up with a plasma.

    python benchmarks/dilated_convolution.py [--steps 15626] [--rounds 5] [--chunks 100] [--device cpu]

First, forward and backward of one layer (80 channels, 15 taps), as ``conv1d`` and as a dense ``conv2d`` over a table of
its columns, in turn; medians, and the median of the ratios. On a GPU with cuDNN free to choose, and held to
deterministic kernels. Then chunks of 100 samples, 1 ms at 100 kHz, through the network at its defaults (160 channels,
878,241 parameters): as a ``Stream``, and as the exported program. On the CPU one thread, and CPU time, which other
programs disturb less; of chunks the shortest wall time too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from accel_train.tasks.tcn.model import TCN, dense_conv1d
from accel_train.tasks.tcn.streaming import LONGEST, Stream, write_program

CHANNELS, TAPS = 80, 15


def seconds(work: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def layer(dilation: int, steps: int, rounds: int, device: str) -> str:
    """Milliseconds of both forms for one record."""
    x = torch.randn(1, CHANNELS, steps, device=device, requires_grad=True)
    kernel = torch.randn(CHANNELS, CHANNELS, TAPS, device=device, requires_grad=True)
    bias = torch.randn(CHANNELS, device=device, requires_grad=True)
    forms: dict[str, Callable[[], Tensor]] = {
        "conv1d": lambda: F.conv1d(x, kernel, bias, dilation=dilation),
        "dense": lambda: dense_conv1d(x, kernel, bias, dilation),
    }

    def both_ways(form: Callable[[], Tensor]) -> None:
        out = form()
        torch.autograd.grad(out, (x, kernel, bias), out.detach())

    taken: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(rounds + 1):
        for name, form in forms.items():
            took = seconds(lambda form=form: both_ways(form), device)
            if round_:
                taken[name].append(1e3 * took)
    ratios = [a / b for a, b in zip(taken["conv1d"], taken["dense"], strict=True)]
    conv1d, dense = (statistics.median(taken[name]) for name in forms)
    return (
        f"dilation {dilation:4}   conv1d {conv1d:8.1f} ms   dense {dense:8.1f} ms   "
        f"conv1d / dense {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def latencies(chunks: int) -> Iterator[str]:
    """Milliseconds per chunk, without those of the first tenth."""
    model = TCN().eval()
    with tempfile.TemporaryDirectory() as folder:
        write_program(model, Path(folder))
        program = torch.export.load(Path(folder) / "stream.pt2").module()
    for shots in (1, 8):
        stream = Stream(model, shots)
        state = list(stream.program.beginning(shots))

        def by_program(chunk: Tensor, state: list[object] = state) -> None:
            _, *state[:] = program(chunk, *state)

        ways: dict[str, Callable[[Tensor], object]] = {"Stream": stream.step, "program": by_program}
        for name, way in ways.items():
            cpu: list[float] = []
            wall: list[float] = []
            with torch.no_grad():
                for _ in range(chunks):
                    chunk = torch.randn(shots, model.channels, LONGEST)
                    start = time.perf_counter()
                    cpu.append(1e3 * seconds(lambda way=way, chunk=chunk: way(chunk), "cpu"))
                    wall.append(1e3 * (time.perf_counter() - start))
            cpu, wall = sorted(cpu[chunks // 10 :]), sorted(wall[chunks // 10 :])
            yield (
                f"{name:8} {shots} shots   1 ms takes {statistics.median(cpu):6.2f} ms CPU (median), 95 % within "
                f"{cpu[int(0.95 * len(cpu))]:.2f}   shortest wall time {wall[0]:.2f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15_626)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for deterministic in (False, True) if options.device == "cuda" else (False,):
        torch.backends.cudnn.deterministic = deterministic
        print(f"{options.steps} steps on {options.device}{', deterministic' if deterministic else ''}")
        for dilation in (1, 10, 100, 961):
            print("  " + layer(dilation, options.steps, options.rounds, options.device), flush=True)
    for line in latencies(options.chunks):
        print(line, flush=True)


if __name__ == "__main__":
    main()
