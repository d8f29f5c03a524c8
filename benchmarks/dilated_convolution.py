"""What the tcn task gains by its form of a dilated convolution, and whether its stream keeps up with a plasma.

    python benchmarks/dilated_convolution.py [--steps 15626] [--rounds 5] [--chunks 300] [--device cpu]

First, forward and backward of one layer (80 channels, 15 taps), as ``conv1d`` and as a dense ``conv2d`` over a table of
its columns, in turn; medians, and the median of the ratios. On a GPU with cuDNN free to choose, and held to
deterministic kernels. On the CPU one thread, and CPU time, which other programs disturb less. Then, on the CPU with one
thread and with two, chunks of 100 samples, 1 ms at 100 kHz, of 160 channels: as a ``Stream``, by the exported program,
and the matrix products of its layers alone, which no form of it can do without.
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
from accel_train.tasks.tcn.streaming import LONGEST, Linear, Stream, write_program

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


def latencies(chunks: int, threads: int) -> Iterator[str]:
    """Of chunks of 1 ms, through the network at its defaults and a narrower one."""
    torch.set_num_threads(threads)
    for nhid, shots in ((80, 1), (80, 8), (48, 1)):
        model = TCN(nhid=nhid).eval()
        stream = Stream(model, shots)
        chunk = torch.randn(shots, model.channels, LONGEST)
        layers = [layer.weight for layer in stream.program.modules() if isinstance(layer, Linear)]
        taps = [torch.randn(shots * LONGEST, len(weight)) for weight in layers]
        with tempfile.TemporaryDirectory() as folder:
            write_program(model, Path(folder))
            program = torch.export.load(Path(folder) / "stream.pt2").module()
        state: list[object] = list(stream.program.beginning(shots))

        def by_program(program: Callable[..., list[object]] = program, state: list[object] = state) -> None:
            _, *state[:] = program(chunk, *state)  # noqa: B023 - called before the next round

        ways: dict[str, Callable[[], object]] = {
            "Stream": lambda: stream.step(chunk),  # noqa: B023
            "program": by_program,
            "products": lambda: [torch.mm(*each) for each in zip(taps, layers, strict=True)],  # noqa: B023
        }
        parameters = sum(parameter.numel() for parameter in model.parameters())
        for name, way in ways.items():
            yield f"{threads} threads  {parameters:,} parameters  {shots} shots  {name:8}  {timed(way, chunks)}"


@torch.no_grad()
def timed(way: Callable[[], object], chunks: int) -> str:
    """Milliseconds by the clock on the wall, without those of the first tenth."""
    taken: list[float] = []
    for _ in range(chunks):
        start = time.perf_counter()
        way()
        taken.append(1e3 * (time.perf_counter() - start))
    taken = sorted(taken[chunks // 10 :])
    return (
        f"{statistics.median(taken):5.2f} ms, at least {taken[0]:.2f}, 95 % within {taken[int(0.95 * len(taken))]:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15_626)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for deterministic in (False, True) if options.device == "cuda" else (False,):
        torch.backends.cudnn.deterministic = deterministic
        print(f"{options.steps} steps on {options.device}{', deterministic' if deterministic else ''}")
        for dilation in (1, 10, 100, 961):
            print("  " + layer(dilation, options.steps, options.rounds, options.device), flush=True)
    for threads in (1, 2):
        for line in latencies(options.chunks, threads):
            print(line, flush=True)


if __name__ == "__main__":
    main()
