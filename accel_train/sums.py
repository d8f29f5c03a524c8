"""Statistics that are sums over items, for ``Task.eval_step`` and ``Task.eval_metrics``.

Each class is used twice. ``X.sums(...)`` of one batch is a tensor that may be added over batches and ranks, on the
device of its arguments. ``X(total, ...)`` reads the metrics from what has been added up. Counts are exact, so that
metrics made of them are the same for any cut into batches; moments are summed in float64 and differ by rounding.

Axis 0 of what is given is the item. ``by``, which every ``sums`` takes, is (int64 [items], the group of each item; the
number of groups): the sums are then those of each group, with one more axis in front. With a group for each
independent unit, such as a shot or a subject, they are what ``accel_train.intervals.bootstrap`` takes.

Nothing is left out in silence: a NaN among the items makes every metric of them NaN, and what has no value, such as
the precision of a prediction that is never positive, is NaN, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accel_train.errors import UserError

By = tuple[Tensor, int] | None
Edges = Tensor | np.ndarray | Sequence[float]

ROUNDING = 1e-12
"""A variance that is less than this part of the mean square cannot be told from the rounding of the sums."""


@dataclass(frozen=True)
class Moments:
    """Count, mean and variance of each column.

    The variance is E[x^2] - E[x]^2 in float64, of which a part 2e-16 (mean / std)^2 is rounding. Where the mean is a
    thousand standard deviations away from zero or more, sum ``x - c`` with a constant c near the mean, the same for all
    items, and add c to the mean.

    Args:
        total: float64 [..., 3], added-up ``sums``.
    """

    total: Tensor

    @staticmethod
    def sums(x: Tensor, by: By = None) -> Tensor:
        """float64 ``[*columns, 3]``, by group ``[groups, *columns, 3]``: sums over the items of 1, x, x^2.

        Args:
            x: ``[items, *columns]``, any real dtype.
        """
        x = x.double()
        return _add((torch.ones_like(x), x, x * x), by)

    @property
    def count(self) -> Tensor:
        """float64 [...], number of items."""
        return self.total[..., 0]

    @property
    def mean(self) -> Tensor:
        """float64 [...], in the unit of x; NaN without items."""
        return self.total[..., 1] / self.count

    @property
    def variance(self) -> Tensor:
        """float64 [...], divided by the number of items; 0 for a column that is constant as far as sums can tell."""
        square = self.total[..., 2] / self.count
        variance = square - self.mean * self.mean
        return variance.masked_fill(variance <= ROUNDING * square, 0.0)


@dataclass(frozen=True)
class Correlation:
    """Pearson's coefficient of x and y in each column.

    It does not change if a constant is subtracted from a column; do so, with the same constants for all items, where
    the mean is a thousand standard deviations away from zero or more (see ``Moments``).

    Args:
        total: float64 [..., 6], added-up ``sums``.
    """

    total: Tensor

    @staticmethod
    def sums(x: Tensor, y: Tensor, by: By = None) -> Tensor:
        """float64 ``[*columns, 6]``, by group ``[groups, *columns, 6]``: sums over the items of 1, x, y, x^2, y^2, x y.

        Args:
            x, y: ``[items, *columns]``, any real dtype.

        Raises:
            UserError: shapes that differ.
        """
        if x.shape != y.shape:
            raise UserError(f"Correlation.sums: x {tuple(x.shape)} and y {tuple(y.shape)} must have the same shape")
        x, y = x.double(), y.double()
        return _add((torch.ones_like(x), x, y, x * x, y * y, x * y), by)

    @property
    def pearson(self) -> Tensor:
        """float64 [...] in [-1, 1]; NaN for fewer than 2 items, or where x or y is constant as far as sums can tell."""
        x, y, xx, yy, xy = (self.total[..., 1:] / self.total[..., :1]).unbind(-1)
        of_x, of_y = xx - x * x, yy - y * y
        varies = (of_x > ROUNDING * xx) & (of_y > ROUNDING * yy) & (self.total[..., 0] >= 2)
        return ((xy - x * y) / (of_x * of_y).sqrt()).clip(-1, 1).masked_fill(~varies, math.nan)

    @property
    def undefined(self) -> int:
        """In how many columns the coefficient is NaN, so that a mean over the others can say how many it leaves out."""
        return int(self.pearson.isnan().sum())


@dataclass(frozen=True)
class Histogram:
    """How many values lie in each bin between declared edges.

    Bin i holds edges[i] <= value < edges[i + 1]. What is outside the edges is counted in the first or the last bin.

    Args:
        total: [bins + 1], added-up ``sums``.
        edges: the same as for ``sums``.
    """

    total: Tensor
    edges: Edges

    def __post_init__(self) -> None:
        _check_total(self, self.total, len(self.edges))

    @staticmethod
    def sums(values: Tensor, edges: Edges, by: By = None) -> Tensor:
        """int64 [bins + 1], by group [groups, bins + 1]: values in each bin and, in the last place, those that are NaN.

        Args:
            values: [items, ...], any real dtype; all values of an item count.
            edges: [bins + 1], increasing.

        Raises:
            UserError: edges that are no edges, or a group that is not one of ``groups``.
        """
        edges = _edges(edges)
        return _count(_bins(values, edges), len(edges), by)

    @property
    def counts(self) -> Tensor:
        """[bins]: what is in each bin."""
        return self.total[:-1]

    def quantile(self, q: float) -> float:
        """The middle of the bin that holds the smallest value which at least a share q of the values do not exceed.

        Wrong by half the width of this bin at most, unless it is the first or the last one; exact for whole numbers in
        bins of width 1 around them. NaN without values, or with one that is NaN.

        Raises:
            UserError: q is not in [0, 1].
        """
        if not 0 <= q <= 1:
            raise UserError(f"Histogram.quantile: q={q} must be between 0 and 1")
        total = float(self.counts.sum())
        if self.total[-1] or not total:
            return math.nan
        i = int((self.counts.cumsum(0) < max(q * total, 1)).sum())
        edges = _edges(self.edges)
        return float(edges[i] + edges[i + 1]) / 2


@dataclass(frozen=True)
class Confusion:
    """How often a yes or no was predicted and true.

    Args:
        total: [2, 2], added-up ``sums``.
    """

    total: Tensor

    def __post_init__(self) -> None:
        _check_total(self, self.total, 2, 2)

    @staticmethod
    def sums(predicted: Tensor, true: Tensor, by: By = None) -> Tensor:
        """int64 [2, 2], by group [groups, 2, 2]: counts by truth (row: no, yes) and prediction (column: no, yes).

        Args:
            predicted, true: bool [items, ...].

        Raises:
            UserError: not bool, shapes that differ, or a group that is not one of ``groups``.
        """
        _check_bool("Confusion.sums: predicted", predicted, true)
        _check_bool("Confusion.sums: true", true, predicted)
        return _count(2 * true + predicted.long(), 4, by).unflatten(-1, (2, 2))

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return _ratio(float(self.total.diagonal().sum()), float(self.total.sum()))

    @property
    def precision(self) -> float:
        """Share of those predicted yes that are."""
        (_, fp), (_, tp) = self.total.tolist()
        return _ratio(tp, tp + fp)

    @property
    def recall(self) -> float:
        """Share of the true yes that are predicted so."""
        (_, _), (fn, tp) = self.total.tolist()
        return _ratio(tp, tp + fn)

    @property
    def false_positive_rate(self) -> float:
        """Share of the true no that are predicted yes."""
        (tn, fp), _ = self.total.tolist()
        return _ratio(fp, fp + tn)

    @property
    def balanced_accuracy(self) -> float:
        """Mean share of right predictions of the two classes."""
        return (self.recall + 1 - self.false_positive_rate) / 2

    @property
    def mcc(self) -> float:
        """Matthews' correlation coefficient (Biochim. Biophys. Acta 405, 442, 1975), that of two binary variables."""
        (tn, fp), (fn, tp) = self.total.tolist()
        return _ratio(tp * tn - fp * fn, math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    def f_score(self, beta: float = 1.0) -> float:
        """The harmonic mean of precision and recall, which counts ``beta`` times as much (van Rijsbergen, 1979)."""
        (_, fp), (fn, tp) = self.total.tolist()
        return _ratio((1 + beta**2) * tp, (1 + beta**2) * tp + beta**2 * fn + fp)


@dataclass(frozen=True)
class BinaryScores:
    """Scores of two classes, higher for the positive one, as a histogram for each.

    A threshold is an inner edge, or -inf or inf; a score is positive if it is at least as large. What depends on one
    threshold is exact. What depends on the order of all scores takes those in one bin for equal, which costs what
    ``auc_range`` and ``average_precision_range`` say. Bin logits rather than probabilities, which crowd at 0 and 1: a
    thousand bins or more cost nothing.

    Args:
        total: [2, bins + 1], added-up ``sums``.
        edges: the same as for ``sums``.
    """

    total: Tensor
    edges: Edges

    def __post_init__(self) -> None:
        _check_total(self, self.total, 2, len(self.edges))

    @staticmethod
    def sums(scores: Tensor, positive: Tensor, edges: Edges, by: By = None) -> Tensor:
        """int64 [2, bins + 1], by group [groups, 2, bins + 1]: ``Histogram.sums`` of negative and positive items.

        Args:
            scores: [items, ...], any real dtype. What is outside the edges is counted in the first or the last bin.
            positive: bool, of the same shape.
            edges: [bins + 1], increasing.

        Raises:
            UserError: not bool, shapes that differ, edges that are no edges, or a group that is not one of ``groups``.
        """
        _check_bool("BinaryScores.sums: positive", positive, scores)
        edges = _edges(edges)
        n = len(edges)
        return _count(_bins(scores, edges) + n * positive, 2 * n, by).unflatten(-1, (2, n))

    @property
    def auc(self) -> float:
        """Area under the ROC curve: the share of (positive, negative) pairs in which the positive one has the higher
        score. A pair in one bin counts one half. NaN unless there are both classes."""
        negative, positive = self._counts
        pairs = float(negative.sum() * positive.sum())
        return _ratio(float((positive * (negative.cumsum(0) - negative / 2)).sum()), pairs)

    @property
    def auc_range(self) -> tuple[float, float]:
        """What the area can be, whatever the order of the scores in each bin."""
        negative, positive = self._counts
        half = _ratio(float((negative * positive).sum()), float(negative.sum() * positive.sum())) / 2
        return self.auc - half, self.auc + half

    @property
    def average_precision(self) -> float:
        """The mean over positive items of the precision at the lower edge of their bin: scikit-learn's
        ``average_precision_score`` of the numbers of the bins. NaN without positive items."""
        positive = self._counts[1]
        fp, tp = self._from_threshold[:, :-1]
        return _ratio(float((positive * (tp / (tp + fp).clamp(min=1))).sum()), float(positive.sum()))

    @property
    def average_precision_range(self) -> tuple[float, float]:
        """What it can be if no two scores are equal: in each bin first the negative ones, or first the positive ones.

        The j-th of p positive ones after t others and f negative ones has the precision (t + j) / (t + j + f); their
        sum is p - f (digamma(t + f + p + 1) - digamma(t + f + 1)).
        """
        positive = self._counts[1]
        fp, tp = self._from_threshold
        before = tp[1:]

        def mean(f: Tensor) -> float:
            rest = f * (torch.digamma(before + f + positive + 1) - torch.digamma(before + f + 1))
            return _ratio(float((positive - rest).sum()), float(positive.sum()))

        return mean(fp[:-1]), mean(fp[1:])

    def best_threshold(self, beta: float = 1.0) -> float:
        """The threshold of the highest F score, the middle one if several have it; NaN without positive items.

        Chosen on the data that it is then applied to, it flatters; choose it on validation data, and ``at`` applies it
        to test data.

        Args:
            beta: how much more recall counts than precision.
        """
        fp, tp = self._from_threshold
        if not tp[0] > 0:
            return math.nan
        score = (1 + beta**2) * tp / (tp + fp + beta**2 * tp[0])
        best = (score == score.max()).nonzero()
        return float(self._thresholds[best[len(best) // 2]])

    def threshold_at_false_positive_rate(self, rate: float) -> float:
        """The lowest threshold at which at most a share ``rate`` of the negative items is positive; inf if only that
        of no item is low enough, NaN without negative items."""
        fp = self._from_threshold[0]
        if not fp[0] > 0:
            return math.nan
        return float(self._thresholds[int((fp / fp[0] > rate).sum())])

    def at(self, threshold: float) -> Confusion:
        """What a threshold predicts; all counts are NaN if it is NaN or a score is.

        Raises:
            UserError: it is neither an inner edge nor -inf, inf or NaN.
        """
        if math.isnan(threshold):
            return Confusion(torch.full((2, 2), math.nan, dtype=torch.float64))
        which = torch.isclose(self._thresholds, self._thresholds.new_tensor(threshold), rtol=1e-9, atol=1e-12).nonzero()
        if not len(which):
            raise UserError(f"BinaryScores.at: the threshold {threshold:g} is not one of the inner edges; declare it")
        yes = self._from_threshold[:, int(which[0])]
        return Confusion(torch.stack([self._from_threshold[:, 0] - yes, yes], 1))

    @property
    def _counts(self) -> Tensor:
        """float64 [2, bins], NaN if any score is."""
        return self.total[:, :-1].double() + (math.nan if self.total[:, -1].any() else 0.0)

    @property
    def _thresholds(self) -> Tensor:
        edges = _edges(self.edges)
        infinite = edges.new_tensor([math.inf])
        return torch.cat([-infinite, edges[1:-1], infinite])

    @property
    def _from_threshold(self) -> Tensor:
        """float64 [2, bins + 1]: how many negative and positive items have a score of at least each threshold."""
        counts = self._counts
        return torch.cat([counts.flip(1).cumsum(1).flip(1), counts.new_zeros(2, 1)], 1)


# -- parts -----------------------------------------------------------------------------------------------------------


def _add(parts: Sequence[Tensor], by: By) -> Tensor:
    """Sums of each [items, *columns] over the items, or those of a group, side by side on a last axis."""
    if by is None:
        return torch.stack([part.sum(0) for part in parts], -1)
    group, groups = _checked(by, len(parts[0]))
    return torch.stack([part.new_zeros(groups, *part.shape[1:]).index_add(0, group, part) for part in parts], -1)


def _count(cell: Tensor, cells: int, by: By) -> Tensor:
    """How often each cell comes: int64 [cells], by group [groups, cells]."""
    if by is None:
        return torch.bincount(cell.flatten(), minlength=cells)
    group, groups = _checked(by, len(cell))
    cell = cell + cells * group.view(-1, *[1] * (cell.dim() - 1))
    found = torch.bincount(cell.flatten(), minlength=groups * cells)
    if len(found) > groups * cells:
        raise UserError(f"sums: by has {groups} groups, numbered from 0, but an item of a later one")
    return found.view(groups, cells)


def _checked(by: tuple[Tensor, int], items: int) -> tuple[Tensor, int]:
    group, groups = by
    if group.shape != (items,):
        raise UserError(f"sums: by must give each of the {items} items its group, not {tuple(group.shape)}")
    return group.long(), groups


def _bins(values: Tensor, edges: Tensor) -> Tensor:
    """The bin of each value; that after the last one for NaN."""
    found = torch.bucketize(values.double().contiguous(), edges[1:-1].to(values.device), right=True)
    return found.masked_fill(values.isnan(), len(edges) - 1)


def _edges(edges: Edges) -> Tensor:
    """These edges as float64 on the CPU."""
    found = torch.as_tensor(edges, dtype=torch.float64, device="cpu")
    if found.dim() != 1 or len(found) < 2 or not found.isfinite().all() or not (found.diff() > 0).all():
        raise UserError("sums: the edges of a histogram must be at least two finite numbers, each larger than the last")
    return found


def _check_total(of: object, total: Tensor, *shape: int) -> None:
    if total.shape != shape:
        name, given = type(of).__name__, tuple(total.shape)
        raise UserError(f"{name}: a total of shape {given}, expected {shape}; take one of its groups, or add them up")


def _check_bool(name: str, values: Tensor, like: Tensor) -> None:
    if values.dtype != torch.bool:
        raise UserError(f"{name} has dtype {values.dtype}; give bool, such as values > 0.5")
    if values.shape != like.shape:
        raise UserError(f"{name} has shape {tuple(values.shape)}, what it belongs to {tuple(like.shape)}")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
