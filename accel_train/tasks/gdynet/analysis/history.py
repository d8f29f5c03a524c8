"""How a model was learned, by the ``metrics.json`` of its run: lists by name."""

from __future__ import annotations

from typing import Any, NamedTuple

from accel_train.tracking.records import is_number

History = dict[str, list[Any]]

NAMES = {"loss": "losses", "vamp1": "vamp1_scores", "vamp2": "vamp2_scores"}
"""What is looked at, and how the lists over epochs call it."""


def training(history: History) -> dict[str, Any]:
    """Epochs begun, steps, and final and best loss, vamp1 and vamp2 by name; nothing if none of them was logged.

    Of the loss by phase (``loss/vamp2``), as phases are not comparable; of evaluations as ``eval_vamp2``.
    """
    found: dict[str, Any] = {}
    for prefix in ("", "eval_"):
        steps, phases = history.get(f"{prefix}step") or [], history.get(f"{prefix}phase") or []
        for name in NAMES:
            values = history.get(prefix + name) or []
            parts = dict.fromkeys(map(str, phases)) if name == "loss" else [""]
            for part in parts:
                rows = [i for i, v in enumerate(values) if is_number(v) and part in ("", str(phases[i]))]
                if rows:
                    best = (min if name == "loss" else max)(rows, key=lambda i, values=values: values[i])
                    found[prefix + name + (f"/{part}" if part else "")] = {
                        "final": values[rows[-1]], "best": values[best], "best_step": steps[best],
                    }  # fmt: skip
    epochs, steps = (max(filter(is_number, history.get(name) or []), default=None) for name in ("epoch", "step"))
    return {"epochs": None if epochs is None else epochs + 1, "steps": steps, "metrics": found} if found else {}


class Curves(NamedTuple):
    """What a training figure shows.

    Args:
        unit: of time, ``epoch`` or ``step``.
        phases: name of the loss, begin and end, in this unit.
        lines: of ``NAMES`` those with a number in them, each as times and values of ``training`` and ``validation``.
            Values that were not finite are None.
    """

    unit: str
    phases: list[tuple[str, float, float]]
    lines: dict[str, dict[str, tuple[list[Any], list[Any]]]]


def curves(history: History) -> Curves:
    """Over epochs, by the fourteen lists, if each evaluation is in an epoch of its own; otherwise over steps."""
    times, evaluated = history.get("epochs", []), history.get("val_losses_avg", [])
    if times and len([value for value in evaluated if value is not None]) == len(history.get("eval_step", [])):
        lines = {
            name: {
                "training": (times, history[f"train_{known}_avg"]),
                "validation": (times, history[f"val_{known}_avg"]),
            }
            for name, known in NAMES.items()
        }
        return Curves("epoch", _phases(times, history["loss_types"]), _with_numbers(lines))
    times = history.get("step", [])
    lines = {
        name: {
            "training": (times, history.get(name, [])),
            "validation": (history.get("eval_step", []), history.get(f"eval_{name}", [])),
        }
        for name in NAMES
    }
    return Curves("step", _phases(times, history.get("phase", [])), _with_numbers(lines))


def _phases(times: list[Any], phases: list[Any]) -> list[tuple[str, float, float]]:
    """A phase lasts from the last time before it to the last one in it."""
    ends = [i for i in range(1, len(phases) + 1) if i == len(phases) or phases[i] != phases[i - 1]]
    return [
        (str(phases[end - 1]), times[begin - 1] if begin else 0, times[end - 1])
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


def _with_numbers(lines: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {
        name: {kind: (x, y) for kind, (x, y) in kinds.items() if any(map(is_number, y))}
        for name, kinds in lines.items()
    }
    return {name: kinds for name, kinds in found.items() if kinds}
