"""Metrics over a held-out split from exact sums: the same on any number of ranks, and training does not notice."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from accel_train import contract
from accel_train.data.loader import Loader, Share
from accel_train.data.part_loader import PartLoader
from accel_train.data.source import IndexedSource
from accel_train.errors import EvaluationError, NonFiniteError, UserError, brief
from accel_train.plan import Position
from accel_train.system.waiting import StoppedError
from accel_train.system.watchdog import EVALUATING
from accel_train.system.whereabouts import here
from accel_train.task import Batch, BatchSource, Gathers, Predicts, Task, hook
from accel_train.train.gathering import Gathering
from accel_train.train.parts import Parts
from accel_train.train.world import Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluator:
    """A task's models over held-out data: of a run, or saved ones.

    Args:
        micro_batch_size: at most so many items at once; None: a whole share.
        folder: where rows are gathered, for a while, if the task wants that.
        parts: shares are lists of these, and sums are added over them.
    """

    task: Task
    models: dict[str, nn.Module]
    accelerator: Accelerator
    ranks: Ranks
    micro_batch_size: int | None
    folder: Path
    parts: Parts | None = None

    def evaluate(
        self, loader: Loader | PartLoader, batches: int | None = None, busy: Callable[[str], None] = lambda what: None
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """(metrics, summed statistics as float64 CPU tensors) of one pass over the source; the same on all ranks.

        Args:
            batches: only so many of the first ones.
            busy: hears how far it is, such as "evaluating 3/16".

        Raises:
            UserError: there is nothing to evaluate, or the data cannot be read; on every rank, whichever it met.
            EvaluationError: the task failed on one of the ranks; on all of them.
            StoppedError: on every rank, if data did not come to one of them and the run is to stop.
        """
        contract.require(self.task, "eval_step", "eval_metrics")
        steps = loader.source.steps(0)
        if steps is None and type(loader.source).iterate is BatchSource.iterate:
            raise UserError(f"{self.task.task_name()}: an evaluation split must have an end")
        nothing = f"{self.task.task_name()}: the held-out data are empty, there is nothing to evaluate"
        if steps == 0:
            raise UserError(nothing)
        known = [n for n in (steps, batches) if n is not None]
        of = f"/{min(known):,}" if known else ""
        with Gathering(self.folder, self.ranks) as gathering:
            sums = self._sums(loader, batches, gathering, lambda number: busy(f"evaluating {number:,}{of}"))
            if not sums:
                raise UserError(nothing)
            metrics: dict[str, float] = {}
            with _failing_together(self.ranks):
                metrics = contract.metrics_of(self.task, self.task.eval_metrics(sums))
            if self._gathers:
                metrics |= self._of_rows(gathering, list(metrics))
        return metrics, sums

    def _sums(
        self, loader: Loader | PartLoader, batches: int | None, gathering: Gathering, busy: Callable[[int], None]
    ) -> dict[str, Tensor]:
        """Over all batches and ranks, on the CPU. ``busy`` hears of each batch."""
        sums: dict[int, dict[str, Tensor]] = {}  # by part
        shares = contextlib.closing(loader.batches(Position(), last_epoch=1))  # pyright: ignore[reportArgumentType]
        with _failing_together(self.ranks), quietly(self.models), torch.no_grad(), shares as shares:
            for number, (_, _, share) in enumerate(itertools.islice(shares, batches), 1):
                busy(number)
                here.at(EVALUATING)
                for part, batch in self._parts_of(share):
                    found, rows = self._statistics(batch)
                    summed = sums.setdefault(part, {})
                    for name, value in found.items():
                        value = value.detach().to(torch.float64)
                        summed[name] = summed[name] + value if name in summed else value
                    if rows:
                        gathering.append(number, rows)
            gathering.close()
        if self.parts is not None:
            return self.parts.sum(sums, torch.device("cpu"))
        mine = sums.get(0, {})
        shapes = next((s for s in self.ranks.gather({k: tuple(v.shape) for k, v in mine.items()}) if s), {})
        return {
            name: self.ranks.host_sum(mine.get(name, torch.zeros(shape)).double().cpu())
            for name, shape in shapes.items()
        }

    def _parts_of(self, share: Share) -> list[tuple[int, Batch]]:
        """Those of this rank that have items; a share that is whole counts as one."""
        if not isinstance(share, list):
            return [] if share is None else [(0, share)]
        assert self.parts is not None
        return [(part, batch) for part, batch in zip(self.parts.own, share, strict=True) if batch is not None]

    def _of_rows(self, gathering: Gathering, taken: list[str]) -> dict[str, float]:
        """Metrics of gathered rows; the same on all ranks, which wait for rank 0."""
        metrics: dict[str, float] = {}
        with _failing_together(self.ranks), quietly(self.models):
            arrays = gathering.arrays()
            if self.ranks.is_main:
                found = hook(self.task, Gathers, "eval_gathered")(arrays)
                metrics = contract.metrics_of(self.task, found, "eval_gathered", taken)
        return self.ranks.from_main(metrics)

    @property
    def _gathers(self) -> bool:
        return hasattr(self.task, "eval_gather")

    def predict(self, loader: Loader, folder: Path) -> None:
        """One memory-mapped ``NAME.npy`` per output, float32, a row per item of the loader's source in order. Each rank
        writes its own rows; a file has its name once it is whole."""
        source = loader.source
        assert isinstance(source, IndexedSource) and not source.shuffle
        files: dict[str, np.ndarray] = {}
        shares = ((step, share) for _, step, share in loader.batches(Position(), last_epoch=1) if share is not None)
        with quietly(self.models), torch.no_grad():
            first = next(shares, None)
            outputs = self._outputs(first[1]) if first else {}
            shapes = next(s for s in self.ranks.gather({name: v.shape[1:] for name, v in outputs.items()}) if s)
            for name, shape in shapes.items():
                path, shape = folder / f".{name}.npy", (len(source.data), *shape)
                if self.ranks.is_main:
                    folder.mkdir(parents=True, exist_ok=True)
                    np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
                self.ranks.all_agree(True)  # it exists before others open it
                files[name] = np.lib.format.open_memmap(path, "r+")
            while first is not None:
                rows = source.share(0, first[0], self.ranks.rank, self.ranks.world_size)
                for name, output in outputs.items():
                    files[name][rows] = output
                first = next(shares, None)
                outputs = self._outputs(first[1]) if first else {}
        for file in files.values():
            file.flush()  # pyright: ignore[reportAttributeAccessIssue]
        self.ranks.all_agree(True)
        if self.ranks.is_main:
            for name in files:
                (folder / f".{name}.npy").replace(folder / f"{name}.npy")

    def _outputs(self, share: Batch) -> dict[str, np.ndarray]:
        def run(micro_batches: list[Batch]) -> dict[str, np.ndarray]:
            parts: dict[str, list[np.ndarray]] = {}
            for micro_batch in micro_batches:
                with self.accelerator.autocast():
                    outputs = hook(self.task, Predicts, "predict_step")(self.models, micro_batch)
                for name, output in outputs.items():
                    parts.setdefault(name, []).append(output.float().cpu().numpy())
            return {name: np.concatenate(arrays) for name, arrays in parts.items()}

        return self._within_memory(share, run)

    def _statistics(self, share: Batch) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Sums, and the rows that are gathered."""

        def run(micro_batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
            sums: dict[str, Tensor] = {}
            gathered: dict[str, list[np.ndarray]] = {}
            for micro_batch in micro_batches:
                with self.accelerator.autocast():
                    rows = self._rows(micro_batch)
                    parts = self.task.eval_step(self.models, micro_batch | rows)
                    parts = contract.sums_of(self.task, "eval_step", parts, self.accelerator.device)
                for name, part in parts.items():
                    sums[name] = sums[name] + part if name in sums else part
                for name, row in rows.items():
                    row = row.float() if row.dtype in (torch.bfloat16, torch.float16) else row
                    gathered.setdefault(name, []).append(row.cpu().numpy())
            return sums, {name: np.concatenate(arrays) for name, arrays in gathered.items()}

        return self._within_memory(share, run)

    def _rows(self, batch: Batch) -> dict[str, Tensor]:
        if not self._gathers:
            return {}
        rows = hook(self.task, Gathers, "eval_gather")(self.models, batch)
        return contract.rows_of(self.task, rows, self.task.size(batch))

    def _within_memory(self, share: Batch, run: Callable[[list[Batch]], T]) -> T:
        """One share, cut to fit in memory. No rank waits for another here, so running out of it is a local matter."""
        limit = self.micro_batch_size or self.task.size(share)
        while True:
            try:
                return run(self.task.split(share, limit))
            except torch.OutOfMemoryError:
                if self.parts is not None:
                    raise UserError(self.parts.out_of_memory(limit)) from None
                if limit <= 1:
                    raise
                limit //= 2
                torch.cuda.empty_cache()


@contextlib.contextmanager
def _failing_together(ranks: Ranks) -> Generator[None]:
    """What one rank raises inside all raise, as the kind of error that it is or as an EvaluationError."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    known = (UserError, NonFiniteError, StoppedError)
    kind = next((k for k in known if isinstance(problem, k)), EvaluationError)
    mine = None if problem is None else (kind, str(problem) if kind in known else brief(problem))
    found = next((each for each in ranks.gather(mine) if each), None)
    if found is not None:
        raise found[0](found[1]) from problem


@contextlib.contextmanager
def quietly(models: dict[str, nn.Module]) -> Generator[None]:
    """Eval mode inside; afterwards modes and every random generator are as they were."""
    modes = [(module, module.training) for model in models.values() for module in model.modules()]
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        for model in models.values():
            model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            random.setstate(python)
            np.random.set_state(numpy_state)
