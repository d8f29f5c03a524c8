"""The laws as a ready test for a task of one's own.

def test_my_task():
    accel_train.testing.assert_exact(MyTask(width=4), global_batch_size=8)
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Generator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from accel_train import contract
from accel_train.errors import UserError
from accel_train.run.checkpoint import CheckpointFolder
from accel_train.task import Task
from accel_train.train.trainer import Trainer
from accel_train.train.verifying import Interval, Recorded, Verdict, check, compared

TINY: dict[str, Any] = {
    "max_steps": 6, "save_steps": 2, "save_total_limit": None, "logging_steps": 1, "eval_steps": 3,
    "limit_eval_batches": 2, "global_batch_size": 8, "num_workers": 0, "report_to": [],
}  # fmt: skip
"""The runs, unless they are asked for otherwise."""
PATIENCE_S = 300.0
"""A process that takes longer than this hangs."""
CUT = "(drop-out and BatchNorm depend on how a batch is cut: leave them out here)"


def assert_exact(task: Task, *, ranks: int = 2, **settings: Any) -> None:
    """A run of this task is a function of (config, seed, data), shown by some tiny runs of six steps on the CPU:

    - trained again from every checkpoint, and from the seed, it is the same bit for bit: weights, optimiser, log;
    - so it is with reading threads, and after a ``kill -9``;
    - with micro-batches, and on several ranks, it is the same up to rounding (by SGD, since Adam makes much of a
      gradient that is zero but for rounding).

    Args:
        task: small, and without drop-out. Its class must be in a module that another process can import.
        ranks: how many processes the last run has.
        settings: of the runs (fields of ``TrainConfig``), such as ``global_batch_size``, which is 8 here.

    Raises:
        AssertionError: the first of these that does not hold, and what differs.
        UserError: something is wrong with the task or a setting, in one line.
    """
    runs = _Runs(contract.instance(task), settings)
    with tempfile.TemporaryDirectory(prefix="accel_train-exact-") as name, _alone_on_the_cpu():
        folder = Path(name)
        whole = runs.fit(folder / "whole")
        recorded = Recorded(whole, trust=True)
        for interval in recorded.intervals():
            _require("trained again, it is not the same", check(recorded, interval))
        steps = recorded.steps
        same = Interval(0, steps[-1])
        threads = runs.fit(folder / "threads", num_workers=2)
        _require("with reading threads it is not the same", compared(whole, threads, same))
        killed = runs.killed(folder / "killed")
        _require("after kill -9 it is not the same", compared(whole, killed, same))

        sgd: dict[str, Any] = {"optimizer": {"class_path": "SGD"}, "learning_rate": 1e-3}
        last, plain = Interval(steps[0], steps[-1]), runs.fit(folder / "plain", **sgd)
        third = max(1, runs.settings["global_batch_size"] // 3)
        cut = runs.fit(folder / "cut", **sgd, micro_batch_size=third)
        _require(f"in micro-batches it is not the same {CUT}", compared(plain, cut, last, "any"))
        spread = runs.on_ranks(folder / "ranks", ranks, **sgd)
        _require(f"on {ranks} ranks it is not the same {CUT}", compared(plain, spread, last, "any"))


def _require(otherwise: str, verdict: Verdict) -> None:
    if verdict.found:
        raise AssertionError(f"{otherwise}: {verdict}")


class _Runs:
    """Runs of one task, each with a task of its own that is made alike."""

    def __init__(self, task: Task, settings: dict[str, Any]) -> None:
        self.kind, self.arguments, self.settings = type(task), dict(task.init_args), TINY | settings
        try:
            pickle.dumps(self.kind)
        except (pickle.PicklingError, AttributeError):
            raise UserError(f"assert_exact: {self.kind.__name__} is defined where no other process can import it; "
                            "put it at the top of a module") from None  # fmt: skip

    def fit(self, folder: Path, **further: Any) -> Path:
        with contextlib.redirect_stdout(io.StringIO()):
            Trainer(self.kind(**self.arguments), output_dir=str(folder), **self.settings | further).fit()
        return folder

    def killed(self, folder: Path) -> Path:
        """At its first checkpoint, by SIGKILL; then to the end."""
        (child,) = self._start(folder, 1, {})
        checkpoints = CheckpointFolder(folder / "checkpoints")
        while child.is_alive() and not checkpoints.steps():
            time.sleep(0.001)
        if child.is_alive():
            child.kill()
        self._end([child], folder, (0, -9))
        return self.fit(folder)

    def on_ranks(self, folder: Path, ranks: int, **further: Any) -> Path:
        self._end(self._start(folder, ranks, further), folder, (0,))
        return folder

    def _start(self, folder: Path, ranks: int, further: dict[str, Any]) -> list[ForkServerProcess]:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        settings = self.settings | further | {"output_dir": str(folder)}
        children = [
            context.Process(target=_child, args=(self.kind, self.arguments, settings, rank, ranks))
            for rank in range(ranks)
        ]
        for child in children:
            child.start()
        return children

    @staticmethod
    def _end(children: list[ForkServerProcess], folder: Path, codes: tuple[int, ...]) -> None:
        for child in children:
            child.join(PATIENCE_S)
        hanging = [child for child in children if child.is_alive()]
        for child in hanging:
            child.kill()
        if hanging or any(child.exitcode not in codes for child in children):
            said = [path.read_text() for path in sorted(folder.parent.glob(f"{folder.name}.error-*"))]
            raise AssertionError("\n".join([f"{folder.name}: a process hangs or has failed", *said]))


def _child(kind: type[Task], arguments: dict[str, Any], settings: dict[str, Any], rank: int, ranks: int) -> None:
    """One rank. What it says goes nowhere, but for a traceback beside its run folder."""
    code, folder = 1, Path(settings["output_dir"])
    try:
        with _alone_on_the_cpu(), contextlib.redirect_stdout(io.StringIO()):
            if ranks > 1:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                                  MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # fmt: skip
                meeting = f"file://{folder.absolute()}.meeting"
                dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
            Trainer(kind(**arguments), **settings).fit()
            code = 0
    except BaseException:
        folder.with_name(f"{folder.name}.error-{rank}").write_text(traceback.format_exc())
    finally:
        os._exit(code)  # gloo's threads may abort a process that shuts down as usual


@contextlib.contextmanager
def _alone_on_the_cpu() -> Generator[None]:
    """One process, one thread, no GPU, whatever the caller has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    launched = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        with mock.patch.dict(os.environ, launched | {"ACCELERATE_USE_CPU": "true"}, clear=True):
            yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(threads)
