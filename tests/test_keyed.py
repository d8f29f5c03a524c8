"""Numbers as a function of a key: pure, independent of order and company, and good enough to train on."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train import keyed

N = 200_000
KNOWN = [
    [4964578127960768432, 12049418925942065841],
    [6301985355436268297, 11240987831504082782],
]
indices = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=30)
seeds = st.integers(0, 2**64 - 1)


@given(seeds, indices, st.integers(1, 5), st.randoms())
def test_neither_order_nor_company_nor_the_number_of_draws_matters(seed, chosen, draws, random):
    chosen = np.array(chosen)
    whole = keyed.bits(seed, chosen, draws)
    assert whole.shape == (len(chosen), draws) and whole.dtype == np.uint64
    order = np.array(random.sample(range(len(chosen)), len(chosen)))
    assert (keyed.bits(seed, chosen[order], draws) == whole[order]).all()
    assert all((keyed.bits(seed, chosen[i : i + 1], draws) == whole[i]).all() for i in range(len(chosen)))
    assert (keyed.bits(seed, chosen, draws + 3)[:, :draws] == whole).all()


def test_the_numbers_never_change():
    """A checkpoint of one machine is resumed on another, years later."""
    assert keyed.key(0, "order", 3) == 3711057560728892766
    assert keyed.bits(1, np.arange(2), 2).tolist() == KNOWN
    code = "from accel_train import keyed; print(keyed.key(7, 'noise'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == keyed.key(7, "noise"), "no hash seed of the interpreter in it"


@given(st.lists(st.integers() | st.text(max_size=5), min_size=1, max_size=4, unique_by=lambda p: (type(p), p)))
def test_different_keys_differ(parts):
    here = keyed.key(*parts)
    assert 0 <= here < 2**64
    others = [keyed.key(*parts, 0), keyed.key(0, *parts), keyed.key(*map(str, parts), "")]
    assert here not in others
    if len(parts) > 1:
        assert keyed.key(*reversed(parts)) != here


def test_parts_are_told_apart():
    assert len({keyed.key(1, 23), keyed.key(12, 3), keyed.key("1", 23), keyed.key("1:23"), keyed.key(123)}) == 5


def test_purposes_and_seeds_are_independent():
    a, b, c = (keyed.uniform(keyed.key(0, name), np.arange(N))[:, 0] for name in ("noise", "dropout", "noise2"))
    for x, y in ((a, b), (a, c), (b, c)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / math.sqrt(N)
    near = [keyed.uniform(seed, np.arange(N))[:, 0] for seed in range(3)]
    assert abs(np.corrcoef(near)[np.triu_indices(3, 1)]).max() < 4 / math.sqrt(N)


@pytest.mark.parametrize("chosen", [np.arange(N), np.arange(N) * 2**20, 2**62 + np.arange(N)], ids=str)
def test_uniform_by_chi_square(chosen):
    numbers = keyed.uniform(5, chosen, 2)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    cells = 256
    for draw in range(2):
        counts = np.bincount((numbers[:, draw] * cells).astype(int), minlength=cells)
        chi = ((counts - N / cells) ** 2).sum() / (N / cells)
        assert abs(chi - (cells - 1)) < 4 * math.sqrt(2 * (cells - 1))
    pairs = np.histogram2d(numbers[:, 0], numbers[:, 1], bins=16, range=[[0, 1]] * 2)[0]  # draws of one item
    following = np.histogram2d(numbers[:-1, 0], numbers[1:, 0], bins=16, range=[[0, 1]] * 2)[0]  # items side by side
    for table in (pairs, following):
        chi = ((table - table.sum() / 256) ** 2).sum() / (table.sum() / 256)
        assert abs(chi - 255) < 4 * math.sqrt(2 * 255)


def test_every_bit_is_fair():
    ones = np.unpackbits(keyed.bits(3, np.arange(20_000)).view(np.uint8), axis=None).reshape(-1, 64).mean(0)
    assert abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(20_000)


def test_normal_has_the_moments_of_a_normal():
    numbers = keyed.normal(9, np.arange(N), 2)
    assert numbers.shape == (N, 2) and np.isfinite(numbers).all()
    for draw in range(2):
        x = numbers[:, draw]
        for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
            spread = math.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[power] / N)
            assert abs((x**power).mean() - moment) < 4.5 * spread
        assert abs((np.abs(x) < 1).mean() - 0.6827) < 0.005
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 4 / math.sqrt(N)
    assert (keyed.normal(9, np.arange(5, 7), 2) == numbers[5:7]).all()
