"""Trajectories are exact, whatever the size of the number, and fast enough to be worth their table."""

import hashlib
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.tasks.collatz import trajectory
from accel_train.tasks.collatz.cycles import ClosedOrbit
from accel_train.tasks.collatz.trajectory import exact_trajectory, jump, trajectories, trajectories_of

MASK = (1 << 64) - 1
FIRST_40 = "0 1 7 2 5 8 16 3 19 6 14 9 9 17 17 4 12 20 20 7 7 15 15 10 23 10 111 18 18 18 106 5 26 13 13 21 21 21 34 8"
DELAY_RECORDS = """
    1:0 2:1 3:7 6:8 7:16 9:19 18:20 25:23 27:111 54:112 73:115 97:118 129:121 171:124 231:127 313:130 327:143 649:144
    703:170 871:178 1161:181 2223:182 2463:208 2919:216 3711:237 6171:261 10971:267 13255:275 17647:278 23529:281
    26623:307 34239:310 35655:323 52527:339 77031:350 106239:353 142587:374 156159:382 216367:385 230631:442 410011:448
    511935:469 626331:508 837799:524 1117065:527 1501353:530 1723519:556 2298025:559 3064033:562 3542887:583 3732423:596
    5649499:612 6649279:664 8400511:685 11200681:688 14934241:691 15733191:704 31466382:705 36791535:744 63728127:949
    127456254:950 169941673:953 226588897:956 268549803:964 537099606:965 670617279:986 1341234558:987 1412987847:1000
    9780657630:1132 75128138247:1228 989345275647:1348 7887663552367:1563 80867137596217:1662 942488749153153:1862
    7579309213675935:1958 93571393692802302:2091 931386509544713451:2283 1278775404785934855:2286
    1339302163616345727:2330 2678604327232691454:2331 3571472436310255273:2334 4761963248413673697:2337
    5065931099926693735:2363 5977996304343501855:2389 9781262575275081247:2426 13041683433700108329:2429
    14727207461063895711:2442 28019077177231758495:2456
"""
BIG = {
    2**64: (64, 0),
    2**64 - 1: (863, 309),
    2**64 + 1: (483, 162),
    2**63 - 1: (862, 309),
    2**68: (68, 0),
    **{2**68 + i: (562, 191) for i in range(1, 8)},
    2**68 - 1: (730, 256),
    2**71: (71, 0),
    2**71 + 1: (565, 191),
    2**71 - 1: (932, 333),
    10**20: (470, 156),
    10**30: (467, 142),
    3**50: (493, 160),
    2**68 + 10**12: (425, 138),
    2**68 + 10**15: (487, 162),
    2**100 + 1: (643, 210),
    # from here on the orbit leaves 128 bits, or begins beyond them
    2**100 - 1: (1465, 528),
    2**119 - 1: (1484, 528),
    2**127 - 1: (1660, 593),
    2**128 - 1: (1661, 593),
    2**200 - 1: (2731, 979),
    2**500 - 1: (6748, 2417),
}


def limbs(numbers):
    return np.array([n >> 64 for n in numbers], np.uint64), np.array([n & MASK for n in numbers], np.uint64)


def from_zero(low):
    return trajectories(np.zeros(len(low), np.uint64), np.asarray(low, np.uint64), 1)[1].astype(np.int64)


def random_numbers(rows, bits, seed):
    """``rows`` numbers of 1 to ``bits`` bits, every length equally often."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**64, (rows, 2), np.uint64)
    length = rng.integers(1, bits + 1, rows).tolist()
    pairs = zip(words.tolist(), length, strict=True)
    return [((a << 64 | b) & ((1 << n) - 1)) | 1 << (n - 1) for (a, b), n in pairs]


def walked(numbers, max_len):
    """The reference for many numbers; the tokens of all rows are joined before they are counted and compared."""
    rows, steps = zip(*map(exact_trajectory, numbers), strict=True)
    tokens = b"".join(bytes(row[:max_len]).ljust(max_len, b"\2") for row in rows)
    return np.frombuffer(tokens, np.uint8).reshape(len(numbers), max_len), np.array(steps)


# -- known values --------------------------------------------------------------------------------------------------


def test_the_first_forty():
    assert from_zero(range(1, 41)).tolist() == [int(t) for t in FIRST_40.split()]


def test_sums_of_the_first_million():
    total = from_zero(np.arange(1, 10**6 + 1)).cumsum()
    sums = {10: 67, 100: 3142, 1000: 59542, 10**4: 849666, 10**5: 10753840, 10**6: 131434424}
    assert {m: int(total[m - 1]) for m in sums} == sums
    steps = np.diff(total, prepend=0)
    assert (np.flatnonzero(steps >= 500) + 1).tolist() == [626331, 704623, 837799, 939497]


@pytest.mark.parametrize(
    ("n", "tokens"),
    [(1, ""), (2, "0"), (3, "1010000"), (5, "10000"), (6, "01010000"), (7, "1010100100010000")]
    + [(9, "1001010100100010000")],
)
def test_tokens_of_small_numbers(n, tokens):
    row, steps = trajectories_of([n], max_len=24)
    assert row.dtype == np.uint8 and steps.dtype == np.int32
    assert "".join(map(str, row[0])) == tokens.ljust(24, "2") and steps[0] == len(tokens)


def test_twenty_seven():
    tokens, steps = trajectories_of([27])
    assert steps[0] == 111 and (tokens[0] == 1).sum() == 41 and (tokens[0, 111:] == 2).all()


def test_delay_records():
    records = [tuple(map(int, record.split(":"))) for record in DELAY_RECORDS.split()]
    _, steps = trajectories_of([n for n, _ in records], 8)
    assert steps.tolist() == [t for _, t in records]


def test_big_numbers():
    tokens, steps = trajectories_of(list(BIG), max_len=7000)
    assert [(int(t), int((row == 1).sum())) for t, row in zip(steps, tokens, strict=True)] == list(BIG.values())


@pytest.mark.parametrize(("first", "total", "low", "high"), [(2**68, 533642, 68, 859), (2**64, 489906, 64, 855)])
def test_blocks_of_a_thousand(first, total, low, high):
    _, steps = trajectories_of(range(first, first + 1000))
    assert (steps.sum(), steps.min(), steps.max()) == (total, low, high)
    if first == 2**68:
        assert len(set(steps.tolist())) == 7


def test_digests_of_long_rows():
    tokens, steps = trajectories_of([2**68 + 1, 2**68 - 1], max_len=1000)
    digests = [hashlib.sha256(row[:t].tobytes()).hexdigest()[:16] for row, t in zip(tokens, steps, strict=True)]
    assert digests == ["7b0b10115a9fbe96", "b8d3dd50203b48d9"]
    assert (tokens[0, :500] == 1).sum() == 173
    assert tokens[1, :136].tolist() == [1, 0] * 68


@pytest.mark.parametrize(
    ("n", "peak"),
    [(27, 9232), (9663, 27114424), (6631675, 60342610919632), (319804831, 1414236446719942480)]
    + [(8528817511, 18144594937356598024), (12327829503, 20722398914405051728)],
)
def test_peaks_beyond_64_bits_are_walked_right(n, peak):
    tokens, steps = trajectories_of([n], max_len=2000)
    values = [1]
    for token in tokens[0, : steps[0]][::-1]:
        values.append((values[-1] - 1) // 3 if token else 2 * values[-1])
    assert values[-1] == n and max(values) == peak


# -- against Python integers ---------------------------------------------------------------------------------------


def test_every_token_of_a_hundred_thousand_rows():
    """Numbers of 1 to 96 bits, so that most rows begin in one limb or two and some overflow both on the way."""
    numbers = random_numbers(100_000, 96, seed=1)
    high, low = limbs(numbers)
    for i in range(0, len(numbers), 5000):
        tokens, steps = trajectories(high[i : i + 5000], low[i : i + 5000])
        expected, counts = walked(numbers[i : i + 5000], 500)
        np.testing.assert_array_equal(steps, counts)
        assert tokens.tobytes() == expected.tobytes()


@pytest.mark.parametrize("max_len", [0, 1, 63, 64, 65, 500, 1500])
def test_any_length_at_the_edges_of_the_limbs(max_len):
    numbers = [2**k + d for k in range(3, 128) for d in (-1, 0, 1)] + random_numbers(200, 128, seed=2)
    tokens, steps = trajectories_of(numbers, max_len)
    expected, counts = walked(numbers, max_len)
    np.testing.assert_array_equal(steps, counts)
    np.testing.assert_array_equal(tokens, expected)


def test_a_jump_is_fourteen_shortcut_steps():
    numbers = random_numbers(2000, 128, seed=3)
    high, low, _, overflow = jump(*limbs(numbers))
    for n, h, x, over in zip(numbers, high.tolist(), low.tolist(), overflow.tolist(), strict=True):
        for _ in range(14):
            n = (3 * n + 1) // 2 if n % 2 else n // 2
        assert n >> 127 if over else h << 64 | x == n


def test_a_row_does_not_depend_on_its_neighbours():
    numbers = random_numbers(9000, 128, seed=4)  # more than one chunk
    high, low = limbs(numbers)
    tokens, steps = trajectories(high, low, 100)
    order = np.random.default_rng(5).permutation(9000)
    again, counts = trajectories(high[order], low[order], 100)
    np.testing.assert_array_equal(again, tokens[order])
    np.testing.assert_array_equal(counts, steps[order])


def test_threads_do_not_disturb_each_other():
    parts = [limbs(random_numbers(400, 119, seed)) for seed in range(8)]
    expected = [trajectories(*part) for part in parts]
    results = [None] * len(parts)

    def work(i):
        for _ in range(3):
            results[i] = trajectories(*parts[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result[0], wanted[0])
        np.testing.assert_array_equal(result[1], wanted[1])


def test_an_orbit_that_closes_without_one_is_reported():
    with pytest.raises(ClosedOrbit) as caught:
        exact_trajectory(9, 3, -1, patience=50)
    assert caught.value.cycle.members == (5, 14, 7, 20, 10) and caught.value.cycle.start == 9
    with pytest.raises(ClosedOrbit):
        exact_trajectory(-17, patience=50)
    assert exact_trajectory(27, patience=10) == exact_trajectory(27)  # a long orbit is not a closed one


def test_rows_that_stay_alive_too_long_are_walked_exactly(monkeypatch):
    numbers = random_numbers(300, 110, seed=7)
    tokens, steps = trajectories_of(numbers)
    monkeypatch.setattr(trajectory, "PATIENCE", 150)
    again, counts = trajectories_of(numbers)
    np.testing.assert_array_equal(again, tokens)
    np.testing.assert_array_equal(counts, steps)


def test_what_is_no_trajectory():
    none = np.empty(0, np.uint64)
    assert trajectories(none, none)[0].shape == (0, 500)
    assert trajectories_of([])[1].shape == (0,)
    with pytest.raises(ValueError, match="positive"):
        trajectories_of([5, 0])
    with pytest.raises(ValueError, match="positive"):
        trajectories(np.zeros(2, np.uint64), np.array([1, 0], np.uint64))
    with pytest.raises(ValueError, match="length"):
        trajectories(np.zeros(2, np.uint64), np.ones(3, np.uint64))


# -- what holds for every number -----------------------------------------------------------------------------------

positive = st.integers(1, 140).flatmap(lambda bits: st.integers(1, 1 << bits))


@settings(max_examples=150, deadline=None)
@given(positive)
def test_properties(n):
    tokens, steps = trajectories_of([n, 2 * n], max_len=8000)
    length = int(steps[0])
    row = tokens[0, :length]
    assert steps[1] == length + 1 and tokens[1, 0] == 0 and (tokens[1, 1 : length + 1] == row).all()
    assert (tokens[0, length:] == 2).all()
    odd, even = int((row == 1).sum()), int((row == 0).sum())
    assert odd + even == length
    assert even == (n * 3**odd - 1).bit_length()  # the least power of two that is no less than n * 3^odd
    if n > 1:
        assert row[-1] == 0
    assert not (row[:-1] & row[1:]).any()  # a 1 is followed by a 0
    value = 1
    for token in row[::-1].tolist():
        value = (value - 1) // 3 if token else 2 * value
    assert value == n


@settings(max_examples=50, deadline=None)
@given(st.lists(positive, min_size=1, max_size=40), st.integers(0, 700))
def test_any_mixture_agrees_with_python(numbers, max_len):
    tokens, steps = trajectories_of(numbers, max_len)
    expected, counts = walked(numbers, max_len)
    assert (tokens == expected).all() and (steps == counts).all()


# -- speed ---------------------------------------------------------------------------------------------------------


def test_speed_at_512_rows():
    """At least 8 times Python integers in CPU time; about 20 is usual. The best round counts: load only slows."""
    rng = np.random.default_rng(6)
    high, low = np.full(512, 16, np.uint64), rng.integers(0, 10**12, 512).astype(np.uint64)
    numbers = [(16 << 64) + x for x in low.tolist()]

    def cpu(work, repeats):
        begun = time.process_time()
        for _ in range(repeats):
            work()
        return (time.process_time() - begun) / repeats

    trajectories(high, low)
    ratios = []
    for _ in range(7):
        slow = cpu(lambda: [exact_trajectory(n) for n in numbers], 1)
        ratios.append(slow / cpu(lambda: trajectories(high, low), 10))
    assert max(ratios) >= 8, f"CPU time ratios to Python integers: {ratios}"
