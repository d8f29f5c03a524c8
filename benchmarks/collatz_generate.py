"""How much faster ``trajectories`` is than Python integers: CPU time, medians over interleaved rounds.

Run ``python benchmarks/collatz_generate.py``. Both sides fill the same array: uint8 tokens [N, 500] and exact T. Each
round times both, one after the other, and the ratio is taken within the round, so a busy machine disturbs it little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from accel_train.tasks.collatz.numbers import Numbers, to_int
from accel_train.tasks.collatz.trajectory import trajectories

KINDS = {"near": (1, 0, 0), "dense": (0, 0, 1)}


def with_python_ints(numbers: list[int], max_len: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """What a person would write: one list per row, one step at a time."""
    tokens = np.full((len(numbers), max_len), 2, np.uint8)
    steps = np.empty(len(numbers), np.int32)
    for row, n in enumerate(numbers):
        parities = []
        while n != 1:
            if n % 2:
                parities.append(1)
                n = 3 * n + 1
            else:
                parities.append(0)
                n //= 2
        tokens[row, : min(len(parities), max_len)] = parities[:max_len]
        steps[row] = len(parities)
    return tokens, steps


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - begun) / repeats


def compare(kind: str, rows: int, rounds: int, baseline_rows: int = 256) -> tuple[list[float], list[float]]:
    """Rows per CPU second of ``trajectories`` and of Python integers, one pair for each round.

    The baseline's cost per row does not depend on the number of rows, so it is timed on fewer of them.
    """
    high, low, _ = Numbers(seed=0, hard_ratio=1.0, hard_shares=KINDS[kind]).draw(np.arange(rows))
    numbers = to_int(high, low)
    few = [numbers[i] for i in range(0, rows, max(1, rows // baseline_rows))]
    repeats = max(2, 16_384 // rows)
    trajectories(high, low)  # builds the table
    fast, slow = [], []
    for _ in range(rounds):
        slow.append(len(few) / cpu_seconds(lambda: with_python_ints(few), 1))
        fast.append(rows / cpu_seconds(lambda: trajectories(high, low), repeats))
    return fast, slow


def main() -> None:
    parser = argparse.ArgumentParser(description="Trajectories a CPU second, numpy against Python integers.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and rows")
    quick = parser.parse_args().quick
    rounds, sizes = (5, (512, 2048)) if quick else (21, (512, 2048, 4096))
    ratios = {}
    print(f"{'numbers':<8}{'rows':>6}{'rows/s':>12}{'Python ints/s':>16}{'ratio':>8}")
    for kind in KINDS:
        for rows in sizes:
            fast, slow = compare(kind, rows, rounds)
            ratio = ratios[kind, rows] = statistics.median(f / s for f, s in zip(fast, slow, strict=True))
            row = f"{statistics.median(fast):>12,.0f}{statistics.median(slow):>16,.0f}{ratio:>8.1f}"
            print(f"{kind:<8}{rows:>6}{row}")
    print(f"ratio 512: {ratios['near', 512]:.1f}  ratio 2048: {ratios['near', 2048]:.1f}")


if __name__ == "__main__":
    main()
