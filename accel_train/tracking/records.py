"""How all observers read a record: which of its keys are bookkeeping, and how its numbers look to a person."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_train.tracking.observer import Record

BOOKKEEPING = frozenset(
    "kind step epoch phase wall_time lr grad_norm items_per_s step_s wait_s eta_s skipped items".split()
)
"""Keys the loop writes into a record. Every other number is a term of the task; so is ``time``, which tasks do use."""

MACHINE = ("cuda/", "gpu/", "host/", "slowest/")
"""How the names begin of what a record says of machines."""


def is_bookkeeping(key: str) -> bool:
    return key in BOOKKEEPING or key.startswith(("lr/", "grad_norm/", "last/", *MACHINE))


def is_number(value: object) -> bool:
    """Python and numpy numbers alike (``np.float32`` is no ``float``), but no booleans."""
    return isinstance(value, Real) and not isinstance(value, bool)


def terms(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the task: the loss and its terms in a train record, the metrics in an evaluation."""
    return {
        key: int(value) if isinstance(value, Integral) else float(value)
        for key, value in record.items()
        if is_number(value) and not is_bookkeeping(key)
    }


def wait_share(record: Mapping[str, Any]) -> float | None:
    """The part of a step spent waiting for data, between 0 and 1; None where it was not measured."""
    step_s, wait_s = record.get("step_s"), record.get("wait_s")
    if step_s is None or wait_s is None or not step_s > 0:
        return None
    return min(float(wait_s) / float(step_s), 1.0)


def tag_of(prefix: str, key: str) -> str:
    """``eval/mae``, and of a detail ``eval_mae/near``: trackers put what is before the slash in one group, and the
    details of a metric deserve one of their own."""
    first, slash, rest = key.partition("/")
    return f"{prefix}_{first}/{rest}" if slash else f"{prefix}/{key}"


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """A record as tracker tags: ``tag_of`` each term or metric, and ``train/grad_norm``, ``lr``, ``perf/...``, and
    what is said of machines."""
    prefix = "eval" if record.get("kind") == "eval" else "train"
    tags = {tag_of(prefix, key): float(value) for key, value in terms(record).items()}
    for key, value in record.items():
        if not is_number(value):
            continue
        if key.split("/")[0] == "grad_norm":
            tags[f"train/{key}"] = float(value)
        elif key.split("/")[0] == "lr" or key.startswith(MACHINE):
            tags[key] = float(value)
        elif key in ("items_per_s", "skipped"):
            tags[f"perf/{key}"] = float(value)
    share = wait_share(record)
    if share is not None:
        tags["perf/wait_share"] = share
    return tags


def plain(record: Mapping[str, Any]) -> Record:
    """The record as JSON can hold it: NaN and infinities become null, their keys are listed under ``non_finite``."""
    clean: Record = {}
    non_finite = []
    for key, value in record.items():
        if getattr(value, "shape", None) == ():  # a numpy or torch scalar
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            non_finite.append(key)
            value = None
        elif isinstance(value, Mapping):
            value = plain(value)
        elif isinstance(value, list | tuple):
            value = [plain({"": item})[""] for item in value]
        elif value is not None and not isinstance(value, str | int | float):
            value = str(value)
        clean[key] = value
    if non_finite:
        clean["non_finite"] = non_finite
    return clean


# -- for people ----------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """``12,000``, ``0.4712``, ``3.21e-05``: short, and of constant length where it can be."""
    if isinstance(value, Integral):
        return f"{int(value):,}"
    size = abs(value)
    if not math.isfinite(size):
        return str(float(value))
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.1f}" if size >= 100 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """``42s``, ``12m05s``, ``3h12m``, ``2d04h``."""
    if not math.isfinite(seconds):
        return "?"
    total = max(round(seconds), 0)
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m{total % 60:02d}s" if minutes else f"{total}s"


def aligned(rows: list[list[str]]) -> list[str]:
    """A table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{each:{'>' if i else ''}{widths[i]}}" for i, each in enumerate(row)).rstrip() for row in rows]


def show_terms(record: Mapping[str, Any], baselines: Mapping[str, float] | None = None) -> list[tuple[str, str]]:
    """Names and texts of the terms, each with its baselines: ``("next", "0.4689 (floor 0.4621)")``.

    A name with a slash is a detail (``mae/near``) for files and TensorBoard, too much for a line.

    A baseline's key is a term, or ``term:label``; the label of a bare one is "floor".
    """
    known: dict[str, list[str]] = {}
    for key, value in (baselines or {}).items():
        term, _, label = key.partition(":")
        known.setdefault(term, []).append(f"{label or 'floor'} {number(value)}")
    return [
        (key, number(value) + (f" ({', '.join(known[key])})" if key in known else ""))
        for key, value in terms(record).items()
        if "/" not in key
    ]


def show_clock(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and texts of what the loop measured: gradient norm, learning rate, throughput, waiting, time to go."""
    shown = [(f"grad{name}", _short(value)) for name, value in _family(record, "grad_norm")]
    shown += [(f"lr{name}", f"{value:.2e}") for name, value in _family(record, "lr")]
    if record.get("skipped"):
        shown.append(("skipped", number(record["skipped"])))
    if record.get("items_per_s") is not None:
        shown.append(("items/s", _rate(record["items_per_s"])))
    share = wait_share(record)
    if share is not None:
        shown.append(("wait", f"{share:.0%}"))
    if "cuda/max_alloc_mib" in record:
        shown.append(("memory", f"{record['cuda/max_alloc_mib']:,.0f} MiB"))
    if record.get("eta_s") is not None:
        shown.append(("ETA", duration(record["eta_s"])))
    return shown


def _family(record: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """``lr/critic`` and its siblings where there are any, else ``lr``."""
    numbers = {name: value for name, value in record.items() if is_number(value)}
    named = [(f" {name[len(key) + 1 :]}", value) for name, value in numbers.items() if name.startswith(f"{key}/")]
    return named or ([("", numbers[key])] if key in numbers else [])


def _short(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1e4 or value == 0 or not math.isfinite(value) else f"{value:.2e}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or not math.isfinite(value) else f"{value:.3g}"
