"""Sums along a tree: one order, whoever has which parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.data.source import part
from accel_train.train import parts
from accel_train.train.parts import Tree


def text(left: str, right: str) -> str:
    return f"({left} {right})"


@given(st.integers(1, 40), st.integers(1, 40))
def test_any_ranks_add_in_the_same_order(leaves, ranks):
    alone = Tree[str](leaves, text)
    for leaf in range(leaves):
        alone.put(0, leaf, str(leaf))
    together = Tree[str](leaves, text)
    for rank in range(min(ranks, leaves)):
        mine, owned = Tree[str](leaves, text), range(leaves)[part(leaves, rank, min(ranks, leaves))]
        for leaf in owned:
            mine.put(0, leaf, str(leaf))
        assert len(mine.nodes) <= 2 * len(owned).bit_length()
        for node in mine.nodes:
            together.put(*node)
    assert together.root == alone.root


def test_the_order_of_six():
    tree = Tree[str](6, text)
    for leaf in range(6):
        tree.put(0, leaf, str(leaf))
    assert tree.root == "(((0 1) (2 3)) (4 5))"


def test_messages_hold_every_element_once(monkeypatch):
    monkeypatch.setattr(parts, "MESSAGE_BYTES", 64)
    shapes = [(5, 7), (), (0,), (3,), (20,)]
    tensors = [torch.zeros(shape, dtype=torch.float64 if i % 2 else torch.float32) for i, shape in enumerate(shapes)]
    seen = {}
    for spans in parts._messages([*tensors, None]):
        assert len({tensors[i].dtype for i, _, _ in spans}) == 1
        assert sum(stop - start for _, start, stop in spans) * tensors[spans[0][0]].itemsize <= 64
        for i, start, stop in spans:
            seen.setdefault(i, []).extend(range(start, stop))
    assert seen == {i: list(range(tensor.numel())) for i, tensor in enumerate(tensors) if tensor.numel()}


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_what_is_alive_at_once(ranks):
    owned = [range(8)[part(8, rank, ranks)] for rank in range(ranks)]
    assert max(parts._most_nodes(8, each) for each in owned) == {1: 3, 3: 2, 8: 1}[ranks]
