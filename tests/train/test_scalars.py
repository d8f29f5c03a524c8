"""What is remembered between two synchronisation points, on one rank."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel_train.train.scalars import BadStep, StepScalars, Votes
from accel_train.train.world import Ranks


def scalars() -> StepScalars:
    return StepScalars(Ranks(SimpleNamespace(process_index=0, num_processes=1)))  # type: ignore[arg-type]


def add(to: StepScalars, step: int, objective: str = "loss", norm: float = 1.0, **values: float) -> None:
    to.add(objective, step, {name: torch.tensor(value) for name, value in values.items()}, torch.tensor(norm))


finite = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=20), st.lists(finite, min_size=8, max_size=8))
def test_means_are_exact_and_votes_pass_through(rows, votes):
    kept = scalars()
    for step, (loss, term, norm) in enumerate(rows, start=1):
        add(kept, step, norm=norm, loss=loss, term=term)
    assert kept.exchange(Votes(*votes)) == (Votes(*votes), [])
    expected = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert kept.means() == dict(zip(("loss", "term", "grad_norm"), expected, strict=True))
    assert kept.means() == {}


def test_steps_that_are_not_finite_are_named_and_left_out_of_the_means():
    kept = scalars()
    add(kept, 1, loss=1.0, mse=2.0)
    add(kept, 2, loss=math.nan, mse=math.inf, norm=math.nan)
    add(kept, 3, loss=3.0, mse=4.0, norm=math.inf)
    add(kept, 4, loss=5.0, mse=6.0, norm=3.0)
    _, bad = kept.exchange(Votes())
    assert bad == [BadStep(2, "loss", ("loss", "mse", "grad_norm")), BadStep(3, "loss", ("grad_norm",))]
    assert kept.means() == {"loss": 3.0, "mse": 4.0, "grad_norm": 2.0, "skipped": 2}
    add(kept, 5, loss=math.nan)
    kept.exchange(Votes())
    assert kept.means() == {"skipped": 1}
    add(kept, 6, loss=7.0, mse=0.0)
    kept.exchange(Votes())
    assert kept.means() == {"loss": 7.0, "mse": 0.0, "grad_norm": 1.0}


def test_names_with_several_objectives():
    kept = scalars()
    for step in (1, 2):
        for repeat in (1, 2):
            add(kept, step, "critic", norm=repeat, loss=step, gap=3.0)
        add(kept, step, "generator", norm=9.0, loss=-1.0, fool=0.5)
    _, bad = kept.exchange(Votes())
    assert bad == []
    assert kept.means() == {
        "critic_loss": 1.5, "gap": 3.0, "grad_norm/critic": 1.5, "generator_loss": -1.0, "fool": 0.5,
        "grad_norm/generator": 9.0,
    }  # fmt: skip
    add(kept, 3, "critic", loss=4.0, gap=1.0)
    kept.exchange(Votes())
    assert kept.means() == {"loss": 4.0, "gap": 1.0, "grad_norm": 1.0}, "alone in its interval it needs no prefix"


def test_a_term_that_two_objectives_share_is_kept_for_both():
    kept = scalars()
    add(kept, 1, "vamp1", loss=1.0, score=1.5)
    add(kept, 1, "vamp2", loss=2.0, score=2.5)
    kept.exchange(Votes())
    means = kept.means()
    assert means["score/vamp1"] == 1.5 and means["score/vamp2"] == 2.5


def test_several_exchanges_make_one_log_line_and_bad_steps_come_in_order():
    kept = scalars()
    add(kept, 1, "b", loss=1.0)
    kept.exchange(Votes())
    add(kept, 3, "b", loss=math.nan)
    add(kept, 2, "a", loss=math.inf)
    add(kept, 2, "b", loss=4.0)
    _, bad = kept.exchange(Votes(stop=1.0))
    assert [(b.step, b.objective) for b in bad] == [(2, "a"), (3, "b")]
    assert kept.means() == {"loss": 2.5, "grad_norm": 1.0, "skipped": 2}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_values_of_any_type(dtype):
    kept = scalars()
    kept.add("loss", 1, {"loss": torch.tensor(3, dtype=dtype)}, torch.tensor(0.1))
    kept.exchange(Votes())
    assert kept.means() == {"loss": 3.0, "grad_norm": torch.tensor(0.1).item()}


doubles = st.floats(-1e300, 1e300)


@given(st.lists(st.tuples(doubles, finite), min_size=1, max_size=20), st.data())
def test_state_goes_through_json_exactly(rows, data):
    """A run that is interrupted anywhere logs the same line as one that is not."""
    cut = data.draw(st.integers(0, len(rows)))
    straight, first = scalars(), scalars()
    for step, (loss, norm) in enumerate(rows):
        for one in (straight, first) if step < cut else (straight,):
            one.add("loss", step, {"loss": torch.tensor(loss, dtype=torch.float64)}, torch.tensor(norm))
    straight.exchange(Votes())
    first.exchange(Votes())
    first.skipped = straight.skipped = 3
    second = scalars()
    second.restore(json.loads(json.dumps(first.state())))
    for step, (loss, norm) in enumerate(rows):
        if step >= cut:
            second.add("loss", step, {"loss": torch.tensor(loss, dtype=torch.float64)}, torch.tensor(norm))
    second.exchange(Votes())
    assert second.means() == straight.means()


def test_a_step_without_items_counts_as_zero():
    """A rank whose share is empty adds nothing; the others fill the row."""
    kept = scalars()
    add(kept, 1, loss=2.0, mse=4.0)
    add(kept, 2)
    kept.exchange(Votes())
    assert kept.means() == {"loss": 1.0, "mse": 2.0, "grad_norm": 1.0}
