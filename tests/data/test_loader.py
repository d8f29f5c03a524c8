"""The loader hands over exactly what the source has, in order, however it reads, and cleans up after itself."""

import itertools
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from accel_train.data.loader import JUDGED, Loader, Pace
from accel_train.data.source import IndexedSource
from accel_train.errors import DataError, UserError
from accel_train.plan import Position
from accel_train.task import BatchSource

CPU = torch.device("cpu")


class Items:
    """Slow enough, at first, that the loader starts its threads; later ones take random times."""

    def __init__(self, n: int = 23, seconds: float = 0.002) -> None:
        self.n, self.seconds = n, seconds

    def __len__(self) -> int:
        return self.n

    def read(self, indices: np.ndarray) -> dict:
        time.sleep(self.seconds * (1 + indices[0] % 3))
        return {"index": indices, "name": "text", "tensor": torch.ones(len(indices))}


class Broken(Items):
    def __init__(self, error: Exception, at: int) -> None:
        super().__init__()
        self.error, self.at = error, at

    def read(self, indices: np.ndarray) -> dict:
        if self.at in indices:
            raise self.error
        return super().read(indices)


class Scan(BatchSource):
    """Epoch e has ``length`` + e batches, which it finds out at their end."""

    def __init__(self, length: int = 3, seconds: float = 0.0) -> None:
        self.length, self.seconds = length, seconds
        self.opened: list[tuple[int, int]] = []
        self.threads: list[str] = []

    def steps(self, epoch: int) -> int | None:
        return None

    def iterate(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Iterator[dict | None]:
        self.opened.append((epoch, step))
        for number in range(step, self.length + epoch):
            self.threads.append(threading.current_thread().name)
            if self.seconds:
                time.sleep(self.seconds)
            yield {"at": np.array([epoch, number, rank])} if (number + rank) % 2 == 0 else None


@pytest.fixture(autouse=True)
def no_threads_stay():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def flat(batches, key="index") -> list:
    return [(e, n, None if share is None else share[key].tolist()) for e, n, share in batches]


WAYS = [(0, "thread"), (1, "thread"), (3, "thread")]


@pytest.mark.parametrize(("num_workers", "worker_type"), WAYS)
@pytest.mark.parametrize(("epoch", "batch"), [(0, 0), (0, 3), (1, 5), (2, 2)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_in_order_from_any_position(num_workers, worker_type, epoch, batch, world_size):
    source = IndexedSource(Items(), 4, seed=3)
    places = [(e, n) for e in range(3) for n in range(6)]
    for rank in range(world_size):
        loader = Loader(source, CPU, rank, world_size, num_workers, worker_type)
        found = flat(loader.batches(Position(epoch=epoch, batch=batch), last_epoch=3))
        expected = []
        for e, n in places[places.index((epoch, batch)) :]:
            share = source.batch(e, n, rank, world_size)
            expected.append((e, n, None if share is None else share["index"].tolist()))
        assert found == expected


def test_two_processes_give_the_same():
    source = IndexedSource(Items(), 4, seed=3)
    expected = flat(Loader(source, CPU, num_workers=0).batches(Position(batch=2), last_epoch=2))
    loader = Loader(source, CPU, num_workers=2, worker_type="process")
    assert flat(loader.batches(Position(batch=2), last_epoch=2)) == expected


def test_an_error_in_a_process_names_its_place():
    source = IndexedSource(Broken(DataError("a.parquet: torn"), 13), 4, shuffle=False)
    seen = []
    with pytest.raises(DataError, match=r"^a.parquet: torn \(while reading epoch 0, batch 3\)$"):
        for _, number, _ in Loader(source, CPU, num_workers=1, worker_type="process").batches(Position()):
            seen.append(number)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_arrays_become_tensors_and_the_rest_stays(num_workers):
    _, _, batch = next(iter(Loader(IndexedSource(Items(), 4), CPU, num_workers=num_workers).batches(Position(), 1)))
    assert batch is not None and batch["name"] == "text"
    assert isinstance(batch["index"], torch.Tensor) and isinstance(batch["tensor"], torch.Tensor)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_an_error_surfaces_where_it_belongs_and_names_its_place(num_workers):
    source = IndexedSource(Broken(ValueError("bad row"), 13), 4, shuffle=False)
    seen = []
    with pytest.raises(ValueError, match="bad row") as error:
        for _, number, _ in Loader(source, CPU, num_workers=num_workers).batches(Position(), last_epoch=1):
            seen.append(number)
    assert seen == [0, 1, 2], "everything before it has been handed over"
    assert error.value.__notes__ == ["while reading epoch 0, batch 3, 4 items: 12, 13, 14, 15"]

    source = IndexedSource(Broken(UserError("x.h5: cut short"), 13), 4, shuffle=False)
    with pytest.raises(DataError, match=r"^x.h5: cut short \(while reading epoch 0, batch 3\)$"):
        list(Loader(source, CPU, num_workers=num_workers).batches(Position(), last_epoch=1))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_consumer_that_stops_waits_for_the_batch_being_read_only(num_workers):
    source = IndexedSource(Items(1000, seconds=0.01), 1, shuffle=False)
    batches = Loader(source, CPU, num_workers=num_workers).batches(Position())
    for _ in range(8):
        next(batches)
    started = time.perf_counter()
    batches.close()
    assert time.perf_counter() - started < 0.5
    assert not [t for t in threading.enumerate() if t.name.startswith("loader")]


def test_a_raising_consumer_leaves_no_threads():
    with pytest.raises(KeyError):
        for _, number, _ in Loader(IndexedSource(Items(), 1), CPU, num_workers=2).batches(Position()):
            if number == 6:
                raise KeyError


def test_no_more_is_read_ahead_than_asked_for():
    class Counting(Items):
        reads = 0

        def read(self, indices: np.ndarray) -> dict:
            Counting.reads += 1
            return super().read(indices)

    batches = Loader(IndexedSource(Counting(1000), 1), CPU, num_workers=2, prefetch=3).batches(Position())
    for _ in range(10):
        next(batches)
    time.sleep(0.1)
    assert 10 <= Counting.reads <= 10 + 2 * 3 + 1
    batches.close()


def test_cheap_batches_are_read_in_the_loop_and_slow_ones_by_threads():
    class Where(Items):
        def __init__(self, seconds: float) -> None:
            super().__init__(1000, seconds)
            self.threads: list[str] = []

        def read(self, indices: np.ndarray) -> dict:
            self.threads.append(threading.current_thread().name)
            if self.seconds:
                time.sleep(self.seconds)
            return {"index": indices}

    cheap, slow = Where(0.0), Where(0.002)
    for data in (cheap, slow):
        batches = Loader(IndexedSource(data, 4), CPU, num_workers=1).batches(Position())
        for _ in range(50):
            next(batches)
        batches.close()
    here = threading.current_thread().name
    assert set(cheap.threads) == {here}
    assert slow.threads[:JUDGED] == [here] * JUDGED
    assert all(name.startswith("loader") for name in slow.threads[JUDGED:])


def test_a_pause_of_the_machine_does_not_make_a_source_slow():
    pace = Pace()
    for _ in range(100):
        for seconds in (0.0, 1.0, 1.0, 0.0, 0.0):
            pace.took(seconds)
            assert not pace.ahead


def test_a_source_that_was_slow_for_a_while_is_read_in_the_loop_again():
    """And one that is slow for good is tried ever more rarely."""

    def reads(is_slow, batches: int = 100_000) -> tuple[int, int]:
        """Into how many pieces the batches fall, and how many of them the loop reads."""
        pace, turns, in_loop = Pace(), 0, 0
        for number in range(batches):
            before = pace.ahead
            if pace.ahead:
                pace.hand_over()
            else:
                in_loop += 1
                pace.took(1.0 if is_slow(number) else 0.0)
            turns += pace.ahead != before
        return turns, in_loop

    assert reads(lambda number: number < 100) == (2, 100_000 - 256)
    turns, in_loop = reads(lambda number: True)
    assert turns < 12 and in_loop < 40


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_scan_of_unknown_length(num_workers):
    source = Scan()
    loader = Loader(source, CPU, rank=1, world_size=2, num_workers=num_workers)
    found = flat(itertools.islice(loader.batches(Position(epoch=0, batch=1)), 8), "at")
    assert found == [
        (0, 1, [0, 1, 1]), (0, 2, None), (1, 0, None), (1, 1, [1, 1, 1]), (1, 2, None), (1, 3, [1, 3, 1]),
        (2, 0, None), (2, 1, [2, 1, 1]),
    ]  # fmt: skip
    assert source.opened[:3] == [(0, 1), (1, 0), (2, 0)]
    assert len(flat(loader.batches(Position(), last_epoch=2), "at")) == 3 + 4
    at_the_end = flat(itertools.islice(loader.batches(Position(epoch=0, batch=3)), 1), "at")
    assert at_the_end == [(1, 0, None)], "saved at the end of an epoch that did not know it was over"


def test_a_slow_scan_of_unknown_length_is_read_ahead_to_its_end():
    slow, plain = Scan(40, 0.001), Scan(40)
    found = [flat(Loader(each, CPU, num_workers=1).batches(Position(), last_epoch=3), "at") for each in (slow, plain)]
    assert found[0] == found[1] and len(found[0]) == 40 + 41 + 42
    assert slow.threads == [threading.current_thread().name] * JUDGED + ["scan_0"] * (len(found[0]) - JUDGED)
    assert slow.opened == [(0, 0), (1, 0), (2, 0)], "an epoch is begun when the one before is used up"
    assert "scan_0" not in plain.threads
    batches = Loader(slow, CPU, num_workers=2, prefetch=3).batches(Position())
    slow.threads.clear()
    for _ in range(20):
        next(batches)
    time.sleep(0.05)
    assert 20 < len(slow.threads) <= 20 + 2 * 3 + 1, "no more is read ahead than asked for"
    batches.close()


def test_a_slow_scan_that_begins_to_draw_late_is_read_in_the_loop_from_there_on():
    class Late(Scan):
        def iterate(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Iterator[dict | None]:
            for share in super().iterate(epoch, step, rank, world_size, num_workers):
                if share is not None and share["at"][1] > 20:
                    torch.rand(1)
                yield share

    late = Late(100, 0.001)
    loader = Loader(late, CPU, num_workers=1)
    assert flat(loader.batches(Position(), last_epoch=1), "at") == flat(
        Loader(Scan(100), CPU).batches(Position(), 1), "at"
    )
    assert "scan_0" in late.threads and late.threads[-50:] == [threading.current_thread().name] * 50
    (event,) = loader.events()
    assert event.kind == "warning" and "cannot be repeated" in event.title


def test_empty_data_is_said_so():
    class Empty(Scan):
        def iterate(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Iterator[dict | None]:
            return iter(())

    with pytest.raises(DataError, match="epoch 0 has no batches: the data is empty"):
        list(Loader(Empty(), CPU).batches(Position(), last_epoch=1))


def test_an_error_in_a_scan_names_its_place():
    class Torn(Scan):
        def iterate(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Iterator[dict | None]:
            yield {"at": np.zeros(1)}
            raise OSError("torn")

    with pytest.raises(OSError, match="torn") as error:
        list(Loader(Torn(), CPU, num_workers=0).batches(Position(), last_epoch=1))
    assert error.value.__notes__ == ["while reading epoch 0, batch 1"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_scan_of_no_batches_is_said_to_be_empty(num_workers):
    class Nothing(Scan):
        def steps(self, epoch: int) -> int:
            return 0

    with pytest.raises(DataError, match="epoch 0 has no batches: the data is empty"):
        list(Loader(Nothing(), CPU, num_workers=num_workers).batches(Position(), last_epoch=1))
