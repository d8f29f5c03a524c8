"""The search sees the cycles that are known, covers each number once, and goes on where it was stopped."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import DataError, UserError
from accel_train.tasks.collatz import search as module
from accel_train.tasks.collatz.commands import COMMANDS
from accel_train.tasks.collatz.cycles import KNOWN_CYCLES, Cycle, find_cycle, step
from accel_train.tasks.collatz.search import parse_number, search

main = COMMANDS["search"].run

MINUS_17 = (-17, -50, -25, -74, -37, -110, -55, -164, -82, -41, -122, -61, -182, -91, -272, -136, -68, -34)


# -- cycles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "multiplier", "offset", "members"),
    [
        (27, 3, 1, (1, 4, 2)),
        (2**100 - 1, 3, 1, (1, 4, 2)),
        (4, 3, -1, (1, 2)),
        (9, 3, -1, (5, 14, 7, 20, 10)),
        (21, 3, -1, tuple(-n for n in MINUS_17)),
        (2, 5, 1, (1, 6, 3, 16, 8, 4, 2)),
        (5, 5, 1, (13, 66, 33, 166, 83, 416, 208, 104, 52, 26)),
        (54, 5, 1, (17, 86, 43, 216, 108, 54, 27, 136, 68, 34)),
        (-4, 3, 1, (-1, -2)),
        (-9, 3, 1, (-5, -14, -7, -20, -10)),
        (-21, 3, 1, MINUS_17),
        (0, 3, 1, (0,)),
    ],
)
def test_known_cycles_are_found(n, multiplier, offset, members):
    cycle = find_cycle(n, multiplier, offset)
    assert cycle == Cycle(members, n, multiplier, offset)
    assert members in KNOWN_CYCLES[multiplier, offset]


def test_an_orbit_that_does_not_close_in_time():
    assert find_cycle(7, 5, 1, max_steps=5000) is None
    assert find_cycle(27, 3, 1, max_steps=50) is None
    assert find_cycle(27, 3, 1, max_steps=0) is None


def test_a_cycle_reads_well():
    assert str(find_cycle(9, 3, -1)) == "cycle of 5 under 3n-1: 5, 14, 7, 20, 10 (reached from 9)"


@given(st.integers(-5000, 5000), st.sampled_from([(3, 1), (3, -1)]))
def test_every_small_orbit_ends_in_a_known_cycle(n, rule):
    cycle = find_cycle(n, *rule)
    assert cycle is not None and cycle.members in KNOWN_CYCLES[rule]
    assert all(step(a, *rule) == b for a, b in zip(cycle.members, cycle.members[1:] + cycle.members[:1], strict=True))
    assert len(set(cycle.members)) == len(cycle) and min(map(abs, cycle.members)) == abs(cycle.members[0])


@given(st.integers(-(10**6), 10**6))
def test_negative_numbers_mirror_the_other_map(n):
    assert step(-n, 3, 1) == -step(n, 3, -1)


# -- search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("multiplier", "offset", "negative", "firsts"),
    [(3, -1, False, [1, 5, 17]), (3, 1, True, [-1, -5, -17]), (3, -1, True, []), (3, 1, False, [])],
)
def test_search_finds_exactly_the_known_cycles(multiplier, offset, negative, firsts):
    seen = []
    result = search(1, 3000, 700, None, multiplier, offset, seen.append, negative)
    assert [cycle.members[0] for cycle in result.cycles] == firsts and seen == result.cycles
    assert (result.done, result.undecided) == (3000, [])


def test_search_of_5n_plus_1():
    result = search(1, 60, multiplier=5, offset=1)
    assert [cycle.members[0] for cycle in result.cycles] == [1, 13, 17]
    assert 7 in result.undecided  # believed to grow for ever


@pytest.mark.parametrize("start", [1, 2**64 - 300, 2**71, 2**100 - 501, 2**128 - 2000, 2**128 + 1])
def test_3n_plus_1_finds_nothing_near(start):
    result = search(start, 1001, 250)
    assert (result.done, result.cycles, result.undecided) == (1001, [], [])
    assert result.tested == len([n for n in range(start, start + 1001) if n % 4 == 3])  # each once


def test_what_is_skipped_falls_at_once():
    for n in range(2, 4000):
        if n % 4 != 3:
            assert min(n // 2 if n % 2 == 0 else n, step(step(step(n)))) < n
        if n % 4 != 1:
            assert min(n // 2 if n % 2 == 0 else n, step(step(step(n, 3, -1), 3, -1), 3, -1)) < n


def test_the_fast_test_agrees_with_the_exact_one(monkeypatch):
    numbers = range(3, 40_000, 4)
    assert module._unfallen(numbers) == []
    assert all(module._follow(n, 3, 1).members == () for n in numbers)
    monkeypatch.setattr(module, "PATIENCE", 28)  # two jumps: many are still above themselves
    alive = module._unfallen(numbers)
    assert alive == [n for n in numbers if not falls_at_a_jump(n, 2)] and len(alive) > 100

    assert module._unfallen(range(1, 6, 4)) == [1]  # on a cycle, so equal to itself but never below


def test_rows_are_numbered_across_the_border_of_the_limbs(monkeypatch):
    given = []

    def overflowing(high, low):
        given.extend(h << 64 | x for h, x in zip(high.tolist(), low.tolist(), strict=True))
        return high, low, low, np.ones(len(low), bool)

    monkeypatch.setattr(module, "jump", overflowing)
    numbers = range(2**64 - 201, 2**64 + 200, 4)
    assert module._unfallen(numbers) == given == list(numbers)  # what leaves 128 bits is kept for the exact test


def falls_at_a_jump(n, jumps):
    value = n
    for _ in range(jumps):
        for _ in range(14):
            value = (3 * value + 1) // 2 if value % 2 else value // 2
        if value < n:
            return True
    return False


def test_a_hit_of_the_fast_test_is_followed_and_reported(monkeypatch):
    """3n+1 has no cycle to find, so one is planted: the exact part is told that the map is 3n-1."""
    monkeypatch.setattr(module, "_unfallen", lambda numbers: [n for n in numbers if n == 7])
    follow = module._follow
    monkeypatch.setattr(module, "_follow", lambda n, a, b: follow(5, 3, -1))
    seen = []
    assert search(1, 20, on_cycle=seen.append).cycles == seen and seen[0].members == (5, 14, 7, 20, 10)


# -- progress ------------------------------------------------------------------------------------------------------


def test_a_killed_search_goes_on_where_it_stopped(tmp_path, monkeypatch):
    file = tmp_path / "progress.json"
    real, starts = module._suspects, []

    def counting(state, first, end):
        starts.append(first)
        if len(starts) == 4:
            raise KeyboardInterrupt
        return real(state, first, end)

    monkeypatch.setattr(module, "_suspects", counting)
    with pytest.raises(KeyboardInterrupt):
        search(1, 1000, 100, file, 3, -1)
    assert json.loads(file.read_text())["done"] == 300
    resumed = search(1, 1000, 100, file, 3, -1)
    assert starts == [1, 101, 201, 301, 301, 401, 501, 601, 701, 801, 901]
    plain = search(1, 1000, 100, None, 3, -1)
    assert (resumed.done, resumed.tested, resumed.cycles) == (plain.done, plain.tested, plain.cycles)
    assert search(1, 1500, 100, file, 3, -1).done == 1500  # extended
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_big_numbers_survive_the_file(tmp_path):
    file = tmp_path / "progress.json"
    search(2**71 + 1, 64, 16, file)
    assert json.loads(file.read_text())["start"] == str(2**71 + 1)
    assert search(2**71 + 1, 128, 16, file).done == 128


def test_progress_of_another_search_is_refused(tmp_path):
    file = tmp_path / "progress.json"
    search(1, 10, progress_file=file)
    with pytest.raises(UserError, match="start is 1, not 2"):
        search(2, 10, progress_file=file)
    with pytest.raises(UserError, match="offset"):
        search(1, 10, progress_file=file, offset=-1)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"map": 3}', "\x00"])
def test_a_damaged_file_is_named(tmp_path, text):
    file = tmp_path / "progress.json"
    file.write_text(text)
    with pytest.raises(DataError, match=r"progress\.json"):
        search(1, 10, progress_file=file)


def test_an_unwritable_place_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        search(1, 10, progress_file=tmp_path / "none" / "progress.json")


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000", 1000), ("10_000", 10_000), ("2^71", 2**71), ("2**71", 2**71), ("2^71 + 1", 2**71 + 1), ("2^5-1", 31)],
)
def test_numbers_as_a_person_writes_them(text, value):
    assert parse_number(text) == value


def test_command_prints_rate_and_result(tmp_path, capsys):
    file = str(tmp_path / "p.json")
    assert main(["--start", "2^71", "--count", "4000", "--progress", file]) == 0
    assert main(["--start", "2^71", "--count", "8000", "--progress", file]) == 0
    out = capsys.readouterr().out
    assert "covered 8,000 numbers from 2361183241434822606848, followed 2,000" in out
    assert "going on after 4,000" in out and "cycles: 0" in out and "numbers/s" in out
    assert main(["--start", "1", "--count", "100", "--map", "3n-1"]) == 0
    assert "5, 14, 7, 20, 10" in capsys.readouterr().out
    assert main(["--start", "1", "--count", "100", "--negative"]) == 0
    assert "-5, -14, -7, -20, -10" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--start", "abc"], ["--count", "-1"], ["--count", "1.5"], ["--start", "0"], ["--map", "7n+1"], ["--nonsense"]],
)
def test_bad_input_is_one_clear_line(arguments):
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert str(caught.value) and "\n" not in str(caught.value)
