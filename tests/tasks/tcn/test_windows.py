"""Windows: every step scored once, nothing read that is not there, and batches that are a function of (seed, epoch)."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shots import InMemory, shot

from accel_train.errors import UserError
from accel_train.tasks.tcn import lent
from accel_train.tasks.tcn.labels import LabelSettings, label
from accel_train.tasks.tcn.windows import Stratified, Windows

SETTINGS = LabelSettings(twarn_ms=20.0)


def windows(shots, nsub=12, receptive_field=5, settings=SETTINGS, **options) -> Windows:
    return Windows(InMemory(shots), shots, nsub, receptive_field, settings, **options)


def scored(made: Windows) -> Counter:
    """(shot, step) -> how often it counts."""
    batch = made.read(np.arange(len(made)))
    steps = batch["first"][:, None] + np.arange(made.outputs)
    return Counter(
        (int(number), int(step))
        for number, row, counts in zip(batch["shot"], steps, batch["counts"], strict=True)
        for step in row[counts]
    )


@st.composite
def segments(draw):
    samples = draw(st.integers(1, 90))
    start = draw(st.integers(0, samples))
    return samples, start, draw(st.integers(start, samples))


@given(segments(), st.integers(1, 40), st.integers(1, 40))
def test_every_step_but_the_first_is_scored_once(segment, nsub, receptive_field):
    samples, start, stop = segment
    nsub = max(nsub, receptive_field)
    made = windows([shot(7, samples=samples, start=start, stop=stop)], nsub, receptive_field)
    expected = {(7, step): 1 for step in range(start + receptive_field - 1, stop)}
    assert scored(made) == expected and made.counted.sum() == len(expected)
    assert len(made.too_short) == (not expected)
    assert (made._start >= start).all(), "nothing before the segment is read"


@given(segments(), st.integers(1, 30), st.integers(1, 12), st.data())
def test_a_shorter_stride_leaves_nothing_out(segment, nsub, receptive_field, data):
    samples, start, stop = segment
    nsub = max(nsub, receptive_field)
    stride = data.draw(st.integers(1, nsub - receptive_field + 1))
    made = windows([shot(7, samples=samples, start=start, stop=stop)], nsub, receptive_field, stride=stride)
    assert set(scored(made)) == {(7, step) for step in range(start + receptive_field - 1, stop)}


def test_windows_end_where_the_segment_does():
    made = windows([shot(samples=60, start=3, stop=50)])  # 8 outputs
    assert made._start.tolist() == [3, 6, 14, 22, 30, 38]
    assert made.read(np.array([0]))["counts"][0].tolist() == [True] * 3 + [False] * 5


@given(st.integers(20, 90), st.integers(0, 100), st.sampled_from([5, 8]))
def test_a_batch_holds_what_the_shots_hold(samples, t, receptive_field):
    shots = [shot(3, t, samples=samples), shot(9, samples=40, start=7, stop=33), shot(11, samples=4)]
    made = windows(shots, receptive_field=receptive_field)
    batch = made.read(np.arange(len(made)))
    assert [each.number for each in made.too_short] == [11]
    for row, (number, first) in enumerate(zip(batch["shot"], batch["first"], strict=True)):
        one, start = next(each for each in shots if each.number == number), first - receptive_field + 1
        expected = np.zeros((3, 12), np.int16)
        there = made.data.values[number][:, start : start + 12]
        expected[:, : there.shape[1]] = there
        np.testing.assert_array_equal(batch["x"][row], expected)
        assert batch["offset"][row].tolist() == [number] * 3 and batch["scale"][row].tolist() == [0.5] * 3
        target, counts = label(one, first, first + made.outputs, SETTINGS)
        assert (batch["counts"][row] <= counts).all()
        np.testing.assert_array_equal(batch["target"][row], target & batch["counts"][row])
    assert batch["x"].dtype == np.int16 and batch["target"].dtype == batch["counts"].dtype == bool
    assert batch["shot"].dtype == batch["first"].dtype == np.int64
    onsets = t - SETTINGS.twarn_ms - (-50.0 + batch["first"][batch["shot"] == 3])
    np.testing.assert_allclose(batch["onset_ms"][batch["shot"] == 3], onsets)
    assert np.isnan(batch["onset_ms"][batch["shot"] == 9]).all() and (batch["dt_ms"] == 1.0).all()
    np.testing.assert_array_equal(made.counted, batch["counts"].sum(1))
    np.testing.assert_array_equal(made.positive, batch["target"].sum(1))


def test_positive_steps_are_those_of_the_shots():
    made = windows([shot(2, 40.0, samples=91), shot(3, samples=91)])  # positive from sample 70 on
    assert made.positive.sum() == 21 and made.counted.sum() == 2 * 87


def test_a_window_that_the_model_cannot_see():
    with pytest.raises(UserError, match="window of 12 samples is shorter than the receptive field 13"):
        windows([shot()], receptive_field=13)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_leaves_steps_out(stride):
    with pytest.raises(UserError, match=f"stride: {stride} samples; must be 1 to 8"):
        windows([shot()], stride=stride)


def test_no_shots_no_windows():
    assert len(windows([])) == 0 and len(windows([shot(samples=3)])) == 0


def test_memory_is_used_again_when_nobody_has_it():
    """A batch stays as it was as long as a view or a tensor of it is there."""
    import torch

    lent._SPARE.clear()
    made = windows([shot(samples=200)])
    first = made.read(np.array([0]))["x"]
    place, tensor, expected = first.ctypes.data, torch.from_numpy(first)[0, 1:], first.copy()
    del first
    other = made.read(np.array([3]))["x"]
    assert other.ctypes.data != place
    np.testing.assert_array_equal(tensor.numpy(), expected[0, 1:])
    del tensor
    assert made.read(np.array([3]))["x"].ctypes.data == place
    batches = [made.read(np.arange(n))["x"] for n in (1, 5, 3, 8, 2)]
    for batch in batches:
        np.testing.assert_array_equal(batch, made.read(np.arange(len(batch)))["x"])
    del batches, batch, other
    assert len(lent._SPARE) == 2, "no more is kept"


def test_the_next_batch_is_announced():
    made = windows([shot(3, 40.0, samples=90), shot(4, samples=90)])
    told: list[tuple[int, int, int]] = []
    made.data.ahead = lambda *what: told.append(what)
    source = Stratified(made, 4, seed=1)
    for step in range(source.steps(0)):
        told.clear()
        source.batch(0, step, 1, 2)
        following = source.share(0, step + 1, 1, 2) if step + 1 < source.steps(0) else []
        assert [first for _, first, _ in told] == [int(made._start[item]) for item in following]
        assert all(last - first == 12 or last == 90 for _, first, last in told)


# -- stratified batches ----------------------------------------------------------------------------------------------


def classes(positive: int, negative: int):
    """Windows of both classes, in a mixed order."""
    return SimpleNamespace(positive=np.random.default_rng(0).permutation([3] * positive + [0] * negative))


@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(2, 16), st.sampled_from([0.1, 1.0, 3.0]), st.integers(0, 9),
    st.integers(0, 3),
)  # fmt: skip
def test_every_batch_has_both_classes_and_every_window_is_seen(positive, negative, size, ratio, seed, epoch):
    data = classes(positive, negative)
    source = Stratified(data, size, seed, ratio)
    batches = [source.indices(epoch, step) for step in range(source.steps(epoch))]
    shares = {(data.positive[batch] > 0).sum() for batch in batches}
    assert {len(batch) for batch in batches} == {size} and len(shares) == 1 and 0 < shares.pop() < size
    times = np.bincount(np.concatenate(batches), minlength=positive + negative)
    for each in (data.positive > 0, data.positive == 0):
        assert times[each].min() >= 1 and times[each].max() - times[each].min() <= 1


def test_the_ratio():
    source = Stratified(classes(20, 20), 12, ratio=3.0)
    assert (source.data.positive[source.indices(0, 0)] > 0).sum() == 3


@given(st.integers(1, 5), st.integers(0, 3))
def test_the_order_is_a_function_of_seed_and_epoch(ranks, epoch):
    """Whatever was asked before, and on any number of ranks."""
    data, fresh = classes(5, 13), Stratified(classes(5, 13), 6, seed=4)
    used = Stratified(data, 6, seed=4)
    for other in (2, 0, 3):
        used.indices(other, 1)
    for step in range(fresh.steps(epoch)):
        whole = fresh.indices(epoch, step)
        np.testing.assert_array_equal(whole, used.indices(epoch, step))
        parts = [Stratified(data, 6, seed=4).share(epoch, step, rank, ranks) for rank in range(ranks)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_epochs_and_seeds_differ():
    orders = {tuple(Stratified(classes(9, 9), 8, seed).indices(epoch, 0)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("positive, negative, what", [(0, 4, "with"), (4, 0, "without")])
def test_a_class_that_is_not_there(positive, negative, what):
    with pytest.raises(UserError, match=f"validation: none of the 4 windows is {what} a positive step"):
        Stratified(classes(positive, negative), 4, name="validation")


def test_a_batch_of_one():
    with pytest.raises(UserError, match="need 2 windows or more"):
        Stratified(classes(2, 2), 1)
