"""Numbers over time steps, from histograms of logits: every threshold at once, any cut of the data the same.

Histograms are kept apart by what might mislead. By distance to the onset of the label: are false positives early
warnings, or anywhere? In shots without a disruption: has the model learned what the end of a file looks like? By the
place of the onset in the window: has it learned the place?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from accel_train.errors import UserError
from accel_train.intervals import bootstrap
from accel_train.sums import BinaryScores

EDGES = np.concatenate([np.arange(-64, -16, 0.25), np.arange(-16, 16, 1 / 64), np.arange(16, 64.25, 0.25)])
"""Logits: 1/64 wide, and wider for a network that is very sure. Zero, where the probability is a half, is one."""
CENTRES = torch.from_numpy((EDGES[1:] + EDGES[:-1]) / 2)
BEFORE_ONSET_MS = (0, 10, 30, 100, 300, 1000, 3000)
DISTANCES = (
    *("clear", "from_onset"),
    *("0-10ms", "10-30ms", "30-100ms", "100-300ms", "300-1000ms", "1000-3000ms", "over_3000ms"),
)
POSITIONS = ("0-20%", "20-40%", "40-60%", "60-80%", "80-100%")
RELIABILITY_EDGES = np.arange(-9.0, 10.0)  # of bins of the corrected logit; what is outside is in the first or last one


def to_onset_ms(onset_ms: Tensor, dt_ms: Tensor, outputs: int) -> Tensor:
    """From each step to the onset of the label, float64 [B, outputs], by that of output 0 and the time between outputs,
    [B] each."""
    return onset_ms[:, None] - dt_ms[:, None] * torch.arange(outputs, device=dt_ms.device)


def step_sums(logits: Tensor, target: Tensor, counts: Tensor, to_onset_ms: Tensor) -> dict[str, Tensor]:
    """Sums over windows (or whole shots), for ``eval_step``.

    Args:
        logits: [B, V], any floating dtype.
        target: bool [B, V].
        counts: bool [B, V], whether the step counts; the others are left out.
        to_onset_ms: [B, V], from the step to the onset of the label, in ms: negative after it, NaN in clear shots.

    Returns:
        ``by_distance`` int64 [len(DISTANCES), 2, bins + 1], whose sum over axis 0 is that of all steps.
        ``by_position`` int64 [len(POSITIONS), 2, bins + 1], of the windows in which a counted step is positive.
    """
    before = torch.tensor(BEFORE_ONSET_MS, dtype=torch.float64, device=logits.device)
    distance = 1 + torch.bucketize(to_onset_ms.double().contiguous(), before, right=True)
    distance = distance.masked_fill(to_onset_ms.isnan(), 0)
    positive = target & counts
    onset = positive.long().argmax(1, keepdim=True)
    position = (onset * len(POSITIONS) // target.shape[1]).expand_as(target)
    placed = counts & positive.any(1, keepdim=True)
    return {
        "by_distance": _sums(logits, target, counts, distance, len(DISTANCES)),
        "by_position": _sums(logits, target, placed, position, len(POSITIONS)),
    }


def _sums(logits: Tensor, target: Tensor, which: Tensor, group: Tensor, groups: int) -> Tensor:
    return BinaryScores.sums(logits[which], target[which], EDGES, by=(group[which], groups))


def best_threshold(steps: Tensor) -> float:
    """The logit of the best F1, an edge; NaN without positive steps. For validation data only.

    Args:
        steps: [2, bins + 1].
    """
    return BinaryScores(steps, EDGES).best_threshold()


def step_metrics(steps: Tensor, threshold: float, shift: float = 0.0) -> dict[str, float]:
    """Metrics over steps; NaN where there is nothing to count.

    ``step_f1``, ``step_precision``, ``step_recall``, ``step_fpr`` at the threshold; ``step_auc`` and ``step_pr_auc``
    (average precision) of all; ``brier`` of the corrected probabilities and ``brier_skill``, one minus its ratio to
    that of the positive share for every step.

    Args:
        steps: [2, bins + 1], added-up histograms.
        threshold: a logit; an edge that was chosen on validation data.
        shift: of the logits, by ``prior_shift``.
    """
    scores = BinaryScores(steps, EDGES)
    at, share = scores.at(threshold), positive_share(steps)
    score, constant = brier(steps, shift), share * (1 - share)
    return {
        "step_f1": at.f_score(),
        "step_precision": at.precision,
        "step_recall": at.recall,
        "step_fpr": at.false_positive_rate,
        "step_auc": scores.auc,
        "step_pr_auc": scores.average_precision,
        "brier": score,
        "brier_skill": 1 - score / constant if constant else math.nan,
    }


def step_intervals(
    by_shot: Tensor, threshold: float, shift: float, seed: int, resamples: int = 1000
) -> dict[str, float]:
    """``step_metrics`` of all shots and, as ``NAME/low`` and ``NAME/high``, the ends of their intervals over shots.

    Args:
        by_shot: [shots, 2, bins + 1].
    """
    whole = {"steps": by_shot}
    return with_intervals(lambda sums: step_metrics(sums["steps"], threshold, shift), whole, seed, resamples)


def with_intervals(
    metrics: Callable[[dict[str, Tensor]], Mapping[str, float]], sums: Mapping[str, Tensor], seed: int, resamples: int
) -> dict[str, float]:
    """Metrics of sums over shots and, as ``NAME/low`` and ``NAME/high``, the ends of their 95 % intervals.

    Args:
        sums: by name [shots, ...].
    """
    found = dict(metrics({name: value.sum(0) for name, value in sums.items()}))
    for name, interval in bootstrap(metrics, sums, seed, resamples).items():
        found |= {f"{name}/low": interval.low, f"{name}/high": interval.high}
    return found


def diagnostics(by_distance: Tensor | None, by_position: Tensor, threshold: float) -> dict[str, float]:
    """``step_fpr/D``: false positive rate by distance to the onset, and in clear shots; ``step_f1/onset_P``: F1 of the
    windows with the onset at this place.

    Args:
        by_distance, by_position: as ``step_sums``, added up. None where nobody knows of which shots the windows are.
    """
    groups = [] if by_distance is None else zip(DISTANCES, by_distance, strict=True)
    false = {name: BinaryScores(total, EDGES).at(threshold).false_positive_rate for name, total in groups}
    f1 = [BinaryScores(total, EDGES).at(threshold).f_score() for total in by_position]
    found = {f"step_fpr/{name}": rate for name, rate in false.items() if name != "from_onset"}
    return found | {f"step_f1/onset_{name}": value for name, value in zip(POSITIONS, f1, strict=True)}


# -- probabilities ---------------------------------------------------------------------------------------------------


def positive_share(steps: Tensor) -> float:
    """The share of positive steps, of [2, bins + 1]; NaN without steps."""
    negative, positive = steps.double().sum(1).tolist()
    return positive / (negative + positive) if negative + positive else math.nan


def prior_shift(share: float, trained_share: float = 0.5) -> float:
    """What to add to a logit that was trained with another share of positive steps (Saerens et al., Neural Comput. 14,
    21, 2002): the difference of the log odds.

    Args:
        share: of positive steps where the probability is to hold, between 0 and 1, such as that of the training split.
        trained_share: in the loss; a half with balanced classes.

    Raises:
        UserError: a share of 0 or 1, which no logit expresses.
    """
    if not (0 < share < 1 and 0 < trained_share < 1):
        raise UserError(f"prior: the positive shares {share:g}, trained {trained_share:g}, must be between 0 and 1")
    return math.log(share / (1 - share)) - math.log(trained_share / (1 - trained_share))


def brier(steps: Tensor, shift: float = 0.0) -> float:
    """Mean of (probability - target)^2 (Brier, Mon. Weather Rev. 78, 1, 1950), of [2, bins + 1]; NaN without steps.

    Logits are taken at the middle of their bin, which moves the mean by less than 0.0024, and by far less where they
    are spread over many bins.
    """
    if steps[:, -1].any():
        return math.nan
    probability, count = torch.sigmoid(CENTRES + shift), steps[:, :-1].double()
    squares = count[0] @ probability.square() + count[1] @ (1 - probability).square()
    return float(squares / count.sum()) if count.any() else math.nan


def reliability(by_shot: Tensor, shift: float, seed: int, resamples: int = 1000) -> dict[str, np.ndarray]:
    """How often what was predicted came true, in bins of the corrected logit.

    Args:
        by_shot: [shots, 2, bins + 1].

    Returns:
        float64 [bins]: ``predicted``, the mean probability; ``observed``, the share of positive steps, with the ends of
        its interval over shots, ``low`` and ``high``; ``steps``, how many. Bins without steps are left out.
    """
    width = len(RELIABILITY_EDGES) - 1
    which = torch.from_numpy(np.digitize(CENTRES.numpy() + shift, RELIABILITY_EDGES[1:-1]))
    parts = by_shot.double().new_zeros(len(by_shot), 2, width).index_add(2, which, by_shot[..., :-1].double())
    count = parts.sum((0, 1))
    mass = by_shot[..., :-1].double().sum((0, 1)) * torch.sigmoid(CENTRES + shift)
    predicted = mass.new_zeros(width).index_add(0, which, mass) / count
    observed = parts.sum(0)[1] / count

    def shares(sums: dict[str, Tensor]) -> dict[str, float]:
        negative, positive = sums["parts"]
        return {str(i): share for i, share in enumerate((positive / (negative + positive)).tolist())}

    found = bootstrap(shares, {"parts": parts}, seed, resamples)
    kept = (count > 0).numpy()
    low, high = (np.array([found[str(i)][end] for i in range(width)])[kept] for end in (0, 1))
    return {
        "predicted": predicted.numpy()[kept],
        "observed": observed.numpy()[kept],
        "low": low,
        "high": high,
        "steps": count.numpy()[kept],
    }
