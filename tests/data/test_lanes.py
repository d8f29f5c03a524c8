"""Every row once per epoch, for any number of ranks, workers and lanes, from any position on; the batch is the same."""

import contextlib
import errno
import itertools
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.data import lanes as lanes_module
from accel_train.data.bad import BadDataPolicy, BadRows
from accel_train.data.fingerprint import changed
from accel_train.data.formats.parquet import Parquet
from accel_train.data.lanes import LanesSource, quotas
from accel_train.data.loader import Loader
from accel_train.data.ragged import Ragged, concatenate
from accel_train.errors import AccessError, DataError, UserError
from accel_train.plan import Position
from accel_train.system import waiting

CPU = torch.device("cpu")


class Memory:
    """Files that are lists of row group sizes. Row ``r`` of the data has ``r % 4`` entries, each of value ``r``."""

    def __init__(self, files: dict[str, list[int]]) -> None:
        self.files = files
        self.start, self.decoded = {}, []
        at = 0
        for path, groups in files.items():
            for number, n in enumerate(groups):
                self.start[path, number] = at
                at += n

    def groups(self, path):
        return self.files[path]

    def blocks(self, path, group, rows):
        n, first = self.files[path][group], self.start[path, group]
        for start in range(0, n, rows):
            row = np.arange(start, min(start + rows, n))
            self.decoded.append((path, group, start))
            counts = (first + row) % 4
            yield Ragged({"row": row, "id": first + row}, counts, {"entry": np.repeat(first + row, counts)})


def source(sizes: list[list[int]], batch_size=7, **options) -> LanesSource:
    files = {f"f{i}": groups for i, groups in enumerate(sizes)}
    return LanesSource(list(files), Memory(files), batch_size, **options)


def events(share) -> list[int]:
    if share is None:
        return []
    share = {name: np.asarray(value) for name, value in share.items()}
    assert np.array_equal(share["event"], share["id"])
    assert np.array_equal(share["counts"], share["id"] % 4)
    assert np.array_equal(share["entry"], np.repeat(share["id"], share["counts"])), "entries stay with their event"
    return share["event"].tolist()


def read(made: LanesSource, epoch=0, step=0, world=1, workers=1) -> list[list[int]]:
    """Events of every global batch from ``step`` on: the ranks' shares one after another."""
    scans = [made.iterate(epoch, step, rank, world, workers) for rank in range(world)]
    return [sum((events(share) for share in shares), []) for shares in zip(*scans, strict=True)]


SIZES = st.lists(st.lists(st.integers(0, 40), max_size=4), min_size=1, max_size=6).filter(lambda s: any(map(sum, s)))


@settings(deadline=None, max_examples=60)
@given(
    sizes=SIZES,
    batch_size=st.integers(1, 50),
    lanes=st.integers(1, 5),
    shuffle=st.sampled_from(["rows", "row_groups", "files", "none"]),
    world=st.integers(1, 4),
    data=st.data(),
)
def test_every_row_once_however_it_is_read(sizes, batch_size, lanes, shuffle, world, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes_module, "BLOCK_ROWS", data.draw(st.integers(1, 30)))
        made = source(sizes, batch_size, lanes=lanes, shuffle=shuffle, seed=3)
        total = sum(map(sum, sizes))
        alone = read(made)
        assert [len(batch) for batch in alone[:-1]] == [batch_size] * (len(alone) - 1), "only the last may be short"
        assert sorted(sum(alone, [])) == list(range(total))
        assert len(alone) == made.steps(0)
        assert read(made, world=world, workers=2) == alone
        step = data.draw(st.integers(0, len(alone)))
        assert read(made, step=step, world=world) == alone[step:], "going on in the middle of an epoch"
        assert sorted(sum(read(made, epoch=1), [])) == list(range(total))


def test_a_resume_reads_only_what_is_left():
    made = source([[30, 30], [30, 30]], 10, lanes=2, shuffle="row_groups")
    whole = read(made)
    made.format.decoded.clear()
    assert read(made, step=9) == whole[9:]
    assert len(made.format.decoded) == 2, "of four row groups, each lane has one left"


def test_no_row_group_is_decoded_twice_on_several_ranks():
    made = source([[30, 5], [17], [40]], 8, lanes=4)
    read(made, world=3, workers=2)
    assert sorted(made.format.decoded) == sorted(set(made.format.decoded))


def test_epochs_differ_and_the_seed_decides():
    sizes = [[50, 50], [50, 50]]
    first = read(source(sizes, seed=1))
    assert read(source(sizes, seed=1)) == first
    assert read(source(sizes, seed=2)) != first
    assert read(source(sizes, seed=1), epoch=1) != first
    assert read(source(sizes, seed=1, shuffle="none", lanes=1))[0] == list(range(7))


class Stage:
    def __init__(self) -> None:
        self.asked, self.gone, self.planned = [], [], []

    def acquire(self, path):
        self.asked.append(path)
        return path

    def release(self, path):
        self.gone.append(path)

    def schedule(self, paths, share=0, shares=1):
        self.planned = list(paths)


def test_files_stay_together_where_they_are_staged():
    sizes = [[6, 6, 6], [9, 9], [3], [8, 8]]
    stage = Stage()
    made = source(sizes, 4, lanes=1, shuffle="files", staging=stage)
    read(made)
    assert stage.asked == stage.gone == stage.planned and sorted(stage.gone) == ["f0", "f1", "f2", "f3"]
    order = stage.gone.copy()
    with contextlib.closing(made.iterate(0, 5, 0, 1, 1)) as scan:
        next(scan)
        assert stage.planned == order[2:], "what is needed from step 5 on, in that order"
    assert stage.gone == stage.asked, "also if reading stops in the middle"
    with pytest.raises(UserError, match="rows needs all files at once"):
        source(sizes, staging=stage)


def test_rows_that_are_not_wanted_leave_a_smaller_batch_and_change_no_other():
    made = source([[40], [40]], 10, lanes=2, seed=5)
    whole = read(made)
    made.prepare = lambda ragged, place: ragged.take(ragged.rows["row"] % 3 == 0)
    assert read(made, world=2) == [[e for e in batch if e % 40 % 3 == 0] for batch in whole]


@given(left=st.lists(st.integers(0, 100), min_size=1, max_size=6), batch_size=st.integers(1, 80))
def test_quotas_take_what_is_there_and_as_evenly_as_can_be(left, batch_size):
    left = np.array(left)
    share = quotas(left, batch_size)
    assert share.sum() == min(batch_size, left.sum()) and (share <= left).all()
    open_lanes = share < left
    if open_lanes.any():
        assert share.max() - share[open_lanes].min() <= 1, "who has more gives no less than the others"


@given(counts=st.lists(st.integers(0, 5), max_size=20), data=st.data())
def test_taking_items_takes_their_entries(counts, data):
    counts = np.array(counts, np.int64)
    ragged = Ragged({"id": np.arange(len(counts))}, counts, {"of": np.repeat(np.arange(len(counts)), counts)})
    order = np.array(data.draw(st.lists(st.integers(0, max(len(counts) - 1, 0)), max_size=10 * bool(len(counts)))), int)
    taken = ragged.take(order)
    assert taken.rows["id"].tolist() == order.tolist()
    assert taken.flat["of"].tolist() == np.repeat(order, counts[order]).tolist()
    twice = concatenate([ragged, taken])
    assert len(twice) == len(ragged) + len(taken) and twice.offsets[-1] == len(twice.flat["of"])


def test_the_loader_reads_lanes_ahead_and_leaves_no_thread():
    before = set(threading.enumerate())
    made = source([[50], [30, 9]], 8, lanes=3)
    for workers in (0, 2):
        loader = Loader(made, CPU, num_workers=workers)
        seen = [events(share) for _, _, share in loader.batches(Position(), last_epoch=1)]
        assert seen == read(made)
        for _ in itertools.islice(loader.batches(Position(epoch=2, batch=3)), 2):
            pass
    assert set(threading.enumerate()) <= before


# -- Parquet ----------------------------------------------------------------------------------------------------------


def decode(batch: pa.RecordBatch) -> Ragged:
    ids = batch.column("id").to_numpy()
    values = batch.column("entry")
    bad = np.flatnonzero(ids == 13)
    if len(bad):
        raise BadRows("thirteen", bad)
    offsets = values.offsets.to_numpy()
    return Ragged({"id": ids}, np.diff(offsets).astype(np.int64), {"entry": values.flatten().to_numpy()})


@pytest.fixture
def files(tmp_path):
    at, paths = 0, []
    for number, (n, group) in enumerate([(50, 10), (0, 10), (33, 100), (7, 3)]):
        ids = np.arange(at, at + n)
        entries = pa.array([[int(i)] * (i % 4) for i in ids], pa.list_(pa.int64()))
        table = pa.table({"other": pa.nulls(n), "entry": entries, "id": ids})
        paths.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(table, paths[-1], row_group_size=group)
        at += n
    return paths


def parquet(files, policy="raise", **options):
    bad = BadDataPolicy(policy)
    return LanesSource(files, Parquet(["id", "entry"], decode, bad), 8, lanes=3, **options), bad


def test_bad_rows_are_named_or_left_out(files):
    with pytest.raises(DataError, match=r"0.parquet, row group 1, row 3: thirteen; mend it, or set on_bad_file=skip"):
        read(parquet(files)[0])
    made, bad = parquet(files, "skip")
    assert sorted(sum(read(made, world=2), [])) == [i for i in range(90) if i != 13]
    assert bad.left_out == {"rows": 1} and [e.title for e in bad.events()] == [
        f"{files[1]}: there are no rows in it",
        f"{files[0]}, row group 1, row 3: thirteen",
    ]


def test_a_broken_file_is_named_or_left_out(files, tmp_path):
    (tmp_path / "2.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"2.parquet: cannot be read: "):
        parquet(files)
    made, bad = parquet(files, "skip")
    assert made.total_rows == 57 and bad.left_out["files"] == 1


def test_a_broken_row_group_is_named_or_left_out(files):
    column = pq.ParquetFile(files[0]).metadata.row_group(0).column(2)
    with open(files[0], "r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 12)
    with pytest.raises(DataError, match=r"0.parquet, row group 0: cannot be read: "):
        read(parquet(files, shuffle="none")[0])
    made, bad = parquet(files, "skip")
    kept = sum(read(made), [])
    assert bad.left_out["row groups"] == 1 and set(range(10, 90)) - {13} <= set(kept)


def test_a_missing_column_is_named_with_those_that_are_there(files, tmp_path):
    pq.write_table(pa.table({"id": [1]}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"1.parquet: no column 'entry'; there are id"):
        parquet(files)


# -- what is not the content -----------------------------------------------------------------------------------------


def opening_fails(made, error, after=4):
    """From the so-many-th file on that is opened."""
    opened = itertools.count()

    def open(path):
        if next(opened) >= after:
            raise error
        return path

    made.format._open = open


TROUBLE = {
    "descriptors": (OSError(errno.EMFILE, "Too many open files"), "too many open files.*ulimit -n"),
    "descriptors, as HDF5 says it": (OSError("unable to open file (errno = 24, error message = 'x')"), "ulimit -n"),
    "rights": (PermissionError(errno.EACCES, "Permission denied"), "Permission denied"),
    "gone": (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file"),
    "disk": (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    "memory": (MemoryError("malloc of size 10"), "not enough memory"),
    "network": (ConnectionResetError("reset"), "reset"),
    "time": (TimeoutError("too long"), "too long"),
    "remote": (AccessError("https://host/0.parquet: failed 6 times: 503"), "failed 6 times"),
}


@pytest.mark.parametrize("what", TROUBLE)
@pytest.mark.parametrize("after", [0, 4])
def test_what_is_not_the_content_is_never_left_out(files, what, after):
    error, says = TROUBLE[what]
    made, bad = parquet(files, "skip")
    opening_fails(made, error, after)
    with pytest.raises(AccessError, match=says) as caught:
        if after:
            read(made)
        else:
            made.format._metadata.cache_clear()
            made.format.groups(files[0])
    assert "skip" not in str(caught.value) and "\n" not in str(caught.value) and not bad.left_out


def test_a_stop_is_not_taken_for_bad_data(files):
    made, bad = parquet(files, "skip")
    opening_fails(made, waiting.StoppedError("stopped"))
    with pytest.raises(waiting.StoppedError):
        read(made)
    assert not bad.left_out


def with_flipped_bit(path):
    """A Parquet file without compression, one bit of whose content is another."""
    rows = 200
    entries = pa.array([[i] * (i % 4) for i in range(rows)], pa.list_(pa.int64()))
    table = pa.table({"entry": entries, "id": range(rows)})
    pq.write_table(table, path, row_group_size=100, compression="none", write_page_checksum=True, use_dictionary=False)
    content = bytearray(path.read_bytes())
    at = content.index(np.int64(150).tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    return [str(path)]


def test_a_flipped_bit_is_named_or_its_row_group_left_out(tmp_path):
    files = with_flipped_bit(tmp_path / "flipped.parquet")
    with pytest.raises(DataError, match=r"flipped.parquet, row group 1: cannot be read: .*CRC checksum") as caught:
        read(parquet(files)[0])
    assert "\n" not in str(caught.value)
    made, bad = parquet(files, "skip")
    assert sorted(sum(read(made), [])) == [i for i in range(100) if i != 13]
    assert bad.left_out == {"row groups": 1, "rows": 1}


# -- is it the same data? --------------------------------------------------------------------------------------------


def test_files_are_known_by_name_size_rows_and_order(files, tmp_path):
    before = parquet(files)[0].fingerprint()
    assert [file["name"] for file in before["files"]] == ["0.parquet", "1.parquet", "2.parquet", "3.parquet"]
    assert [file["rows"] for file in before["files"]] == [50, 0, 33, 7]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    there = [shutil.copy(path, moved) for path in files]
    assert changed(before, parquet(there)[0].fingerprint()) == "", "data that were moved are the same"
    assert changed({}, before) == changed(before, {}) == ""
    assert changed(before, parquet(files[::-1])[0].fingerprint()) == "the files are in another order, from 3.parquet on"
    (moved / "00.parquet").symlink_to(files[0])
    (moved / "0.parquet").unlink()
    other = sorted([str(moved / "00.parquet"), *there[1:]])
    assert changed(before, parquet(other)[0].fingerprint()) == "0.parquet is gone; 00.parquet is new"
    pq.write_table(pq.read_table(files[3]).slice(1), files[3])
    assert changed(before, parquet(files)[0].fingerprint()) == "3.parquet had 7 rows and has 6 now"
    pq.write_table(pq.read_table(there[3]), files[3], compression="none")
    assert "3.parquet: it had " in changed(before, parquet(files)[0].fingerprint())
    assert changed({"items": 5}, {"items": 6}) == "there were 5 items and are 6 now"
