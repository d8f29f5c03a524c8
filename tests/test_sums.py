"""Statistics from sums are those of all items at once, however these were cut, and leave nothing out in silence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.sums import BinaryScores, Confusion, Correlation, Histogram, Moments

EDGES = np.linspace(-3, 3, 25)
INFINITE = math.inf


@st.composite
def scored(draw, both: bool = True, most: int = 60):
    """Scores, some of them equal or outside the edges, and whether each item is positive."""
    n = draw(st.integers(2, most))
    scores = draw(st.lists(st.floats(-4, 4, width=32), min_size=n, max_size=n))
    positive = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    if both:
        positive[:2] = [False, True]
    return torch.tensor(scores), torch.tensor(positive)


def cut(draw_cuts: list[int], *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The items in batches, some of them empty."""
    places = sorted(each % (len(tensors[0]) + 1) for each in draw_cuts)
    return list(zip(*(torch.tensor_split(tensor, places) for tensor in tensors), strict=True))


CUTS = st.lists(st.integers(0, 100), max_size=6)


# -- any cut gives the same --------------------------------------------------------------------------------------------


@given(scored(both=False), CUTS, st.booleans())
def test_counts_of_any_cut_are_the_same(items, cuts, grouped):
    scores, positive = items
    group = torch.arange(len(scores)) % 3

    def by(g):
        return (g, 3) if grouped else None

    ways = (
        lambda s, p, g: Histogram.sums(s, EDGES, by(g)),
        lambda s, p, g: BinaryScores.sums(s, p, EDGES, by(g)),
        lambda s, p, g: Confusion.sums(s > 0, p, by(g)),
    )
    for sums in ways:
        whole = sums(scores, positive, group)
        assert whole.dtype == torch.int64
        assert torch.equal(sum(sums(*part) for part in cut(cuts, scores, positive, group)), whole)


@given(scored(both=False), st.integers(0, 3))
def test_a_group_has_the_sums_of_its_items(items, groups):
    scores, positive = items
    group = torch.arange(len(scores)) % (groups + 1)
    by = (group, groups + 2)  # the last one is empty
    found = [
        Histogram.sums(scores, EDGES, by), BinaryScores.sums(scores, positive, EDGES, by),
        Confusion.sums(scores > 0, positive, by), Moments.sums(scores, by), Correlation.sums(scores, scores**2, by),
    ]  # fmt: skip
    for i in range(groups + 2):
        s, p = scores[group == i], positive[group == i]
        alone = [
            Histogram.sums(s, EDGES), BinaryScores.sums(s, p, EDGES), Confusion.sums(s > 0, p), Moments.sums(s),
            Correlation.sums(s, s**2),
        ]  # fmt: skip
        for one, all_groups in zip(alone, found, strict=True):
            torch.testing.assert_close(all_groups[i], one)


@given(st.integers(0, 40), CUTS, st.integers(0, 10))
def test_moments_of_any_cut_are_the_same_but_for_rounding(n, cuts, seed):
    random = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, 3, generator=random) * 5 + 2
    for sums in (lambda x, y: Moments.sums(x), Correlation.sums):
        whole = sums(x, y)
        assert whole.dtype == torch.float64
        torch.testing.assert_close(sum(sums(*part) for part in cut(cuts, x, y)), whole, rtol=1e-13, atol=1e-12)


# -- moments and correlation -------------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy():
    x = np.random.default_rng(0).normal(40, 3, (500, 2, 3)).astype(np.float32)
    found = Moments(Moments.sums(torch.from_numpy(x)))
    assert found.count.tolist() == [[500] * 3] * 2
    np.testing.assert_allclose(found.mean, x.mean(0, dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(found.variance, x.astype(np.float64).var(0), rtol=1e-11)


def test_the_variance_of_a_constant_is_zero_and_rounding_is_as_documented():
    constant = torch.full((1000, 1), 0.1, dtype=torch.float64)
    assert Moments(Moments.sums(constant)).variance.item() == 0
    x = torch.from_numpy(np.random.default_rng(0).normal(1000, 1, 10_000))
    near = Moments(Moments.sums(x - 1000))
    assert near.mean.item() + 1000 == pytest.approx(x.mean().item(), rel=1e-14)
    assert near.variance.item() == pytest.approx(x.var(correction=0).item(), rel=1e-12)
    assert Moments(Moments.sums(x)).variance.item() == pytest.approx(near.variance.item(), rel=1e-9)


def test_pearson_is_that_of_numpy():
    random = np.random.default_rng(1)
    x = random.normal(2, 0.5, (300, 4))
    y = x * np.array([1.0, -0.3, 0.0, 1e-3]) + random.normal(0, 0.3, (300, 4))
    found = Correlation(Correlation.sums(torch.from_numpy(x), torch.from_numpy(y)))
    np.testing.assert_allclose(found.pearson, np.corrcoef(x.T, y.T)[:4, 4:].diagonal(), rtol=1e-10)
    assert found.undefined == 0


def test_a_column_that_does_not_vary_has_no_correlation_and_is_counted():
    x, y = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1], y[:, 2] = 0.1, 0.0
    found = Correlation(Correlation.sums(x, y))
    assert found.pearson.isnan().tolist() == [False, True, True, False] and found.undefined == 2
    assert Correlation(Correlation.sums(x[:1], y[:1])).undefined == 4
    assert Correlation(Correlation.sums(x[:0], y[:0])).undefined == 4
    x[3, 0] = math.nan
    assert Correlation(Correlation.sums(x, y)).undefined == 3


@given(st.integers(2, 200), st.floats(-1000, 1000))
def test_a_constant_is_one_whatever_rounding_makes_of_it(n, value):
    constant, varies = torch.full((n,), value, dtype=torch.float64), torch.arange(n)
    for x, y in ((constant, varies), (varies, constant)):
        assert Correlation(Correlation.sums(x, y)).undefined == 1
    assert Moments(Moments.sums(constant)).variance.item() == 0


@given(st.integers(0, 1000))
def test_pearson_from_sums_is_bitwise_the_textbook_formula(seed):
    """So that the muon task, which had it in numpy, has the same numbers."""
    moments = np.random.default_rng(seed).normal(size=(20, 2)) @ np.random.default_rng(seed + 1).normal(size=(2, 2))
    sums = Correlation.sums(*torch.from_numpy(moments).unbind(1)).numpy()
    _, u, v, uu, vv, uv = sums / sums[0]
    expected = np.clip((uv - u * v) / math.sqrt((uu - u * u) * (vv - v * v)), -1, 1)
    assert Correlation(torch.from_numpy(sums)).pearson.item() == expected


# -- histograms --------------------------------------------------------------------------------------------------------


@given(scored(), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_a_quantile_is_within_half_a_bin(items, q):
    values = items[0].clamp(-3, 3)
    found = Histogram(Histogram.sums(values, EDGES), EDGES)
    exact = np.quantile(values.double().numpy(), q, method="inverted_cdf")
    assert abs(found.quantile(q) - exact) <= 0.125 + 1e-12
    np.testing.assert_array_equal(found.counts, np.histogram(values.double().numpy(), EDGES)[0])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.sampled_from([0.01, 0.25, 0.5, 0.99, 1.0]))
def test_a_quantile_of_whole_numbers_is_exact(values, q):
    """And that which the Collatz task read off its own histogram: the number of bins that hold less than a share q."""
    edges = torch.arange(42) - 0.5
    found = Histogram(Histogram.sums(torch.tensor(values), edges), edges)
    counts = np.bincount(np.minimum(values, 40), minlength=41)
    assert found.quantile(q) == (counts.cumsum() < q * len(values)).sum()
    assert found.quantile(1.0) == min(max(values), 40)


def test_what_is_outside_the_edges_is_in_the_end_bins():
    values = torch.tensor([-INFINITE, -9, 0.5, 1, 1.5, 2, 9, INFINITE])
    assert Histogram.sums(values, [0, 1, 2]).tolist() == [3, 5, 0]


def test_nan_is_counted_and_makes_every_metric_nan():
    scores, positive = torch.tensor([0.5, math.nan, 1.5, 0.1]), torch.tensor([False, True, True, False])
    histogram = Histogram.sums(scores, [0, 1, 2])
    assert histogram.tolist() == [2, 1, 1]
    assert math.isnan(Histogram(histogram, [0, 1, 2]).quantile(0.5))
    found = BinaryScores(BinaryScores.sums(scores, positive, [0, 1, 2]), [0, 1, 2])
    numbers = [found.auc, *found.auc_range, found.average_precision, *found.average_precision_range]
    numbers += [found.best_threshold(), found.threshold_at_false_positive_rate(0.1), found.at(1).accuracy]
    assert all(map(math.isnan, numbers))


# -- scores of two classes ---------------------------------------------------------------------------------------------


def rank_auc(scores, positive) -> float:
    """The share of pairs in the right order (Mann and Whitney), ties one half."""
    return float((np.sign(scores[positive][:, None] - scores[~positive]) / 2 + 0.5).mean())


def exact_average_precision(scores, positive) -> float:
    """The sum over distinct thresholds of precision times the gain in recall."""
    thresholds = np.unique(scores)[::-1]
    chosen = [scores >= threshold for threshold in thresholds]
    precision = np.array([positive[yes].mean() for yes in chosen])
    recall = np.array([positive[yes].sum() for yes in chosen]) / positive.sum()
    return float(precision @ np.diff(recall, prepend=0))


@given(scored())
def test_areas_are_those_of_the_bins(items):
    scores, positive = items
    found = BinaryScores(BinaryScores.sums(scores, positive, EDGES), EDGES)
    bins, true = np.digitize(scores.double().numpy(), EDGES[1:-1]), positive.numpy()
    assert found.auc == pytest.approx(rank_auc(bins, true))
    assert found.average_precision == pytest.approx(exact_average_precision(bins, true))


@given(st.integers(0, 1000), st.integers(1, 30))
def test_binning_costs_no_more_than_it_says(seed, bins):
    random = np.random.default_rng(seed)
    positive = np.arange(40) % 4 == 0
    scores = random.normal(size=40) + positive
    edges = np.linspace(-2, 3, bins + 1)
    found = BinaryScores(BinaryScores.sums(torch.from_numpy(scores), torch.from_numpy(positive), edges), edges)
    low, high = found.auc_range
    assert low - 1e-12 <= rank_auc(scores, positive) <= high + 1e-12
    low, high = found.average_precision_range
    assert low - 1e-12 <= exact_average_precision(scores, positive) <= high + 1e-12
    for way in (-1, 1):  # each end is reached: one of the two orders within the bins
        worst = np.digitize(scores, edges[1:-1]) + 0.4 * way * positive + 1e-3 * random.random(40)
        assert exact_average_precision(worst, positive) == pytest.approx(found.average_precision_range[way > 0])
        assert rank_auc(worst, positive) == pytest.approx(found.auc_range[way > 0])


@given(scored(), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_best_threshold_is_the_best_of_all_edges(items, beta):
    scores, positive = items
    found = BinaryScores(BinaryScores.sums(scores, positive, EDGES), EDGES)
    best = found.best_threshold(beta)
    every = [Confusion(Confusion.sums(scores >= t, positive)) for t in (-INFINITE, *EDGES[1:-1], INFINITE)]
    chosen = Confusion(Confusion.sums(scores >= best, positive))
    assert torch.equal(found.at(best).total, chosen.total)
    assert chosen.f_score(beta) == max(each.f_score(beta) for each in every)


@given(scored(), st.sampled_from([0.0, 0.05, 0.29, 1.0]))
def test_the_threshold_at_a_false_positive_rate_is_the_lowest(items, rate):
    scores, positive = items
    found = BinaryScores(BinaryScores.sums(scores, positive, EDGES), EDGES)
    threshold = found.threshold_at_false_positive_rate(rate)
    rates = {t: (scores >= t)[~positive].double().mean().item() for t in (-INFINITE, *EDGES[1:-1], INFINITE)}
    assert threshold == min(t for t, each in rates.items() if each <= rate)
    assert found.at(threshold).false_positive_rate == rates[threshold]


def test_a_false_positive_rate_is_not_missed_by_rounding():
    found = BinaryScores(torch.tensor([[71, 29, 0], [0, 1, 0]]), [0, 1, 2])
    assert found.threshold_at_false_positive_rate(0.29) == 1  # 0.29 * 100 is less than 29


def test_the_middle_of_a_gap_separates_two_classes():
    scores, positive = torch.tensor([-2.0, -1.9, 1.9, 2.0]), torch.tensor([False, False, True, True])
    found = BinaryScores(BinaryScores.sums(scores, positive, EDGES), EDGES)
    assert found.best_threshold() == pytest.approx(0, abs=0.25)
    assert (found.auc, found.average_precision) == (1, 1) and found.auc_range == (1, 1)


@pytest.mark.parametrize("positive", [True, False])
def test_one_class_alone_has_no_ranking(positive):
    scores = torch.tensor([0.0, 1.0])
    found = BinaryScores(BinaryScores.sums(scores, torch.full((2,), positive), EDGES), EDGES)
    assert math.isnan(found.auc)
    assert math.isnan(found.average_precision) == (not positive)
    assert math.isnan(found.best_threshold()) == (not positive)
    assert math.isnan(found.threshold_at_false_positive_rate(0.5)) == positive


def test_nothing_has_no_metrics():
    none = torch.zeros(0)
    found = BinaryScores(BinaryScores.sums(none, none.bool(), EDGES), EDGES)
    assert math.isnan(found.auc) and math.isnan(found.average_precision) and math.isnan(found.best_threshold())
    assert math.isnan(Histogram(Histogram.sums(none, EDGES), EDGES).quantile(0.5))
    assert Moments(Moments.sums(none)).mean.isnan() and math.isnan(Confusion(Confusion.sums(*[none.bool()] * 2)).mcc)


# -- confusion ---------------------------------------------------------------------------------------------------------


@given(scored(), st.sampled_from([0.5, 1.0, 2.0]))
def test_confusion_is_that_of_its_definitions(items, beta):
    predicted, true = items[0] >= 0, items[1]
    predicted[:2] = torch.tensor([True, True])
    found = Confusion(Confusion.sums(predicted, true))
    p, t = predicted.double().numpy(), true.double().numpy()
    precision, recall = t[p == 1].mean(), p[t == 1].mean()
    assert (found.accuracy, found.precision) == (pytest.approx((p == t).mean()), pytest.approx(precision))
    assert (found.recall, found.false_positive_rate) == (pytest.approx(recall), pytest.approx(p[t == 0].mean()))
    assert found.balanced_accuracy == pytest.approx((recall + 1 - p[t == 0].mean()) / 2)
    assert found.f_score(beta) == pytest.approx((1 + beta**2) / (1 / precision + beta**2 / recall) if recall else 0)
    if p.all():
        assert math.isnan(found.mcc)
    else:
        assert found.mcc == pytest.approx(np.corrcoef(p, t)[0, 1])


def test_a_prediction_that_is_never_positive_has_no_precision():
    found = Confusion(Confusion.sums(torch.tensor([False, False]), torch.tensor([True, False])))
    assert math.isnan(found.precision) and math.isnan(found.mcc)
    assert (found.recall, found.f_score(), found.balanced_accuracy, found.accuracy) == (0, 0, 0.5, 0.5)


# -- devices -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sums_on_a_gpu_are_those_on_the_cpu():
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, 3, generator=random)
    group = torch.arange(1000) % 7

    def found(x, y, group):
        by, yes = (group, 7), y > 0
        with torch.autocast(x.device.type, torch.bfloat16):
            return [
                Moments.sums(x), Moments.sums(x, by), Correlation.sums(x, y), Correlation.sums(x, y, by),
                Histogram.sums(x, EDGES), Histogram.sums(x, EDGES, by), Confusion.sums(x > 0, yes, by),
                BinaryScores.sums(x, yes, EDGES), BinaryScores.sums(x, yes, EDGES, by),
            ]  # fmt: skip

    for cpu, gpu in zip(found(x, y, group), found(x.cuda(), y.cuda(), group.cuda()), strict=True):
        assert gpu.is_cuda and gpu.dtype == cpu.dtype
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-12, atol=1e-10)


# -- mistakes ----------------------------------------------------------------------------------------------------------

X = torch.tensor([0.5, 1.5])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Histogram.sums(X, [0.0]), "at least two finite numbers"),
        (lambda: Histogram.sums(X, [0.0, 0.0]), "each larger than the last"),
        (lambda: Histogram.sums(X, [0.0, math.inf]), "finite"),
        (lambda: Histogram.sums(X, [0, 1], (torch.tensor([0, 2]), 2)), "2 groups, numbered from 0"),
        (lambda: Histogram.sums(X, [0, 1], (torch.tensor([0]), 2)), "each of the 2 items its group"),
        (lambda: Moments.sums(X, (torch.tensor([[0, 1]]), 2)), "each of the 2 items its group"),
        (lambda: Histogram(Histogram.sums(X, [0, 1]), [0, 1]).quantile(2), "q=2 must be between 0 and 1"),
        (lambda: BinaryScores.sums(X, torch.tensor([0, 1]), [0, 1]), "positive has dtype torch.int64; give bool"),
        (lambda: BinaryScores.sums(X, torch.tensor([True]), [0, 1]), "has shape"),
        (lambda: Confusion.sums(X, X > 0), "predicted has dtype"),
        (lambda: Confusion.sums(X > 0, X), "true has dtype"),
        (lambda: BinaryScores(BinaryScores.sums(X, X > 1, [0, 1, 2]), [0, 1, 2]).at(0.5), "0.5 is not one of"),
        (lambda: Correlation.sums(X, X[:1]), "must have the same shape"),
        (lambda: Histogram(torch.zeros(3), [0, 1]), r"a total of shape \(3,\), expected \(2,\)"),
        (lambda: BinaryScores(torch.zeros(5, 2, 3), [0, 1, 2]), r"\(5, 2, 3\), expected \(2, 3\).*add them up"),
        (lambda: Confusion(torch.zeros(4)), r"expected \(2, 2\)"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(call, says):
    with pytest.raises(UserError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
