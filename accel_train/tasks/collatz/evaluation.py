"""Held-out metrics of the Collatz task from sums alone, so that they do not depend on how the rows were cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from accel_train import intervals
from accel_train.sums import Confusion, Correlation, Histogram
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


Rivals = Mapping[tuple[str, str], "nn.Module"]
"""Trivial models that answer as the transformer does, by the term that they are to be judged by and their name."""


def statistics(model: nn.Module, batch: Batch, counts: Tensor, rivals: Rivals | None = None) -> dict[str, Tensor]:
    """Sums over the rows of a batch. ``errors`` [modes, bins + 1]: ``Histogram`` of |T error| in whole steps.

    Args:
        counts: bool [B], rows whose stopping time is predicted.
        rivals: ``gain/TERM/NAME`` [modes, 6] are ``Correlation.sums`` of how much less a row costs this model than that
            one, and of its tokens (1 for a stopping time).
    """
    tokens, steps = batch["tokens"], batch["steps"]
    predicted, logits = model(tokens[:, :-1])
    target = tokens[:, 1:].long()
    valid = target != PAD

    modes = (batch["mode"].long(), len(MODES))
    cost = {"next": cross_entropy(logits.float(), tokens).double(), "stop": _huber(predicted, steps) * counts}
    weight = {"next": valid.sum(1), "stop": counts.long()}
    gains = {}
    for (term, name), rival in (rivals or {}).items():
        its_predicted, its_logits = rival.to(tokens.device)(tokens[:, :-1])
        its = cross_entropy(its_logits, tokens) if term == "next" else _huber(its_predicted, steps) * counts
        gains[f"gain/{term}/{name}"] = Correlation.sums(its - cost[term], weight[term], by=modes)

    predicted = predicted.double()[counts]
    true, mode = steps[counts].double(), batch["mode"][counts].long()
    error = (predicted.clamp(max=20.0).expm1() - true).abs()
    size = _bits(batch["high"][counts], batch["low"][counts])
    magnitude = torch.bucketize(size, torch.tensor(BITS, device=size.device))
    grid = (
        ((torch.stack([true.log1p(), predicted]) - GRID_LOW) / (GRID_HIGH - GRID_LOW) * GRID).clamp(0, GRID - 1).long()
    )
    return {
        "tokens": _by_mode(weight["next"], modes),
        "cross_entropy": _by_mode(cost["next"], modes),
        "confusion": Confusion.sums(logits[..., :2].argmax(-1)[valid].bool(), target[valid].bool()),
        "rows": _by_mode(weight["stop"], modes),
        "short_rows": (~counts).sum(),
        "huber": _by_mode(cost["stop"], modes),
        "bias": (predicted - true.log1p()).sum(),
        "errors": Histogram.sums(error.round(), ERRORS, by=(mode, len(MODES))),
        "error_by_mode": torch.zeros(len(MODES), device=true.device).double().index_add(0, mode, error),
        "magnitude_rows": torch.bincount(magnitude, minlength=len(MAGNITUDES)),
        "magnitude_error": torch.zeros(len(MAGNITUDES), device=true.device).double().index_add(0, magnitude, error),
        "grid": torch.bincount(grid[0] * GRID + grid[1], minlength=GRID * GRID).reshape(GRID, GRID),
        **gains,
    }


def _huber(predicted: Tensor, steps: Tensor) -> Tensor:
    """float64 [B], of log(1 + T)."""
    return functional.huber_loss(predicted.double(), steps.double().log1p(), reduction="none")


def _by_mode(value: Tensor, modes: tuple[Tensor, int]) -> Tensor:
    """float64 [modes], sums of what rows have."""
    mode, number = modes
    return torch.zeros(number, dtype=torch.float64, device=value.device).index_add(0, mode, value.double())


def _bits(high: Tensor, low: Tensor) -> Tensor:
    """About log2 n, from two 64-bit limbs kept as int64 bit patterns."""
    unsigned = torch.where(low < 0, low.double() + 2.0**64, low.double())
    return (high.double() * 2.0**64 + unsigned).clamp(min=1.0).log2()


def metrics(sums: dict[str, Tensor], stop_weight: float, next_weight: float) -> dict[str, float]:
    """``loss`` (weighted as in training), its terms, ``accuracy``; errors of T in steps: overall, by mode, by size."""
    parts = {"next": (sums["cross_entropy"], sums["tokens"]), "stop": (sums["huber"], sums["rows"])}
    next_loss, stop_loss = (float(cost.sum() / weight.sum().clamp(min=1)) for cost, weight in parts.values())
    rows = float(sums["rows"].sum())
    errors = Histogram(sums["errors"].sum(0), ERRORS)
    median, p99 = (errors.quantile(q) if rows else 0.0 for q in (0.5, 0.99))
    found = {
        "loss": stop_weight * stop_loss + next_weight * next_loss,
        "next": next_loss,
        "stop": stop_loss,
        "accuracy": Confusion(sums["confusion"]).accuracy,
        "mae": float(sums["error_by_mode"].sum()) / max(rows, 1.0),
        "median": median,
        "p99": p99,
        "bias": float(sums["bias"]) / max(rows, 1.0),
        "rows/counted": rows,
        "rows/short": float(sums["short_rows"]),
    }
    for term, (cost, weight) in parts.items():
        each = zip(MODES, cost.tolist(), weight.tolist(), strict=True)
        found |= {f"{term}/{mode}": c / w for mode, c, w in each if w}
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
    for name, gain in sums.items():
        if name.startswith("gain/"):
            found |= _gains(name, gain)
    return found


def _gains(name: str, sums: Tensor) -> dict[str, float]:
    """A gain per token or row and the ends of its 95 % interval over rows, overall and by mode."""
    found = {}
    for key, part in {name: sums.sum(0), **{f"{name}/{mode}": sums[i] for i, mode in enumerate(MODES)}}.items():
        if part[2]:
            low, high, _ = intervals.ratio(part)
            found |= {key: float(part[1] / part[2]), f"{key}/low": low, f"{key}/high": high}
    return found


def summary(metrics: Mapping[str, float], rivals: Rivals) -> str:
    """Both losses, overall and by mode, and what they gain on those of the rivals over the same rows."""
    lines = ["what the model gains on trivial ones (95 % over rows)"]
    for mode in ("", *(f"/{mode}" for mode in MODES)):
        for term in ("next", "stop"):
            if f"{term}{mode}" in metrics:
                gains = "".join(_against(metrics, f"gain/{of}/{name}{mode}", name) for of, name in rivals if of == term)
                lines.append(f"  {term + mode:<12} {metrics[term + mode]:.4f}{gains}")
    return "\n".join(lines)


def _against(metrics: Mapping[str, float], key: str, name: str) -> str:
    return f"   {name} {metrics[key]:+.4f} ({metrics[f'{key}/low']:+.4f} to {metrics[f'{key}/high']:+.4f})"
