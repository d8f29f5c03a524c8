"""HDF5 files are read as the same events in Parquet are, slice by slice, and damaged ones are refused in one line."""

import threading

import h5py
import numpy as np
import pyarrow as pa
import pytest

import accel_train.data.formats.hdf5 as hdf5
from accel_train.data.bad import BadDataPolicy, BadRows
from accel_train.data.formats.arrow import column, nested, vectors
from accel_train.data.formats.hdf5 import Hdf5
from accel_train.data.ragged import Ragged, concatenate
from accel_train.errors import AccessError, DataError

N = 57
GROUP = 20

NAMES = {"primary": "primaries"}, {"muons": "muons"}, "counts"


def decode(batch: pa.RecordBatch) -> Ragged:
    primary = vectors(column(batch, "primary"), "primary")
    bad = np.flatnonzero(primary[:, 1] < 0)
    if len(bad):
        raise BadRows("negative", bad)
    counts, muons = nested(column(batch, "muons"), "muons")
    return Ragged({"primary": primary}, counts, {"muons": muons})


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(hdf5, "GROUP_ROWS", GROUP)


def make_data(counts=None):
    generator = np.random.default_rng(3)
    counts = generator.poisson(generator.choice([0.0, 3.0], N)) if counts is None else np.asarray(counts)
    primaries = generator.uniform(1, 2, (len(counts), 6)).astype(np.float32)
    return {"primaries": primaries, "muons": np.random.default_rng(4).random((counts.sum(), 5)), "counts": counts}


def write(path, data, muons=np.float32, counts=np.int32) -> str:
    with h5py.File(path, "w") as file:
        for name, kind in (("primaries", np.float32), ("muons", muons), ("counts", counts)):
            file[name] = data[name].astype(kind)
    return str(path)


def read(format, path, rows=7) -> list[list[Ragged]]:
    groups = format.groups(path)
    return [list(format.blocks(path, group, rows)) for group in range(len(groups))]


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2"])
@pytest.mark.parametrize("counts", ["<i4", ">i8", "<u8"])
def test_what_was_written(tmp_path, kind, counts):
    data = make_data()
    path = write(tmp_path / "a.h5", data, kind, counts)
    format = Hdf5(decode, BadDataPolicy(), *NAMES)
    assert format.groups(path) == [20, 20, 17]
    blocks = read(format, path)
    assert [[len(block) for block in group] for group in blocks] == [[7, 7, 6], [7, 7, 6], [7, 7, 3]]
    whole = concatenate([block for group in blocks for block in group])
    np.testing.assert_array_equal(whole.rows["primary"], data["primaries"])
    np.testing.assert_array_equal(whole.counts, data["counts"])
    np.testing.assert_array_equal(whole.flat["muons"], data["muons"].astype(kind).astype(np.float32))
    assert whole.flat["muons"].dtype == np.float32 and whole.counts.dtype == np.int64
    assert [row for group in blocks for block in group for row in block.rows["row"]] == [
        *range(20),
        *range(20),
        *range(17),
    ]


@pytest.mark.parametrize("counts", [[], [0], [0] * 41, [0] * 20 + [3] + [0] * 20])
def test_events_without_muons(tmp_path, counts):
    data = make_data(np.array(counts, int))
    path = write(tmp_path / "a.h5", data)
    blocks = [block for group in read(Hdf5(decode, BadDataPolicy(), *NAMES), path) for block in group]
    assert [n for block in blocks for n in block.counts] == counts
    assert sum(len(block.flat["muons"]) for block in blocks) == sum(counts)


def test_only_what_is_needed_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", make_data([1] * 100))
    format = Hdf5(decode, BadDataPolicy(), *NAMES)
    format.groups(path)
    longest = []
    vectors_of = hdf5._vectors
    monkeypatch.setattr(hdf5, "_vectors", lambda data, a, b: longest.append((a, b)) or vectors_of(data, a, b))
    list(format.blocks(path, 3, 7))
    assert longest == [(60, 67)] * 2 + [(67, 74)] * 2 + [(74, 80)] * 2


def test_other_names_and_many_threads(tmp_path):
    data = make_data()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["events/head"], file["events/hits"], file["n"] = (data[k] for k in ("primaries", "muons", "counts"))
    format = Hdf5(decode, BadDataPolicy(), {"primary": "events/head"}, {"muons": "events/hits"}, "n")
    path = str(tmp_path / "a.h5")
    found: dict[int, list[Ragged]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: list(format.blocks(path, i % 3, 4))})) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends = np.cumsum(data["counts"])
    for i, blocks in found.items():
        first, last = 20 * (i % 3), min(20 * (i % 3) + 20, N)
        whole = concatenate(blocks)
        np.testing.assert_array_equal(whole.rows["primary"], data["primaries"][first:last])
        expected = data["muons"][ends[first] - data["counts"][first] : ends[last - 1]].astype(np.float32)
        np.testing.assert_array_equal(whole.flat["muons"], expected)
    assert len(found) == 12


def test_bad_rows_are_left_out_or_named(tmp_path):
    data = make_data()
    data["primaries"][[3, 25, 26], 1] = -1
    path = write(tmp_path / "a.h5", data)
    bad = BadDataPolicy("skip")
    blocks = read(Hdf5(decode, bad, *NAMES), path)
    assert [[len(block) for block in group] for group in blocks] == [[6, 7, 6], [5, 7, 6], [7, 7, 3]]
    assert [row for block in blocks[1] for row in block.rows["row"]] == [*range(5), *range(7, 20)]
    whole = concatenate([block for group in blocks for block in group])
    good = data["primaries"][:, 1] > 0
    kept = data["muons"][np.repeat(good, data["counts"])].astype(np.float32)
    np.testing.assert_array_equal(whole.flat["muons"], kept)
    assert bad.left_out == {"rows": 3}
    with pytest.raises(DataError, match="a.h5, row group 0, row 3: negative"):
        read(Hdf5(decode, BadDataPolicy(), *NAMES), path)


def broken(path, what) -> str:
    data = make_data()
    if what == "not HDF5":
        path.write_bytes(b"PAR1" * 100)
        return str(path)
    if what == "negative":
        data["counts"][30] = -1
    if what == "short":
        data["muons"] = data["muons"][:-1]
    if what == "flat":
        data["primaries"] = data["primaries"][:, 0]
    write(path, data, counts=np.float32 if what == "float counts" else np.int32)
    if what == "missing":
        with h5py.File(path, "a") as file:
            del file["counts"]
    return str(path)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("not HDF5", "a.h5: cannot be read: OSError"),
        ("missing", "needs a dataset 'counts'; there are 'muons', 'primaries'"),
        ("negative", "dataset 'counts', row 30: negative count"),
        ("short", r"dataset 'muons' has \d+ rows, but 'counts' says \d+"),
        ("flat", r"dataset 'primaries' must be \[n, width\] numbers, but is float32 \[57\]"),
        ("float counts", r"dataset 'counts' must be \[n\] integers, but is float32 \[57\]"),
    ],
)
def test_files_that_do_not_fit(tmp_path, what, message):
    path = broken(tmp_path / "a.h5", what)
    with pytest.raises(DataError, match=message) as error:
        Hdf5(decode, BadDataPolicy(), *NAMES).groups(path)
    assert "a.h5" in str(error.value) and "\n" not in str(error.value)
    bad = BadDataPolicy("skip")
    assert Hdf5(decode, bad, *NAMES).groups(path) == [] and bad.left_out == {"files": 1}


def test_a_block_without_entries_keeps_their_width(tmp_path):
    (block,) = Hdf5(decode, BadDataPolicy(), *NAMES).blocks(write(tmp_path / "a.h5", make_data([0, 0])), 0, 10)
    assert block.flat["muons"].shape == (0, 5)


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(DataError, match="nowhere.h5: cannot be read: FileNotFoundError"):
        Hdf5(decode, BadDataPolicy(), *NAMES).groups(str(tmp_path / "nowhere.h5"))


# -- what a file leads to --------------------------------------------------------------------------------------------


def external(name, path="/muons"):
    return lambda file, data: file.__setitem__("muons", h5py.ExternalLink(name, path))


def soft(path):
    return lambda file, data: file.__setitem__("muons", h5py.SoftLink(path))


def virtual(name, dataset="muons"):
    def make(file, data):
        layout = h5py.VirtualLayout(data["muons"].shape, "f4")
        layout[:] = h5py.VirtualSource(name, dataset, data["muons"].shape)
        file.create_virtual_dataset("muons", layout)

    return make


def references(file, data):
    file.create_dataset("muons", data["muons"].shape, dtype=h5py.ref_dtype)


def raw(file, data):
    file.create_dataset("muons", data["muons"].shape, "f4", external=[("raw.bin", 0, data["muons"].size * 4)])


LINKS = {
    "external": (external("gone.h5"), "external link to '/muons' in 'gone.h5', and there is no such file"),
    "no such object": (external("whole.h5", "/x"), "external link to '/x' in 'whole.h5', where it is not"),
    "damaged": (external("junk.h5"), "in 'junk.h5', which is no HDF5 file or is damaged"),
    "soft": (soft("/no/where"), "'muons' is a soft link to '/no/where', which is not there"),
    "circle": (soft("/muons"), "soft links lead in a circle"),
    "virtual": (virtual("gone.h5"), "is put together from 'muons' in 'gone.h5', and there is no such file"),
    "virtual, no such object": (virtual("whole.h5", "x"), "is put together from 'x' in 'whole.h5', where it is not"),
    "virtual, of itself": (virtual(".", "x"), "is put together from 'x' in this file, where it is not"),
    "references": (references, "must be .* numbers, but is references to other objects"),
    "group": (
        lambda file, data: file.__setitem__("muons/E", data["counts"]),
        "must be a dataset, but is a group of 'E'",
    ),
    "raw": (raw, "has its content in 'raw.bin', and there is no such file"),
}


@pytest.mark.parametrize("what", LINKS)
def test_what_leads_nowhere_is_named(tmp_path, what):
    make, says = LINKS[what]
    data = make_data()
    write(tmp_path / "whole.h5", data)
    (tmp_path / "junk.h5").write_bytes(b"junk" * 1000)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["primaries"], file["counts"] = data["primaries"], data["counts"]
        make(file, data)
    with pytest.raises(DataError, match=says) as caught:
        Hdf5(decode, BadDataPolicy(), *NAMES).groups(str(tmp_path / "a.h5"))
    assert str(caught.value).count("a.h5: ") == 1 and "'muons'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [external("whole.h5"), virtual("whole.h5")])
def test_what_leads_somewhere_is_read_until_it_is_gone(tmp_path, make):
    data = make_data()
    write(tmp_path / "whole.h5", data)
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file["primaries"], file["counts"] = data["primaries"], data["counts"]
        make(file, data)
    format, path = Hdf5(decode, BadDataPolicy(), *NAMES), str(tmp_path / "a.h5")
    whole = concatenate([block for group in read(format, path) for block in group])
    np.testing.assert_array_equal(whole.flat["muons"], data["muons"].astype(np.float32))
    (tmp_path / "whole.h5").unlink()
    with pytest.raises(DataError, match="row group 0: dataset 'muons'.*'whole.h5', and there is no such file"):
        next(format.blocks(path, 0, 7))  # HDF5 itself would give zeros


def test_a_url_is_refused_whatever_is_to_be_done_about_bad_files():
    with pytest.raises(AccessError, match="https://host/a.h5: HDF5 files are not read from URLs; copy them"):
        Hdf5(decode, BadDataPolicy("skip"), *NAMES).groups("https://host/a.h5?signature=secret")
