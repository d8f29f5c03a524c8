"""Known answers of every distance, features of single bundles, sums for any cut, and whole reports."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.tasks.muon import distances, metrics, observables
from accel_train.tasks.muon.distances import auc, classifier_auc, fpd, kpd, ks, w1, w1_histograms
from accel_train.tasks.muon.metrics import IN_CELLS, Sample, compare, correlation, report, table
from accel_train.tasks.muon.observables import AXES, Cells, muon_sums, set_features
from accel_train.tasks.muon.showers import units

numbers = st.floats(-100, 100, allow_nan=False, width=32)
samples = st.lists(numbers, min_size=1, max_size=40).map(lambda values: np.array(values, np.float64))


# -- one dimension ---------------------------------------------------------------------------------------------------


@given(samples, numbers)
def test_w1_of_a_shifted_sample_is_the_shift(a, shift):
    assert w1(a, a + shift) == pytest.approx(abs(shift), abs=1e-9)


@given(samples, samples)
def test_w1_matches_entries_in_order(a, b):
    """Both repeated to one size, the best transport pairs the ordered entries."""
    size = math.lcm(len(a), len(b))
    paired = np.abs(np.sort(np.repeat(a, size // len(a))) - np.sort(np.repeat(b, size // len(b)))).mean()
    assert w1(a, b) == pytest.approx(paired, abs=1e-9)
    assert w1(a, b) == pytest.approx(w1(b, a), abs=1e-9)


@given(samples, samples, st.integers(1, 50))
def test_histograms_cost_at_most_a_bin_width(a, b, bins):
    edges = np.linspace(-100, 100, bins + 1)
    binned = w1_histograms(np.histogram(a, edges)[0], np.histogram(b, edges)[0], edges)
    assert abs(binned - w1(a, b)) <= 200 / bins + 1e-9


def test_ks():
    assert ks(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])) == pytest.approx(0.25)
    assert ks(np.array([0, 1]), np.array([2, 3])) == 1
    assert ks(np.arange(5), np.arange(5)) == 0


def test_nothing_to_compare_is_nan():
    empty, rows = np.zeros(0), np.zeros((1, 8))
    assert all(math.isnan(d(empty, np.ones(3))) and math.isnan(d(np.ones(3), empty)) for d in (w1, ks))
    assert math.isnan(w1_histograms(np.zeros(3), np.ones(3), np.arange(4)))
    for pair in ((rows, rows), (rows[:0], rows[:0]), (rows, rows[:0]), (rows[:0], rows)):
        assert all(map(math.isnan, (*fpd(*pair), *kpd(*pair), classifier_auc(*pair))))


# -- several dimensions ----------------------------------------------------------------------------------------------


def gaussians(seed, n=4000, d=8):
    return np.random.default_rng(seed).normal(size=(2, n, d))


def test_frechet_distance_of_gaussians():
    real, fake = gaussians(0)
    fake[:, 0] += 0.5  # 0.25
    fake[:, 1] *= 1.5  # (1.5 - 1)^2 = 0.25
    fake[:, 2] = 0.6 * fake[:, 3] + 0.8 * fake[:, 2]  # correlation c: 2 * 2 - 2 (sqrt(1 + c) + sqrt(1 - c))
    exact = 0.5 + 4 - 2 * (math.sqrt(1.6) + math.sqrt(0.4))
    assert fpd(real, fake)[0] == pytest.approx(exact, rel=0.08)
    scales = 10.0 ** np.arange(-4, 4)
    assert fpd(real * scales + 5, fake * scales + 5)[0] == pytest.approx(fpd(real, fake)[0], rel=1e-6)  # no units


def test_frechet_distance_has_no_bias_at_finite_size():
    found = np.array([fpd(*gaussians(seed, 1000)) for seed in range(40)])
    raw = distances._frechet(*gaussians(0, 1000))
    error = found[:, 0].std(ddof=1) / math.sqrt(40)
    assert abs(found[:, 0].mean()) < 4 * error < raw / 3
    assert 0.3 < found[:, 1].mean() / found[:, 0].std(ddof=1) < 3  # the error it claims


def test_kernel_distance_is_unbiased():
    found = np.array([kpd(*gaussians(seed, 1000, 4))[0] for seed in range(40)])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(len(found))
    real, fake = gaussians(0, 4000, 4)
    value, error = kpd(real, fake + 1)
    assert value > 5 * error


def test_kernel_distance_against_the_sums_it_stands_for():
    a, b = gaussians(1, 5, 3)

    def k(x, y):
        return (x @ y / 3 + 1) ** 4

    others = [sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20 for x in (a, b)]
    sides = [(x, names, np.zeros(5, int)) for x, names in zip((a, b), distances._singly(a, b), strict=True)]
    pairs = ((0, 0), (1, 1), (0, 1))
    sums = np.stack([distances._kernel(sides[i], sides[j], 1) for i, j in pairs], 1)
    assert distances._mmd(sums) == pytest.approx(sum(others) - 2 * np.mean([k(x, y) for x in a for y in b]))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=15), st.lists(st.integers(0, 4), min_size=1, max_size=15))
def test_auc_counts_pairs(low, high):
    pairs = [(h > lo) + (h == lo) / 2 for h in high for lo in low]
    assert auc(np.array(low), np.array(high)) == pytest.approx(np.mean(pairs))


def test_classifier():
    real, fake = gaussians(0)
    equal = classifier_auc(real, fake, 1)
    assert equal == pytest.approx(0.5, abs=0.04)
    assert classifier_auc(real, fake, 1) == equal
    assert classifier_auc(real, fake + 2, 1) > 0.99
    fake[:, 0] = np.sign(fake[:, 0])  # same mean, same variance
    assert classifier_auc(real, fake, 1) > 0.9


def test_rows_of_one_group_stay_on_one_side():
    """Groups of equal rows: who has seen one of them knows the others."""
    real, fake = (np.repeat(x, 40, axis=0) for x in gaussians(3, 50, 4))
    groups = (np.repeat(np.arange(50), 40), np.repeat(np.arange(50, 100) + 0.5, 40))
    assert classifier_auc(real, fake, 0) > 0.9
    assert classifier_auc(real, fake, 0, groups) < 0.75


def test_distances_of_grouped_rows_have_no_bias():
    """Groups of 20 rows that are nearly alike: cut row by row, the distance of 60 of them is far from zero."""
    found = []
    for seed in range(15):
        real, fake = (np.repeat(x, 20, axis=0) for x in gaussians(seed, 60, 4))
        real, fake = (x + np.random.default_rng(seed).normal(0, 0.2, x.shape) for x in (real, fake))
        groups = (np.repeat(np.arange(60), 20), np.repeat(np.arange(60, 120), 20))
        found.append([fpd(real, fake, 0, groups)[0], kpd(real, fake, 0, groups)[0], fpd(real, fake)[0]])
    found = np.array(found)
    error = found.std(0, ddof=1) / math.sqrt(len(found))
    assert (abs(found.mean(0)) / error)[:2].max() < 4
    assert found[:, 2].mean() > 10 * error[2]


def test_distances_disturb_nobody():
    state, threads, legacy = torch.get_rng_state(), torch.get_num_threads(), np.random.get_state()[1].copy()
    real, fake = gaussians(0, 200)
    fpd(real, fake), kpd(real, fake)
    with torch.no_grad():
        classifier_auc(real, fake)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert (np.random.get_state()[1] == legacy).all()


# -- one bundle ------------------------------------------------------------------------------------------------------

muon = st.tuples(st.floats(1, 1e6), st.floats(-500, 500), st.floats(-500, 500))
bundles = st.lists(st.lists(muon, max_size=6), max_size=6)


def tensors(events):
    flat = torch.tensor([m for event in events for m in event], dtype=torch.float64).reshape(-1, 3)
    return torch.tensor([len(event) for event in events], dtype=torch.int64), *flat.T


@given(bundles)
def test_features_of_each_bundle(events):
    found = set_features(*tensors(events)).numpy()
    assert found.shape == (len(events), 8) and found.dtype == np.float64
    for event, row in zip(events, found, strict=True):
        if not event:
            assert not row.any()
            continue
        e, x, y = np.array(event).T
        r = np.hypot(x, y)
        expected = [np.log10(len(e) + 1), np.log10(e.sum()), np.log10(e.max()), e.max() / e.sum(), r.mean()]
        expected += [np.sqrt((r**2).mean()), (e * r).sum() / e.sum(), np.log10(np.median(e))]
        assert row == pytest.approx(expected)


@given(bundles, st.randoms(use_true_random=False))
def test_the_order_of_muons_does_not_matter(events, random):
    mixed = [random.sample(event, len(event)) for event in events]
    assert torch.allclose(set_features(*tensors(events)), set_features(*tensors(mixed)), rtol=1e-12, atol=1e-9)


def test_no_events_and_no_muons():
    assert set_features(*tensors([])).shape == (0, 8)
    assert not set_features(*tensors([[], []])).any()


def test_what_is_not_finite_stays_visible():
    found = set_features(*tensors([[(1e3, 1, 1)], [(math.nan, 1, 1)], [(1e3, math.inf, 1)]]))
    assert found.isfinite().all(1).tolist() == [True, False, False]


# -- cells and sums --------------------------------------------------------------------------------------------------


def thrown(seed, events=3000, mean_scale=1.0, conditions=None):
    """(conditions, counts, energy, x, y) of bundles whose number and energy follow the energy of the primary."""
    g = np.random.default_rng(seed)
    if conditions is None:
        energy = 10 ** g.uniform(4, 7, events)
        zenith, mass = np.arccos(g.uniform(0.1, 1, events)), g.choice([0.938, 13.04, 52.1], events)
        conditions = np.stack([energy, zenith, mass, g.choice([1000.0, 2000.0, 2800.0], events)], 1)
    counts = g.poisson(mean_scale * 0.3 * (conditions[:, 0] / 1e4) ** 0.5)
    primary = np.repeat(conditions[:, 0], counts)
    energy = 10 ** g.normal(1 + 0.2 * np.log10(primary), 0.4)
    r, phi = g.exponential(500 / energy**0.5), g.uniform(0, 2 * np.pi, len(energy))
    return conditions, counts, energy, r * np.sin(phi), r * np.cos(phi)


def sample(cells, conditions, counts, *flat):
    n, muons = torch.from_numpy(counts), [torch.from_numpy(values) for values in flat]
    sums = muon_sums(cells, torch.from_numpy(conditions), torch.from_numpy(units(conditions)), n, *muons)
    return Sample(conditions, counts, set_features(n, *muons).numpy(), {k: v.numpy() for k, v in sums.items()})


def test_cells_share_out_the_events():
    conditions = thrown(0)[0]
    cells = Cells.of(conditions)
    assert cells.names[:3] == ("E4-5", "E5-6", "E6-7")
    assert cells.names[cells.of_axis("mass")] == ("mass0.938", "mass13", "mass52.1")
    assert cells.names[cells.of_axis("depth")] == ("depth1000", "depth2000", "depth2800")
    index = cells.index(torch.from_numpy(conditions)).numpy()
    for i, axis in enumerate(AXES):
        cut = cells.of_axis(axis)
        assert index[:, i].min() == cut.start and index[:, i].max() == cut.stop - 1
    decade = np.floor(np.log10(conditions[:, 0])) - 4
    assert (index[:, 0] == decade).all()
    quarters = np.bincount(index[:, AXES.index("cos")])[cells.of_axis("cos")]
    assert (abs(quarters - 750) <= 1).all()


energies = st.floats(1e2, 1e10)
near = st.floats(1000, 1000.01) | st.floats(1000, 3000)


@settings(deadline=None)
@given(st.lists(st.tuples(energies, st.floats(0, 1.5), st.floats(0.9, 60), near), min_size=1, max_size=30))
def test_cells_of_whatever_conditions(rows):
    conditions = np.array(rows)
    cells = Cells.of(conditions)
    assert len(set(cells.names)) == len(cells.names) == sum(len(inner) + 1 for inner in cells.inner)
    index = cells.index(torch.from_numpy(conditions))
    for i, axis in enumerate(AXES):
        cut = cells.of_axis(axis)
        assert ((index[:, i] >= cut.start) & (index[:, i] < cut.stop)).all()


def test_sums_do_not_depend_on_the_cut():
    conditions, counts, *flat = thrown(1)
    cells = Cells.of(conditions)
    whole = sample(cells, conditions, counts, *flat).muons
    for cut in (1, 1234, 3000):
        at = counts[:cut].sum()
        parts = [
            sample(cells, conditions[a], counts[a], *(values[b] for values in flat)).muons
            for a, b in ((slice(cut), slice(at)), (slice(cut, None), slice(at, None)))
        ]
        for name, values in whole.items():
            assert np.allclose(parts[0][name] + parts[1][name], values, rtol=1e-12)
    for values in (whole["energy"], whole["radius"], whole["azimuth"], whole["moments"][:, :1]):
        for axis in AXES:
            assert values[cells.of_axis(axis)].sum() == counts.sum()


def test_muons_outside_the_edges_are_in_the_outermost_bins():
    conditions = np.array([[1e5, 0.5, 1.0, 1500.0]])
    flat = np.array([[0.0, 1e20, math.nan, 1e3], [0, 1e9, math.inf, 3], [0, 0, 0, 4]])
    muons = sample(Cells.of(conditions), conditions, np.array([4]), *flat).muons
    assert muons["energy"][0, 0] == 1 and muons["energy"][0, -1] == 2
    assert muons["radius"][0, 0] == 1 and muons["radius"][0, -1] == 2 and muons["radius"][0, 20] == 1
    assert muons["moments"][0, 0] == 3 and np.isfinite(muons["moments"]).all()  # one is not finite
    assert muons["azimuth"].sum(1).tolist() == [4] * 4


# -- numbers of a sample ---------------------------------------------------------------------------------------------


def test_count_numbers():
    g = np.random.default_rng(0)
    poisson = metrics.count_numbers(g.poisson(3, 200_000))
    assert poisson["fano"] == pytest.approx(1, abs=0.02)
    assert poisson["mean_n"] == pytest.approx(3, rel=0.01)
    assert poisson["p_zero"] == pytest.approx(math.exp(-3), abs=0.002)
    negative_binomial = metrics.count_numbers(g.poisson(3 * g.gamma(6, 1 / 6, 200_000)))
    assert negative_binomial["fano"] == pytest.approx(1 + 3 / 6, abs=0.03)
    assert negative_binomial["p_zero"] == pytest.approx((1 + 3 / 6) ** -6, abs=0.003)
    assert metrics.count_numbers(np.arange(1001))["q999"] == 999
    assert metrics.count_numbers(np.zeros(5, int))["p_zero"] == 1
    assert all(map(math.isnan, metrics.count_numbers(np.zeros(0, int)).values()))


def test_correlation():
    u = np.random.default_rng(0).normal(2, 0.5, 1000)
    v = 1 - 0.4 * u + np.random.default_rng(1).normal(0, 0.3, 1000)
    moments = np.array([s.sum() for s in (np.ones(1000), u, v, u * u, v * v, u * v)])
    assert metrics.correlation(moments) == pytest.approx(np.corrcoef(u, v)[0, 1])
    assert math.isnan(metrics.correlation(np.zeros(6)))
    assert math.isnan(metrics.correlation(np.array([1.0, 2, 3, 4, 9, 6])))
    assert math.isnan(metrics.correlation(np.array([2.0, 4, 6, 8, 18, 12])))  # twice the same muon


def test_azimuth_flatness():
    g, bins = np.random.default_rng(0), len(observables.AZIMUTH_EDGES) - 1
    found = [metrics.azimuth_flatness(g.multinomial(5000, np.full(bins, 1 / bins))) for _ in range(200)]
    amplitudes, expected = np.array(found).T
    assert amplitudes.mean() == pytest.approx(expected[0], rel=0.1)
    phi = (observables.AZIMUTH_EDGES[1:] + observables.AZIMUTH_EDGES[:-1]) / 2
    assert metrics.azimuth_flatness(1 + 0.3 * np.cos(2 * phi - 1))[0] == pytest.approx(0.3)
    assert all(map(math.isnan, metrics.azimuth_flatness(np.zeros(bins))))


# -- reports ---------------------------------------------------------------------------------------------------------


def test_equal_samples_are_at_their_floor_and_others_are_not():
    conditions, *truth = thrown(0)
    cells = Cells.of(conditions)
    order = np.random.default_rng(0).permutation(len(conditions))
    _, *blind = thrown(1, conditions=conditions[order])
    real, floor = sample(cells, conditions, *truth), sample(cells, *thrown(2))
    good = sample(cells, *thrown(3, conditions=conditions))
    shuffled = sample(cells, conditions, *blind)

    found = report(real, good, shuffled, compare(real, floor, cells), cells)
    plain = [name for name in found if not name.endswith(("/floor", "/shuffled"))]
    assert set(found) == {f"{name}{suffix}" for name in plain for suffix in ("", "/floor", "/shuffled")}
    assert all(math.isfinite(value) for value in found.values())
    assert all(f"{name}/{cell}" in found for name in IN_CELLS for cell in cells.names)
    assert abs(found["mean_n"]) < 0.05 and abs(found["p_zero"]) < 0.02 and abs(found["fano"]) < 0.1
    assert found["auc"] < 0.55 and found["fpd"] < 0.1 and found["not_finite"] == 0
    # inclusive distributions do not see that the conditions were shuffled, all else does
    assert found["w1_energy/shuffled"] < 0.05 and abs(found["mean_n/shuffled"]) < 0.05
    assert found["auc/shuffled"] > 0.75 and found["fpd/shuffled"] > 10 * found["fpd"]
    assert found["kpd/shuffled"] > abs(found["kpd"])
    assert found["mean_n/E4-5/shuffled"] > 1 and found["mean_n/E6-7/shuffled"] < -0.3
    assert found["w1_energy/E6-7/shuffled"] > 3 * found["w1_energy/E6-7"]

    text = table(found)
    assert all(f"\n{name} " in text for name in (*cells.names, "auc", "fpd", "w1_radius"))
    assert report(real, good, shuffled, compare(real, floor, cells), cells) == found

    strata = zip(real.strata(cells), good.strata(cells), strict=True)
    ratios = {name: made.counts.mean() / true.counts.mean() for (name, true), (_, made) in strata}
    assert list(ratios) == ["", *cells.names]
    for name, ratio in ratios.items():
        assert found[f"mean_n/{name}" if name else "mean_n"] == pytest.approx(ratio - 1)

    wrong = compare(real, sample(cells, *thrown(3, mean_scale=1.3, conditions=conditions)), cells)
    assert wrong["mean_n"] == pytest.approx(0.3, abs=0.05)
    assert all(wrong[f"mean_n/{name}"] > 0.2 for name in cells.names)


def test_events_of_a_shower_at_several_depths_are_one_group():
    conditions, *_ = thrown(0, 100)
    conditions = np.repeat(conditions, 10, axis=0)
    real = sample(Cells.of(conditions), *thrown(1, conditions=conditions))
    features, shower = metrics._bundles(real)
    assert len(features) == (real.counts > 0).sum() and len(np.unique(shower)) <= 100


def degenerate():
    conditions, counts, *flat = thrown(0, 300)
    cells = Cells.of(conditions)
    nothing = sample(cells, conditions, 0 * counts, *(values[:0] for values in flat))
    broken = [values.copy() for values in flat]
    broken[0][:] = math.nan
    one, two = (np.where(np.arange(300) == 7, n, 0) for n in (1, 2))
    return cells, {
        "truth": sample(cells, conditions, counts, *flat),
        "nothing": nothing,
        "not finite": sample(cells, conditions, counts, *broken),
        "one muon": sample(cells, conditions, one, *(values[:1] for values in flat)),
        "two muons": sample(cells, conditions, two, *(values[:2] for values in flat)),
        "two alike": sample(cells, conditions, two, *(values[[0, 0]] for values in flat)),
        "one event": sample(cells, conditions[:1], counts[:1], *(values[: counts[0]] for values in flat)),
        "no event": sample(cells, conditions[:0], counts[:0], *(values[:0] for values in flat)),
    }


def test_degenerate_samples_are_compared_without_a_murmur():
    cells, cases = degenerate()
    for fake in cases.values():
        table(report(cases["truth"], fake, fake, compare(cases["truth"], fake, cells), cells))
        compare(fake, cases["truth"], cells)
    nothing = compare(cases["truth"], cases["nothing"], cells)
    assert nothing["mean_n"] == -1 and math.isnan(nothing["w1_energy"]) and math.isnan(nothing["auc"])
    assert compare(cases["truth"], cases["not finite"], cells)["not_finite"] > 0.3


# -- figures ---------------------------------------------------------------------------------------------------------


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    from accel_train.tasks.muon.figures import figures

    cells, cases = degenerate()
    drawn = figures(cases["truth"], cases["truth"], cells)
    assert list(drawn) == ["distributions", "multiplicity", "correlation", "azimuth"]
    labels = drawn["multiplicity"].axes[0].get_legend_handles_labels()[1]
    assert sorted(labels) == ["generated", "truth"]
    for name, figure in drawn.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=40)
    for case in ("nothing", "not finite", "one muon", "one event"):
        for figure in figures(cases["truth"], cases[case], cells).values():
            figure.canvas.draw()
    for case in ("nothing", "two muons", "two alike"):
        for figure in figures(cases[case], cases[case], cells).values():
            figure.canvas.draw()


def test_a_correlation_is_never_beyond_one():
    """Two muons lie on a line; rounding must not make it more, nor a correlation of what does not vary."""
    rng = np.random.default_rng(0)
    for u, v in rng.normal(size=(2000, 2, 2)):
        moments = np.array([2, u.sum(), v.sum(), u @ u, v @ v, u @ v])
        assert abs(correlation(moments)) <= 1
        assert math.isnan(correlation(np.array([2, 2 * u[0], v.sum(), 2 * u[0] ** 2, v @ v, u[0] * v.sum()])))
