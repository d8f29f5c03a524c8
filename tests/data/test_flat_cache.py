"""A flat cache holds what the lanes read, event for event; it is built once, and again where it no longer fits."""

import json
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.data import flat_cache
from accel_train.data.bad import BadDataPolicy, BadRows
from accel_train.data.flat_cache import FlatCache, build, cached
from accel_train.data.formats.parquet import Parquet
from accel_train.data.lanes import LanesSource
from accel_train.data.loader import Loader
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError, UserError
from accel_train.plan import Position


def decode(batch: pa.RecordBatch) -> Ragged:
    ids, values = batch.column("id").to_numpy(), batch.column("entry")
    if (ids == 13).any():
        raise BadRows("thirteen", np.flatnonzero(ids == 13))
    counts = values.value_lengths().to_numpy().astype(np.int64)
    entries = values.flatten().to_numpy().astype(np.float32)
    return Ragged({"id": ids}, counts, {"entry": np.stack([entries, -entries, entries / 2], 1)})


def write(path: Path, ids: range, lengths=4) -> None:
    entries = pa.array([[float(i)] * (i % lengths) for i in ids], pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": pa.array(ids, pa.int64()), "entry": entries}), path, row_group_size=10)


@pytest.fixture
def files(tmp_path):
    for number, ids in enumerate([range(0, 50), range(50, 83), range(83, 90)]):
        write(tmp_path / f"{number}.parquet", ids)
    return sorted(map(str, tmp_path.glob("*.parquet")))


def lanes(files, policy="skip", lanes=1, shuffle="none", **options) -> LanesSource:
    bad = BadDataPolicy(policy)
    return LanesSource(files, Parquet(["id", "entry"], decode, bad), 8, 5, lanes, shuffle, bad=bad, **options)


def by_event(batches) -> dict[int, dict[str, list]]:
    """Event -> everything a batch says of it; no event twice."""
    found = {}
    for batch in batches:
        if batch is None:
            continue
        batch = {name: np.asarray(values) for name, values in batch.items()}
        ends = np.cumsum(batch["counts"])
        for i, event in enumerate(batch["event"].tolist()):
            assert event not in found
            mine = {name: values[i].tolist() for name, values in batch.items() if name != "entry"}
            found[event] = mine | {"entry": batch["entry"][ends[i] - batch["counts"][i] : ends[i]].tolist()}
    return found


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_same_events_with_the_same_keys_as_lanes(files, tmp_path, shuffle):
    source = cached(tmp_path / "cache", lanes(files), {}, batch_size=16, seed=5, shuffle=shuffle)
    assert len(source.data) == 89, "without the row that cannot be used"
    for epoch in (0, 1):
        wanted = by_event(lanes(files, lanes=3, shuffle="rows").iterate(epoch, 0, 0, 1))
        shares = [source.batch(epoch, step, rank, 3) for step in range(source.steps(epoch)) for rank in range(3)]
        assert by_event(shares) == wanted
    in_order = [event for step in range(source.steps(0)) for event in source.batch(0, step, 0, 1)["event"].tolist()]
    assert (in_order == sorted(in_order)) is not shuffle


def test_batches_have_the_arrays_of_lanes_in_memory_of_their_own(files, tmp_path):
    source = cached(tmp_path / "cache", lanes(files), {}, batch_size=16, shuffle=False)
    like, batch = next(lanes(files).iterate(0, 0, 0, 1)), source.batch(0, 0, 0, 1)
    assert {name: (v.dtype, v.shape[1:]) for name, v in batch.items()} == {
        name: (v.dtype, v.shape[1:]) for name, v in like.items()
    }
    for _, _, tensors in Loader(source, torch.device("cpu"), num_workers=2).batches(Position(), last_epoch=1):
        tensors["entry"].zero_()
        tensors["id"].zero_()
    again = source.batch(0, 0, 0, 1)
    assert all(np.array_equal(again[name], batch[name]) for name in batch)
    assert source.first(20).rows["event"].tolist() == [e for e in range(21) if e != 13]


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=30), data=st.data())
def test_any_items_in_any_order(tmp_path_factory, counts, data):
    folder = tmp_path_factory.mktemp("any")
    whole = in_memory(counts)
    build(folder, whole_source(whole), {})
    cache = FlatCache(folder)
    assert len(cache) == len(counts)
    item = st.integers(0, len(counts) - 1)
    start, stop = sorted((data.draw(item), data.draw(item)))
    for order in (np.array(data.draw(st.lists(item)), np.int64), np.arange(start, stop)):
        found, wanted = cache.take(order), whole.take(order)
        assert found.rows["event"].tolist() == order.tolist()
        assert found.counts.tolist() == wanted.counts.tolist()
        assert found.flat["of"].tolist() == wanted.flat["of"].tolist()


def in_memory(counts) -> Ragged:
    counts, rows = np.array(counts, np.int64), np.arange(len(counts))
    return Ragged({"row": rows}, counts, {"of": np.repeat(rows, counts)})


def whole_source(whole: Ragged) -> LanesSource:
    class Memory:
        def groups(self, path):
            return [len(whole)]

        def blocks(self, path, group, rows):
            yield whole

    return LanesSource([os.devnull], Memory(), 4, lanes=1, shuffle="none")


def test_entries_of_no_event_at_all(tmp_path):
    build(tmp_path, whole_source(in_memory([0, 0, 0])), {})
    assert FlatCache(tmp_path).read(np.array([2, 0]))["of"].shape == (0,)


# -- when it is built --------------------------------------------------------------------------------------------------


def titles(source) -> str:
    return "; ".join(event.title for event in source.events())


def test_it_is_built_once(files, tmp_path, monkeypatch):
    assert "no flat cache yet; built in" in titles(cached(tmp_path / "a" / "b", lanes(files), {"layout": "x"}, 16))
    monkeypatch.setattr(flat_cache, "build", None)
    again = cached(tmp_path / "a" / "b", lanes(files), {"layout": "x"}, 16)
    assert titles(again) == f"{tmp_path}/a/b: was built without 1 rows that could not be used"
    assert titles(again) == ""


def test_another_file_or_setting_or_order_builds_it_again(files, tmp_path):
    def reopened(files=files, **settings) -> str:
        source = cached(tmp_path / "cache", lanes(files), settings, 16)
        assert len(source.data) == lanes(files).total_rows - 1
        return titles(source)

    reopened(layout="x", held_out=0.1)
    assert "with other settings (layout)" in reopened(layout="y", held_out=0.1)
    write(Path(files[1]), range(50, 83), lengths=3)
    assert f"with other files ({files[1]})" in reopened(layout="y", held_out=0.1)
    assert f"with other files ({files[2]})" in reopened(files[:2], layout="y", held_out=0.1)
    assert "files in another order" in reopened(files[1::-1], layout="y", held_out=0.1)
    assert "built in" not in reopened(files[1::-1], layout="y", held_out=0.1)


@pytest.mark.parametrize("name", ["manifest.json", "offsets.npy", "rows.id.npy", "flat.entry.npy"])
@pytest.mark.parametrize("damage", ["missing", "short", "garbled"])
def test_a_damaged_one_is_refused_and_built_again(files, tmp_path, name, damage):
    cached(tmp_path, lanes(files), {}, 16)
    path = tmp_path / "flat" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "short" else b"?" * 80 + content[80:])
    with pytest.raises(DataError, match="the flat cache is damaged: "):
        FlatCache(tmp_path)
    source = cached(tmp_path, lanes(files), {}, 16)
    assert path.read_bytes() == content or name == "manifest.json"
    assert "damaged" in titles(source) and len(source.data) == 89


def test_a_build_that_fails_leaves_what_was_there(files, tmp_path):
    cached(tmp_path, lanes(files), {}, 16)
    with pytest.raises(DataError, match="row group 1, row 3: thirteen"):
        cached(tmp_path, lanes(files, policy="raise"), {"layout": "y"}, 16)
    assert len(FlatCache(tmp_path)) == 89 and sorted(os.listdir(tmp_path / "flat")) == [
        "flat.entry.npy", "manifest.json", "offsets.npy", "rows.event.npy", "rows.id.npy",
    ]  # fmt: skip
    assert not (tmp_path / ".flat.writing").exists()


def test_what_a_killed_build_left_is_no_cache(files, tmp_path):
    cached(tmp_path, lanes(files), {}, 16)
    (tmp_path / "flat").rename(tmp_path / ".flat.writing")
    (tmp_path / ".flat.writing" / "more.npy").write_bytes(b"half")
    with pytest.raises(DataError):
        FlatCache(tmp_path)
    assert "no flat cache yet" in titles(cached(tmp_path, lanes(files), {}, 16))
    assert (
        not (tmp_path / ".flat.writing").exists()
        and "more" not in json.loads((tmp_path / "flat" / "manifest.json").read_text())["arrays"]
    )


def test_nothing_wanted_and_no_room_are_said(files, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="none of 90 rows is wanted here"):
        build(tmp_path, lanes(files, prepare=lambda ragged, place: ragged.take(ragged.counts < 0)), {})
    with pytest.raises(ValueError, match="one lane that is not shuffled"):
        build(tmp_path, lanes(files, lanes=2), {})

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("accel_train.system.writing.flush", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        cached(tmp_path, lanes(files), {}, 16)
    assert not (tmp_path / "flat").exists() and not (tmp_path / ".flat.writing").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used for a flat cache"):
        cached(tmp_path / "file", lanes(files), {}, 16)


# -- several processes -------------------------------------------------------------------------------------------------


def test_one_builds_and_the_others_wait(files, tmp_path, monkeypatch):
    built, sources = [], []
    monkeypatch.setattr("accel_train.system.locking.POLL_S", 0.005)
    monkeypatch.setattr(flat_cache, "build", lambda *args: built.append(1) or build(*args))
    ranks = [
        threading.Thread(target=lambda: sources.append(cached(tmp_path / "cache", lanes(files), {}, 16)))
        for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(built) == 1 and [len(source.data) for source in sources] == [89] * 4


def test_the_wait_is_bounded(files, tmp_path, monkeypatch):
    monkeypatch.setattr(flat_cache, "WAIT_S", 0.2)
    with flat_cache._alone(tmp_path), pytest.raises(UserError, match="has been at it for 0.2 s"):
        cached(tmp_path, lanes(files), {}, 16)
    monkeypatch.setattr(flat_cache, "WAIT_S", 0.0)
    cached(tmp_path, lanes(files), {}, 16)


def test_a_lock_is_gone_with_its_process(files, tmp_path, monkeypatch):
    monkeypatch.setattr(flat_cache, "WAIT_S", 0.0)
    child = multiprocessing.get_context("spawn").Process(target=_die_with_the_lock, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 9
    cached(tmp_path, lanes(files), {}, 16)


def _die_with_the_lock(folder):
    with flat_cache._alone(folder):
        os._exit(9)


def test_another_process_maps_the_files_itself(files, tmp_path):
    source = cached(tmp_path, lanes(files), {}, 16)
    sent = pickle.dumps(source.data)
    assert len(sent) < 1500
    order = np.array([5, 3, 60])
    assert np.array_equal(pickle.loads(sent).read(order)["entry"], source.data.read(order)["entry"])
