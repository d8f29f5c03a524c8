"""The history of a run as one figure, for a notebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from accel_train.errors import UserError, suggest
from accel_train.run.figures import new_figure
from accel_train.tracking.records import is_bookkeeping, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
LINE, POINT, TEXT = "#4878a8", "#d1603d", "0.35"


def plot_history(history: dict[str, list[Any]], names: tuple[str, ...] = ()) -> Figure:
    """One panel for each name: its means between log lines as a line, its evaluations as points, over the steps.

    Args:
        history: lists by name, as ``Result.history`` and ``metrics.json`` have them.
        names: what to show: anything that was logged (``"grad_norm"``) or evaluated (``"mae"``, or ``"eval_mae"``).
            Default: the loss and its terms.
    """
    chosen = [name.removeprefix("eval_") for name in names] or _losses(history)
    for name in chosen:
        if not any(key in history for key in (name, f"eval_{name}")):
            known = sorted({key.removeprefix("eval_") for key in history} - {"step", "wall_time", "epoch", "phase"})
            raise UserError(f"nothing called {name!r} was logged{suggest(name, known)}; there are {', '.join(known)}")
    columns = min(len(chosen), COLUMNS) or 1
    rows = math.ceil(len(chosen) / columns) or 1
    figure = new_figure(max(4.0 * columns, 5.5), 2.9 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten().tolist()
    for name, axes in zip(chosen, panels, strict=False):
        _draw(axes, history, name)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    for i, axes in enumerate(panels[: len(chosen)]):
        if i + columns >= len(chosen):
            axes.set_xlabel("step", color=TEXT)
            axes.tick_params(labelbottom=True)
    if not chosen:
        panels[0].set_axis_off()
        panels[0].text(0.5, 0.5, "nothing has been logged yet", ha="center", color=TEXT)
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= {str(label): handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(handles) > 1:
        style: dict[str, Any] = {"loc": "outside upper right", "ncols": 2, "frameon": False, "labelcolor": TEXT}
        figure.legend(list(handles.values()), list(handles), **style)
    return figure


def _draw(axes: Axes, history: dict[str, list[Any]], name: str) -> None:
    steps, values = _series(history, "step", name)
    if steps:
        axes.plot(steps, values, color=LINE, lw=1.3, label="training (mean between log lines)")
    at, evaluated = _series(history, "eval_step", f"eval_{name}")
    if at:
        shape: dict[str, Any] = {"ms": 5, "mec": "white", "mew": 0.7, "zorder": 3, "clip_on": False}
        axes.plot(at, evaluated, "o-", color=POINT, lw=0 if steps else 1.0, label="evaluation", **shape)
    if _spans_decades(values + evaluated):
        axes.set_yscale("log")
    axes.set_title(name, loc="left", fontsize="medium")
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("0.7")
    axes.tick_params(colors=TEXT, length=0, which="both")


def _losses(history: dict[str, list[Any]]) -> list[str]:
    """What training logged of the task's own; a run without log lines shows what evaluations gave under these names."""
    logged = [k for k in history if not k.startswith("eval_") and "/" not in k and not is_bookkeeping(k)]
    names = [k for k in logged if any(is_number(v) for v in history[k])]
    return names or (["loss"] if "eval_loss" in history else [])


def _series(history: dict[str, list[Any]], steps: str, name: str) -> tuple[list[float], list[float]]:
    """Steps and values; a value that was not finite (None) leaves a gap."""
    if name not in history or not any(is_number(v) for v in history[name]):
        return [], []
    return list(history[steps]), [float(v) if is_number(v) else math.nan for v in history[name]]


def _spans_decades(values: Sequence[float]) -> bool:
    finite = [v for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0 and max(finite) > 50 * min(finite)
