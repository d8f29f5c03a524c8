"""A report as files: report.json, and figures of what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.run.figures import save_figures
from accel_train.run.folder import write_json
from accel_train.run.reports import Reports, warn
from accel_train.system.secrets import scrub_tree
from accel_train.tasks.tcn import figures
from accel_train.tasks.tcn.alarms import ShotScores
from accel_train.tasks.tcn.report.judge import SPLITS, Found
from accel_train.tracking.records import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(out: Path, found: Found, about: Mapping[str, Any]) -> list[str]:
    """report.json and figures into a folder; returns the names of figures. What fails of these is a warning.

    Args:
        about: the weights.
    """
    write_json(out / "report.json", scrub_tree(plain({**about, **as_json(found)})))
    with Reports(out)("figures", warn):
        return save_figures(out, lambda: drawn(found), footer=", ".join(f"{k} {v}" for k, v in about.items()))
    return []


def as_json(found: Found) -> dict[str, Any]:
    """Times in ms, thresholds as logits, rates as shares; NaN where there was nothing to count."""
    data, table = found.data, found.network.table
    warning = np.full(len(table.numbers), np.nan)
    warning[table.disruptive] = table.warning_ms
    columns = (table.numbers, table.disruptive, table.outcomes, warning)
    alarms = zip(*(column.tolist() for column in columns), strict=True)
    return {
        "data": data.folder,
        "data_fingerprint": data.store.fingerprint(),
        "shots": {split: len(getattr(data, split).shots) for split in SPLITS} | table.sizes(),
        "labels": asdict(data.labels),
        "seed": found.seed,
        "logit_shift": found.shift,
        "moments_every_ms": found.moments_every_ms,
        "rows": {
            name: {
                "kind": row.kind,
                "threshold": row.point.threshold,
                "rule": asdict(row.point.rule),
                "metrics": row.metrics,
            }
            for name, row in found.rows.items()
        },
        "diagnostics": found.diagnostics(),
        "reliability": {name: values.tolist() for name, values in found.reliability().items()},
        "alarms": [dict(zip(("shot", "disruptive", "outcome", "warning_ms"), each, strict=True)) for each in alarms],
        "warnings": found.warnings,
    }


def drawn(found: Found) -> dict[str, Figure]:
    """By name: of all test shots, and the first shot of each outcome."""
    row, twarn_ms = found.network, found.data.labels.twarn_ms
    firsts: dict[str, ShotScores] = {}
    for shot, outcome in zip(found.scores.shots, row.table.outcomes.tolist(), strict=True):
        firsts.setdefault(outcome, shot)
    return {
        "warning_time": figures.warning_figure(row.table, row.metrics),
        "roc": figures.roc_figure(row.table, row.metrics),
        "reliability": figures.reliability_figure(found.reliability(), row.metrics["brier"]),
        "false_positives": figures.distance_figure(found.diagnostics()),
        **{
            f"shot_{outcome}": figures.shot_figure(shot, row.point.rule, shot.t_disruption_ms - twarn_ms)
            for outcome, shot in firsts.items()
        },
    }
