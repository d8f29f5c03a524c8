"""A data set may draw from global generators: its batches are repeatable, and nobody else notices."""

import random
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from accel_train.data.draws import SAMPLE, Draws
from accel_train.data.lanes import LanesSource
from accel_train.data.loader import Loader
from accel_train.data.ragged import Ragged
from accel_train.data.source import IndexedSource
from accel_train.plan import Position
from accel_train.task import BatchSource

CPU = torch.device("cpu")

DRAW: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.rand()),
    "random": lambda: random.random(),
}


class Noisy:
    """Adds a number that it draws, from batch ``since`` on."""

    def __init__(self, name: str, since: int = 0, wait: float = 0.0) -> None:
        self.name, self.since, self.wait = name, since, wait

    def __len__(self) -> int:
        return 200

    def read(self, indices: np.ndarray) -> dict:
        threading.Event().wait(self.wait)
        drawn = DRAW[self.name]() if indices[0] >= 2 * self.since else 0.0
        return {"index": indices, "drawn": np.array([drawn])}


class NoisyScan(BatchSource):
    def __init__(self, name: str, steps: int | None = 100) -> None:
        self.data, self._steps = Noisy(name), steps

    def steps(self, epoch: int) -> int | None:
        return self._steps

    def iterate(self, epoch: int, step: int, rank: int, world_size: int, num_workers: int) -> Iterator[dict]:
        for number in range(step, 100):
            yield self.data.read(np.array([number]))


def drawn(loader: Loader, start: int = 0, count: int = 12) -> list[float]:
    batches = loader.batches(Position(batch=start))
    found = [share["drawn"].item() for _, (_, _, share) in zip(range(count), batches, strict=False) if share]
    batches.close()
    return found


def generators() -> list[float]:
    """What the three would give next, without taking it from them."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    found = [draw() for draw in DRAW.values()]
    torch.set_rng_state(states[0]), np.random.set_state(states[1]), random.setstate(states[2])
    return found


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("kind", ["indexed", "indexed, slow", "scan", "stream"])
def test_draws_are_a_function_of_the_place(name, kind):
    make = {
        "indexed": lambda: IndexedSource(Noisy(name), 2, shuffle=False),
        "indexed, slow": lambda: IndexedSource(Noisy(name, wait=0.0005), 2, shuffle=False),
        "scan": lambda: NoisyScan(name),
        "stream": lambda: NoisyScan(name, None),
    }[kind]
    expected = drawn(Loader(make(), CPU, num_workers=0, seed=3))
    assert len(set(expected)) == 12
    for workers in (1, 2):
        loader = Loader(make(), CPU, num_workers=workers, seed=3)
        torch.rand(5), np.random.rand(5), random.random()  # whatever happened before
        assert drawn(loader) == expected
        (note,) = loader.events()
        assert note.kind == "note" and f"draws from the global generator of {name};" in note.title
        loader = Loader(make(), CPU, num_workers=workers, seed=3)
        assert drawn(loader, 5, 7) == expected[5:], "after a resume"
        again = [event.kind for event in loader.events() if "begun again within epoch 0" in event.title]
        assert again == (["warning"] if kind in ("scan", "stream") else [])
    assert drawn(Loader(make(), CPU, seed=4)) != expected
    assert drawn(Loader(make(), CPU, rank=1, world_size=2, seed=3)) != expected


class AllNoisy(Noisy):
    def read(self, indices: np.ndarray) -> dict:
        return {"drawn": np.array([sum(draw() for draw in DRAW.values())])}


def test_worker_processes_draw_the_same():
    source = IndexedSource(AllNoisy("all"), 2, shuffle=False)
    expected = drawn(Loader(source, CPU, num_workers=0, seed=3))
    assert drawn(Loader(source, CPU, num_workers=2, worker_type="process", seed=3)) == expected


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("wait", [0.0, 0.0005])
def test_the_step_does_not_notice(workers, name, wait):
    for source in (IndexedSource(Noisy(name, wait=wait), 2), NoisyScan(name)):
        before = generators()
        batches = Loader(source, CPU, num_workers=workers).batches(Position())
        for _ in range(12):
            next(batches)
            assert generators() == before
        batches.close()


@pytest.mark.parametrize("name", DRAW)
def test_who_begins_to_draw_later_is_found_out_and_said_to_be_unrepeatable(name):
    for wait, workers, seen in ((0.0, 0, SAMPLE), (0.0005, 1, 40)):
        loader = Loader(IndexedSource(Noisy(name, 10, wait), 2, shuffle=False), CPU, num_workers=workers)
        drawn(loader, count=seen + 2)
        (warning,) = loader.events()
        assert warning.kind == "warning" and "cannot be repeated" in warning.title
        assert ("dropout" in warning.title) == (name == "torch")


def test_a_thread_that_begins_to_draw_is_found_out_by_waiting_for_it():
    loader = Loader(IndexedSource(Noisy("torch", 5, 0.002), 2, shuffle=False), CPU, num_workers=1)
    drawn(loader, count=10)
    assert [event.kind for event in loader.events()] == ["warning"]


def test_a_scan_that_begins_to_draw_is_read_on_in_the_loop_without_losing_a_batch():
    class Late(NoisyScan):
        def iterate(self, epoch, step, rank, world_size, num_workers):
            for number in range(step, 40):
                threading.Event().wait(0.002)
                yield {"number": np.array([number]), "drawn": torch.rand(1) if number > 6 else torch.zeros(1)}

    loader = Loader(Late("torch", 40), CPU, num_workers=1)
    seen = [share["number"].item() for _, _, share in loader.batches(Position(), last_epoch=1) if share]
    assert seen == list(range(40))
    late, again = loader.events()
    assert "was not seen to at first" in late.title and "begun again within epoch 0" in again.title


def test_lanes_that_draw_leave_the_step_alone():
    class Format:
        def groups(self, path):
            return [8] * 5

        def blocks(self, path, group, rows):
            yield Ragged({"row": np.arange(8), "drawn": torch.rand(8).numpy()}, np.zeros(8, np.int64), {})

    source = LanesSource(["a", "b"], Format(), 4, lanes=2)
    before = generators()
    loader = Loader(source, CPU, num_workers=2)
    seen: list[int] = []
    for _, _, share in loader.batches(Position(), last_epoch=1):
        assert share is not None and generators() == before
        seen += share["event"].tolist()
    assert sorted(seen) == list(range(80))
    assert [event.kind for event in loader.events()] == ["note"]


def test_a_source_that_does_not_draw_is_left_in_peace():
    loader = Loader(IndexedSource(Noisy("torch", since=1000), 2), CPU, num_workers=2)
    drawn(loader, count=90)
    assert loader.events() == [] and not loader._draws.found


def test_generators_are_put_back_after_an_error():
    def read():
        torch.rand(1), np.random.rand(1), random.random()
        raise ValueError

    before = generators()
    with pytest.raises(ValueError):
        Draws(0, 0).read(0, 0, read)
    assert generators() == before
