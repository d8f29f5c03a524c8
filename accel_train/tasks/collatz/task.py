"""The Collatz task: predict the next parity of a trajectory, and how long it is, from its beginning."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from accel_train.arguments import Count, Range
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError
from accel_train.task import Batch, BatchSource, DataTools, Event, Loss, Objective, Task, Watches
from accel_train.tasks.collatz.data import Rows
from accel_train.tasks.collatz.numbers import Numbers
from accel_train.tasks.collatz.trajectory import exact_trajectory

if TYPE_CHECKING:
    from torch import Tensor, nn

FITTED_ON = 4096
"""Training rows that the trivial models are fitted on."""


class CollatzTask(Task, Watches, DataTools):
    """Transformer on Collatz parity sequences, made as it goes.

    Args:
        d_model, num_layers, nhead, dim_feedforward, dropout: the encoder.
        max_len: tokens of a row; longer trajectories are cut, and T keeps counting.
        prefix: the stopping time is predicted from so many first tokens; rows that end within them do not count for it.
        objective: ``causal`` (honest), or ``denoising``: the guide's formulation, with bidirectional attention and
            pooling over the whole row. There both targets stand in the input: the next token can be copied and T
            counted, so its losses say nothing about Collatz.
        stop_weight, next_weight: weights of the two losses.
        hard_ratio: share of rows with numbers above 2^68, in every batch.
        normal_order: ``random`` numbers of all magnitudes among the rest, or ``sequential`` ones (as in the guide,
            in which the rows of a run grow longer as it goes).
        normal_range: first and last (exclusive) of those.
        hard_shares: near 2^68, the same rounded up to 3 mod 4, dense in ones.
        eval_rows: held-out rows of one evaluation.
        anomaly_sigma: alert on an error of T so many robust standard deviations from the median of its batch.
    """

    def __init__(
        self,
        d_model: Count = 128,
        num_layers: Count = 4,
        nhead: Count = 4,
        dim_feedforward: Count = 512,
        dropout: Annotated[float, Range(0, below=1)] = 0.1,
        max_len: int = 500,
        prefix: int = 64,
        objective: Literal["causal", "denoising"] = "causal",
        stop_weight: float = 1.0,
        next_weight: float = 1.0,
        hard_ratio: float = 0.5,
        normal_order: Literal["random", "sequential"] = "random",
        normal_range: tuple[int, int] = (10, 20_000_000_000),
        hard_shares: tuple[float, float, float] = (0.3, 0.3, 0.4),
        eval_rows: Count = 2048,
        anomaly_sigma: float = 8.0,
    ) -> None:
        if d_model % nhead or d_model % 2:
            raise UserError(f"task.init_args.d_model: {d_model} must be even and a multiple of nhead ({nhead})")
        if not 2 <= prefix < max_len:
            raise UserError(f"task.init_args.prefix: {prefix} must be at least 2 and below max_len ({max_len})")
        self.d_model, self.num_layers, self.nhead = d_model, num_layers, nhead
        self.dim_feedforward, self.dropout, self.max_len, self.prefix = dim_feedforward, dropout, max_len, prefix
        self.denoising = objective == "denoising"
        self.stop_weight, self.next_weight = stop_weight, next_weight
        self.eval_rows, self.anomaly_sigma = eval_rows, anomaly_sigma
        self.draw_args: dict[str, Any] = {
            "hard_ratio": hard_ratio, "normal_order": normal_order,
            "normal_range": tuple(normal_range), "hard_shares": tuple(hard_shares),
        }  # fmt: skip
        Numbers(0, **self.draw_args)  # raises now for what is wrong with them
        self._seed = 0
        self._train_rows: Rows | None = None
        self._held_rows: Rows | None = None
        self._found_rivals: dict[tuple[str, str], nn.Module] = {}

    # -- data and model ----------------------------------------------------------------------------------------------

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource:
        self._seed, self._found_rivals = seed, {}
        if split == "train":
            self._train_rows = self._rows(held_out=False)
            return IndexedSource(self._train_rows, batch_size, endless=True)
        first = self.eval_rows if split == "test" else 0  # other held-out rows than those that chose the best model
        self._held_rows = self._rows(held_out=True, first=first)
        return IndexedSource(self._held_rows, batch_size, shuffle=False)

    def _rows(self, held_out: bool, first: int = 0) -> Rows:
        numbers = Numbers(self._seed, held_out=held_out, **self.draw_args)
        return Rows(numbers, self.max_len, self.eval_rows, first)

    def build_model(self, train: BatchSource | None) -> nn.Module:
        from accel_train.tasks.collatz.model import CollatzTransformer

        return CollatzTransformer(
            self.d_model, self.num_layers, self.nhead, self.dim_feedforward, self.dropout, self.max_len,
            self.prefix, self.denoising,
        )  # fmt: skip

    def split(self, batch: Batch, limit: int) -> list[Batch]:
        """Rows of like length together, cut to the longest of them: over half of a short row would be padding."""
        import torch

        n = len(batch["steps"])
        if n > limit:
            order = batch["host_steps"].argsort(kind="stable")
            there = torch.from_numpy(order).to(batch["steps"].device, non_blocking=True)
            batch = {name: value[order if name == "host_steps" else there] for name, value in batch.items()}
        quantum = -(-self.max_len // 4)  # few different shapes, for torch.compile
        parts = []
        for i in range(0, n, limit):
            part = {name: value[i : i + limit] for name, value in batch.items()}
            longest = max(int(part["host_steps"].max()), self.prefix + 1)
            length = min(-(-longest // quantum) * quantum, self.max_len)
            parts.append({**part, "tokens": part["tokens"][:, :length]})
        return parts

    # -- losses ------------------------------------------------------------------------------------------------------

    def totals(self, models: dict[str, nn.Module], batch: Batch, objective: Objective) -> dict[str, Tensor]:
        """Rows whose stopping time counts, and tokens to be predicted, in the global batch: [normal, hard] each."""
        from accel_train.tasks.collatz.losses import by_mode

        steps = batch["steps"]
        tokens = (steps.clamp(max=self.max_len) - 1).clamp(min=0)
        return {"rows": by_mode(batch, self._counts(steps)), "tokens": by_mode(batch, tokens)}

    def _counts(self, steps: Tensor) -> Tensor:
        """Rows that go on beyond the prefix; a shorter one would show its T by where it ends."""
        return steps > (0 if self.denoising else self.prefix)

    def loss_step(
        self, models: dict[str, nn.Module], batch: Batch, totals: dict[str, Tensor], objective: Objective
    ) -> Loss:
        """Huber (delta 1) on log(1 + T), mean over rows, plus cross-entropy of the next parity, mean over tokens."""
        from torch.nn import functional

        from accel_train.tasks.collatz.losses import by_mode, cross_entropy

        predicted, logits = models["model"](batch["tokens"][:, :-1])
        huber = functional.huber_loss(predicted, batch["steps"].to(predicted.dtype).log1p(), reduction="none")
        sums = {
            "stop": (by_mode(batch, huber * self._counts(batch["steps"])), totals["rows"]),
            "next": (by_mode(batch, cross_entropy(logits, batch["tokens"])), totals["tokens"]),
        }
        terms = {name: share.sum() / total.sum().clamp(min=1) for name, (share, total) in sums.items()}
        for name, (share, total) in sums.items():
            terms[f"{name}/normal"], terms[f"{name}/hard"] = (share.detach() / total.clamp(min=1)).unbind()
        return Loss(self.stop_weight * terms["stop"] + self.next_weight * terms["next"], terms)

    # -- what trivial models reach -----------------------------------------------------------------------------------

    def baselines(self) -> dict[str, float]:
        """The metrics of models that have only counted, over the very rows of the evaluation, also by mode."""
        if self.denoising:  # both targets can be read off the input: there is no floor above zero
            return {"next:leaks, floor": 0.0, "stop:leaks, floor": 0.0}
        further = {("accuracy", "bigram"): ("next", "bigram"), ("mae", "count"): ("stop", "count")}
        judged = {key: self._judged(rival) for key, rival in self._rivals().items()}
        judged |= {key: judged[like] for key, like in further.items()}
        return {
            f"{metric}:{name}": value
            for (term, name), metrics in judged.items()
            for metric, value in metrics.items()
            if metric.partition("/")[0] == term
        }

    def _judged(self, model: nn.Module) -> dict[str, float]:
        """The metrics of a model over the split that was built last."""
        from accel_train.tasks.collatz.evaluation import statistics

        rows, sums = self._held_rows or self._rows(held_out=True), {}
        for first in range(0, len(rows), 1024):
            batch = _tensors(rows, np.arange(first, min(first + 1024, len(rows))))
            part = statistics(model.cpu(), batch, self._counts(batch["steps"]))
            sums = {name: sums[name] + value if sums else value for name, value in part.items()}
        return self.eval_metrics(sums)

    def _rivals(self) -> dict[tuple[str, str], nn.Module]:
        """By term and name: the next parity from the last token or the last 8, T from the number of odd tokens."""
        if not self._found_rivals and not self.denoising:
            from accel_train.tasks.collatz.trivial import Trivial

            batch = _tensors(self._rows(held_out=False), np.arange(FITTED_ON))
            last, last_8 = (Trivial(batch["tokens"], batch["steps"], order, self.prefix) for order in (1, 8))
            self._found_rivals = {("next", "bigram"): last, ("next", "last8"): last_8, ("stop", "count"): last}
        return self._found_rivals

    # -- evaluation --------------------------------------------------------------------------------------------------

    def eval_step(self, models: dict[str, nn.Module], batch: Batch) -> dict[str, Tensor]:
        from accel_train.tasks.collatz.evaluation import statistics

        return statistics(models["model"], batch, self._counts(batch["steps"]), self._rivals())

    def eval_metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        from accel_train.tasks.collatz.evaluation import metrics

        return metrics(sums, self.stop_weight, self.next_weight)

    def summary(self, metrics: dict[str, float]) -> str:
        from accel_train.tasks.collatz.evaluation import summary

        return summary(metrics, self._rivals()) if self._rivals() else ""

    def figures(self, metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
        from accel_train.tasks.collatz.figures import figures

        return figures(metrics, sums, self.baselines())

    def monitor(self, models: dict[str, nn.Module], batch: Batch) -> Iterable[Event]:
        """Orbits that closed without reaching 1, and rows whose T the model finds far less likely than the others'."""
        events = self._train_rows.take_found() if self._train_rows else []
        predicted, _ = models["model"](batch["tokens"][:, :-1])
        error = (predicted.float() - batch["steps"].float().log1p())[self._counts(batch["steps"])].cpu().numpy()
        rows = self._counts(batch["steps"]).nonzero().flatten().cpu().numpy()
        if len(error) < 16:
            return events
        centre = np.median(error)
        sigma = 1.4826 * np.median(np.abs(error - centre)) + 1e-12
        for at in np.flatnonzero(np.abs(error - centre) > self.anomaly_sigma * sigma):
            row = int(rows[at])
            n = (int(batch["high"][row]) % 2**64 << 64) + int(batch["low"][row]) % 2**64
            exact = exact_trajectory(n)[1]  # never alert on a label that was not computed twice
            label = int(batch["steps"][row])
            title = (
                "stopping time far from prediction" if exact == label else "WRONG LABEL: generator and exact T differ"
            )
            found = math.expm1(math.log1p(label) + float(error[at]))
            fields = {
                "n": str(n),
                "T": exact,
                "predicted": round(found, 1),
                "sigma": round(float((error[at] - centre) / sigma), 1),
            }
            events.append(Event("anomaly", title, fields if exact == label else {**fields, "label": label}))
        return events

    def preview(self, batch: Batch, rows: int = 8) -> str:
        """The first rows as a person would write them, for ``accel-train inspect``."""
        from accel_train.tasks.collatz.numbers import MODES, to_int

        limbs = (batch[name][:rows].numpy().view(np.uint64) for name in ("high", "low"))
        lines = [f"  {'n':>36}  {'mode':<7} {'T':>5}  first tokens"]
        for n, mode, steps, tokens in zip(to_int(*limbs), batch["mode"], batch["steps"], batch["tokens"], strict=False):
            shown = "".join(map(str, tokens[: min(40, int(steps))].tolist()))
            lines.append(f"  {n:>36}  {MODES[int(mode)]:<7} {int(steps):>5}  {shown}")
        return "\n".join(lines)

    # -- files -------------------------------------------------------------------------------------------------------

    @staticmethod
    def synth(out: Path, seed: int = 0, size: int | None = None) -> str:
        """``size`` (1000) rows of the training stream with their exact T, as Parquet; numbers as decimal strings."""
        from accel_train.tasks.collatz.synth import synth

        return synth(out, seed, size)


def _tensors(rows: Rows, indices: np.ndarray) -> dict[str, Tensor]:
    import torch

    return {name: torch.from_numpy(value) for name, value in rows.read(indices).items()}
