"""Pictures of alarms and of scores, in colours (Okabe and Ito) that all can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from accel_train.intervals import exact
from accel_train.run.figures import new_figure
from accel_train.tasks.tcn.alarms import USEFUL, AlarmRule, ShotScores, Useful, alarm_step, on_runs, outcome_of
from accel_train.tasks.tcn.metrics import AHEAD_MS, FALSE_POSITIVE_RATES, ShotTable
from accel_train.tasks.tcn.steps import BEFORE_ONSET_MS, DISTANCES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE, ALARM, DISRUPTION, THRESHOLD, GREY = "#0072B2", "#D55E00", "#000000", "#E69F00", "0.88"
CHANCE = np.append(0, np.geomspace(0.1, 100, 100))  # %
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
LOWEST = 20  # logits below threshold and zero; what is below is far from an alarm
POINTS = 2000  # of a track: the lowest and the highest score of every pixel, about


def shot_figure(shot: ShotScores, rule: AlarmRule, onset_ms: float, useful: Useful = USEFUL) -> Figure:
    """The scores of one shot with its alarm, over all its time and around the end of what matters.

    Args:
        onset_ms: plasma time from which its label is positive; NaN in a clear shot.
    """
    step = alarm_step(shot, rule)
    figure = new_figure(11, 4.6)
    axes = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1]) if shot.disruptive else [figure.subplots()]
    for panel in axes:
        _track(panel, shot, rule, step, onset_ms, useful)
        panel.set_xlabel("plasma time (ms)")
    lowest = min(rule.lo, 0.0) - LOWEST
    axes[0].set_ylim(bottom=max(axes[0].get_ylim()[0], lowest))
    _finish(axes[0], "logit of a disruption")
    if shot.disruptive:
        before = max(1.5 * (shot.t_disruption_ms - onset_ms), 4 * useful.least_ms)
        axes[1].set(xlim=(shot.t_disruption_ms - before, shot.t_disruption_ms + 0.1 * before))
        _bare(axes[1])
    _legend(figure, axes[0])
    figure.suptitle(f"shot {shot.number}: {outcome_of(shot, step, useful)}{_ahead(shot, step)}")
    return figure


def warning_figure(table: ShotTable, metrics: Mapping[str, float]) -> Figure:
    """Share of the disruptions with an alarm so long before them, or longer.

    Args:
        metrics: ``table.intervals``.
    """
    figure = new_figure(7, 4.8)
    axes = figure.subplots()
    warnings = np.sort(table.warning_ms[table.warning_ms > 0]).clip(AHEAD_MS[0], AHEAD_MS[-1])
    ahead = np.array([AHEAD_MS[0], *warnings, AHEAD_MS[-1]])
    alarms = [len(warnings), *range(len(warnings), -1, -1)]  # so many are so early, or earlier
    disruptions = len(table.warning_ms)
    share = 100 * np.array(alarms) / max(disruptions, 1)
    low, high = 100 * np.array([exact(n, disruptions) for n in alarms]).T
    axes.fill_between(ahead, low, high, step="pre", color=SCORE, alpha=0.18, lw=0, label="95 % interval over shots")
    axes.step(ahead, share, where="pre", color=SCORE, lw=1.8, label="the chosen rule")
    axes.axvspan(AHEAD_MS[0], table.useful.least_ms, color=GREY, zorder=0)
    axes.text(table.useful.least_ms / 1.1, 3, "too late to be of use", ha="right", color="0.35")
    axes.set(xscale="log", xlim=(AHEAD_MS[0], AHEAD_MS[-1]), ylim=(0, 103), xlabel="time before the disruption (ms)")
    rate = f"{100 * metrics['fpr']:.1f} % of the clear shots have a false alarm"
    axes.set_title(f"{disruptions} disruptions; {rate}", fontsize=10)
    axes.set_xticks(ticks := [1, 3, 10, 30, 100, 300, 1000, 3000], map(str, ticks), minor=False)
    _finish(axes, "disruptions with an alarm (%)")
    axes.legend(frameon=False, loc="upper right")
    return figure


def roc_figure(table: ShotTable, metrics: Mapping[str, float]) -> Figure:
    """True over false positive rate of shots, as plain thresholds give them, and the chosen rule.

    Args:
        metrics: ``table.intervals``.
    """
    figure = new_figure(6.2, 5)
    axes = figure.subplots()
    fpr, tpr = table.roc()
    axes.plot(CHANCE, CHANCE, color="0.7", lw=0.8, ls="--", label="chance")
    axes.step(100 * fpr, 100 * tpr, where="post", color=SCORE, lw=1.8, label="plain thresholds")
    rates = [f"tpr_at_fpr_{percent}" for percent in FALSE_POSITIVE_RATES]
    ends = [_percent(metrics, name) for name in rates]
    values = [100 * metrics[name] for name in rates]
    _errors(axes, FALSE_POSITIVE_RATES, values, ends, "s", SCORE, "at 1, 2, 5, 10 %, 95 % interval")
    _errors(
        axes, [100 * metrics["fpr"]], [100 * metrics["tpr"]], [_percent(metrics, "tpr")], "o", ALARM, "the chosen rule"
    )
    axes.set_xscale("symlog", linthresh=1, linscale=0.4)  # what matters is at few false alarms
    axes.set_xticks(ticks := [0, 1, 2, 5, 10, 20, 50, 100], map(str, ticks), minor=False)
    axes.set_xticks([], minor=True)
    axes.set(xlim=(-0.1, 105), ylim=(0, 102), xlabel="clear shots with an alarm (%)")
    interval = f"{metrics['auc/low']:.3f} to {metrics['auc/high']:.3f}"
    axes.set_title(f"AUC {metrics['auc']:.3f} ({interval})", fontsize=10)
    _finish(axes, f"disruptions with an alarm {table.useful.least_ms:g} ms ahead (%)")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.03, 0.1))
    return figure


def reliability_figure(found: Mapping[str, np.ndarray], brier: float) -> Figure:
    """How often what was predicted came true.

    Args:
        found: of ``steps.reliability``.
        brier: of the same probabilities.
    """
    figure = new_figure(6.2, 6)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
    ends = SHARES[0], SHARES[-1]
    top.plot(ends, ends, color="0.7", lw=0.8, ls="--", label="as predicted")
    shown = {name: found[name].clip(*ends) for name in ("predicted", "observed", "low", "high")}
    intervals = list(zip(shown["low"], shown["high"], strict=True))
    _errors(top, shown["predicted"], shown["observed"], intervals, "o", SCORE, "95 % interval over shots")
    limits = ends[0] / 1.6, 1 - ends[0] / 1.6  # room for the points at the ends
    top.set(xscale="logit", yscale="logit", xlim=limits, ylim=limits)
    below.vlines(shown["predicted"], 0.5, found["steps"], color=SCORE, lw=5)
    below.set(yscale="log", xlabel="predicted probability, for the share of the training split")
    for axis in (top.xaxis, top.yaxis):
        axis.set_ticks(SHARES, [f"{share:g}" for share in SHARES])
        axis.set_ticks([], minor=True)
    top.set_title(f"Brier score {brier:.4f}", fontsize=10)
    _finish(top, "share of positive steps")
    _finish(below, "steps")
    top.legend(frameon=False, loc="upper left")
    return figure


def distance_figure(metrics: Mapping[str, float]) -> Figure:
    """False positive steps by the time that is left until the onset of the label.

    Args:
        metrics: ``steps.diagnostics``.
    """
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    rates = [100 * metrics[f"step_fpr/{name}"] for name in DISTANCES if name not in ("clear", "from_onset")]
    where = np.arange(len(rates))[::-1]  # time runs to the right
    axes.bar(where, rates, color=SCORE, width=0.8, label="before disruptions")
    clear = 100 * metrics["step_fpr/clear"]
    axes.axhline(clear, color=ALARM, lw=1.6, label=f"clear shots: {clear:.3g} %")
    for x, rate in zip(where, rates, strict=True):
        axes.annotate("no steps" if np.isnan(rate) else f"{rate:.3g}", (x, 0 if np.isnan(rate) else rate), ha="center",
                      xytext=(0, 2), textcoords="offset points", color="0.25")  # fmt: skip
    spans = [f"{a}–{b}" for a, b in pairwise(BEFORE_ONSET_MS)]
    axes.set_xticks(where, [*spans, f"> {BEFORE_ONSET_MS[-1]}"])
    axes.set(xlim=(-0.6, len(rates) - 0.4), xlabel="time until the onset of the label (ms)")
    _finish(axes, "false positive steps (%)")
    axes.legend(frameon=False, loc="upper left")
    return figure


Floats = np.ndarray | Sequence[float]


# -- parts -----------------------------------------------------------------------------------------------------------


def _track(axes: Axes, shot: ShotScores, rule: AlarmRule, step: int | None, onset_ms: float, useful: Useful) -> None:
    """Its scores, when the trigger is on, the thresholds, the alarm and the disruption."""
    axes.plot(*_thinned(shot), color=SCORE, lw=0.9, label="score")
    for start, end in zip(*on_runs(shot.scored, rule.lo, rule.hi), strict=True):
        begin, stop = shot.times_ms(shot.first + np.array([start, end - 1]))
        axes.plot([begin, stop], [rule.hi] * 2, color=THRESHOLD, lw=4, solid_capstyle="butt", zorder=1)
    axes.axhline(rule.hi, color=THRESHOLD, lw=1, label="on; thick while the trigger is on")
    if rule.lo < rule.hi:
        axes.axhline(rule.lo, color=THRESHOLD, lw=1, ls="--", label="off")
    if step is not None:
        axes.axvline(float(shot.times_ms(np.array(step))), color=ALARM, lw=1.8, label="alarm")
    if shot.disruptive:
        axes.axvspan(
            shot.t_disruption_ms - useful.least_ms, shot.t_disruption_ms, color=GREY, zorder=0, label="too late"
        )
        axes.axvline(onset_ms, color=DISRUPTION, lw=1, ls=":", label="onset of the label")
        axes.axvline(shot.t_disruption_ms, color=DISRUPTION, lw=1.4, label="disruption")


def _thinned(shot: ShotScores) -> tuple[np.ndarray, np.ndarray]:
    """Times and scores of a track, of long ones the lowest and the highest of as many as share a pixel."""
    scores = shot.scored
    times = shot.times_ms(shot.first + np.arange(len(scores)))
    each = 2 * len(scores) // POINTS
    if each < 2:
        return times, scores
    whole = len(scores) // each * each
    parts = scores[:whole].reshape(-1, each)
    return np.repeat(times[:whole:each], 2), np.stack([parts.min(1), parts.max(1)], 1).ravel()


def _ahead(shot: ShotScores, step: int | None) -> str:
    if step is None:
        return ""
    if not shot.disruptive:
        return f", at {float(shot.times_ms(np.array(step))):,.0f} ms"
    return f", {float(shot.warning_ms(np.array(step))):,.0f} ms before the disruption"


def _errors(
    axes: Axes, x: Floats, y: Floats, ends: Sequence[tuple[float, float]], marker: str, colour: str, label: str
) -> None:
    """Points with intervals."""
    value, (low, high) = np.array(y, dtype=float), np.array(ends, dtype=float).T
    error = np.array([value - low, high - value]).clip(0)
    axes.errorbar(x, value, error, fmt=marker, ms=5, lw=1.2, capsize=3, color=colour, label=label, zorder=3)


def _percent(metrics: Mapping[str, float], name: str) -> tuple[float, float]:
    """The ends of the interval of a share."""
    return 100 * metrics[f"{name}/low"], 100 * metrics[f"{name}/high"]


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _finish(axes: Axes, ylabel: str) -> None:
    axes.set_ylabel(ylabel)
    _bare(axes)


def _legend(figure: Figure, axes: Axes) -> None:
    """Below the panels, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
