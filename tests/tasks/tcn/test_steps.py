"""Numbers over steps: exact, the same for any cut, and apart where a model may cheat."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.sums import BinaryScores
from accel_train.tasks.tcn.steps import (
    BEFORE_ONSET_MS,
    DISTANCES,
    EDGES,
    best_threshold,
    brier,
    diagnostics,
    positive_share,
    prior_shift,
    reliability,
    step_intervals,
    step_metrics,
    step_sums,
    to_onset_ms,
)


def windows(n: int, steps: int, seed: int, shift: float = 0.0) -> dict[str, torch.Tensor]:
    """Windows of 5 ms steps whose probabilities are right, but for a shift of their logits."""
    random = torch.Generator().manual_seed(seed)
    true = torch.randn(n, steps, generator=random) * 2 - 2
    target = torch.rand(n, steps, generator=random) < torch.sigmoid(true)
    counts = torch.rand(n, steps, generator=random) < 0.9
    to_onset = 5.0 * (torch.randint(0, 300, (n, 1), generator=random) - torch.arange(steps))
    to_onset[torch.rand(n, generator=random) < 0.5] = math.nan
    return {"logits": true + shift, "target": target, "counts": counts, "to_onset_ms": to_onset}


def steps_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return step_sums(**batch)["by_distance"].sum(0)


def test_times_to_the_onset():
    found = to_onset_ms(torch.tensor([10.0, math.nan]).double(), torch.tensor([4.0, 1.0]).double(), 4)
    assert found[0].tolist() == [10, 6, 2, -2] and found[1].isnan().all()


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 1000))
def test_any_cut_adds_up_to_the_same(n: int, steps: int, seed: int):
    batch = windows(n, steps, seed)
    whole = step_sums(**batch)
    parts = [step_sums(**{name: value[i : i + 1] for name, value in batch.items()}) for i in range(n)]
    for name in whole:
        assert torch.equal(whole[name], torch.stack([part[name] for part in parts]).sum(0))
    counted = batch["counts"]
    alone = BinaryScores.sums(batch["logits"][counted], batch["target"][counted], EDGES)
    assert torch.equal(whole["by_distance"].sum(0), alone)


def test_metrics_are_those_of_the_steps():
    batch = windows(20, 500, 1)
    steps, kept = steps_of(batch), batch["counts"]
    logits, target = batch["logits"][kept], batch["target"][kept]
    threshold = best_threshold(steps)
    found = step_metrics(steps, threshold)

    def f1(at: float) -> float:
        yes = logits >= at
        return float(2 * (yes & target).sum() / (yes.sum() + target.sum()))

    assert (
        found["step_f1"] == pytest.approx(f1(threshold)) == pytest.approx(max(f1(at) for at in EDGES[1:-1:4]), abs=0.01)
    )
    assert found["step_fpr"] == pytest.approx(float((logits >= threshold)[~target].float().mean()))
    assert found["brier"] == pytest.approx(float((torch.sigmoid(logits) - target.float()).square().mean()), abs=2e-4)
    assert 0 < found["brier_skill"] < 1 and 0.5 < found["step_auc"] < 1
    assert positive_share(steps) == pytest.approx(float(target.float().mean()))


def test_the_prior_is_put_right():
    """Trained on halves, used where one step in twenty is positive."""
    share = 0.05
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, generator=random)
    target = torch.rand(200_000, generator=random) < share
    x[target] += 2  # the log likelihood ratio of two normal distributions is 2 x - 2
    steps = BinaryScores.sums(2 * x - 2, target, EDGES)
    right = prior_shift(share)
    assert right == pytest.approx(math.log(0.05 / 0.95))
    scores = {shift: brier(steps, shift) for shift in (right - 0.5, right, right + 0.5, 0.0)}
    assert min(scores, key=lambda shift: scores[shift]) == right
    found = reliability(torch.stack([steps // 2, steps - steps // 2]), right, seed=0, resamples=20)
    expected, seen = (found[name] * found["steps"] for name in ("predicted", "observed"))
    assert len(seen) > 10 and (abs(seen - expected) < 4 * np.sqrt(expected + 1)).all()
    wrong = reliability(steps[None], 0.0, seed=0, resamples=1)
    assert (wrong["predicted"] > 2 * wrong["observed"])[wrong["predicted"] < 0.5].all()
    assert prior_shift(0.3, 0.3) == 0


def test_reliability_covers_what_is_right():
    by_shot = torch.stack([steps_of(windows(1, 400, seed)) for seed in range(60)])
    found = reliability(by_shot, 0.0, seed=1, resamples=200)
    many = found["steps"] > 300
    inside = (found["low"] <= found["predicted"]) & (found["predicted"] <= found["high"])
    assert inside[many].mean() >= 0.7
    assert found["steps"].sum() == by_shot.sum()


@pytest.mark.parametrize("name", ["share", "trained_share"])
@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_a_share_that_is_none_is_refused(name: str, value: float):
    with pytest.raises(UserError, match="must be between 0 and 1"):
        prior_shift(**({"share": 0.1, "trained_share": 0.5} | {name: value}))


def test_false_positives_lie_where_they_were():
    """One false positive at each distance, one in a clear shot, among steps that are right."""
    edges = [*BEFORE_ONSET_MS, 4000]
    at = torch.tensor([[-5.0, *edges[:-1], math.nan]]).repeat(2, 1)
    logits = torch.tensor([[1.0] * 9, [-1.0] * 9])
    target = torch.tensor([[True] + [False] * 8] * 2)
    sums = step_sums(logits, target, torch.ones(2, 9, dtype=torch.bool), at)
    assert len(DISTANCES) == len(BEFORE_ONSET_MS) + 2
    assert sums["by_distance"].sum((1, 2)).tolist() == [2] * 9
    found = diagnostics(sums["by_distance"], sums["by_position"], 0.0)
    rates = {name: value for name, value in found.items() if name.startswith("step_fpr/")}
    assert list(rates) == [f"step_fpr/{name}" for name in DISTANCES if name != "from_onset"]
    assert set(rates.values()) == {0.5}


def test_a_model_that_knows_the_place_is_found_out():
    """It is right where the onset is at the place that it has learned, and never elsewhere."""
    starts = torch.arange(0, 100, 10)
    target = torch.arange(100) >= starts[:, None]
    logits = torch.where(torch.arange(100) >= 80, 3.0, -3.0).expand(10, 100)
    clear = torch.zeros(1, 100, dtype=torch.bool)
    sums = step_sums(
        torch.cat([logits, logits[:1]]), torch.cat([target, clear]), torch.ones(11, 100, dtype=torch.bool),
        torch.zeros(11, 100),
    )  # fmt: skip
    assert sums["by_position"].sum((1, 2)).tolist() == [200] * 5
    found = diagnostics(sums["by_distance"], sums["by_position"], 0.0)
    f1 = [value for name, value in found.items() if name.startswith("step_f1/onset_")]
    assert f1 == sorted(f1) and f1[-1] > 0.8 > 0.4 > f1[0]


def test_intervals_over_shots():
    by_shot = torch.stack([steps_of(windows(1, 200, seed)) for seed in range(40)])
    threshold = best_threshold(by_shot.sum(0))
    found = step_intervals(by_shot, threshold, 0.0, seed=0, resamples=60)
    for name in ("step_f1", "brier", "step_auc"):
        assert found[f"{name}/low"] < found[name] < found[f"{name}/high"]


def test_nothing_to_count_is_nan_and_not_a_number_of_it_is_too():
    empty = torch.zeros(2, len(EDGES), dtype=torch.int64)
    assert all(math.isnan(value) for value in step_metrics(empty, 0.0).values())
    bad = steps_of(windows(2, 50, 0))
    bad[0, -1] += 1  # a score that is NaN
    assert all(math.isnan(step_metrics(bad, 0.0)[name]) for name in ("step_f1", "step_auc", "brier", "brier_skill"))
    assert all(math.isnan(step_metrics(bad - bad + empty, math.nan)[name]) for name in ("step_f1", "step_recall"))


def test_probabilities_have_an_edge_at_a_half():
    assert 0.0 in EDGES and set(np.diff(EDGES)) == {1 / 64, 1 / 4}


def test_a_network_that_is_very_sure_has_a_threshold_where_it_is_best():
    """And not at the end of the histogram: here 20, which no probability in single precision tells from 1."""
    logits = torch.linspace(10, 30, 2001)[None]
    sums = step_sums(logits, logits > 20, torch.ones_like(logits, dtype=torch.bool), torch.zeros_like(logits))
    threshold = best_threshold(sums["by_distance"].sum(0))
    assert 20 <= threshold <= 20.25 and step_metrics(sums["by_distance"].sum(0), threshold)["step_f1"] > 0.98
