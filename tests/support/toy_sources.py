"""Toy tasks whose data are particular: streams, data that draw, data as people bring them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate

from accel_train import BatchSource, IndexedSource, from_dataset, from_iterable, from_load_dataset
from support.faults import FAULTS
from support.toys import Numbers, Toy


class Arrays:
    """Items of a toy task in a file that stays mapped: float32 [items, 1, width]."""

    def __init__(self, path: Path) -> None:
        self.x = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        x = self.x[indices]
        return {"index": indices, "x": x, "y": x.sum(-1), "mask": np.ones(x.shape[:2], np.float32)}


class Endless(BatchSource):
    """A stream that does not know its length."""

    def __init__(self, data: Numbers) -> None:
        self.data = data

    def steps(self, epoch):
        return None

    def iterate(self, epoch, step, rank, world_size, num_workers):
        for number in range(step, 1000):
            yield self.data.read(np.arange(4) + 8 * number + 4 * rank)


class Unending(Toy):
    def build_data(self, split, batch_size, seed):
        return Endless(Numbers(50, split, False)) if split == "train" else None


class Drawing(Toy):
    """A data set that draws from a global generator, and adds it to the targets if ``used``; also in validation."""

    def __init__(self, draws: str = "torch", used: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.draws, self.used = draws, used

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        source = super().build_data(split, batch_size, seed)
        if source is not None and self.draws:
            source.data = Augmented(source.data, self.draws, self.used)
        return source


class Augmented:
    def __init__(self, data: Numbers, draws: str, used: bool) -> None:
        self.data, self.draws, self.used = data, draws, used

    def __len__(self) -> int:
        return len(self.data)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        batch, shape = self.data.read(indices), (len(indices), 1)
        if self.draws == "torch":
            drawn = torch.randn(shape).numpy()
        elif self.draws == "numpy":
            drawn = np.random.normal(size=shape)
        else:
            drawn = np.array([[random.gauss(0, 1)] for _ in indices])
        return batch | {"y": (batch["y"] + drawn * self.used).astype(self.data.dtype)}


class Divided(Toy):
    """Draws which items are for training and which for validation, and the first weights, with numpy."""

    def build_data(self, split: str, batch_size: int, seed: int) -> IndexedSource | None:
        order = np.random.permutation(70)
        items = order[:50] if split == "train" else order[50:]
        source = super().build_data("train", batch_size, seed)
        assert source is not None
        source.data = Chosen(source.data, items)
        return source if split != "test" else None

    def build_model(self) -> nn.Sequential:
        model = super().build_model()
        with torch.no_grad():
            next(model.parameters()).add_(torch.from_numpy(np.random.normal(size=(self.width, 4))))
        return model

    def eval_step(self, models, batch):
        FAULTS.setdefault("evaluated", set()).update(batch["index"].tolist())
        return super().eval_step(models, batch)


class Chosen:
    def __init__(self, data: Numbers, items: np.ndarray) -> None:
        self.data, self.items = data, items

    def __len__(self) -> int:
        return len(self.items)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        return self.data.read(self.items[indices])


class Streams(Toy):
    """Every rank has a stream of its own, of ``lengths[rank]`` batches in each epoch; they know it (``announced``
    batches, or a number for each epoch) or not."""

    def __init__(self, lengths: list[int], announced: int | list[int | None] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.lengths, self.announced = lengths, announced

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        source = super().build_data(split, batch_size, seed)
        return Stream(source.data, self.lengths, self.announced) if source and split == "train" else source


class Stream(BatchSource):
    def __init__(self, data: Numbers, lengths: list[int], announced: int | list[int | None] | None) -> None:
        self.data, self.lengths, self.announced = data, lengths, announced

    def steps(self, epoch: int) -> int | None:
        return self.announced[epoch] if isinstance(self.announced, list) else self.announced

    def iterate(
        self, epoch: int, step: int, rank: int, world_size: int, num_workers: int
    ) -> Iterator[dict[str, Any] | None]:
        for number in range(step, self.lengths[rank]):
            yield self.data.read(np.arange(4) + 1000 * epoch + 10 * number + 4 * rank)


class Brought(Toy):
    """On data as people have them: a list of dicts, or the same as ``streams`` of uneven length; with noise."""

    def __init__(self, streams: int = 0, held_out: int = 21, **options: Any) -> None:
        super().__init__(**options)
        self.streams, self.held_out = streams, held_out

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        source = super().build_data(split, batch_size, seed)
        if source is None:
            return None
        items = [{name: v[0] for name, v in source.data.read(np.array([i])).items()} for i in range(len(source.data))]
        items = items if split == "train" else items[: self.held_out]
        augment = noisy if split == "train" else None
        if not self.streams:
            return from_dataset(items, batch_size, seed, shuffle=split == "train", augment=augment)
        cuts = np.linspace(0, 1, self.streams + 1) ** 2 * len(items)
        streams = [items[int(a) : int(b)] for a, b in pairwise(cuts)]
        return from_iterable([Shuffled(each) for each in streams], batch_size, seed, augment=augment)


class Loaded(Toy):
    """On what ``load_dataset`` finds by ``data``; with noise."""

    def __init__(self, data: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.data = data

    def build_data(self, split: str, batch_size: int, seed: int) -> BatchSource | None:
        dtype = np.float64 if self.float64 else np.float32

        def arrays(row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
            row = {name: np.array(value, np.int64 if name == "index" else dtype) for name, value in row.items()}
            return noisy(row, generator) if split == "train" else row

        return from_load_dataset(self.data, split, batch_size, seed, augment=arrays, collate_fn=default_collate,
                                 shuffle_buffer=4)  # fmt: skip


def noisy(item: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
    return item | {"y": (item["y"] + generator.normal()).astype(item["y"].dtype)}


class Shuffled:
    """Items in another order in every epoch."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.epoch = items, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return (self.items[i] for i in np.random.default_rng((3, self.epoch)).permutation(len(self.items)))
