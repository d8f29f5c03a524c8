"""Does the generator keep ahead of the step? Rows per second of the full preset, and the wait of a steady consumer.

    python benchmarks/collatz_pipeline.py [--rows_per_second 2000] [--seconds 10]

The consumer stands for a GPU that takes so many rows a second (batches of 512, as in examples/collatz.yaml); it only
sleeps, so whatever it waits for data is the loader's fault. One loader thread.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from accel_train.data.loader import Loader
from accel_train.plan import Position
from accel_train.tasks.collatz.task import CollatzTask

BATCH = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows_per_second", type=float, default=2000.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()

    source = CollatzTask().build_data("train", BATCH, seed=0)
    rates = []
    for step in range(60):
        started = time.process_time()
        source.batch(0, step, 0, 1)
        rates.append(BATCH / (time.process_time() - started))
    print(f"generation, full preset mix: {statistics.median(rates):,.0f} rows per CPU second (one core, median of 60)")

    step_seconds = BATCH / options.rows_per_second
    waits, batches = [], Loader(source, torch.device("cpu"), num_workers=1).batches(Position())
    until = time.perf_counter() + options.seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - started)
        time.sleep(step_seconds)
    batches.close()
    share = np.sum(waits[1:]) / (np.sum(waits[1:]) + step_seconds * len(waits[1:]))
    print(
        f"consumer of {options.rows_per_second:,.0f} rows/s, one worker: "
        f"waits {share:.2%} of the time ({len(waits)} batches)"
    )


if __name__ == "__main__":
    main()
