"""Every layout gives the same events; what cannot be told or used is refused, row by row where that is enough."""

import numpy as np
import pyarrow as pa
import pytest

from accel_train.data.bad import BadDataPolicy, BadRows
from accel_train.errors import DataError
from accel_train.tasks.muon.layout import MuonLayout, primaries

PRIMARY = np.array([[1e5, 0.1, 0.938, 1500], [2e6, 1.2, 52.0, 1950], [3e4, 0.5, 3.7, 2800]], np.float32)
MUONS = np.array([[500, 1, -2], [700, 3, 4], [0.5, -5, 6]], np.float32)
COUNTS = [2, 0, 1]
ID = 9.0

PRIMARY_KINDS = {
    "E,zenith,mass,depth": PRIMARY,
    "E,zenith,mass,time,depth": np.insert(PRIMARY, 3, -1, axis=1),
    "major,minor,E,zenith,mass,depth": np.insert(PRIMARY, 0, [[ID], [ID]], axis=1),
    "major,minor,E,zenith,mass,time,depth": np.insert(np.insert(PRIMARY, 3, -1, axis=1), 0, [[ID], [ID]], axis=1),
    "depth, mass, E, zenith": PRIMARY[:, [3, 2, 0, 1]],
}
MUON_KINDS = {
    "E,x,y": MUONS,
    "E,r,x,y": np.insert(MUONS, 1, np.hypot(MUONS[:, 1], MUONS[:, 2]), axis=1),
    "major,minor,E,x,y": np.insert(MUONS, 0, [[ID], [ID]], axis=1),
    "major,minor,E,x,y,time": np.insert(np.insert(MUONS, 3, -1, axis=1), 0, [[ID], [ID]], axis=1),
    "y,E,x": MUONS[:, [2, 0, 1]],
}
TOLD = ("major,minor,E,zenith,mass,depth", "depth, mass, E, zenith", "y,E,x")


def make_batch(primary=PRIMARY, muons=MUONS, counts=COUNTS, metadata=None) -> pa.RecordBatch:
    ends = np.cumsum(counts).tolist()
    nested = [muons[end - n : end].tolist() for end, n in zip(ends, counts, strict=True)]
    columns = {
        "muons": pa.array(nested, pa.list_(pa.list_(pa.float32()))),
        "primary_major_id": pa.array(range(len(primary)), pa.uint64()),
        "primary": pa.array(primary.tolist(), pa.list_(pa.float32())),
    }
    return pa.RecordBatch.from_pydict(columns, metadata=metadata)


def check(ragged) -> None:
    np.testing.assert_array_equal(ragged.rows["primary"], PRIMARY)
    np.testing.assert_array_equal(ragged.flat["muons"], MUONS)
    assert ragged.counts.tolist() == COUNTS
    assert ragged.rows["primary"].dtype == ragged.flat["muons"].dtype == np.float32


@pytest.mark.parametrize("primary", PRIMARY_KINDS)
@pytest.mark.parametrize("muons", MUON_KINDS)
def test_all_layouts_give_the_same_events(primary, muons):
    batch = make_batch(PRIMARY_KINDS[primary], MUON_KINDS[muons])
    check(MuonLayout(primary, muons).decode(batch))
    auto = MuonLayout(primary if primary in TOLD else "auto", muons if muons in TOLD else "auto")
    check(auto.decode(batch))


def test_either_order_of_columns():
    batch = make_batch()
    check(MuonLayout().decode(batch.select(["primary", "muons"])))
    check(MuonLayout().decode(batch.select(["muons", "primary"])))


def test_six_numbers_are_refused_unless_told():
    six = PRIMARY_KINDS["major,minor,E,zenith,mass,depth"]
    with pytest.raises(
        DataError, match="'primary' has 6 numbers.*set its layout, such as major,minor,E,zenith"
    ) as error:
        MuonLayout().decode(make_batch(six))
    assert not isinstance(error.value, BadRows) and "\n" not in str(error.value)
    check(MuonLayout().decode(make_batch(six, metadata={"format": "hdf5"})))
    behind = np.concatenate([PRIMARY, six[:, :2]], axis=1)
    check(MuonLayout("E,zenith,mass,depth,time,weight").decode(make_batch(behind)))


def test_a_file_may_say_its_layout():
    batch = make_batch(PRIMARY_KINDS["major,minor,E,zenith,mass,depth"], MUON_KINDS["y,E,x"])
    fields = [
        pa.field("primary", pa.list_(pa.float32()), metadata={"columns": "major,minor,E,zenith,mass,depth"}),
        pa.field("muons", pa.list_(pa.list_(pa.float32())), metadata={"columns": "y,E,x"}),
    ]
    said = pa.record_batch([batch["primary"], batch["muons"]], pa.schema(fields))
    check(MuonLayout().decode(said))
    swapped = MuonLayout(muons="x,E,y").decode(said).flat["muons"]
    assert swapped.tolist() == MUONS[:, [0, 2, 1]].tolist(), "the setting comes first"


def test_unknown_widths_and_layouts():
    with pytest.raises(DataError, match="'muons' has 7 numbers"):
        MuonLayout().decode(make_batch(muons=np.ones((3, 7), np.float32)))
    with pytest.raises(DataError, match="layout of primary: 'E,zenith,mass' must name depth once"):
        MuonLayout("E,zenith,mass")
    with pytest.raises(DataError, match="layout of muons: 'E,x,x,y' must name x once"):
        MuonLayout(muons="E,x,x,y")
    with pytest.raises(DataError, match="needs one column 'muons'; there are 'primary_major_id', 'primary'"):
        MuonLayout().decode(make_batch().select(["primary_major_id", "primary"]))


def test_no_muons_and_no_rows():
    for counts, primary in (([0, 0, 0], PRIMARY), ([], PRIMARY[:0])):
        ragged = MuonLayout().decode(make_batch(primary, MUONS[:0], counts))
        assert ragged.flat["muons"].shape == (0, 3) and ragged.rows["primary"].shape == (len(counts), 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_is_refused(value, place):
    muons = MUONS.copy()
    muons[2, place] = value
    with pytest.raises(BadRows, match="a muon is not finite: E=") as error:
        MuonLayout().decode(make_batch(muons=muons))
    assert error.value.rows.tolist() == [2]
    primary = PRIMARY.copy()
    primary[1, place + 1] = primary[0, place] = value
    with pytest.raises(BadRows, match="primary is not finite: E=") as error:
        MuonLayout().decode(make_batch(primary))
    assert error.value.rows.tolist() == [0, 1]


def test_infinities_of_both_signs_and_sums_that_overflow():
    muons = MUONS.copy()
    muons[0, 1], muons[1, 1] = np.inf, -np.inf
    with pytest.raises(BadRows) as error:
        MuonLayout().decode(make_batch(muons=muons))
    assert error.value.rows.tolist() == [0]
    muons[:] = 3e38
    np.testing.assert_array_equal(MuonLayout().decode(make_batch(muons=muons)).flat["muons"], muons)


def test_energies_and_masses_have_a_logarithm():
    for place in (0, 2):
        for value in (0.0, -1.0):
            primary = PRIMARY.copy()
            primary[1, place] = value
            with pytest.raises(BadRows, match="positive energy and mass") as error:
                MuonLayout().decode(make_batch(primary))
            assert error.value.rows.tolist() == [1]
    muons = MUONS.copy()
    muons[1, 0] = -1
    with pytest.raises(BadRows, match="a muon is of negative energy: E=-1, x=3, y=4") as error:
        MuonLayout().decode(make_batch(muons=muons))
    assert error.value.rows.tolist() == [0]


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (1, 57.0, "has a zenith outside of 0 to pi rad .one in degrees is called zenith_deg."),
        (1, -0.1, "has a zenith outside of 0 to pi rad"),
        (2, 5626.0, "has a mass in GeV that no nucleus has"),
        (3, 1.95, "has a depth below 20 m .one in km is called depth_km."),
        (3, -500.0, "has a negative depth"),
    ],
)
def test_what_no_primary_can_be_is_refused(place, value, says):
    """By its row, and with the option that says what the numbers are; who gave the layout is believed."""
    primary = PRIMARY.copy()
    primary[1, place] = value
    with pytest.raises(BadRows, match=f"^primary {says}.*; taken for E,zenith,mass,depth, which .*_layout") as error:
        MuonLayout().decode(make_batch(primary))
    assert error.value.rows.tolist() == [1]
    if place == 1 or value < 0:
        with pytest.raises(BadRows, match=f"^primary {says}.*: E=[^;]*$"):
            MuonLayout("E,zenith,mass,depth").decode(make_batch(primary))
    else:
        assert len(MuonLayout("E,zenith,mass,depth").decode(make_batch(primary))) == 3


def test_five_numbers_that_begin_with_a_type():
    typed = np.insert(PRIMARY, 0, 7, axis=1)
    with pytest.raises(BadRows, match="zenith outside of 0 to pi rad.*taken for E,zenith,mass,time,depth") as error:
        MuonLayout().decode(make_batch(typed))
    assert error.value.rows.tolist() == [0, 1, 2]
    check(MuonLayout("type,E,zenith,mass,depth").decode(make_batch(typed)))


def test_degrees_and_kilometres():
    other = PRIMARY * np.array([1, 180 / np.pi, 1, 1e-3], np.float32)
    found = MuonLayout("E,zenith_deg,mass,depth_km").decode(make_batch(other)).rows["primary"]
    np.testing.assert_allclose(found, PRIMARY, rtol=1e-6)
    with pytest.raises(DataError, match="must name depth once"):
        MuonLayout("E,zenith_deg,mass,depth,depth_km")


def test_a_fake_muon_is_an_empty_event():
    """Only where it is alone, and only if all of it is zero."""
    muons = np.array([[0, 0, 0], [700, 3, 4], [0, 0, 0], [0, 1, 0]], np.float32)
    batch = make_batch(np.repeat(PRIMARY[:1], 3, 0), muons, [2, 1, 1])
    layout = MuonLayout()
    ragged = layout.decode(batch)
    assert ragged.counts.tolist() == [2, 0, 1] and layout.fakes == 1
    assert ragged.flat["muons"].tolist() == muons[[0, 1, 3]].tolist()


def test_bad_rows_can_be_left_out():
    primary, muons = PRIMARY.copy(), MUONS.copy()
    primary[1, 0], muons[2, 1] = np.nan, np.nan
    bad = BadDataPolicy("skip")
    ragged = bad.decode(MuonLayout().decode, make_batch(primary, muons), "here", 100)
    assert ragged.rows["row"].tolist() == [100] and bad.left_out == {"rows": 2}
    assert ragged.rows["primary"].tolist() == PRIMARY[:1].tolist()
    assert ragged.flat["muons"].tolist() == MUONS[:2].tolist()
    with pytest.raises(DataError, match="^here, row 101: primary is not finite"):
        BadDataPolicy("raise").decode(MuonLayout().decode, make_batch(primary, muons), "here", 100)


def test_bare_primaries():
    for kind in PRIMARY_KINDS:
        np.testing.assert_array_equal(primaries(PRIMARY_KINDS[kind], "auto" if kind not in TOLD else kind), PRIMARY)
