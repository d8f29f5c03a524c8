"""Every figure can be drawn and saved, also of little data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from accel_train.run.figures import save_figures
from accel_train.tasks.tcn.alarms import AlarmRule, ShotScores
from accel_train.tasks.tcn.figures import distance_figure, reliability_figure, roc_figure, shot_figure, warning_figure
from accel_train.tasks.tcn.metrics import ShotTable
from accel_train.tasks.tcn.steps import brier, diagnostics, prior_shift, reliability, step_sums

pytest.importorskip("matplotlib")
TWARN_MS, DT = 300.0, 1.0
RULE = AlarmRule(0.5, 1.5, 10.0)


def shots(n: int, seed: int = 0) -> list[ShotScores]:
    """Scores that wander; before disruptions, in every second shot, they rise in the last 150 to 450 ms."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(n):
        length = int(random.integers(1200, 4000))
        noise = np.convolve(random.normal(size=length + 59), np.ones(60) / 8, "valid") - 3
        if i % 2:
            since = np.arange(length) - (length - random.uniform(150, 450))
            noise += 7 * (since / 80).clip(0, 1) * (random.random() < 0.85)
        end = -50.0 + length * DT if i % 2 else math.nan
        found.append(ShotScores(i, noise.astype(np.float32), -50.0, DT, bool(i % 2), end, first=100))
    return found


def step_totals(all_shots: list[ShotScores]) -> list[dict[str, torch.Tensor]]:
    """``step_sums`` of each whole shot, as an evaluation of whole shots makes them."""
    found = []
    for shot in all_shots:
        times = shot.times_ms(np.arange(len(shot.scores)))
        to_onset = torch.from_numpy(shot.t_disruption_ms - TWARN_MS - times)[None]
        counts = torch.arange(len(shot.scores))[None] >= shot.first
        found.append(step_sums(torch.from_numpy(shot.scores)[None], to_onset <= 0, counts, to_onset))
    return found


def draw(n: int, rule: AlarmRule = RULE):
    every = shots(n)
    table = ShotTable.of(every, rule)
    metrics = table.intervals(seed=0, resamples=100)
    totals = step_totals(every)
    by_shot = torch.stack([total["by_distance"].sum(0) for total in totals])
    by_distance, by_position = (
        torch.stack([t[name] for t in totals]).sum(0) for name in ("by_distance", "by_position")
    )
    shift = prior_shift(0.2)
    return {
        "shot": shot_figure(every[-1], rule, every[-1].t_disruption_ms - TWARN_MS),
        "shot_clear": shot_figure(every[0], rule, math.nan),
        "warning": warning_figure(table, metrics),
        "roc": roc_figure(table, metrics),
        "reliability": reliability_figure(reliability(by_shot, shift, 0, 100), brier(by_shot.sum(0), shift)),
        "false_positives": distance_figure(diagnostics(by_distance, by_position, 0.0)),
    }


@pytest.mark.parametrize("n", [2, 40])
def test_all_are_drawn(tmp_path: Path, n: int):
    names = save_figures(tmp_path, lambda: draw(n))
    assert all((tmp_path / f"{name}.png").stat().st_size > 10_000 for name in names) and len(names) == 6


def test_one_class_and_no_alarm(tmp_path: Path):
    for which in (0, 1):
        some = shots(2)[which::2]
        table = ShotTable.of(some, AlarmRule(20, 20))
        metrics = table.intervals(seed=0, resamples=10)
        onset = some[0].t_disruption_ms - TWARN_MS
        save_figures(
            tmp_path,
            lambda table=table, metrics=metrics, some=some, onset=onset: {
                "warning": warning_figure(table, metrics),
                "roc": roc_figure(table, metrics),
                "shot": shot_figure(some[0], AlarmRule(20, 20), onset),
            },
        )


def test_a_long_track_keeps_its_peaks(tmp_path: Path):
    from accel_train.tasks.tcn.figures import _thinned

    scores = np.zeros(500_000, np.float32)
    scores[[123_456, 400_001]] = 9, -9
    times, thin = _thinned(ShotScores(1, scores, -50.0, 0.01, False, math.nan))
    assert len(thin) < 3000 and thin.max() == 9 and thin.min() == -9
    assert times[thin.argmax()] == pytest.approx(-50 + 1234.56, abs=6)
