"""A report in words: the table of the terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from accel_train.tasks.tcn.report.judge import Found, Row
from accel_train.tasks.tcn.steps import DISTANCES, POSITIONS
from accel_train.tracking.records import aligned

COLUMNS = {
    "step_f1": ("step", "F1"),
    "step_pr_auc": ("step", "PR AUC"),
    "tpr": ("TPR", ""),
    "fpr": ("FPR", ""),
    "tpr_at_fpr_5": ("TPR at", "FPR 5 %"),
    "fpr_at_tpr_95": ("FPR at", "TPR 95 %"),
    "f2": ("F2", ""),
    "auc": ("AUC", ""),
    "auc_zhu": ("AUC", "50 ms"),
    "warning_mean_ms": ("warning", "mean ms"),
    "warning_median_ms": ("warning", "median ms"),
}


def summary(found: Found) -> str:
    """For a person to read; numbers with the 95 % interval that other shots might have given."""
    row = found.network
    sizes, rule = row.table.sizes(), row.point.rule
    validation = found.data.validation.shots
    disruptive = sum(shot.disruptive for shot in validation)
    below = f", off from {rule.lo:.2f} down" if rule.lo < rule.hi else ""
    held = f"once on for {rule.hold_ms:g} ms" if rule.hold_ms else "at once"
    counts = Counter(row.table.outcomes.tolist())
    outcomes = [("correct", "missed", "late", "early"), ("false", "quiet")]
    warned, clear = (", ".join(f"{counts[name]} {name}" for name in names) for names in outcomes)
    return "\n".join([
        f"chosen on {len(validation)} validation shots, {disruptive} of them disruptive: steps are positive from logit "
        f"{row.point.threshold:.2f} up;",
        f"the trigger is on from logit {rule.hi:.2f} up{below}, and the alarm sounds {held}",
        f"judged on {len(row.table.numbers)} test shots: {sizes['shots_disruptive']:g} disruptive ({warned}), "
        f"{sizes['shots_clear']:g} clear ({clear});",
        "below a number: its 95 % interval over shots",
        "",
        *_table(found.rows, {
            "trivial": f"trivial models, every {found.moments_every_ms:g} ms, chosen and judged alike; the last two "
            "see no signal: AUC above 0.5 is a leak",
            "failure": "the network where sensors fail, its rule unchanged",
        }),
        "",
        *_steps(found),
        *(f"warning: {text}" for text in found.warnings),
    ])  # fmt: skip


def _table(rows: Mapping[str, Row], titles: Mapping[str, str]) -> list[str]:
    """Under each number its interval; the failures have none.

    Args:
        titles: of each kind of rows but the first.
    """
    empty = [""] * len(COLUMNS)
    lines = [["", *(head[0] for head in COLUMNS.values())], ["", *(head[1] for head in COLUMNS.values())]]
    heads, kind = {}, "network"
    for name, row in rows.items():
        if row.kind != kind:
            kind = row.kind
            heads[len(lines)] = titles[kind]
            lines.append(["", *empty])
        lines.append([name, *(_number(row.metrics[column], column) for column in COLUMNS)])
        if kind != "failure":
            ends = [[_number(row.metrics[f"{column}/{end}"], column) for end in ("low", "high")] for column in COLUMNS]
            lines.append(["", *("-".join(end) if end[0] else "" for end in ends)])
    return [heads.get(i, line) for i, line in enumerate(aligned(lines))]


def _steps(found: Found) -> list[str]:
    metrics, known = found.network.metrics, found.diagnostics()
    rates = [
        f"{name.replace('over_', 'over ').replace('ms', ' ms')}: {_percent(rate)}"
        for name in DISTANCES
        if name not in ("clear", "from_onset") and not math.isnan(rate := known[f"step_fpr/{name}"])
    ]
    places = {place: known[f"step_f1/onset_{place}"] for place in POSITIONS}
    f1 = [f"{value:.2f} at {place}" for place, value in places.items() if not math.isnan(value)]
    return [
        f"probabilities: Brier score {metrics['brier']:.4f}, skill {metrics['brier_skill']:.2f} (0: always the share "
        f"of positive steps); logits {found.shift:+.2f}, for the share of the training split",
        f"false positive steps: in clear shots: {_percent(known['step_fpr/clear'])}; before the onset of the label, "
        + ", ".join(rates),
        f"step F1 by the place of the onset in its window: {', '.join(f1)}",
    ]


def _number(value: float, name: str) -> str:
    """Of a rate; of a time, if its name says so; nothing for NaN."""
    if math.isnan(value):
        return ""
    return f"{value:.0f}" if name.endswith("_ms") else f"{value:.2f}"


def _percent(share: float) -> str:
    return "?" if math.isnan(share) else f"{100 * share:.3g} %"
