"""Synthetic bundles follow their theory exactly, and their files are those of the real data."""

import hashlib
import json

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.muon import truth
from accel_train.tasks.muon.synth import BLOCK, MASSES, simulate, synth, write

PROTON, IRON = MASSES[0], MASSES[-1]
DEPTHS = 10


@pytest.fixture(scope="module")
def bundles():
    """The recommended set ten times over: 400,000 rows."""
    return simulate(40_000, seed=1)


@pytest.fixture(scope="module")
def mean(bundles):
    energy, zenith, mass, depth = bundles.rows["primary"].astype(float).T
    return truth.expected_count(energy, mass, zenith, depth)


def muons(bundles):
    """Row, energy, x and y of every muon."""
    return np.repeat(np.arange(len(bundles)), bundles.counts), *bundles.flat["muons"].astype(float).T


def identical(a, b):
    np.testing.assert_array_equal(a.counts, b.counts)
    for x, y in ((a.rows, b.rows), (a.flat, b.flat)):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name], strict=True)


# -- the theory ----------------------------------------------------------------------------------------------------


def test_published_values():
    energy = np.array([1e5, 1e6, 1e7])
    assert truth.expected_count(energy, PROTON, 0.0, 1950.0) == pytest.approx([1.04, 7.13, 45.2], rel=0.01)
    assert truth.expected_count(energy, IRON, 0.0, 1950.0) == pytest.approx([0.24, 11.2, 96.1], rel=0.03)
    assert truth.threshold(0.0, np.array([1000.0, 1950.0, 2800.0])) == pytest.approx([273, 657, 1142], rel=0.01)
    assert truth.expected_count(100.0, PROTON, 0.0, 1000.0) == 0  # not even one muon could get there


@settings(max_examples=60, deadline=None)
@given(
    st.floats(3, 9), st.sampled_from(MASSES.tolist()), st.floats(0, 1.48), st.lists(st.floats(100, 4000), min_size=2)
)
def test_fewer_muons_the_deeper(log10_energy, mass, zenith, depths):
    count = truth.expected_count(10**log10_energy, mass, zenith, np.sort(depths))
    assert (np.diff(count) <= 0).all() and (count >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1.48), st.floats(100, 4000))
def test_a_muon_of_threshold_energy_just_arrives(zenith, depth):
    assert truth.energy_at(truth.threshold(zenith, depth), zenith, depth) == pytest.approx(truth.MIN_ENERGY, rel=1e-6)


def count_variance(mean):
    return mean + mean**2 / truth.K


def count_log_probability(counts, mean):
    """Natural log of the negative-binomial probability of ``counts`` given ``mean``."""
    counts, mean = np.asarray(counts, float), np.asarray(mean, float)
    ways = sum(np.log((counts + j) / j) for j in range(1, truth.K))  # log of (counts + K - 1 choose counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        muons = np.where(counts == 0, 0.0, counts * np.log(mean / (truth.K + mean)))
    return ways - truth.K * np.log1p(mean / truth.K) + muons


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 40))
def test_the_count_law_is_a_distribution_with_its_moments(mean):
    n = np.arange(2000)
    p = np.exp(count_log_probability(n, mean))
    assert p.sum() == pytest.approx(1) and p[0] == pytest.approx(truth.p_zero(mean))
    assert p @ n == pytest.approx(mean, abs=1e-9)
    assert p @ (n - mean) ** 2 == pytest.approx(count_variance(mean), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(4, 9), st.sampled_from(MASSES.tolist()), st.floats(0, 1.2), st.integers(0, 2**32))
def test_surface_energies_invert_the_yield(log10_energy, mass, zenith, seed):
    energy, u = 10**log10_energy, np.random.default_rng(seed).random(50)
    here = truth.expected_count(energy, mass, zenith, 1000.0)
    if here == 0:
        return
    found = truth.surface_energies(u, energy, mass, zenith, 1000.0)
    # a depth whose threshold is the energy found: the mean there must be u of the mean here
    inside = (found + truth.LOSS_A / truth.LOSS_B) / (truth.MIN_ENERGY + truth.LOSS_A / truth.LOSS_B)
    vertical = np.log(inside) / truth.LOSS_B * np.cos(zenith)
    depth = 1000 * ((vertical - truth.FIRN_KM * truth.FIRN_DENSITY) / truth.ICE_DENSITY + truth.FIRN_KM)
    assert truth.expected_count(energy, mass, zenith, depth) == pytest.approx(u * here, rel=1e-6, abs=1e-9 * here)


# -- the simulation follows it -------------------------------------------------------------------------------------


def test_shapes_and_types(bundles):
    rows, total = len(bundles), bundles.counts.sum()
    assert rows == 40_000 * DEPTHS and bundles.counts.dtype == np.int64
    kinds = {name: (values.dtype, values.shape) for name, values in (bundles.rows | bundles.flat).items()}
    assert kinds == {
        "primary": (np.float32, (rows, 4)), "major": (np.uint64, (rows,)), "minor": (np.uint64, (rows,)),
        "muons": (np.float32, (total, 3)),
    }  # fmt: skip
    np.testing.assert_array_equal(bundles.rows["major"], np.repeat(np.arange(40_000), DEPTHS))
    np.testing.assert_array_equal(bundles.rows["minor"], bundles.rows["major"])
    np.testing.assert_allclose(bundles.rows["primary"][:DEPTHS, 3], 1000 + 200 * np.arange(DEPTHS))


def test_primaries_follow_the_recipe(bundles):
    energy, zenith, mass, _ = bundles.rows["primary"][::DEPTHS].astype(float).T
    lowest = np.cos(np.radians(85)) ** 2
    assert flatness((np.cos(zenith) ** 2 - lowest) / (1 - lowest)) < 2
    assert flatness((energy**-0.7 - 1e4**-0.7) / (1e7**-0.7 - 1e4**-0.7)) < 2
    share = np.array([np.mean(mass == np.float32(m)) for m in MASSES])
    assert share == pytest.approx(np.array([10, 5, 3, 2, 1]) / 21, abs=0.01)


def flatness(u):
    """Kolmogorov-Smirnov distance from uniform on [0, 1], times sqrt(n): above 2 with probability 0.0007."""
    return np.abs(np.sort(u) - (np.arange(len(u)) + 0.5) / len(u)).max() * np.sqrt(len(u))


@pytest.mark.parametrize("decade", [4, 5, 6])
def test_counts_are_negative_binomial_at_every_depth(bundles, mean, decade):
    """Each depth alone, so that rows are independent: mean, variance and zeros within four standard errors."""
    log10_energy = np.log10(bundles.rows["primary"][:, 0])
    wanted = ((log10_energy >= decade) & (log10_energy < decade + 1)).reshape(-1, DEPTHS)[:, 0]
    counts, expected = bundles.counts.reshape(-1, DEPTHS)[wanted], mean.reshape(-1, DEPTHS)[wanted]
    empty = truth.p_zero(expected)
    for error in (
        (counts - expected) / np.sqrt(count_variance(expected).mean(0)),
        ((counts == 0) - empty) / np.sqrt((empty * (1 - empty)).mean(0)),
    ):
        assert (np.abs(error.mean(0)) * np.sqrt(len(counts)) < 4).all()
    square = (counts - expected) ** 2 - count_variance(expected)
    assert (np.abs(square.mean(0)) < 4 * square.std(0) / np.sqrt(len(counts))).all()


def test_a_deep_count_has_the_probabilities_of_the_law():
    """Not the moments alone: the share of rows with n muons, over a mixture of known means."""
    bundles = simulate(20_000, seed=2, depths=(1.0, 2.5), log10_energy=(6, 6.01))
    deep = bundles.take(np.arange(1, len(bundles), 2))
    energy, zenith, mass, depth = deep.rows["primary"].astype(float).T
    mean = truth.expected_count(energy, mass, zenith, depth)
    for n in (0, 1, 2, 5, 10):
        p = np.exp(count_log_probability(n, mean))
        assert abs((deep.counts == n).mean() - p.mean()) < 4 * np.sqrt((p * (1 - p)).mean() / len(deep)), n


def test_the_recommended_set_has_its_known_figures(bundles, mean):
    """Those of a set of 4000 showers, each within three standard deviations (over seeds) of such sets."""
    _row, energy, x, y = muons(bundles)
    counts, logs = bundles.counts, np.log10(bundles.counts + 1)
    assert counts.sum() / 10 == pytest.approx(44_681, abs=3 * 3259)
    assert counts.mean() == pytest.approx(1.12, abs=3 * 0.08)
    assert (counts == 0).mean() == pytest.approx(0.756, abs=3 * 0.0054)
    assert np.corrcoef(np.log(energy), np.log(np.hypot(x, y)))[0, 1] == pytest.approx(-0.48, abs=3 * 0.0075)
    assert logs.var() == pytest.approx(0.081, abs=3 * 0.0038)
    assert np.mean((logs - np.log10(mean + 1)) ** 2) == pytest.approx(0.0196, abs=3 * 0.0005)
    by_shower = logs.reshape(-1, DEPTHS)
    assert np.corrcoef(by_shower[:, :-1].ravel(), by_shower[:, 1:].ravel())[0, 1] == pytest.approx(0.957, abs=0.006)
    log10_energy = np.log10(bundles.rows["primary"][:, 0])
    for decade, fano, spread in ((4, 2, 0.24), (5, 10, 2.4), (6, 59, 29)):
        inside = counts[(log10_energy >= decade) & (log10_energy < decade + 1)]
        assert inside.var() / inside.mean() == pytest.approx(fano, abs=spread)


def test_muons_that_get_deep_were_there_before(bundles):
    """At every depth a muon keeps x and y and its place in the order, loses energy, and is never below 1 GeV."""
    part = bundles.take(np.arange(1000 * DEPTHS))
    row, energy, x, y = muons(part)
    assert energy.min() >= truth.MIN_ENERGY
    shower = np.stack([row // DEPTHS, x, y], 1)
    level = row % DEPTHS
    for depth in range(1, DEPTHS):
        above, here = level == depth - 1, level == depth
        places = {tuple(key): (i, e) for i, (key, e) in enumerate(zip(shower[above], energy[above], strict=True))}
        found = [places[tuple(key)] for key in shower[here]]  # a KeyError is a muon from nowhere
        assert (np.diff([i for i, _ in found]) > 0).all()
        assert (energy[here] < [e for _, e in found]).all()


def test_muons_lie_isotropically_around_the_axis_at_the_measured_distance(bundles):
    """Azimuth flat; mean radii near the vertical, of bundles, as measured under water (BMSS) to about a fifth."""
    row, _, x, y = muons(bundles)
    primary = bundles.rows["primary"]
    top = primary[row, 3] == 1000  # deeper rows hold the same muons again
    azimuth = np.arctan2(x, y)
    assert flatness(azimuth[top] / (2 * np.pi) + 0.5) < 2
    for depth, low, high in ((1600, 15, 18), (2000, 11, 13), (2600, 9, 10)):
        wanted = (primary[row, 3] == depth) & (primary[row, 1] < 0.35) & (bundles.counts[row] > 1)
        assert 0.8 * low < np.hypot(x, y)[wanted].mean() < 1.2 * high


def test_transverse_momenta_are_gamma_distributed(bundles):
    """From what is stored: back to the surface energy, and from the radius to the momentum in units of its scale."""
    row, energy, x, y = muons(bundles)
    _, zenith, _, depth = bundles.rows["primary"][row].astype(float).T
    rest = truth.LOSS_A / truth.LOSS_B
    surface = (energy + rest) * np.exp(truth.LOSS_B * truth.slant(zenith, depth)) - rest
    t = (np.hypot(x, y) * np.cos(zenith) / 40_000 * surface / 0.17)[depth == 1000]
    assert flatness(1 - (1 + t) * np.exp(-t)) < 2


def test_gamma_one_is_uniform_in_log_energy():
    energy = simulate(5000, seed=0, gamma=1.0, depths=(2.0,)).rows["primary"][:, 0].astype(float)
    assert flatness((np.log10(energy) - 4) / 3) < 2


# -- a function of the seed ----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2 * BLOCK + 3), st.integers(1, 2 * BLOCK + 3), st.integers(-5, 2**63))
def test_a_shower_depends_on_its_number_alone(few, many, seed):
    few, many = sorted((few, many))
    recipe = {"depths": (1.0, 2.0)}
    identical(simulate(few, seed, **recipe), simulate(many, seed, **recipe).take(np.arange(2 * few)))


def test_another_seed_is_another_set():
    assert not np.isin(simulate(300, seed=0).rows["primary"][:, 0], simulate(300, seed=1).rows["primary"][:, 0]).any()


def test_an_outlier_is_one_huge_shower():
    bundles = simulate(600, seed=0, outlier=300)
    np.testing.assert_allclose(bundles.rows["primary"][300 * DEPTHS, :3], [1e9, 0.0, IRON], rtol=1e-6)
    assert bundles.counts.argmax() == 300 * DEPTHS and bundles.counts.max() > 5000
    identical(bundles.take(np.arange(256 * DEPTHS)), simulate(256, seed=0))


# -- the files -----------------------------------------------------------------------------------------------------


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


LAYOUTS = {
    "list": (pa.list_(pa.float32()), pa.list_(pa.list_(pa.float32()))),
    "large_list": (pa.large_list(pa.float32()), pa.large_list(pa.large_list(pa.float32()))),
    "fixed": (pa.list_(pa.float32(), 4), pa.list_(pa.list_(pa.float32(), 3))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parquet_holds_the_simulation(tmp_path, layout):
    about = write(tmp_path, 5, primaries=601, layout=layout, files=3, row_group=700, outlier=7)
    paths = sorted(tmp_path.glob("*.parquet"))
    assert [path.name for path in paths] == about["files"] == [f"bundles-0000{i}.parquet" for i in range(3)]
    primary, nested = LAYOUTS[layout]
    ids = [("primary_major_id", pa.uint64()), ("primary_minor_id", pa.uint64())]
    for path in paths:
        assert pq.read_schema(path).equals(pa.schema([*ids, ("primary", primary), ("muons", nested)]))
        footer = pq.read_metadata(path)
        rows = [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]
        assert set(rows[:-1]) == {700} and 0 < rows[-1] <= 700

    tables = [pq.read_table(path) for path in paths]
    assert [len(table) for table in tables] == [2000, 2000, 2010]
    showers = [set(table["primary_major_id"].to_pylist()) for table in tables]
    assert set.union(*showers) == set(range(601)) and sum(map(len, showers)) == 601  # none crosses a file
    table, expected = pa.concat_tables(tables), simulate(601, 5, outlier=7)
    for name, column in (("major", "primary_major_id"), ("minor", "primary_minor_id")):
        np.testing.assert_array_equal(table[column].to_numpy(), expected.rows[name])
    np.testing.assert_array_equal(np.array(table["primary"].to_pylist(), np.float32), expected.rows["primary"])
    rows = table["muons"].to_pylist()
    np.testing.assert_array_equal([len(row) for row in rows], expected.counts)
    np.testing.assert_array_equal(np.array([m for row in rows for m in row], np.float32), expected.flat["muons"])


def test_hdf5_holds_the_simulation_and_its_empty_rows(tmp_path):
    about = write(tmp_path, 5, primaries=301, layout="hdf5", files=2, row_group=100)
    assert about["files"] == ["bundles-00000.h5", "bundles-00001.h5"]
    expected, start = simulate(301, 5), 0
    for name in about["files"]:
        with h5py.File(tmp_path / name) as file:
            primaries, flat, counts = (file[key][:] for key in ("primaries", "muons", "counts"))
        assert (primaries.dtype, flat.dtype, counts.dtype) == (np.float32, np.float32, np.int32)
        here = expected.take(np.arange(start, start := start + len(counts)))
        np.testing.assert_array_equal(counts, here.counts)
        assert len(flat) == counts.sum() and (counts == 0).mean() > 0.5
        np.testing.assert_array_equal(primaries[:, 2:], here.rows["primary"])
        np.testing.assert_array_equal(flat[:, 2:], here.flat["muons"])
        for column, key in enumerate(("major", "minor")):
            np.testing.assert_array_equal(primaries[:, column], here.rows[key])
            np.testing.assert_array_equal(flat[:, column], np.repeat(here.rows[key], counts))
    assert start == len(expected)


@pytest.mark.parametrize("layout", [*LAYOUTS, "hdf5"])
def test_same_seed_same_bytes(tmp_path, layout):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write(tmp_path / name, seed, primaries=40, layout=layout, files=2)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert len(a) == 3 and a == b
    assert not set(a.values()) & set(c.values())


def test_metadata_has_the_seed_the_recipe_and_every_constant(tmp_path):
    about = write(tmp_path, 9, primaries=30, gamma=2.0, log10_energy=(4, 8), depths=np.linspace(1.0, 2.8, 3))
    assert json.loads((tmp_path / "metadata.json").read_text()) == json.loads(json.dumps(about))
    assert about["seed"] == 9 and about["rows"] == 90 and about["primaries"] == 30
    assert about["recipe"] == {"depths": (1.0, 1.9, 2.8), "log10_energy": (4, 8), "gamma": 2.0, "outlier": None}
    assert about["primary"][2] == "mass_GeV_per_c2" and about["constants"]["masses"] == MASSES.tolist()
    assert about["constants"].items() >= {"loss_a": 250.0, "k": 6, "prompt_scale": 2.8e-5, "pt_scale": 0.17}.items()
    bundles = simulate(30, 9, gamma=2.0, log10_energy=(4, 8), depths=(1.0, 1.9, 2.8))
    assert about["muons"] == bundles.counts.sum() and about["most_muons"] == bundles.counts.max()
    assert about["rows_without_muons"] == (bundles.counts == 0).sum()


def test_metadata_has_the_truth_of_each_depth(tmp_path):
    about = write(tmp_path, 9, primaries=600, files=3, depths=(1.0, 2.0), log10_energy=(5.0, 6.5))
    energy, zenith, mass, depth = simulate(600, 9, depths=(1.0, 2.0), log10_energy=(5.0, 6.5)).rows["primary"].T
    mean = truth.expected_count(energy, mass, zenith, depth)
    for i, km in enumerate(about["truth"]["depths_km"]):
        here = depth == 1000 * km
        assert about["truth"]["muons_per_row"][i] == pytest.approx(mean[here].mean(), rel=1e-12)
        assert about["truth"]["share_of_rows_without_muons"][i] == pytest.approx(truth.p_zero(mean[here]).mean())


def test_a_set_is_never_mixed_with_another_nor_seen_half(tmp_path, monkeypatch):
    write(tmp_path / "a", 0, primaries=3)
    with pytest.raises(UserError, match="there is bundles-00000.parquet in .*/a already; give an empty or new folder"):
        write(tmp_path / "a", 0, primaries=3)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "b", 0, primaries=3)
    assert list((tmp_path / "b").glob("bundles-*")) == [] and not (tmp_path / "b" / "metadata.json").exists()


@pytest.mark.parametrize(
    "options, word",
    [({"primaries": 0}, "primaries"), ({"files": 11}, "files"), ({"files": 0}, "files"), ({"depths": ()}, "depths"),
     ({"depths": (1000.0,)}, "depths"), ({"log10_energy": (7, 4)}, "log10_energy"), ({"outlier": 10}, "outlier"),
     ({"layout": "csv"}, "layout"), ({"layout": "hdf5", "primaries": 2**24 + 1}, "HDF5"),
     ({"row_group": 0}, "row_group")],
)  # fmt: skip
def test_bad_arguments_are_refused_by_name(tmp_path, options, word):
    with pytest.raises(UserError, match=word):
        write(tmp_path, 0, **{"primaries": 10} | options)
    assert list(tmp_path.iterdir()) == []


def test_synth_says_what_it_wrote_and_how_to_train_on_it(tmp_path):
    folder = tmp_path / "my set"
    text = synth(folder, seed=2, size=50)
    assert "4 files, 50 showers at 10 depths" in text and "500 rows" in text and "of the rows have none" in text
    assert f"--task.init_args.files='{folder}/*.parquet'" in text
    assert sum(pq.read_metadata(path).num_rows for path in folder.glob("*.parquet")) == 500
    assert "1 files, 1 showers" in synth(tmp_path / "one", size=1)
    with pytest.raises(UserError, match="primaries"):
        synth(tmp_path / "none", size=0)
