"""accel-train runs table: many runs side by side, by what differs between them and what became of them."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accel_train.config.plain import flatten
from accel_train.config.yaml_text import load_mapping
from accel_train.errors import UserError, suggest
from accel_train.tracking.jsonl import histories
from accel_train.tracking.observer import Record
from accel_train.tracking.records import BOOKKEEPING, aligned, is_number, number
from accel_train.tracking.status import read

SHOWN = 4
"""Metrics in the table unless it is said which: the deciding one, and the next of those without a slash."""


@dataclass(frozen=True)
class RunRow:
    """A run.

    Args:
        name: its path below the folder that was asked for.
        settings: its config, flat.
        metric: the name of the deciding metric.
        best_step: of the evaluation in which that was best; None if there is none.
        metrics: of that evaluation.
    """

    name: str
    settings: dict[str, Any]
    state: str
    step: int | None
    metric: str
    best_step: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return str(self.settings.get("task.class_path", ""))

    @property
    def rank(self) -> float:
        """The smaller the better; runs without an evaluation come last."""
        sign = -1.0 if self.settings.get("greater_is_better") else 1.0
        return sign * self.metrics[self.metric] if self.metrics else math.inf


def rows_of(folder: Path) -> list[RunRow]:
    """The runs in a folder, at any depth, tasks apart and the best one first.

    Raises:
        UserError: there is no such folder, no run in it, or a config that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"runs table: {folder}: no such folder")
    rows = [_row(run, folder) for run in _folders(folder)]
    if not rows:
        raise UserError(f"runs table: {folder}: no run in it (a folder with config.yaml and status.json)")
    return sorted(rows, key=lambda row: (row.task, row.rank, row.name))


def differing(rows: Sequence[RunRow]) -> list[str]:
    """Names of the settings that are not the same in all of these runs."""
    names, own = dict.fromkeys(name for row in rows for name in row.settings), ("output_dir", "task.class_path")
    return [n for n in names if n not in own and any(row.settings.get(n) != rows[0].settings.get(n) for row in rows)]


def as_text(rows: Sequence[RunRow], metrics: Sequence[str] = ()) -> str:
    """A table for each task, as a terminal shows it.

    Args:
        metrics: beside the deciding one; default: the first few.

    Raises:
        UserError: a metric that no run has.
    """
    known = dict.fromkeys(name for row in rows for name in row.metrics)
    for name in metrics:
        if name not in known:
            raise UserError(f"--metrics: no run has {name!r}{suggest(name, known)}; there are {', '.join(known)}")
    tables: list[str] = []
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        tables.append("\n".join(([task] if len(of_task) < len(rows) else []) + _table(of_task, metrics)))
    return "\n\n".join(tables)


def as_csv(rows: Sequence[RunRow]) -> str:
    """Every setting that differs, under its whole name, and every metric of the best evaluation."""
    settings = differing(rows)
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "task", *settings, "state", "step", "best_step", *metrics])
    for row in rows:
        values = [row.settings.get(name) for name in settings]
        numbers = [row.metrics.get(name) for name in metrics]
        writer.writerow([row.name, row.task, *values, row.state, row.step, row.best_step, *numbers])
    return out.getvalue()


def _table(rows: Sequence[RunRow], metrics: Sequence[str]) -> list[str]:
    settings = differing(rows)
    deciding = list(dict.fromkeys(row.metric for row in rows))
    plain = dict.fromkeys(name for row in rows for name in row.metrics if "/" not in name and name not in deciding)
    shown = [*deciding, *(metrics or list(plain)[: max(0, SHOWN - len(deciding))])]
    head = ["run", *(name.removeprefix("task.init_args.") for name in settings), "state", "step", *shown, "at step"]
    lines = [head]
    for row in rows:
        values = ["-" if (value := row.settings.get(name)) is None else str(value) for name in settings]
        numbers = [number(row.metrics[name]) if name in row.metrics else "-" for name in shown]
        steps = ["-" if step is None else number(step) for step in (row.step, row.best_step)]
        lines.append([row.name, *values, row.state, steps[0], *numbers, steps[1]])
    return aligned(lines)


# -- of a run --------------------------------------------------------------------------------------------------------


def _folders(folder: Path) -> Iterator[Path]:
    """Run folders; what lies inside one belongs to it."""
    if (folder / "config.yaml").is_file() and (folder / "status.json").is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _folders(path)


def _row(run: Path, root: Path) -> RunRow:
    settings = flatten(load_mapping(run / "config.yaml", "runs table:"))
    status: Record = {"state": "status.json is damaged"}
    with contextlib.suppress(UserError):
        status |= read(run)
    metric = str(settings.get("metric_for_best_model", "loss"))
    row = RunRow(
        run.relative_to(root).as_posix() if run != root else run.resolve().name,
        settings, str(status["state"]), status.get("step"), metric,
    )  # fmt: skip
    log = run / "metrics.jsonl"
    found = histories(log) if log.is_file() else {}
    values, greater = found.get(f"eval_{metric}", []), bool(settings.get("greater_is_better"))
    finite = [i for i, value in enumerate(values) if is_number(value)]
    if not finite:
        return row
    best = (max if greater else min)(finite, key=lambda i: values[i])
    evaluated = {name.removeprefix("eval_"): each[best] for name, each in found.items() if name.startswith("eval_")}
    metrics = {name: value for name, value in evaluated.items() if name not in BOOKKEEPING and is_number(value)}
    return RunRow(row.name, settings, row.state, row.step, metric, evaluated["step"], metrics)
