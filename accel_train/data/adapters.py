"""Data that people have already, as a source of batches: map-style data sets, a ``DataLoader``, streams of items."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils import data as torch_data
from torch.utils.data import default_collate

from accel_train import keyed
from accel_train.data.source import IndexedSource, described, part
from accel_train.errors import DataError, UserError, brief
from accel_train.task import Batch, BatchSource

Augment = Callable[[Any, np.random.Generator], Any]


def from_dataset(
    dataset: Any,
    batch_size: int,
    seed: int = 0,
    shuffle: bool | None = None,
    *,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    augment: Augment | None = None,
    names: Sequence[str] = (),
) -> IndexedSource:
    """A source of anything that has a length and items by number, for ``build_data`` to return.

    Args:
        dataset: a torch ``Dataset``, a ``datasets.Dataset``, a list, ...; read by several threads at once with
            ``num_workers`` above 1. Of a ``DataLoader`` only the data set, ``collate_fn`` and whether it shuffles are
            taken; how many items are in a batch, and who reads them, is the run's to say.
        batch_size, seed: those that ``build_data`` is given.
        shuffle: a permutation drawn from (seed, epoch); False: in order. None: as the ``DataLoader`` does, else True.
        collate_fn: makes a batch of a list of items: a dict of names to tensors or arrays. Default: that of the
            ``DataLoader``, or torch's ``default_collate``.
        augment: ``augment(item, generator)`` returns what takes the place of an item. The generator follows from (seed,
            epoch, item) alone, so that neither ranks nor workers nor interruptions change what is drawn.
        names: of the fields, where items are tuples such as (image, label).

    Raises:
        UserError: it has no length or no items by number, or the ``DataLoader`` does what a run decides by itself.
    """
    if isinstance(dataset, torch_data.DataLoader):
        dataset, collate_fn, shuffle = _taken_apart(dataset, collate_fn, shuffle)
    if isinstance(dataset, Mapping):
        raise UserError(f"from_dataset: {described(dataset)} is no data set; give one of its values, such as "
                        f"dataset[{next(iter(dataset), 'train')!r}]")  # fmt: skip
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise UserError(f"from_dataset: {described(dataset)} has no length (__len__) or no items by number "
                        "(__getitem__); data that are read in sequence are for from_iterable")  # fmt: skip
    return _Dataset(dataset, batch_size, seed, shuffle is not False, _Assembly(seed, collate_fn, augment, tuple(names)))


def from_iterable(
    streams: Any,
    batch_size: int,
    seed: int = 0,
    *,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    augment: Augment | None = None,
    names: Sequence[str] = (),
) -> BatchSource:
    """A source of items that come in sequence, for ``build_data`` to return.

    A stream is a ``datasets.IterableDataset``, another iterable that can be read again in every epoch, or a function
    that returns one: ``stream(epoch)``, or without argument. ``set_epoch`` is called where a stream has it. It must
    give the same items to every rank and in every reading of an epoch. One stream is read by all ranks, which keep
    their share of every batch. Of several, a batch takes equally many items from each until that has ended, and a rank
    reads only those that hold its share: with twice as many streams as ranks each reads two. A resumed run reads over
    what it has had. One thread reads ahead, to the end of an epoch.

    Args:
        streams: one, or a list: ``[dataset.shard(8, i) for i in range(8)]``. Their number must not follow from that of
            the ranks, since another number makes other batches.
        batch_size, seed, collate_fn, augment, names: as for ``from_dataset``; an item is known by its place in the
            epoch, and only the rank that keeps it augments it.

    Raises:
        UserError: there is a stream that can be read only once, or are more streams than items in a batch.
    """
    listed = list(streams) if isinstance(streams, (list, tuple)) else [streams]
    if not listed or len(listed) > batch_size:
        raise UserError(f"from_iterable: {len(listed)} streams for batches of {batch_size} items; each needs at least "
                        "one item in a batch")  # fmt: skip
    for stream in listed:
        _refuse_what_is_no_stream(stream)
    return _Streams(listed, batch_size, _Assembly(seed, collate_fn, augment, tuple(names)))


def from_load_dataset(
    arguments: Mapping[str, Any],
    split: str,
    batch_size: int,
    seed: int = 0,
    *,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    augment: Augment | None = None,
    streams: int = 8,
    shuffle_buffer: int = 1000,
) -> BatchSource | None:
    """A source of what ``datasets.load_dataset`` finds, by arguments that a config can hold.

    They are read as a stream, as ``from_iterable`` has it, unless ``streaming: false`` is among them: then a copy is
    made in the cache of the library, and ``from_dataset`` shuffles it as a whole.

    Args:
        arguments: such as ``{path: parquet, data_files: {train: "a/*.parquet", validation: b.parquet}}`` or ``{path:
            allenai/c4, name: en}``.
        split, batch_size, seed: those that ``build_data`` is given; the split "train" is shuffled.
        collate_fn, augment: as for ``from_dataset``. Without a ``collate_fn`` the numbers and lists of a row are
            tensors, with one they are what the library gives.
        streams: so many, or as many as there are files (shards), if these are fewer.
        shuffle_buffer: at least 1; rows of each stream among which the next one is drawn. A rank keeps those of the
            streams that it reads in memory.

    Returns:
        None if there is no such split, but for "train".

    Raises:
        DataError: the library cannot load it; with the first line of its reason.
        UserError: there is no split "train", or ``split`` is among the arguments.
    """
    from datasets import config, load_dataset
    from datasets.exceptions import DatasetsError

    if "split" in arguments:
        raise UserError("from_load_dataset: which split is read is the run's to say; name the files of each instead: "
                        "data_files: {train: ..., validation: ...}")  # fmt: skip
    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # otherwise opening a local file asks the network first
    given: dict[str, Any] = {"streaming": True, **arguments}
    try:
        loaded: Any = load_dataset(**given)
    except (OSError, ValueError, TypeError, DatasetsError) as error:
        raise DataError(f"load_dataset cannot load {dict(arguments)}: {brief(error)}") from None
    if split not in loaded:
        if split == "train":
            raise UserError(f"load_dataset({dict(arguments)}) has no split 'train', but {', '.join(loaded)}")
        return None
    dataset = loaded[split] if collate_fn is not None else loaded[split].with_format("torch")
    if not given["streaming"]:
        return from_dataset(dataset, batch_size, seed, split == "train", collate_fn=collate_fn, augment=augment)
    count = min(streams, dataset.num_shards, batch_size)
    if split != "train":
        return from_iterable([dataset.shard(count, i) for i in range(count)], batch_size, seed, collate_fn=collate_fn,
                             augment=augment)  # fmt: skip
    files = [dataset.shard(dataset.num_shards, i) for i in range(dataset.num_shards)]
    mixed = [_mixed(files[i::count], keyed.key(seed, "shuffle", i), shuffle_buffer) for i in range(count)]
    return from_iterable(mixed, batch_size, seed, collate_fn=collate_fn, augment=augment)


def _mixed(files: list[Any], key: int, size: int) -> Callable[[int], Iterator[Any]]:
    """A stream of their rows, files and rows in an order drawn from (key, epoch) alone. That of ``datasets.shuffle``
    depends on its version."""

    def stream(epoch: int) -> Iterator[Any]:
        draw, waiting = np.random.default_rng((key, epoch)), list[Any]()
        for row in chain.from_iterable(files[i] for i in draw.permutation(len(files))):
            if len(waiting) < size:
                waiting.append(row)
                continue
            at = int(draw.integers(size))
            yield waiting[at]
            waiting[at] = row
        yield from (waiting[i] for i in draw.permutation(len(waiting)))

    return stream


class _Dataset(IndexedSource):
    def __init__(self, data: Any, batch_size: int, seed: int, shuffle: bool, assembly: _Assembly) -> None:
        super().__init__(data, batch_size, seed, shuffle)
        self.assembly = assembly

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        numbers = self.share(epoch, step, rank, world_size).tolist()
        if not numbers:
            return None
        at_once = getattr(self.data, "__getitems__", None)  # what torch's own loader asks for
        items = at_once(numbers) if at_once is not None else [self.data[number] for number in numbers]
        return self.assembly.batch(items, epoch, numbers)


class _Streams(BatchSource):
    def __init__(self, streams: list[Any], batch_size: int, assembly: _Assembly) -> None:
        self.streams, self.batch_size, self.assembly = streams, batch_size, assembly

    def steps(self, epoch: int) -> int | None:
        return None

    def fingerprint(self) -> dict[str, Any]:
        return {"streams": len(self.streams)}

    def iterate(
        self, epoch: int, step: int, rank: int, world_size: int, num_workers: int
    ) -> Iterator[Batch | None] | None:
        mine, opened = part(self.batch_size, rank, world_size), list[tuple[Iterator[Any], range, range]]()
        for i, stream in enumerate(self.streams):
            block = part(self.batch_size, i, len(self.streams))
            places = range(block.start, block.stop)  # of its items in a batch
            kept = range(max(block.start, mine.start), min(block.stop, mine.stop))
            if kept:
                opened.append((islice(_begun(stream, epoch), step * len(places), None), places, kept))
        return self._shares(epoch, step, opened)

    def _shares(
        self, epoch: int, step: int, opened: list[tuple[Iterator[Any], range, range]]
    ) -> Iterator[Batch | None]:
        """From ``step`` until all streams of this rank have ended; None where what is left is for other ranks."""
        while True:
            taken = [list(zip(places, islice(items, len(places)))) for items, places, _ in opened]  # noqa: B905
            if not any(taken):
                return
            found = {
                at: item for each, (*_, kept) in zip(taken, opened, strict=True) for at, item in each if at in kept
            }
            numbers = [step * self.batch_size + at for at in found]
            yield self.assembly.batch(list(found.values()), epoch, numbers) if found else None
            step += 1


class _Assembly:
    """Makes a batch of items."""

    def __init__(self, seed: int, collate_fn: Any, augment: Augment | None, names: tuple[str, ...]) -> None:
        self.seed, self.augment, self.names = seed, augment, names
        self.collate_fn = None if collate_fn is default_collate else collate_fn

    def batch(self, items: Sequence[Any], epoch: int, numbers: Sequence[int]) -> Batch:
        """``numbers``: by which the items are known, in this epoch."""
        if self.augment is not None:
            key = keyed.key(self.seed, "augment", epoch)
            items = [
                self.augment(item, np.random.default_rng((key, number)))
                for item, number in zip(items, numbers, strict=True)
            ]
        return self._named(self.collate_fn(list(items)) if self.collate_fn is not None else _collated(items))

    def _named(self, batch: Any) -> Batch:
        if isinstance(batch, Mapping):
            return dict(batch)
        fields = batch if isinstance(batch, (tuple, list)) else [batch]
        if len(fields) != len(self.names):
            given = f"{len(self.names)} names" if self.names else "no names"
            raise DataError(f"items have {len(fields)} fields and there are {given} for them: give "
                            'names=("x", "y", ...), or items or a collate_fn with dicts')  # fmt: skip
        return dict(zip(self.names, fields, strict=True))


def _collated(items: Sequence[Any]) -> Any:
    """By torch's ``default_collate``, which makes a tensor of a number and takes lists apart."""
    try:
        batch = default_collate(list(items))
    except (RuntimeError, TypeError) as error:
        raise DataError(f"these items cannot be put into one batch ({brief(error)}); give a collate_fn that can, for "
                        "example one that pads") from None  # fmt: skip
    for name, value in batch.items() if isinstance(batch, Mapping) else ():
        if isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) for each in value):
            raise DataError(f"{name!r} is a list in every item, which torch's default_collate takes apart; make it an "
                            'array (dataset.with_format("torch") does), or give a collate_fn')  # fmt: skip
    return batch


def _taken_apart(loader: Any, collate_fn: Any, shuffle: bool | None) -> tuple[Any, Any, bool]:
    """The data set of a ``DataLoader``, its ``collate_fn``, and whether it shuffles."""
    sampler = loader.sampler
    permutes = type(sampler) is torch_data.RandomSampler and not sampler.replacement and sampler._num_samples is None
    whys = {
        "reads in sequence (its data are for from_iterable)": isinstance(loader.dataset, torch_data.IterableDataset),
        "has a batch_sampler, or batches nothing": loader.batch_size is None,
        f"has a {type(sampler).__name__}": not permutes and type(sampler) is not torch_data.SequentialSampler,
        "drops the last batch": loader.drop_last,
        "has a worker_init_fn": loader.worker_init_fn is not None,
    }
    for why, found in whys.items():
        if found:
            raise UserError(
                f"from_dataset: the DataLoader {why}; which items a batch has follows from (seed, epoch, batch) alone, "
                "an epoch has every item once and its last batch may be short. Give loader.dataset if that will do "
                "(another order is `indices` of an IndexedSource)"
            )
    return loader.dataset, collate_fn or loader.collate_fn, permutes if shuffle is None else shuffle


def _refuse_what_is_no_stream(stream: Any) -> None:
    if isinstance(stream, Iterator):
        raise UserError(f"from_iterable: {described(stream)} can be read only once, but there are epochs, and a "
                        "resumed run begins again: give the function that makes it")  # fmt: skip
    if isinstance(stream, torch_data.DataLoader):
        raise UserError("from_iterable: a DataLoader gives batches; give the items: loader.dataset")
    if isinstance(stream, (str, bytes, Mapping)) or not (callable(stream) or hasattr(stream, "__iter__")):
        raise UserError(f"from_iterable: {described(stream)} is no stream: give a datasets.IterableDataset, another "
                        "iterable, or a function that returns one")  # fmt: skip


def _begun(stream: Any, epoch: int) -> Iterator[Any]:
    """The items of a stream, from the first of this epoch."""
    if hasattr(stream, "set_epoch"):
        stream.set_epoch(epoch)
    if not hasattr(stream, "__iter__"):
        stream = stream(*([epoch] if inspect.signature(stream).parameters else []))
    if not isinstance(stream, Iterable):
        raise DataError(f"the function of a stream returned {described(stream)}; expected an iterable of items")
    return iter(stream)
