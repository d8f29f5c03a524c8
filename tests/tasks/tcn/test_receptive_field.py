"""Dilations reach the receptive field that was asked for, and see every step of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.tcn.architecture import (
    check_without_gaps,
    dilations,
    fitting_base,
    receptive_field,
)


@pytest.mark.parametrize(
    ("levels", "kernel_size", "base", "target", "expected", "field"),
    [
        (4, 15, 10, 30_000, [1, 10, 100, 961], 30_017),
        (4, 15, 4, 1_500, [1, 4, 16, 33], 1_513),
        (5, 15, 10, 300_000, [1, 10, 100, 1000, 9604], 300_021),
    ],
)
def test_schedules_of_the_field(levels, kernel_size, base, target, expected, field):
    """And the base that is chosen where none is given is theirs."""
    for given_base in (base, None):
        found = dilations(levels, kernel_size, given_base, target)
        assert found == expected and receptive_field(kernel_size, found) == field


def seen(kernel_size, dilations):
    """Steps that an output sees, by walking through the layers."""
    steps = {0}
    for dilation in [d for d in dilations for _ in range(2)]:
        steps = {step + tap * dilation for step in steps for tap in range(kernel_size)}
    return steps


SIZES = dict(levels=st.integers(1, 4), kernel_size=st.integers(2, 6), target=st.integers(1, 600))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(2, 5))
def test_gaps_are_found(dilations, kernel_size):
    """In any order: exactly where a step is not seen."""
    steps = seen(kernel_size, dilations)
    assert max(steps) + 1 == receptive_field(kernel_size, dilations)
    if len(steps) == max(steps) + 1:
        check_without_gaps(kernel_size, dilations)
    else:
        with pytest.raises(UserError, match="leave gaps"):
            check_without_gaps(kernel_size, dilations)


@given(base=st.none() | st.integers(1, 12), **SIZES)
def test_the_target_is_reached(levels, kernel_size, base, target):
    try:
        found = dilations(levels, kernel_size, base, target)
    except UserError as error:
        assert "leave gaps" in str(error)
        return
    field = receptive_field(kernel_size, found)
    assert len(found) == levels and seen(kernel_size, found) == set(range(field))
    assert field >= target
    if receptive_field(kernel_size, found[:-1]) < target:
        assert field < target + 2 * (kernel_size - 1)


@given(**SIZES)
def test_without_a_base_what_can_be_seen_is(levels, kernel_size, target):
    """Refused is only what no base reaches without gaps: more than (2 k - 1)^levels."""
    if target <= (2 * kernel_size - 1) ** levels:
        dilations(levels, kernel_size, None, target)
    elif levels > 1:
        assert fitting_base(levels, kernel_size, target) > 2 * kernel_size - 1


def test_what_cannot_be_seen_is_said():
    with pytest.raises(UserError, match=r"\[3750\].*leave gaps: .*3750 see 1 steps only.*at most 9 steps"):
        dilations(1, 5, None, 30_000)
    with pytest.raises(UserError, match=r"\[1, 1, 1, 1497\]"):  # a kernel made smaller with the rate sees 21 of 3001
        dilations(4, 2, 1, 3_000)
    for sizes in ((0, 15, 10, 30), (4, 1, 10, 30), (4, 15, 0, 30), (4, 15, 10, 0)):
        with pytest.raises(UserError, match="make no network"):
            dilations(*sizes)


@pytest.mark.parametrize("factor", [2, 3, 5, 10, 30])
def test_a_decimated_record_sees_as_many_milliseconds(factor):
    """300 ms to within the taps of one block, with the same kernel and as many levels."""
    found = dilations(4, 15, None, -(-30_000 // factor))
    assert 30_000 <= receptive_field(15, found) * factor <= 30_000 + 28 * factor
