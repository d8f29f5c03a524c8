"""Durations, the plan of a run against a naive walk through it, and when something is due."""

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.plan import Duration, Every, Phase, Plan, Position
from accel_train.task import Objective

# -- durations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        (7, 7, "st"), ("7", 7, "st"), ("1000st", 1000, "st"), ("1_000", 1000, "st"), (" 3 ep ", 3, "ep"),
        ("2.0ep", 2, "ep"), ("90s", 90, "s"), ("30min", 1800, "s"), ("1.5h", 5400, "s"), ("2d", 172800, "s"),
    ],
)  # fmt: skip
def test_units(text, amount, unit):
    found = Duration.parse(text)
    assert (found.amount, found.unit, found.count) == (amount, unit, int(amount))


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "1.5", "0", "0ep", "1.5ep", "3 weeks", "ep", "1e3", "1h30", "1:30", "nan", "_1", True, None, [1]],
)
def test_what_is_not_a_length(text):
    with pytest.raises(UserError, match="^save_steps: "):
        Duration.parse(text, "save_steps")


@given(st.integers(1, 10**12), st.sampled_from(["st", "ep"]))
def test_whole_numbers_are_exact(n, unit):
    assert Duration.parse(f"{n}{unit}") == Duration(n, unit)
    assert Duration.parse(f"{n:_}{unit}").count == n


# -- the plan --------------------------------------------------------------------------------------------------------


def phases(*lengths) -> list[Phase]:
    return [
        Phase((Objective(f"o{i}"),), None if length is None else Duration.parse(length), f"o{i}")
        for i, length in enumerate(lengths)
    ]


def naive_walk(lengths, epochs, max_steps, num_train_epochs):
    """(step, epoch, batch, phase) at the start of every step, in the plainest possible words."""
    step = epoch = batch = phase = phase_step = phase_epoch = 0
    while True:
        while phase < len(lengths) and lengths[phase] is not None:
            n, unit = int(lengths[phase][:-2]), lengths[phase][-2:]
            if (step - phase_step if unit == "st" else epoch - phase_epoch) < n:
                break
            phase, phase_step, phase_epoch = phase + 1, step, epoch
        if phase == len(lengths) or step == max_steps or epoch == num_train_epochs:
            return
        yield step, epoch, batch, phase
        step, batch = step + 1, batch + 1
        if batch == epochs(epoch):
            epoch, batch = epoch + 1, 0


lengths_ = st.lists(st.builds("{}{}".format, st.integers(1, 12), st.sampled_from(["st", "ep"])), max_size=4)
limits = st.none() | st.integers(1, 40)


@given(lengths_, st.booleans(), st.lists(st.integers(1, 7), min_size=1, max_size=5), limits, limits)
def test_the_plan_is_the_naive_walk(lengths, open_end, sizes, max_steps, num_train_epochs):
    lengths = [*lengths, None] if open_end or not lengths else lengths
    assume(lengths[-1] is not None or max_steps or num_train_epochs)

    def epochs(epoch):
        return sizes[epoch % len(sizes)]

    plan = Plan(phases(*lengths), epochs, max_steps, num_train_epochs)
    walk = list(naive_walk(lengths, epochs, max_steps, num_train_epochs))
    assert plan.total_steps == len(walk)
    position, boundary = Position(), None
    for i, expected in enumerate(walk):
        assert (position.step, position.epoch, position.batch, position.phase) == expected
        before = position.copy()
        boundary = plan.steps_to_boundary(position)
        plan.advance(position)
        crossed = (before.epoch, before.phase) != (position.epoch, position.phase) or plan.finished(position)
        assert crossed == (boundary == 1), i
    assert plan.finished(position)
    assert position == _resumed(plan, position), "settling what is settled changes nothing"


def _resumed(plan: Plan, position: Position) -> Position:
    again = position.copy()
    plan.locate(again)
    return again


@given(lengths_, st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(1, 60))
def test_jumping_to_boundaries_arrives_where_single_steps_do(lengths, sizes, max_steps):
    plan = Plan(phases(*lengths, None), lambda epoch: sizes[epoch % len(sizes)], max_steps)
    single, jumping = Position(), Position()
    while not plan.finished(jumping):
        jump = plan.steps_to_boundary(jumping)
        assert jump is not None and jump >= 1
        plan.advance(jumping, jump)
        for _ in range(jump):
            plan.advance(single)
        assert single == jumping


def test_a_finished_run_goes_on_with_a_further_phase_and_with_more_steps():
    plan = Plan(phases("5st"), lambda epoch: 3)
    position = Position()
    plan.advance(position, 3)
    plan.advance(position, 2)
    assert plan.finished(position)
    ended = position.copy()
    further = Plan(phases("5st", "2ep"), lambda epoch: 3)
    further.locate(position)
    assert not further.finished(position) and further.total_steps == 9
    assert (position.phase, position.phase_step, position.phase_epoch) == (1, 5, 1)
    longer = Plan(phases("7st", "1st"), lambda epoch: 3)
    longer.locate(ended)
    assert not longer.finished(ended) and longer.steps_to_boundary(ended) == 1
    while not longer.finished(ended):
        longer.advance(ended)
    assert ended.step == 8 == longer.total_steps
    more = Plan(phases(None), lambda epoch: 3, max_steps=10)
    position = Position(step=5, epoch=1, batch=2)
    assert Plan(phases(None), lambda epoch: 3, max_steps=5).finished(position) and not more.finished(position)


def test_data_without_an_end():
    plan = Plan(phases("4st", "3st", None), lambda epoch: None, max_steps=10)
    assert plan.total_steps == 10
    position, seen = Position(), []
    while not plan.finished(position):
        seen.append((position.phase, plan.steps_to_boundary(position)))
        plan.advance(position)
    assert seen == [(0, 4), (0, 3), (0, 2), (0, 1), (1, 3), (1, 2), (1, 1), (2, 3), (2, 2), (2, 1)]
    assert Plan(phases("4st", "3st"), lambda epoch: None).total_steps == 7
    assert Plan(phases("4st", "3st"), lambda epoch: None, max_steps=5).total_steps == 5


def test_epochs_whose_length_is_found_out_at_their_end():
    plan = Plan(phases(None), lambda epoch: None, max_steps=6)
    position = Position()
    for epoch, number in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2)]:
        plan.begin_epoch(position, epoch)
        assert (position.epoch, position.batch) == (epoch, number)
        plan.advance(position)
    assert plan.finished(position) and position.step == 6


@pytest.mark.parametrize(
    ("lengths", "epochs", "limits", "says"),
    [
        ((None,), 5, (None, None), "nothing says when to stop"),
        ((None,), None, (None, 3), "this data has no epochs"),
        (("3ep",), None, (None, None), "this data has no epochs"),
        ((None,), 0, (5, None), "epoch 0 has no batches: the data is empty"),
    ],
)
def test_plans_that_cannot_be(lengths, epochs, limits, says):
    with pytest.raises(UserError, match=says):
        Plan(phases(*lengths), lambda epoch: epochs, *limits)


# -- every so often --------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(0, 500))
def test_next_step_and_due_agree(n, step):
    every = Every(n, "eval_steps")
    following = every.next_step(step)
    assert following is not None and following > step
    due = [s for s in range(step + 1, following + 1) if every.due(Position(step=s, batch=1))]
    assert due == [following]


def test_every_epoch_is_due_at_its_end():
    every, plan, position, due = Every("2ep", "eval_steps"), Plan(phases(None), lambda e: 3, 20), Position(), []
    while not plan.finished(position):
        plan.advance(position)
        if every.due(position):
            due.append(position.step)
    assert due == [6, 12, 18] and every.next_step(0) is None


def test_by_the_clock():
    every = Every("30min", "save_steps")
    every.last_time = 100.0
    assert [every.due_by_clock(100.0 + s) for s in (0, 1799, 1800, 5000)] == [False, False, True, True]
    assert not every.due(Position(step=1800)) and every.next_step(0) is None


@pytest.mark.parametrize("never", [None, 0, "0"])
def test_never(never):
    every = Every(never, "eval_steps")
    assert every.next_step(3) is None and not every.due_by_clock(1e9)
    assert not any(every.due(Position(step=s, epoch=e)) for s, e in itertools.product(range(5), range(3)))
