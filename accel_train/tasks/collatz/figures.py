"""The figure of the Collatz task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.run.figures import new_figure
from accel_train.tasks.collatz.evaluation import ERRORS, GRID, GRID_HIGH, GRID_LOW, MAGNITUDES
from accel_train.tasks.collatz.numbers import MODES

if TYPE_CHECKING:
    from torch import Tensor


def figures(metrics: Mapping[str, float], sums: Mapping[str, Tensor], baselines: Mapping[str, float]) -> dict[str, Any]:
    """Predicted against true T, its error by mode and by size of n, the confusion of the next parity, and what both
    losses gain on trivial models."""
    figure = new_figure(15, 8.5)
    (prediction, distribution, of_stop), (by_size, confused, of_next) = figure.subplots(2, 3)

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
    beside = f" (count {baselines['mae:count']:.1f})" if "mae:count" in baselines else ""
    distribution.set_title(
        f"MAE {metrics['mae']:.1f}{beside}, median {metrics['median']:.0f}, p99 {metrics['p99']:.0f}"
    )
    if sums["errors"].any():
        distribution.legend(frameon=False)

    sizes = [name for name in MAGNITUDES if f"mae/{name}" in metrics]
    bars = by_size.bar(
        [name.replace("_", " ") for name in sizes], [metrics[f"mae/{name}"] for name in sizes], color="0.6"
    )
    by_size.bar_label(bars, fmt="%.0f", label_type="center")
    counted = [baselines.get(f"mae/{name}:count", np.nan) for name in sizes]
    by_size.plot(range(len(sizes)), counted, ls="", marker="_", ms=30, mew=2, color="C3", label="count")
    by_size.legend(frameon=False)
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
    confused.set(xlabel="predicted next parity", ylabel="true", title="next parity, shares of what is true")
    _gains(of_stop, metrics, baselines, "stop", "T: Huber loss")
    _gains(of_next, metrics, baselines, "next", "next parity: nats")
    return {"evaluation": figure}


def _gains(axes: Any, metrics: Mapping[str, float], baselines: Mapping[str, float], term: str, title: str) -> None:
    """What the model gains on each trivial one, overall and by mode."""
    rivals = [key.partition(":")[2] for key in baselines if key.startswith(f"{term}:")]
    for i, name in enumerate(rivals):
        for row, mode in enumerate(("", *MODES)):
            key = f"gain/{term}/{name}" + f"/{mode}" * bool(mode)
            if key in metrics:
                value, low, high = (metrics[key + end] for end in ("", "/low", "/high"))
                axes.errorbar(
                    value, row + 0.2 * i, xerr=[[value - low], [high - value]], fmt="o", color=f"C{i}",
                    label=f"{name} {baselines[f'{term}:{name}']:.4f}" if not mode else None,
                )  # fmt: skip
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set(
        yticks=range(len(MODES) + 1), yticklabels=["all", *MODES], xlabel="gain on a trivial model (95 % over rows)"
    )
    axes.locator_params(axis="x", nbins=5)  # small gains have long numbers
    axes.invert_yaxis()
    axes.set_title(f"{title} {metrics[term]:.4f}")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
