"""The numbers are a pure function of (seed, index), mixed exactly as asked, and never on both sides of the split."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.collatz.numbers import DENSE, MODES, NEAR, NEAR3, NORMAL, Numbers, is_held_out, to_int

ROWS = np.arange(20_000)


def drawn(numbers, indices=ROWS):
    high, low, mode = numbers.draw(indices)
    return to_int(high, low), mode


def of_mode(numbers, mode, indices=ROWS):
    values, modes = drawn(numbers, indices)
    return [n for n, m in zip(values, modes.tolist(), strict=True) if m == mode]


# -- a pure function of seed and index -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=60), st.booleans(), st.sampled_from(["sequential", "random"])
)
def test_a_row_depends_on_its_index_alone(indices, held_out, order):
    numbers = Numbers(seed=3, held_out=held_out, normal_order=order)
    together = list(zip(*numbers.draw(np.array(indices)), strict=True))
    alone = [tuple(x[0] for x in numbers.draw(np.array([i]))) for i in indices]
    assert together == alone


def test_types():
    high, low, mode = Numbers(seed=0).draw(np.arange(5))
    assert (high.dtype, low.dtype, mode.dtype) == (np.uint64, np.uint64, np.uint8)
    assert [len(x) for x in Numbers(seed=0).draw(np.empty(0, np.int64))] == [0, 0, 0]
    with pytest.raises(ValueError, match="negative"):
        Numbers(seed=0).draw(np.array([3, -1]))


def test_seeds_and_splits_differ():
    base = Numbers(seed=1, hard_ratio=1.0)
    assert set(drawn(base)[0]).isdisjoint(of_mode(replace(base, seed=2), DENSE))
    assert drawn(base)[0] == drawn(Numbers(seed=1, hard_ratio=1.0))[0]


# -- the mixture ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.integers(0, 100).map(lambda x: x / 100), st.floats(0, 1)),
    st.integers(0, 2**50),
    st.integers(1, 700),
)
def test_every_window_holds_the_ratio(ratio, first, width):
    numbers = Numbers(seed=0, hard_ratio=ratio)
    _, _, mode = numbers.draw(np.arange(first, first + width))
    assert abs((mode != NORMAL).sum() - ratio * width) < 1 + 1e-6 * width  # ratios are taken to a millionth


def test_half_and_half_alternates():
    _, _, mode = Numbers(seed=0).draw(np.arange(1024))
    assert ((mode != NORMAL) == (np.arange(1024) % 2 == 1)).all()


@pytest.mark.parametrize("shares", [(0.3, 0.3, 0.4), (1, 0, 0), (0, 1, 0), (0, 0, 2), (1, 1, 2)])
def test_shares_of_the_hard_rows(shares):
    _, _, mode = Numbers(seed=0, hard_ratio=1.0, hard_shares=shares).draw(ROWS)
    found = np.bincount(mode, minlength=4)[1:] / len(ROWS)
    assert np.abs(found - np.array(shares) / sum(shares)).max() < 0.02
    assert ((found > 0) == (np.array(shares) > 0)).all()


# -- each mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True])
def test_hard_numbers_are_what_they_are_called(held_out):
    numbers = Numbers(seed=5, hard_ratio=1.0, held_out=held_out)
    near, near3, dense = (of_mode(numbers, mode) for mode in (NEAR, NEAR3, DENSE))
    assert MODES[NEAR3] == "near3"
    for group in (near, near3):
        offsets = np.array([n - 2**68 for n in group])
        assert offsets.min() >= 0 and offsets.max() < 10**12
        deciles = np.histogram(offsets, 10, (0, 10**12))[0] / len(offsets)
        assert np.abs(deciles - 0.1).max() < 0.02
    assert all(n % 4 == 3 for n in near3) and len({n % 4 for n in near}) == 4
    lengths = [n.bit_length() for n in dense]
    assert set(lengths) == set(range(70, 120))
    chosen = [(n >> bit) & 1 for n in dense for bit in range(n.bit_length() - 1) if not 10 <= bit < 16]
    assert abs(np.mean(chosen) - 0.8) < 0.003
    for bit in (0, 30, 63, 64, 66):  # on both sides of the limbs' border
        assert abs(np.mean([(n >> bit) & 1 for n in dense]) - 0.8) < 0.02


def test_sequential_training_numbers_come_once_each_and_in_order():
    first, last = 65_000, 200_000
    numbers = Numbers(seed=0, normal_order="sequential", normal_range=(first, last))
    wanted = [n for n in range(first, last) if (n >> 10) & 63 != 63]
    values = of_mode(numbers, NORMAL, np.arange(2 * len(wanted) + 20))
    assert values[: len(wanted)] == wanted
    assert values[len(wanted) :] == wanted[:10]  # used up, so from the beginning


def test_the_normal_order_ignores_the_hard_rows_between():
    a = of_mode(Numbers(seed=0, normal_order="sequential", hard_ratio=0.25), NORMAL, np.arange(4000))
    b = of_mode(Numbers(seed=9, normal_order="sequential", hard_ratio=0.8), NORMAL, np.arange(15_000))
    assert a == b == list(range(10, 3010))


def test_random_training_numbers_reach_every_magnitude():
    values = np.array(of_mode(Numbers(seed=0), NORMAL))
    assert values.min() >= 10 and values.max() < 20_000_000_000
    decades = np.histogram(np.log10(values), np.arange(1.0, 10.6, 1.0))[0] / len(values)
    assert (decades[:8] > 0.03).all()  # the even half: 0.5 / 9.3 of all rows in each decade
    assert (values > 10**10).mean() > 0.25  # the uniform half


def test_held_out_normal_numbers_reach_every_magnitude():
    values = np.array(of_mode(Numbers(seed=0, held_out=True), NORMAL))
    assert values.min() >= 10 and values.max() < 20_000_000_000
    decades = np.histogram(np.log10(values), np.arange(4.5, 10.6, 1.0))[0] / len(values)
    assert (decades[:5] > 0.05).all()  # the even half
    assert (values > 10**10).mean() > 0.25  # the uniform half
    assert len(np.unique(values)) > 0.9 * len(values)


# -- the split -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**63),
    st.integers(1, 10**12),
    st.integers(65_536, 10**12),
    st.sampled_from(["sequential", "random"]),
    st.integers(0, 2**40),
)
def test_no_number_is_on_both_sides(seed, start, width, order, first):
    indices = np.arange(first, first + 300)
    for held_out in (False, True):
        numbers = Numbers(seed, normal_range=(start, start + width), normal_order=order, held_out=held_out)
        high, low, mode = numbers.draw(indices)
        assert (is_held_out(high, low) == held_out).all()
        normal = low[mode == NORMAL]
        assert (high[mode == NORMAL] == 0).all() and (normal >= start).all() and (normal < start + width).all()


def test_one_number_in_sixty_four_is_held_out():
    low = np.arange(2**18, dtype=np.uint64)
    assert is_held_out(np.zeros_like(low), low).sum() == 2**12
    assert to_int(np.array([16, 0], np.uint64), np.array([5, 2**64 - 1], np.uint64)) == [2**68 + 5, 2**64 - 1]


# -- bad arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hard_ratio": 1.5}, "hard_ratio"),
        ({"hard_ratio": float("nan")}, "hard_ratio"),
        ({"normal_order": "shuffled"}, "normal_order"),
        ({"normal_range": (10, 10)}, "normal_range"),
        ({"normal_range": (0, 10)}, "normal_range"),
        ({"normal_range": (10, 2**63)}, "normal_range"),
        ({"hard_shares": (1, -1, 1)}, "hard_shares"),
        ({"hard_shares": (0, 0, 0)}, "hard_shares"),
        ({"normal_range": (10, 1000), "held_out": True}, "no held-out number"),
        ({"normal_range": (65_000, 65_100)}, "no training number"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Numbers(seed=0, **arguments)


def test_a_range_without_numbers_does_no_harm_where_it_is_not_used():
    assert len(drawn(Numbers(seed=0, hard_ratio=1.0, normal_range=(10, 1000), held_out=True))[0]) == len(ROWS)
