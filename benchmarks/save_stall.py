"""How long the loop stands still for a checkpoint, beside a plain copy of what is in it.

    python benchmarks/save_stall.py [--mb 250] [--saves 5]

A model of ``--mb`` MB of weights with AdamW, so three times as much is saved, on the CPU in one thread. The trainer
saves every third step; timed are the whole of ``Loop._save``, and from its beginning to the rename. The plain copy is
``copy_`` of every tensor of weights and optimiser into memory that has been used before, once the save before is on the
disk; where the trainer has taken a copy, into the memory of that. The first save is left out, since it gets its
buffers, and the ratio is taken within a save. Memory: about eight times ``--mb``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import nn

from accel_train import Loss, Task, Trainer
from accel_train.data.source import IndexedSource
from accel_train.train.loop import Loop
from accel_train.train.saving import Saver

WIDTH = 1024


class Rows:
    def __len__(self) -> int:
        return 4096

    def read(self, indices):
        return {"x": torch.ones(len(indices))}


class Wide(Task):
    def __init__(self, mb: int) -> None:
        self.layers = max(1, mb * 10**6 // (4 * WIDTH * WIDTH))

    def build_data(self, split, batch_size, seed):
        return IndexedSource(Rows(), batch_size, seed) if split == "train" else None

    def build_model(self):
        return nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(self.layers))

    def loss_step(self, models, batch, totals, objective):
        """Every weight has a gradient, and no time goes into products of matrices."""
        weights = sum(layer.weight.sum() for layer in models["model"])
        return Loss(weights * batch["x"].sum() / totals["items"])


def plain_copy(loop: Loop) -> Callable[[], float]:
    """Seconds for a copy of weights and optimiser state, each time into the same memory."""
    tensors = [p.detach() for model in loop.session.models.values() for p in model.parameters()]
    for group in loop.session.stepper.each_group():
        tensors += [v for state in group.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    buffers = list(loop.saver._snapshots._buffers)
    copies = [_taken(buffers, tensor) for tensor in tensors]

    def copy() -> float:
        began = time.perf_counter()
        for to, tensor in zip(copies, tensors, strict=True):
            to.copy_(tensor)
        return time.perf_counter() - began

    copy()
    return copy


def _taken(buffers: list[torch.Tensor], tensor: torch.Tensor) -> torch.Tensor:
    """Memory for a copy of this tensor, which is then none of the ``buffers`` any more."""
    fits = (at for at, buffer in enumerate(buffers) if buffer.nbytes == tensor.nbytes)
    if (at := next(fits, None)) is None:
        return torch.zeros_like(tensor)
    return buffers.pop(at).view(tensor.dtype).view(tensor.shape)


def measure(mb: int, saves: int, beside: bool) -> list[tuple[float, float, float]]:
    """(seconds that the loop stood, seconds of a plain copy, seconds until it was on the disk) of every save."""
    stood: list[float] = []
    copied: list[float] = []
    written: list[float] = []
    copy: list[Callable[[], float]] = []
    real_save, real_settle = Loop._save, Saver.settle

    def save(self: Loop, *arguments, **named) -> None:
        self._settle()  # the machine is idle, and waiting for the save before is another matter
        if stood:  # the first one gets its buffers
            copy[:] = copy or [plain_copy(self)]
            copied.append(copy[0]())
        began = time.perf_counter()
        real_save(self, *arguments, **named)
        stood.append(time.perf_counter() - began)

    def settle(self: Saver) -> float | None:
        if (seconds := real_settle(self)) is not None:
            written.append(seconds)
        return seconds

    with (
        tempfile.TemporaryDirectory(dir=".") as folder,
        mock.patch.object(Loop, "_save", save),
        mock.patch.object(Saver, "settle", settle),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        Trainer(
            Wide(mb), output_dir=folder, max_steps=3 * (saves + 1) + 1, save_steps=3, save_total_limit=1,
            save_in_background=beside, global_batch_size=8, report_to=[], check_contract=False, memory_guard=False,
        ).fit()  # fmt: skip
    rows = list(zip(stood[1:], copied, written[1:], strict=True))
    return rows[:-1]  # without the one that the end waits for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=250)
    parser.add_argument("--saves", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for beside in (True, False):
        rows = measure(given.mb, given.saves, beside)
        stall, copied, disk = (statistics.median(column) for column in zip(*rows, strict=True))
        ratio = statistics.median(stall / copied for stall, copied, _ in rows)
        print(f"save_in_background={beside}: the loop stands for {stall:.3f} s, a plain copy takes {copied:.3f} s "
              f"({ratio:.2f} times), on the disk after {disk:.3f} s")  # fmt: skip


if __name__ == "__main__":
    main()
