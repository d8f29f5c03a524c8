"""Indexed batches: every item once an epoch, the same whoever asks, cut into shares without loss."""

import copy
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accel_train.data.source import IndexedSource
from accel_train.task import BatchSource


class Items:
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> dict:
        assert len(indices)
        return {"index": indices}


class Endless:
    def read(self, indices: np.ndarray) -> dict:
        return {"index": indices}


sizes = st.integers(1, 200)


def read(source: BatchSource, epoch: int, step: int, world_size: int) -> list[int]:
    shares = [source.batch(epoch, step, rank, world_size) for rank in range(world_size)]
    return [int(i) for share in shares if share is not None for i in share["index"]]


@given(sizes, sizes, st.integers(1, 9), st.integers(0, 3), st.booleans(), st.integers(0, 2**63))
def test_every_item_once_an_epoch_on_any_number_of_ranks(n, batch_size, world_size, epoch, shuffle, seed):
    source = IndexedSource(Items(n), batch_size, seed, shuffle)
    steps = source.steps(epoch)
    assert steps == -(-n // batch_size)
    batches = [read(source, epoch, step, world_size) for step in range(steps)]
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (steps - 1)
    for step, batch in enumerate(batches):
        assert batch == source.indices(epoch, step).tolist() == read(source, epoch, step, 1)
    if not shuffle:
        assert [i for batch in batches for i in batch] == list(range(n))


@given(sizes, sizes, st.integers(2, 9))
def test_shares_differ_by_one_item_at_most(n, batch_size, world_size):
    source = IndexedSource(Items(n), batch_size)
    for step in range(source.steps(0) or 0):
        shares = [source.batch(0, step, rank, world_size) for rank in range(world_size)]
        lengths = [0 if share is None else len(share["index"]) for share in shares]
        assert max(lengths) - min(lengths) <= 1


@given(sizes, st.integers(1, 50), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=10))
def test_a_batch_is_a_function_of_its_place(n, batch_size, places):
    warm, seed = IndexedSource(Items(n), batch_size, 7), 7
    for epoch, step in places:
        asked = warm.indices(epoch, step)
        assert (asked == IndexedSource(Items(n), batch_size, seed).indices(epoch, step)).all()
        assert (asked == copy.deepcopy(warm).indices(epoch, step)).all()


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {
        tuple(IndexedSource(Items(50), 50, seed).indices(epoch, 0).tolist()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9 and tuple(range(50)) not in orders
    first = np.array([IndexedSource(Items(5), 5, seed).indices(0, 0)[0] for seed in range(2000)])
    assert abs(np.bincount(first, minlength=5) - 400).max() < 90, "every item is as likely to come first"


@given(st.integers(0, 10**12), sizes, st.integers(1, 5))
def test_endless_data_is_read_in_order(step, batch_size, world_size):
    source = IndexedSource(Endless(), batch_size, shuffle=True, endless=True)
    assert source.steps(0) is None
    assert read(source, 0, step, world_size) == list(range(step * batch_size, (step + 1) * batch_size))


def test_threads_in_different_epochs_do_not_disturb_each_other():
    source, wrong = IndexedSource(Items(5000), 5000, 1), []
    expected = [IndexedSource(Items(5000), 5000, 1).indices(epoch, 0) for epoch in range(4)]

    def ask(epoch: int) -> None:
        for _ in range(20):
            if not (source.indices(epoch, 0) == expected[epoch]).all():
                wrong.append(epoch)  # noqa: PERF401

    threads = [threading.Thread(target=ask, args=(epoch,)) for epoch in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_descriptions_name_the_items():
    source = IndexedSource(Items(20), 10, shuffle=False)
    assert source.describe(0, 1) == "epoch 0, batch 1, 10 items: 10, 11, 12, 13, 14, 15, 16, 17, ..."
    assert IndexedSource(Items(3), 10, shuffle=False).describe(2, 0) == "epoch 2, batch 0, 3 items: 0, 1, 2"
    assert BatchSource().describe(1, 2) == "epoch 1, batch 2"
