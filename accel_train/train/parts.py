"""``reduction: fixed``: a batch in parts, and sums over them that are added in the same order on any number of ranks.

The parts are the leaves of a binary tree: the node k of level m covers the parts from k * 2^m on, and is the sum of the
nodes 2k and 2k + 1 below it, in this order; one without a sibling is passed up. A rank owns consecutive parts and adds
up what lies within them; what is left of the tree, all ranks add up alike.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from accel_train.config.schema import TrainConfig
from accel_train.data.loader import Loader
from accel_train.data.part_loader import PartLoader
from accel_train.data.source import part
from accel_train.errors import UserError
from accel_train.task import BatchSource
from accel_train.train.world import Ranks

T = TypeVar("T")
Gradients = list[Tensor | None]
"""By parameter; contiguous. None: not reached."""
Node = tuple[int, int, T]
"""Level, number within it, sum."""
Span = tuple[int, int, int]
"""Number of a parameter; first and last element (exclusive)."""
MESSAGE_BYTES = 32 << 20
"""Gradients are exchanged in messages of this size, so that the memory they take does not grow with the model."""

NOTHING = -0.0
"""Added to a number, it leaves every bit of it; 0.0 would take the sign of a zero."""


class Tree(Generic[T]):
    """Adds up as soon as it can. Nodes must be put in the order of their parts, without gaps.

    Args:
        leaves: of the whole tree.
        add: the sum of two siblings; may be made in place of the first one.
    """

    def __init__(self, leaves: int, add: Callable[[T, T], T]) -> None:
        self.leaves, self._add = leaves, add
        self.nodes: list[Node[T]] = []  # that wait for their siblings

    def put(self, level: int, number: int, value: T) -> None:
        while (width := -(-self.leaves >> level)) > 1:  # nodes of this level
            if self.nodes and self.nodes[-1][:2] == (level, number ^ 1):
                value = self._add(self.nodes.pop()[2], value)
            elif number ^ 1 < width:
                break
            level, number = level + 1, number >> 1
        self.nodes.append((level, number, value))

    @property
    def root(self) -> T:
        ((_, _, value),) = self.nodes
        return value


class Parts:
    """The parts of every batch, and those of this rank.

    Raises:
        UserError: there are more ranks than parts.
    """

    def __init__(self, count: int, ranks: Ranks) -> None:
        self.count, self.ranks = count, ranks
        if ranks.world_size > count:
            raise UserError(
                f"reduction: fixed with {count} parts is for at most {count} processes, and there are "
                f"{ranks.world_size}: raise reduction_parts (which makes another run), or start fewer"
            )
        self._owned = [range(count)[part(count, rank, ranks.world_size)] for rank in range(ranks.world_size)]
        self.own = self._owned[ranks.rank]
        self._layouts: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype]]] = {}

    def largest(self, batch_size: int) -> int:
        """Items that go through the models at once. Data read in sequence may give a part more: it is cut."""
        return -(-batch_size // self.count)

    def out_of_memory(self, items: int) -> str:
        """What is said of it: another cut would give other bits."""
        how = f"raise reduction_parts above {self.count} (which makes another run)"
        return f"out of memory with {items:,} items at once, and reduction: fixed does not halve them: {how}"

    def alive(self) -> int:
        """How many sums of gradients a rank holds at most, with that which is being made."""
        return max(map(_most_nodes, [self.count] * len(self._owned), self._owned))

    def sum(self, mine: dict[int, dict[str, Tensor]], device: torch.device, what: str = "") -> dict[str, Tensor]:
        """Tensors of this rank's parts, by part and name, added over all parts in float64; the same on every rank.

        Args:
            what: these sums have had the same names, shapes and types since the first time; empty: they may change.
        """
        layout = self._layouts.get(what) or self._layout(mine)
        if not layout:  # no rank has items: they all abandon the step
            return {}
        if what:
            self._layouts[what] = layout
        sizes = [torch.Size(shape).numel() for shape, _ in layout.values()]
        rows = torch.zeros(self.count, sum(sizes), dtype=torch.float64, device=device)
        for number, tensors in mine.items():
            for name, row in zip(layout, rows[number].split(sizes), strict=True):
                if name in tensors:
                    row.copy_(tensors[name].detach().reshape(-1))
        # every row is that of one rank and zero elsewhere, so that this sum is exact
        rows = self.ranks.host_sum(rows) if device.type == "cpu" else self.ranks.sum(rows)
        tree = Tree[Tensor](self.count, torch.add)
        for number, row in enumerate(rows):
            tree.put(0, number, row)
        sums = (tree.root + 0.0).split(sizes)  # a zero has lost its sign where it was sent
        return {
            name: row.reshape(shape).to(dtype) for row, (name, (shape, dtype)) in zip(sums, layout.items(), strict=True)
        }

    def _layout(self, mine: dict[int, dict[str, Tensor]]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Names, shapes and types, in the order of the parts: a rank without items learns them from the others."""
        found = [{name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} for tensors in mine.values()]
        return {name: like for each in self.ranks.gather(found) for names in each for name, like in names.items()}

    # -- gradients ---------------------------------------------------------------------------------------------------

    def tree(self) -> Tree[Gradients]:
        """To be given the gradients of each of this rank's parts."""
        return Tree(self.count, _added)

    def finish(self, nodes: list[Node[Gradients]], params: list[Tensor], reached: list[bool]) -> Gradients:
        """The gradients of all parts from those nodes that each rank has; the same on every rank.

        Args:
            reached: by parameter, whether it was in any part. The others keep no gradient.
        """
        if self.ranks.world_size == 1:
            return nodes[0][2]
        totals = [
            (_first(nodes, i, param) if there else None)
            for i, (param, there) in enumerate(zip(params, reached, strict=True))
        ]
        for spans in _messages(totals):
            self._exchange(spans, nodes, totals)
        return totals

    def _exchange(self, spans: list[Span], nodes: list[Node[Gradients]], totals: Gradients) -> None:
        """Every rank adds up a slice of this message, as the others do with theirs, and all get the sums."""
        ranks, like = self.ranks.world_size, _flat(totals[spans[0][0]])
        assert like is not None
        width = -(-sum(stop - start for _, start, stop in spans) // ranks)
        mine = like.new_empty(len(nodes), ranks * width)
        for row, (_, _, gradients) in zip(mine, nodes, strict=True):
            for at, (i, start, stop) in _places(spans):
                gradient = _flat(gradients[i])
                row[at : at + stop - start] = NOTHING if gradient is None else gradient[start:stop]
        mine = mine.view(len(nodes), ranks, width).transpose(0, 1).reshape(-1, width)  # by who adds it up
        places = [_nodes_of(self.count, owned) for owned in self._owned]
        theirs = like.new_empty(sum(map(len, places)), width)
        dist.all_to_all_single(_bytes(theirs), _bytes(mine), list(map(len, places)), [len(nodes)] * ranks)
        tree = Tree[Tensor](self.count, torch.Tensor.add_)
        for (level, number), row in zip((place for each in places for place in each), theirs, strict=True):
            tree.put(level, number, row)
        whole = like.new_empty(ranks * width)
        dist.all_gather([_bytes(each) for each in whole.split(width)], _bytes(tree.root))
        for at, (i, start, stop) in _places(spans):
            total = _flat(totals[i])
            assert total is not None
            total[start:stop] = whole[at : at + stop - start]


def parts_of(config: TrainConfig, ranks: Ranks) -> Parts | None:
    """None with the ordinary reduction."""
    return Parts(config.reduction_parts, ranks) if config.reduction == "fixed" else None


def loader_for(
    source: BatchSource, device: torch.device, ranks: Ranks, parts: Parts | None, config: TrainConfig, **options: Any
) -> Loader | PartLoader:
    """For this rank's shares, in parts or whole."""
    options |= {"worker_type": config.worker_type, "seed": config.seed}
    if parts is not None:
        return PartLoader(source, device, parts.own, parts.count, config.num_workers, **options)
    return Loader(source, device, ranks.rank, ranks.world_size, config.num_workers, **options)


def _added(left: Gradients, right: Gradients) -> Gradients:
    both = [(a, b) for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    if both:
        torch._foreach_add_([a for a, _ in both], [b for _, b in both])
    return [b if a is None else a for a, b in zip(left, right, strict=True)]


def _first(nodes: list[Node[Gradients]], i: int, param: Tensor) -> Tensor:
    """Where the sum of a parameter is put: what this rank has of it, which is in the message by then."""
    found = next((gradients[i] for _, _, gradients in nodes if gradients[i] is not None), None)
    return torch.zeros_like(param, memory_format=torch.contiguous_format) if found is None else found


def _flat(tensor: Tensor | None) -> Tensor | None:
    """A view, of real numbers."""
    if tensor is None:
        return None
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).view(-1)


def _bytes(tensor: Tensor) -> Tensor:
    """A view: gloo does not know every type."""
    return tensor.view(torch.uint8)


def _messages(tensors: Gradients) -> Iterator[list[Span]]:
    """All elements, in pieces of one type."""
    flat = {i: view for i, tensor in enumerate(tensors) if (view := _flat(tensor)) is not None}
    for dtype in dict.fromkeys(view.dtype for view in flat.values()):
        room = MESSAGE_BYTES // dtype.itemsize
        spans, left = list[Span](), room
        for i, view in flat.items():
            start, end = 0, view.numel() if view.dtype == dtype else 0
            while start < end:
                stop = min(start + left, end)
                spans.append((i, start, stop))
                start, left = stop, left - (stop - start)
                if left == 0:
                    yield spans
                    spans, left = [], room
        if spans:
            yield spans


def _places(spans: list[Span]) -> Iterator[tuple[int, Span]]:
    """Each with its place in the message."""
    at = 0
    for i, start, stop in spans:
        yield at, (i, start, stop)
        at += stop - start


def _nodes_of(count: int, owned: range) -> list[tuple[int, int]]:
    """Level and number of what a rank with these parts sends."""
    tree = Tree[None](count, lambda *_: None)
    for number in owned:
        tree.put(0, number, None)
    return [node[:2] for node in tree.nodes]


def _most_nodes(count: int, owned: range) -> int:
    """At most so many at once, with what comes next: two leaves that are siblings, as one, or a leaf."""
    begun = (done for done in range(len(owned)) if done == 0 or owned[done] % 2 == 0)
    return max(len(_nodes_of(count, owned[:done])) + 1 for done in begun)
