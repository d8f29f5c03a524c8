"""How many long steps are exact: sums over held-out rows, metrics, the summary and the figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train import intervals
from accel_train.run.figures import new_figure
from accel_train.task import Batch

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 6
"""Loop lengths from 1 on that are told apart; the last one stands for all that are longer, too."""
FEW = 20
"""Rows of a class below which its share says nothing."""


def statistics(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Sums over the rows of a batch.

    Args:
        logits: [B, width, base].
    """
    from torch.nn import functional

    target = batch["result"].long()
    cross_entropy = functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="sum")
    return {"cross_entropy": cross_entropy.double(), **counts(logits.argmax(-1), batch)}


def counts(guess: Tensor, batch: Batch) -> dict[str, Tensor]:
    """``digits`` [width]: rows in which that digit is right. By lengths of the loops, ``rows`` [k, h], and ``exact``
    [k, h]: rows in which all of them are.

    Args:
        guess: [B, width], digits of the result.
    """
    import torch

    right = guess == batch["result"]
    k, h = (batch[name].long().clamp(1, CLASSES) - 1 for name in ("ups", "halvings"))
    exact = torch.zeros(CLASSES * CLASSES, dtype=torch.float64, device=right.device)
    rows, cell = torch.zeros_like(exact), k * CLASSES + h
    exact.index_add_(0, cell, right.all(1).double())
    rows.index_add_(0, cell, torch.ones_like(cell, dtype=torch.float64))
    square = (CLASSES, CLASSES)
    return {"digits": right.sum(0), "rows": rows.view(square), "exact": exact.view(square)}


def shares(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """``exact``, the share of rows in which the whole result is right, also by class, ``exact/k1_h2``, up to k + h of
    ``CLASSES``; ``digit``, that of digits."""
    rows = float(sums["rows"].sum())
    found = {"exact": float(sums["exact"].sum()) / rows, "digit": float(sums["digits"].double().mean()) / rows}
    for k in range(1, CLASSES):
        for h in range(1, CLASSES - k + 1):
            if n := float(sums["rows"][k - 1, h - 1]):
                found[f"exact/k{k}_h{h}"] = float(sums["exact"][k - 1, h - 1]) / n
    return found


def metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """``loss`` (nats per digit), ``shares``, and the exact 95 % interval of ``exact`` over rows."""
    rows, right = int(sums["rows"].sum()), int(sums["exact"].sum())
    loss = float(sums["cross_entropy"]) / (rows * len(sums["digits"]))
    low, high = intervals.exact(right, rows)
    return {"loss": loss, **shares(sums), "exact/low": low, "exact/high": high, "rows/counted": float(rows)}


def summary(metrics: Mapping[str, float], baselines: Mapping[str, float]) -> str:
    """What was learned, in two lines."""
    beside = ", ".join(f"{name} {baselines[f'exact:{name}']:.1%}" for name in ("table", "commonest"))
    low, high = metrics["exact/low"], metrics["exact/high"]
    learned = [name.removeprefix("exact/") for name, share in metrics.items() if "/k" in name and share >= 0.9]
    return (
        f"long steps: {metrics['exact']:.1%} exact ({low:.1%} to {high:.1%}) of {metrics['rows/counted']:,.0f} held-out"
        f" numbers; {beside}\nclasses with nine in ten exact: {', '.join(learned) or 'none yet'}"
    )


def figures(metrics: Mapping[str, float], sums: Mapping[str, Tensor], trivial: Mapping[str, Any]) -> dict[str, Any]:
    """The share of exact results by the lengths of the loops, and of right digits by position, beside trivial ones.

    Args:
        trivial: ``counts`` of each trivial model over the same rows, by name.
    """
    figure = new_figure(11, 4.8)
    by_class, by_digit = figure.subplots(1, 2)

    rows = sums["rows"].cpu().numpy()
    share, of_table = (_share(one["exact"].cpu().numpy(), rows) for one in (sums, trivial["table"]))
    image = by_class.imshow(share, vmin=0, vmax=1, cmap="viridis", origin="lower")
    for k, h in np.ndindex(*rows.shape):
        text, pale = f"{share[k, h]:.2f}\n({of_table[k, h]:.2f})" if rows[k, h] >= FEW else "", share[k, h] < 0.5
        by_class.text(h, k, text, ha="center", va="center", color="white" if pale else "black", fontsize=8)
    ticks = [*map(str, range(1, CLASSES)), f"{CLASSES}+"]
    by_class.set(xticks=range(CLASSES), xticklabels=ticks, yticks=range(CLASSES), yticklabels=ticks)
    by_class.set(
        xlabel="halvings h", ylabel="odd steps k", title=f"exact (table) of {int(rows.sum()):,} held-out numbers"
    )
    figure.colorbar(image, ax=by_class, label="share of rows")

    total, places = rows.sum(), np.arange(len(sums["digits"]))
    for name, one in {"model": sums, **trivial}.items():
        label = f"{name}: {float(one['exact'].sum()) / total:.1%} exact"
        by_digit.plot(places, one["digits"].cpu().numpy() / total, marker="o", label=label)
    by_digit.set(ylim=(0, 1.02), xlabel="digit of the result, the lowest first", ylabel="share of rows")
    by_digit.set_title(f"right digits; {metrics['exact']:.1%} of the results are exact")
    by_digit.legend(frameon=False, loc=(0.05, 0.25))
    return {"evaluation": figure}


def _share(exact: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """NaN where there are few rows."""
    return np.divide(exact, rows, out=np.full(rows.shape, np.nan), where=rows >= FEW)
