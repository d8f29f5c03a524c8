"""The long Collatz step: from the digits of an odd number to those of the odd number at the end of the next descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from accel_train.arguments import Count, Range
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.task import Batch, BatchSource, DataTools, Loss, Objective, Task
from accel_train.tasks.collatz.step.arithmetic import LARGEST, value_of, width_of
from accel_train.tasks.collatz.step.data import Steps

if TYPE_CHECKING:
    from torch import Tensor, nn

FITTED_ON = 1 << 18
"""Training rows that the trivial models are fitted on."""


class LongStepTask(Task, DataTools):
    """Transformer that calculates the long Collatz step of odd numbers, made as it goes (Charton and Narayanan,
    arXiv 2511.10811). A result counts if all its digits are right.

    Args:
        base: of the digits that the model reads and writes. Powers of two show the lengths of the loops in the lowest.
        digits: of the numbers, which are below base^digits.
        d_model, num_layers, nhead, dim_feedforward, dropout: the encoder.
        eval_rows: held-out rows of one evaluation.
    """

    name = "collatz_step"

    def __init__(
        self,
        base: Annotated[int, Range(2, 64)] = 32,
        digits: Count = 6,
        d_model: Count = 256,
        num_layers: Count = 4,
        nhead: Count = 8,
        dim_feedforward: Count = 1024,
        dropout: Annotated[float, Range(0, below=1)] = 0.0,
        eval_rows: Count = 4096,
    ) -> None:
        if d_model % nhead:
            raise UserError(f"task.init_args.d_model: {d_model} must be a multiple of nhead ({nhead})")
        if not 2**16 <= base**digits <= LARGEST:
            raise UserError(f"task.init_args.digits: {base}^{digits} must lie between 2^16 and 2^40")
        self.base, self.last = base, base**digits & ~1  # even, as half of the numbers below it are odd
        self.width = width_of(base, self.last)
        self.sizes = (d_model, num_layers, nhead, dim_feedforward, dropout)
        self.eval_rows = eval_rows
        self._seed = 0
        self._held: Steps | None = None
        self._trivial_counts: dict[str, dict[str, Tensor]] = {}

    # -- data and model ----------------------------------------------------------------------------------------------

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource:
        self._seed, self._trivial_counts = seed, {}
        if split == "train":
            return IndexedSource(self._steps(held_out=False), batch_size, endless=True)
        first = self.eval_rows if split == "test" else 0  # other held-out rows than those that chose the best model
        self._held = self._steps(held_out=True, first=first)
        return IndexedSource(self._held, batch_size, shuffle=False)

    def _steps(self, held_out: bool, first: int = 0) -> Steps:
        return Steps(self._seed, self.last, self.base, self.width, held_out, self.eval_rows, first)

    def build_model(self, train: BatchSource | None) -> nn.Module:
        from accel_train.tasks.collatz.step.model import DigitTransformer

        return DigitTransformer(self.base, self.width, *self.sizes)

    # -- the loss ----------------------------------------------------------------------------------------------------

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        """Cross-entropy of the digits of the result, mean over digits; ``exact``, the share of rows with all right."""
        from torch.nn import functional

        logits, target = models["model"](batch["digits"]), batch["result"].long()
        total = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        exact = (logits.detach().argmax(-1) == target).all(1).sum()
        return Loss(total / (self.width * totals["items"]), {"exact": exact / totals["items"]})

    # -- evaluation --------------------------------------------------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        from accel_train.tasks.collatz.step.evaluation import statistics

        return statistics(models["model"](batch["digits"]), batch)

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        from accel_train.tasks.collatz.step.evaluation import metrics

        return metrics(sums)

    def baselines(self) -> dict[str, float]:
        """``exact`` and ``digit`` of the trivial models, fitted on training rows, over the rows of the evaluation."""
        from accel_train.tasks.collatz.step.evaluation import shares

        return {
            f"{metric}:{name}": value
            for name, counts in self._trivial().items()
            for metric, value in shares(counts).items()
        }

    def _trivial(self) -> dict[str, dict[str, Tensor]]:
        """Counts of each trivial model over the rows of the split that was built last."""
        if self._trivial_counts:
            return self._trivial_counts
        import torch

        from accel_train.tasks.collatz.step import trivial
        from accel_train.tasks.collatz.step.evaluation import counts

        train = self._steps(held_out=False).read(np.arange(FITTED_ON))
        held = (self._held or self._steps(held_out=True)).read(np.arange(self.eval_rows))
        batch = {name: torch.from_numpy(value) for name, value in held.items()}
        guesses = {"table": trivial.table(train, held, self.base), "commonest": trivial.commonest(train, held)}
        self._trivial_counts = {name: counts(torch.from_numpy(guess), batch) for name, guess in guesses.items()}
        return self._trivial_counts

    def summary(self, metrics: dict[str, float]) -> str:
        from accel_train.tasks.collatz.step.evaluation import summary

        return summary(metrics, self.baselines())

    def figures(self, metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
        from accel_train.tasks.collatz.step.evaluation import figures

        return figures(metrics, sums, self._trivial())

    def preview(self, batch: Batch, rows: int = 8) -> str:
        """The first rows as a person would write them, for ``accel-train inspect``."""
        lines = [f"  {'n':>14}  k  h  {'result':>14}  digits of both, base {self.base}, the lowest first"]
        columns = (batch[name][:rows] for name in ("n", "ups", "halvings", "digits", "result"))
        for n, k, h, digits, result in zip(*columns, strict=True):
            (value,) = value_of(result[None].numpy(), self.base)
            both = " -> ".join(" ".join(map(str, each.tolist())) for each in (digits, result))
            lines.append(f"  {int(n):>14} {int(k):>2} {int(h):>2}  {value:>14}  {both}")
        return "\n".join(lines)
