"""Data sets, loaders and streams that people have: every item once, the same whoever asks, mistakes in one line."""

from __future__ import annotations

from functools import partial
from itertools import chain, count

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from accel_train import from_dataset, from_iterable, from_load_dataset
from accel_train.data.source import IndexedSource
from accel_train.errors import UserError

SIZES = st.integers(1, 40)


def noise(item, generator):
    return item + [generator.random()]


def as_array(items):
    return {"x": np.array(items)}


def again(items):
    yield from items


def rows(source, epoch, world_size, start=0):
    """What all ranks get: a list of items for every batch, sorted."""
    batches = []
    scans = [source.iterate(epoch, start, rank, world_size, 0) for rank in range(world_size)]
    for step in range(source.steps(epoch)) if scans[0] is None else count():
        if scans[0] is None:
            shares = [source.batch(epoch, step, rank, world_size) for rank in range(world_size)]
        else:
            shares = [next(scan, "end") for scan in scans]
            if shares == ["end"] * world_size:
                break
        found = [share["x"].tolist() for share in shares if share not in (None, "end")]
        batches.append(sorted(chain.from_iterable(found)))
    return batches


@given(SIZES, SIZES, st.integers(1, 5), st.integers(0, 2), st.integers(0, 2**63))
def test_a_data_set(n, batch_size, world_size, epoch, seed):
    source = from_dataset([[float(i)] for i in range(n)], batch_size, seed, collate_fn=as_array, augment=noise)
    found = rows(source, epoch, world_size)
    assert found == rows(source, epoch, 1), "neither the items nor their noise depend on the cut"
    assert sorted(item for batch in found for item, _ in batch) == list(range(n))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    order = IndexedSource(range(n), batch_size, seed)
    assert [sorted(item for item, _ in batch) for batch in found] == [
        sorted(order.indices(epoch, step)) for step in range(len(found))
    ]
    drawn = [number for batch in found for _, number in batch]
    assert len(set(drawn)) == n and not set(drawn) & {d for b in rows(source, epoch + 1, 1) for _, d in b}


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), SIZES, st.integers(1, 5), st.integers(0, 5))
def test_streams_of_any_length(lengths, batch_size, world_size, start):
    lengths = lengths[:batch_size]
    streams = [[[float(100 * s + i)] for i in range(length)] for s, length in enumerate(lengths)]
    source = from_iterable([partial(again, items) for items in streams], batch_size,
                           collate_fn=as_array, augment=noise)  # fmt: skip
    whole = rows(source, 1, 1)
    assert sorted(item for batch in whole for item, _ in batch) == sorted(x for items in streams for (x,) in items)
    assert rows(source, 1, world_size) == whole
    assert rows(source, 1, world_size, start) == whole[start:], "begun at any batch"


def test_an_epoch_is_told_to_a_stream():
    class Told:
        def set_epoch(self, epoch):
            self.epoch = epoch

        def __iter__(self):
            return iter([[self.epoch]])

    for stream in (Told(), lambda epoch: [[epoch]]):
        assert rows(from_iterable(stream, 2, collate_fn=as_array), 3, 2) == [[[3]]]


def test_data_sets_of_others():
    names = ("x", "label")
    tuples = TensorDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6))
    for each in (tuples, Subset(tuples, range(6)), [tuples[i] for i in range(6)]):
        batch = from_dataset(each, 4, shuffle=False, names=names).batch(0, 1, 0, 1)
        assert batch["x"].tolist() == [[8, 9], [10, 11]] and batch["label"].tolist() == [4, 5]
    table = datasets.Dataset.from_dict({"x": [[1.0, 2.0], [3.0, 4.0]], "text": ["a", "b"]})
    batch = from_dataset(table.with_format("torch"), 2, shuffle=False).batch(0, 0, 0, 1)
    assert batch["x"].tolist() == [[1, 2], [3, 4]] and batch["text"] == ["a", "b"]
    stream = table.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=2).with_format("torch")
    (found,) = rows(from_iterable([stream.shard(2, i) for i in range(2)], 2), 0, 2)
    assert found == [[1, 2], [3, 4]]


def test_a_loader_is_taken_apart():
    loader = DataLoader(list(range(9)), batch_size=2, shuffle=True, num_workers=1, collate_fn=as_array)
    source = from_dataset(loader, 4, seed=5)
    assert (source.data, source.batch_size, source.shuffle) == (loader.dataset, 4, True)
    assert sorted(chain.from_iterable(rows(source, 0, 2))) == list(range(9))
    assert not from_dataset(DataLoader([1, 2], batch_size=2), 4).shuffle
    assert from_dataset(DataLoader([1, 2], batch_size=2), 4, shuffle=True).shuffle


class Sequence(IterableDataset):
    def __iter__(self):
        return iter(range(3))


NUMBERS = list(range(4))
CANNOT = [
    (lambda: from_dataset({"train": [1]}, 2), r"a dict .* is no data set; give .* dataset\['train'\]"),
    (lambda: from_dataset(iter([1]), 2), "list_iterator has no length .* from_iterable"),
    (lambda: from_dataset(Sequence(), 2), "Sequence has no length .* from_iterable"),
    (lambda: from_dataset(DataLoader(Sequence()), 2), "the DataLoader reads in sequence"),
    (lambda: from_dataset(DataLoader(NUMBERS, sampler=WeightedRandomSampler([1.0], 4)), 2),
     "has a WeightedRandomSampler; .* Give loader.dataset"),
    (lambda: from_dataset(DataLoader(NUMBERS, batch_sampler=[[1, 2]]), 2), "has a batch_sampler"),
    (lambda: from_dataset(DataLoader(NUMBERS, batch_size=2, drop_last=True), 2), "drops the last batch"),
    (lambda: from_dataset(DataLoader(NUMBERS, worker_init_fn=print), 2), "has a worker_init_fn"),
    (lambda: from_iterable((i for i in NUMBERS), 2), "a generator can be read only once"),
    (lambda: from_iterable(DataLoader(NUMBERS), 2), "a DataLoader gives batches"),
    (lambda: from_iterable(7, 2), "7 is no stream"),
    (lambda: from_iterable([NUMBERS] * 3, 2), "3 streams for batches of 2 items"),
    (lambda: from_iterable([], 2), "0 streams"),
    (lambda: rows(from_iterable(lambda: None, 2), 0, 1), "the function of a stream returned None"),
    (lambda: rows(from_dataset([(1, 2)], 2), 0, 1), "items have 2 fields and there are no names for them"),
    (lambda: rows(from_dataset([1], 2, names=("x", "y")), 0, 1), "items have 1 fields and there are 2 names"),
    (lambda: rows(from_dataset([{"x": [1, 2]}], 2), 0, 1), "'x' is a list in every item, .*with_format"),
    (lambda: rows(from_dataset([{"x": np.ones(1)}, {"x": np.ones(2)}], 2), 0, 1), "give a collate_fn that can"),
]  # fmt: skip


@pytest.mark.parametrize(("attempt", "says"), CANNOT, ids=[says for _, says in CANNOT])
def test_mistakes(attempt, says):
    with pytest.raises(UserError, match=says) as error:
        attempt()
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def table(tmp_path):
    datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 10, "n": list(range(10))}).to_parquet(tmp_path / "a.parquet")
    return {"path": "parquet", "data_files": str(tmp_path / "a.parquet")}


def test_what_load_dataset_finds(table):
    source = from_load_dataset(table, "train", 4, seed=1)
    batches = [list(source.iterate(epoch, 0, 0, 1, 0)) for epoch in (0, 1, 0)]
    orders = [torch.cat([batch["n"] for batch in epoch]).tolist() for epoch in batches]
    assert batches[0][0]["x"].shape == (4, 2) and [sorted(order) for order in orders] == [list(range(10))] * 3
    assert orders[0] == orders[2] != orders[1]
    assert from_load_dataset(table, "validation", 4) is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"path": "nowhere"}, "cannot load .*nowhere"),
        ({"data_files": "nowhere/*.parquet"}, "cannot load .*nowhere"),
        ({"data_file": "a"}, "cannot load"),
        ({"split": "test"}, "which split is read is the run's to say"),
        ({"data_files": {"test": "THERE"}}, "has no split 'train', but test"),
    ],
    ids=str,
)
def test_what_load_dataset_refuses_is_one_line(table, change, says, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    if isinstance(change.get("data_files"), dict):
        change = {"data_files": {"test": table["data_files"]}}
    with pytest.raises(UserError, match=says) as error:
        from_load_dataset(table | change, "train", 4)
    assert "\n" not in str(error.value)
