"""The fallback reader gives the blocks that the fast ones give, from any format, without network and without traces."""

import gzip
import json
import os
import socket
import tempfile

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accel_train.data.bad import BadDataPolicy
from accel_train.data.formats.hdf5 import Hdf5
from accel_train.data.formats.streaming import Streaming
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError
from accel_train.tasks.muon.layout import MuonLayout

N, ROWS = 203, 64
FILES = [
    "a.parquet",
    "a.pq",
    "list.parquet",
    "a.jsonl",
    "a.json",
    "array.json",
    "a.jsonl.gz",
    "a.arrow",
    "a [1]*.parquet",
]

NAMES = {"primary": "primaries"}, {"muons": "muons"}, "counts"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def connect(*_args):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def data():
    """primaries [N, 4], muons [M, 3], counts [N]; some blocks of the latter are empty."""
    generator = np.random.default_rng(5)
    counts = generator.poisson(generator.choice([0.0, 4.0], N))
    counts[ROWS : 2 * ROWS] = 0
    primaries = generator.uniform((1, 0, 1, 1000), (1e6, 3, 100, 3000), (N, 4)).astype(np.float32)
    return primaries, generator.uniform(1, 1e4, (counts.sum(), 3)).astype(np.float32), counts


def table(data, fixed: bool) -> pa.Table:
    primaries, muons, counts = data
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for v in (primaries, muons)]
    if not fixed:
        lists = [v.cast(pa.list_(pa.float32())) for v in lists]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.table({
        "muons": pa.ListArray.from_arrays(offsets, lists[1]),
        "id": pa.array(range(len(counts)), pa.uint64()),
        "primary": lists[0],
    })  # fmt: skip


def write(path, data) -> str:
    whole = table(data, fixed=path.name == "a.parquet")
    rows = [{**row, "id": str(row["id"])} for row in whole.to_pylist()]
    lines = "\n".join(json.dumps(row) for row in rows)
    if path.suffix in (".parquet", ".pq"):
        pq.write_table(whole, path, row_group_size=90)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, whole.schema) as stream:
            stream.write_table(whole, max_chunksize=50)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows) if path.name == "array.json" else lines)
    return str(path)


def same(found: list[Ragged], expected: list[Ragged]) -> None:
    assert [len(block) for block in found] == [len(block) for block in expected]
    for a, b in zip(found, expected, strict=True):
        for one, other in (
            (a.rows["row"], b.rows["row"]),
            (a.rows["primary"], b.rows["primary"]),
            (a.counts, b.counts),
            (a.flat["muons"], b.flat["muons"]),
        ):
            assert one.dtype == other.dtype and one.shape == other.shape
            np.testing.assert_array_equal(one, other)


def plain(data) -> list[Ragged]:
    """Blocks of a plain read with pyarrow."""
    decode = MuonLayout().decode
    batches = table(data, fixed=False).to_batches(ROWS)
    return [BadDataPolicy().decode(decode, batch, "here", i * ROWS) for i, batch in enumerate(batches)]


@pytest.mark.parametrize("name", FILES)
def test_the_same_blocks_from_every_format(tmp_path, data, name):
    (tmp_path / "a 1b.parquet").touch()  # what the name with brackets would match as a pattern
    path = write(tmp_path / name, data)
    format = Streaming(MuonLayout().decode, BadDataPolicy())
    assert format.groups(path) == [N]
    same(list(format.blocks(path, 0, ROWS)), plain(data))


def test_the_same_blocks_from_hdf5(tmp_path, data):
    """With ids in front, as they are in such files, and empty events as a fake muon."""
    primaries, muons, counts = data
    empty = counts == 0
    entries = np.insert(muons, (np.cumsum(counts) - counts)[empty], 0, axis=0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["primaries"] = np.insert(primaries, 0, [[7], [8]], axis=1)
        file["muons"] = np.insert(entries, 0, [[7], [8]], axis=1)
        file["counts"] = np.where(empty, 1, counts).astype(np.int32)
    layout = MuonLayout()
    format = Hdf5(layout.decode, BadDataPolicy(), *NAMES)
    assert format.groups(str(tmp_path / "a.h5")) == [N]
    same(list(format.blocks(str(tmp_path / "a.h5"), 0, ROWS)), plain(data))
    assert layout.fakes == empty.sum()


def test_nothing_is_left_behind(tmp_path, data, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = write(tmp_path / "a.parquet", data)
    list(Streaming(MuonLayout().decode, BadDataPolicy()).blocks(path, 0, ROWS))
    assert os.listdir(tmp_path / "tmp") == [] and sorted(os.listdir(tmp_path)) == ["a.parquet", "tmp"]


def test_rows_are_counted_once(tmp_path, data):
    path = write(tmp_path / "a.parquet", data)
    format = Streaming(MuonLayout().decode, BadDataPolicy())
    assert format.groups(path) == [N]
    os.remove(path)
    assert format.groups(path) == [N]


def test_no_rows(tmp_path, data):
    pq.write_table(table(data, fixed=False).slice(0, 0), tmp_path / "a.parquet")
    format = Streaming(MuonLayout().decode, BadDataPolicy())
    assert format.groups(str(tmp_path / "a.parquet")) == [0]
    assert list(format.blocks(str(tmp_path / "a.parquet"), 0, ROWS)) == []


def test_json_of_whole_numbers_and_of_events_without_muons(tmp_path):
    rows = [{"primary": [5, 1, 1, 2000], "muons": []}, {"primary": [6, 0, 1, 2000], "muons": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (block,) = Streaming(MuonLayout().decode, BadDataPolicy()).blocks(str(tmp_path / "a.jsonl"), 0, ROWS)
    assert block.rows["primary"].tolist() == [[5, 1, 1, 2000], [6, 0, 1, 2000]]
    assert block.counts.tolist() == [0, 0] and block.flat["muons"].shape == (0, 3)


def test_bad_rows_are_left_out_or_named(tmp_path):
    rows = [{"primary": [5.5, 1, 1, 2000], "muons": [[1, 2, 3]]}, {"primary": [5.5, 1, None, 2000], "muons": []}] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bad = BadDataPolicy("skip")
    blocks = list(Streaming(MuonLayout().decode, bad).blocks(str(tmp_path / "a.jsonl"), 0, 3))
    assert [block.rows["row"].tolist() for block in blocks] == [[0, 2], []] and bad.left_out == {"rows": 2}
    with pytest.raises(DataError, match="a.jsonl, row group 0, row 1: primary: a null among the numbers"):
        list(Streaming(MuonLayout().decode, BadDataPolicy()).blocks(str(tmp_path / "a.jsonl"), 0, 3))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1 2 3", "cannot tell its kind by the extension; there are .parquet"),
        ("a.parquet", b"nothing", "a.parquet: "),
        ("a.jsonl", b'{"primary": [1', "a.jsonl: "),
        ("nowhere.parquet", None, "nowhere.parquet: "),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    path = str(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        Streaming(MuonLayout().decode, BadDataPolicy()).groups(path)
    assert "\n" not in str(error.value) and path in str(error.value)
    bad = BadDataPolicy("skip")
    assert Streaming(MuonLayout().decode, bad).groups(path) == [] and bad.left_out == {"files": 1}
