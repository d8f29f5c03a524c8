"""The network of the tcn task at its defaults on a GPU: windows a second, memory, and what bounds them.

    python benchmarks/tcn_gpu.py [--seconds 200] [--steps 8] [--nsub 78125]

Training steps (forward, backward, AdamW) on windows of 160 channels as int16, already on the device: batches of 8 to
48 windows in fp32 (torch's default: TF32 in convolutions) and bf16, compiled, with checkpointing, with deterministic
kernels, and with ``conv1d`` in place of dense convolutions. ``bound``: the share of the arithmetic that the GPU reaches
in a square matrix product of the same precision, measured in the same run, for three times the multiplications of a
forward pass. Rows for which no time is left are listed as such.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.nn import functional

from accel_train.tasks.tcn import model as network
from accel_train.tasks.tcn.model import TCN


class Row(NamedTuple):
    batch: int
    precision: str = "bf16"
    compiled: bool = False
    checkpointing: bool = False
    deterministic: bool = False
    conv1d: bool = False

    def __str__(self) -> str:
        flags = [name for name in ("compiled", "checkpointing", "deterministic", "conv1d") if getattr(self, name)]
        return f"{self.batch:3} windows, {', '.join([self.precision, *flags])}"


ROWS = [
    Row(8), Row(48), Row(8, "fp32"), Row(48, "fp32"), Row(16), Row(32),
    Row(8, conv1d=True), Row(8, "fp32", conv1d=True), Row(8, deterministic=True), Row(8, "fp32", deterministic=True),
    Row(8, deterministic=True, conv1d=True), Row(48, checkpointing=True), Row(48, "fp32", checkpointing=True),
    Row(8, compiled=True), Row(48, compiled=True), Row(48, compiled=True, checkpointing=True),
    Row(48, "fp32", compiled=True),
]  # fmt: skip


def multiplications(model: TCN, nsub: int) -> int:
    """Of a forward pass of one window: every convolution gives as many outputs as are left of the record."""
    total, left = 0, nsub
    for block in model.blocks:
        before = left
        for conv in (block.conv1, block.conv2):
            left -= conv.reach
            total += left * conv.kernel().numel()
        if isinstance(block.skip, torch.nn.Conv1d):
            total += left * block.skip.weight.numel()
        assert left < before
    return total + left * model.out.weight.numel()


def matrix_product(precision: str, device: str) -> float:
    """Multiplications a second."""
    n = 8192 if device == "cuda" else 512
    a, b = torch.randn(2, n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = True  # as convolutions have it
    try:
        return n**3 / seconds(lambda: a @ b, 10, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def seconds(work: Callable[[], object], times: int, device: str, warm: int = 3) -> float:
    for i in range(warm + times):
        if i == warm:
            torch.cuda.synchronize() if device == "cuda" else None
            start = time.perf_counter()
        work()
    torch.cuda.synchronize() if device == "cuda" else None
    return (time.perf_counter() - start) / times


def measure(row: Row, options: argparse.Namespace, peak: dict[str, float]) -> str:
    device = options.device
    torch.manual_seed(0)
    model = TCN(checkpointing=row.checkpointing).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cuda")
    x = torch.randint(-2000, 2000, (row.batch, model.channels, options.nsub), dtype=torch.int16, device=device)
    scale, offset = torch.full((row.batch, model.channels), 1e-3, device=device), torch.zeros((), device=device)
    target = torch.randint(0, 2, (row.batch, options.nsub - model.receptive_field + 1), device=device).float()
    forward: Any = torch.compile(model) if row.compiled else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=row.precision == "bf16"):
            logits = forward(x, scale, offset.expand_as(scale))
        functional.binary_cross_entropy_with_logits(logits.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    work = multiplications(model, options.nsub)
    with ExitStack() as stack:
        if row.conv1d:
            stack.enter_context(mock.patch.object(network, "DENSE_FROM", 10**9))
        torch.backends.cudnn.deterministic = row.deterministic
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        slow = row.deterministic
        took = seconds(step, 2 if slow else options.steps, device, warm=1 if slow else 3)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0
    bound = 3 * work * row.batch / peak[row.precision] / took
    return f"{row.batch / took:8.1f} windows/s {1e3 * took:9.1f} ms/step {memory:6.1f} GiB   bound {bound:6.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--nsub", type=int, default=78_125)
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    ends = time.monotonic() + options.seconds
    peak = {precision: matrix_product(precision, options.device) for precision in ("fp32", "bf16")}
    name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    work = multiplications(TCN(), options.nsub)
    rates = ", ".join(f"{precision} {2e-12 * each:.0f} TFLOP/s" for precision, each in peak.items())
    print(f"{name}, torch {torch.__version__}")
    print(f"windows of {options.nsub:,}: {work / 1e9:.1f} GMAC; matrix product {rates}")
    for row in ROWS:
        if time.monotonic() > ends:
            print(f"{row!s:50} not run: no time was left")
            continue
        try:
            print(f"{row!s:50} {measure(row, options, peak)}", flush=True)
        except torch.OutOfMemoryError:
            print(f"{row!s:50} out of memory", flush=True)
        torch._dynamo.reset()
        if options.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
