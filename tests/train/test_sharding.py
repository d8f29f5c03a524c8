"""What the ranks build that are not the first: the same model without its memory, from the same draws."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from accel_train.train.optim import build_optimizer, memory_of
from accel_train.train.sharding import built_on_main


def on_both(build: Callable[[], dict[str, nn.Module]], key: int = 0) -> tuple[Any, Any]:
    """What rank 0 builds, and another rank."""
    said: list[bytes] = []
    main: Any = SimpleNamespace(is_main=True, from_main=lambda state: said.append(state) or state)
    other: Any = SimpleNamespace(is_main=False, from_main=lambda _: said[0])
    return tuple(built_on_main(build, rank, key)["model"] for rank in (main, other))  # type: ignore[return-value]


class Model(nn.Module):
    """Draws parameters, a buffer and a plain list, in turn; two parameters are one."""

    def __init__(self, width: int, double: bool) -> None:
        super().__init__()
        self.one = nn.Linear(width, 3)
        nn.init.normal_(self.one.bias)
        self.drawn = nn.Parameter(torch.randn(width))
        self.register_buffer("noise", torch.randn(5))
        self.two = nn.MultiheadAttention(4, 2)
        self.order = torch.randperm(7).tolist()
        self.tied = nn.Linear(width, 3, bias=False)
        self.tied.weight = self.one.weight
        if double:
            self.double()


@settings(max_examples=30, deadline=None)
@given(width=st.sampled_from([1, 5, 6, 16, 17, 1000, 50_003]), double=st.booleans(), key=st.integers(0, 2**63))
def test_everything_but_the_weights_is_the_same(width, double, key):
    whole, empty = on_both(lambda: {"model": Model(width, double)}, key)
    assert all(p.is_meta for p in empty.parameters()) and not any(p.is_meta for p in whole.parameters())
    named, other = (
        {name: (p.shape, p.dtype) for name, p in model.named_parameters()} for model in (whole, empty)
    )  # fmt: skip
    assert named == other and empty.tied.weight is empty.one.weight
    assert whole.order == empty.order and torch.equal(whole.noise, empty.noise)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = float(self.linear.weight.detach().norm())


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("first", self.linear.weight.detach().clone())


class Rejects(nn.Module):
    """Draws again what is out of range."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        nn.init.trunc_normal_(self.linear.weight)
        self.order = torch.randperm(5)


@pytest.mark.parametrize("kind", [Reads, Keeps, Rejects])
def test_a_model_that_reads_its_weights_is_built_as_a_whole(kind):
    whole, other = on_both(lambda: {"model": kind()})
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


def test_an_error_is_the_tasks_own():
    def build() -> Any:
        raise RuntimeError("no such file")

    other: Any = SimpleNamespace(is_main=False, from_main=lambda _: b"state")
    with pytest.raises(RuntimeError, match="no such file"):
        built_on_main(build, other, 0)


@pytest.mark.parametrize(
    ("optimizer", "arguments", "state"),
    [("AdamW", {}, 2), ("AdamW", {"amsgrad": True}, 3), ("SGD", {}, 0), ("SGD", {"momentum": 0.9}, 1)],
)
def test_memory_is_known_before_the_first_step(optimizer, arguments, state):
    model = nn.Linear(30, 70)
    built = build_optimizer(dict(model.named_parameters()), optimizer, 0.1, arguments)
    numbers = 30 * 70 + 70
    assert memory_of(built) == {"weights": 4 * numbers, "gradients": 4 * numbers, "optimizer": 4 * numbers * state}
    assert not built.optimizer.state
