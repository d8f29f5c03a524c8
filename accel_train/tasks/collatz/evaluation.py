"""Held-out metrics of the Collatz task from sums alone, so that they do not depend on how the rows were cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from accel_train.sums import Confusion, Histogram
from accel_train.tasks.collatz.losses import cross_entropy
from accel_train.tasks.collatz.numbers import MODES
from accel_train.tasks.collatz.trajectory import PAD

if TYPE_CHECKING:
    from torch import Tensor, nn

    from accel_train.task import Batch

ERRORS = torch.arange(4097) - 0.5  # edges for absolute errors of T in whole steps; the last bin takes what is larger
BITS = (20, 35, 69, 95)
MAGNITUDES = ("below_2^20", "below_2^35", "near_2^68", "below_2^95", "above_2^95")
GRID = 60  # of the figure: log T true against log T predicted, from log 2^5 to log 2^12 steps
GRID_LOW, GRID_HIGH = np.log(32.0), np.log(4096.0)


def statistics(model: nn.Module, batch: Batch, counts: Tensor) -> dict[str, Tensor]:
    """Sums over the rows of a batch. ``errors`` [modes, bins + 1]: ``Histogram`` of |T error| in whole steps.

    Args:
        counts: bool [B], rows whose stopping time is predicted.
    """
    tokens, steps = batch["tokens"], batch["steps"]
    predicted, logits = model(tokens[:, :-1])
    target = tokens[:, 1:].long()
    valid = target != PAD

    predicted = predicted.double()[counts]
    true, mode = steps[counts].double(), batch["mode"][counts].long()
    error = (predicted.clamp(max=20.0).expm1() - true).abs()
    size = _bits(batch["high"][counts], batch["low"][counts])
    magnitude = torch.bucketize(size, torch.tensor(BITS, device=size.device))
    grid = (
        ((torch.stack([true.log1p(), predicted]) - GRID_LOW) / (GRID_HIGH - GRID_LOW) * GRID).clamp(0, GRID - 1).long()
    )
    return {
        "tokens": valid.sum(),
        "cross_entropy": cross_entropy(logits.float(), tokens).double().sum(),
        "confusion": Confusion.sums(logits[..., :2].argmax(-1)[valid].bool(), target[valid].bool()),
        "rows": counts.sum(),
        "short_rows": (~counts).sum(),
        "huber": functional.huber_loss(predicted, true.log1p(), reduction="sum"),
        "bias": (predicted - true.log1p()).sum(),
        "errors": Histogram.sums(error.round(), ERRORS, by=(mode, len(MODES))),
        "error_by_mode": torch.zeros(len(MODES), device=true.device).double().index_add(0, mode, error),
        "magnitude_rows": torch.bincount(magnitude, minlength=len(MAGNITUDES)),
        "magnitude_error": torch.zeros(len(MAGNITUDES), device=true.device).double().index_add(0, magnitude, error),
        "grid": torch.bincount(grid[0] * GRID + grid[1], minlength=GRID * GRID).reshape(GRID, GRID),
    }


def _bits(high: Tensor, low: Tensor) -> Tensor:
    """About log2 n, from two 64-bit limbs kept as int64 bit patterns."""
    unsigned = torch.where(low < 0, low.double() + 2.0**64, low.double())
    return (high.double() * 2.0**64 + unsigned).clamp(min=1.0).log2()


def metrics(sums: dict[str, Tensor], stop_weight: float, next_weight: float) -> dict[str, float]:
    """``loss`` (weighted as in training), its terms, ``accuracy``; errors of T in steps: overall, by mode, by size."""
    next_loss = float(sums["cross_entropy"] / sums["tokens"].clamp(min=1))
    stop_loss = float(sums["huber"] / sums["rows"].clamp(min=1))
    errors = Histogram(sums["errors"].sum(0), ERRORS)
    median, p99 = (errors.quantile(q) if sums["rows"] else 0.0 for q in (0.5, 0.99))
    found = {
        "loss": stop_weight * stop_loss + next_weight * next_loss,
        "next": next_loss,
        "stop": stop_loss,
        "accuracy": Confusion(sums["confusion"]).accuracy,
        "mae": float(sums["error_by_mode"].sum() / sums["rows"].clamp(min=1)),
        "median": median,
        "p99": p99,
        "bias": float(sums["bias"] / sums["rows"].clamp(min=1)),
        "rows/counted": float(sums["rows"]),
        "rows/short": float(sums["short_rows"]),
    }
    for i, mode in enumerate(MODES):
        n, errors = float(sums["errors"][i].sum()), Histogram(sums["errors"][i], ERRORS)
        if n:
            found[f"mae/{mode}"] = float(sums["error_by_mode"][i]) / n
            found[f"median/{mode}"] = errors.quantile(0.5)
            found[f"p99/{mode}"] = errors.quantile(0.99)
    for name, n, error in zip(
        MAGNITUDES, sums["magnitude_rows"].tolist(), sums["magnitude_error"].tolist(), strict=True
    ):
        if n:
            found[f"mae/{name}"] = error / n
    return found


def figures(metrics: dict[str, float], sums: dict[str, Tensor]) -> dict[str, Any]:
    """Predicted against true T, the error by mode, the error by size of n, and the confusion of the next parity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (prediction, distribution), (by_size, confused) = figure.subplots(2, 2)

    edges = np.exp(np.linspace(GRID_LOW, GRID_HIGH, GRID + 1))
    image = prediction.pcolormesh(edges, edges, np.log1p(sums["grid"].numpy().T), cmap="viridis")
    prediction.plot(edges[[0, -1]], edges[[0, -1]], color="white", lw=0.8)
    prediction.set(xscale="log", yscale="log", xlabel="true T (steps)", ylabel="predicted T (steps)")
    prediction.set_title("stopping time, held-out rows")
    figure.colorbar(image, ax=prediction, label="log(1 + rows)")

    for mode, histogram in zip(MODES, sums["errors"][:, :-1].numpy(), strict=True):
        if histogram.sum():
            share = np.cumsum(histogram) / histogram.sum()
            distribution.plot(np.arange(len(share)), share, label=f"{mode} ({int(histogram.sum())})")
    distribution.set(
        xscale="symlog", xlim=(0, len(ERRORS) - 1), ylim=(0, 1), xlabel="|error| of T (steps)", ylabel="share of rows"
    )
    distribution.set_title(f"MAE {metrics['mae']:.1f}, median {metrics['median']:.0f}, p99 {metrics['p99']:.0f} steps")
    if sums["errors"].any():
        distribution.legend(frameon=False)

    sizes = [name for name in MAGNITUDES if f"mae/{name}" in metrics]
    bars = by_size.bar(
        [name.replace("_", " ") for name in sizes], [metrics[f"mae/{name}"] for name in sizes], color="0.6"
    )
    by_size.bar_label(bars, fmt="%.0f")
    by_size.set(ylabel="MAE of T (steps)", title="by size of n")
    by_size.tick_params(axis="x", labelrotation=20)

    table = sums["confusion"].numpy()
    table = table / np.maximum(table.sum(1, keepdims=True), 1)
    confused.imshow(table, vmin=0, vmax=1, cmap="Greys")
    for i in range(2):
        for j in range(2):
            confused.text(
                j, i, f"{table[i, j]:.2f}", ha="center", va="center", color="white" if table[i, j] > 0.5 else "black"
            )
    confused.set(xticks=[0, 1], xticklabels=["even", "odd"], yticks=[0, 1], yticklabels=["even", "odd"])
    confused.set(
        xlabel="predicted next parity", ylabel="true", title=f"next parity: {metrics['next']:.4f} nats (floor 0.4621)"
    )
    return {"evaluation": figure}
