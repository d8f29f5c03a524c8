"""accel-train runs spread: how far the metrics of runs lie apart that differ in their seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accel_train.config.plain import flatten
from accel_train.config.yaml_text import load_mapping
from accel_train.errors import DataError, UserError
from accel_train.tracking.jsonl import histories
from accel_train.tracking.records import BOOKKEEPING, aligned, is_number, number
from accel_train.tracking.status import read

EVALUATION = Path("evaluation", "evaluation.json")


@dataclass(frozen=True)
class Row:
    """A metric over runs. ``std`` is the sample standard deviation, NaN for one run.

    Args:
        runs: in how many of them the metric is a number; the others are left out.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    runs: int

    @staticmethod
    def of(name: str, values: Sequence[float]) -> Row:
        std = statistics.stdev(values) if len(values) > 1 else math.nan
        return Row(name, statistics.fmean(values), std, min(values), max(values), len(values))


@dataclass(frozen=True)
class Spread:
    """Metrics over runs.

    Args:
        source: where the metrics are from, for a person.
        differ: settings that are not the same in all runs, with their values in the order of the runs.
        rows: one for each metric that is a number in some run.
    """

    runs: int
    source: str
    differ: dict[str, list[Any]]
    rows: list[Row]


def spread(runs: Sequence[Path]) -> Spread:
    """Mean, standard deviation and range of every metric of finished runs.

    Metrics are those of ``accel-train evaluate``, if every run has them, and of the same split; if none has, those of
    the last evaluation in training.

    Raises:
        UserError: no run folder, a run that is not completed, one that comes twice, only some of them evaluated, or on
            different splits, or no metric at all.
        DataError: a file that is damaged.
    """
    folders = [run.resolve() for run in runs]
    if twice := [run for i, run in enumerate(runs) if folders[i] in folders[:i]]:
        raise UserError(f"{twice[0]}: this run is given twice")
    configs = [flatten(_config(run)) for run in runs]
    source, metrics = _metrics(runs)
    names = dict.fromkeys(name for each in metrics for name in each)
    rows = [Row.of(name, [each[name] for each in metrics if name in each]) for name in names]
    if not rows:
        raise UserError(f"{runs[0]}: there are no metrics in {source}")
    settings = dict.fromkeys(name for config in configs for name in config if name != "output_dir")
    values = {name: [config.get(name) for config in configs] for name in settings}
    differ = {name: each for name, each in values.items() if any(value != each[0] for value in each)}
    return Spread(len(runs), source, differ, rows)


def table(found: Spread, details: bool = False) -> str:
    """As text. Names with a slash are details."""
    kept = [row for row in found.rows if details or "/" not in row.name]
    left_out = any(row.runs < found.runs for row in kept)
    head = ["", "mean", "std", "min", "max", *(["runs"] if left_out else [])]
    lines = [
        [row.name, *map(number, (row.mean, row.std, row.low, row.high)), *([str(row.runs)] if left_out else [])]
        for row in kept
    ]
    differ = "".join(f"\n{name}: {', '.join(map(str, each))}" for name, each in found.differ.items())
    same = "" if found.differ or found.runs == 1 else "\nall settings are the same: give runs of different seeds"
    return "\n".join([f"{found.runs} runs, {found.source}{differ}{same}", "", *aligned([head, *lines])])


# -- of a run --------------------------------------------------------------------------------------------------------


def _config(run: Path) -> dict[str, Any]:
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no config.yaml there; is it a run folder?")
    state = read(run).get("state")
    if state != "completed":
        raise UserError(f"{run}: this run is {state}; wait until it is completed, or leave it out")
    return load_mapping(run / "config.yaml", "runs spread:")


def _metrics(runs: Sequence[Path]) -> tuple[str, list[dict[str, float]]]:
    """Where they are from, and the numbers of each run."""
    lack = [run for run in runs if not (run / EVALUATION).is_file()]
    if len(lack) == len(runs):
        return "last evaluation in training", [_last(run / "metrics.jsonl") for run in runs]
    if lack:
        raise UserError(f"{lack[0]}: not evaluated, but others are; run accel-train evaluate {lack[0]}")
    found = [_evaluated(run / EVALUATION) for run in runs]
    splits = [split for split, _ in found]
    if len(set(splits)) > 1:
        other = next(i for i, split in enumerate(splits) if split != splits[0])
        raise UserError(
            f"{runs[other]}: evaluated on {splits[other]}, {runs[0]} on {splits[0]}; evaluate all on one split"
        )
    return f"{EVALUATION.name}, {splits[0]}", [metrics for _, metrics in found]


def _evaluated(path: Path) -> tuple[str, dict[str, float]]:
    try:
        record = json.loads(path.read_text())
        return str(record["split"]), _numbers(record["metrics"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}; evaluate that run again") from None


def _last(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise UserError(f"{path}: not there; run accel-train evaluate")
    last = {name.removeprefix("eval_"): each[-1] for name, each in histories(path).items() if name.startswith("eval_")}
    return _numbers({name: value for name, value in last.items() if name not in BOOKKEEPING})


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if is_number(value) and math.isfinite(value)}
