"""Synthetic shots have the layout of real ones, depend on their place alone, and disrupt as is said of them."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_train.config.convert import further_options
from accel_train.errors import UserError
from accel_train.tasks.tcn import discharge as discharges
from accel_train.tasks.tcn.discharge import CHANNELS, DT_MS, RECIPES, RHO, STEP, T0_MS, TONE_HZ, draw, signals
from accel_train.tasks.tcn.synth import NO_DISRUPTION_MS, _generator, plan, synth

EASY, HARD = RECIPES["easy"], RECIPES["hard"]
MODE = np.abs(RHO - discharges.MODE_RHO) < 2 * discharges.MODE_WIDTH
"""Channels that see the mode; the others are far away from it."""


def made(number, disruptive=True, recipe=EASY, **changes):
    """A discharge and its signals."""
    random = partial(_generator, 3, "test", number)
    truth = replace(draw(random, disruptive, recipe), **changes)
    return truth, signals(truth, random, recipe)


def between(x, start_ms, stop_ms):
    first, last = (round((ms - T0_MS) / DT_MS) for ms in (start_ms, stop_ms))
    return x[:, max(first, 0) : last]


def band_power(x, low_hz, high_hz):
    """Mean power of each channel between two frequencies."""
    hz = np.fft.rfftfreq(x.shape[1], DT_MS / 1000)
    power = np.abs(np.fft.rfft(x - x.mean(1, keepdims=True))) ** 2 / x.shape[1]
    return power[:, (hz >= low_hz) & (hz < high_hz)].mean(1)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tcn") / "shots"
    synth(out, seed=5, size=4, val=2, test=2, digitised=True)
    return out


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.h5"))}  # fmt: skip


def listed(path):
    return np.loadtxt(path, ndmin=2)


def test_layout(folder):
    about = json.loads((folder / "metadata.json").read_text())
    assert about["shots"] == {"train": 4, "val": 2, "test": 2}
    found = {}
    for home in ("disrupt", "clear"):
        rows = list(csv.DictReader((folder / home / "meta.csv").read_text().splitlines()))
        table = listed(folder / "shots" / f"{home}.txt")
        assert table.shape == (4, 9) and len(rows) == 4
        for row, line in zip(rows, table, strict=True):
            truth = about["truth"][row["shot"]]
            found[row["shot"]] = row["split"]
            assert truth["split"] == row["split"] and truth["disruptive"] == (home == "disrupt")
            assert [line[i] for i in (0, 1, 2, 4)] == [float(row["shot"]), 1, T0_MS, DT_MS]
            assert line[3] == truth["last_ms"] and line[5] == truth["snr"]
            assert [line[6], line[6] + line[7]] == pytest.approx([truth["flat_start_ms"], truth["flat_stop_ms"]])
            assert line[8] == (float(row["t_disruption"]) if home == "disrupt" else NO_DISRUPTION_MS)
            with h5py.File(folder / home / f"{row['shot']}.h5") as file:
                data = file["LFS"]
                assert data.shape[:2] == (20, 8) and data.dtype == np.float32
                last_ms = T0_MS + DT_MS * (data.shape[2] - 1)
                assert last_ms <= truth["last_ms"] + 1e-6 < last_ms + 1.01 * DT_MS
    assert list(found) != sorted(found) and sorted(found) == sorted(about["truth"])


def test_digitised_values_are_whole_numbers_of_14_bits(folder):
    for path in folder.rglob("*.h5"):
        with h5py.File(path) as file:
            counts = file["LFS"][:] / STEP
        assert (counts == np.round(counts)).all() and np.abs(counts).max() < 2**13


def test_a_shot_depends_on_its_place_alone(folder, tmp_path):
    synth(tmp_path / "same", seed=5, size=4, val=2, test=2, digitised=True)
    assert digests(tmp_path / "same") == digests(folder)
    synth(tmp_path / "more", seed=5, size=6, val=0, test=2, digitised=True)
    more = digests(tmp_path / "more")
    assert {k: v for k, v in digests(folder).items() if "/2" not in k}.items() < more.items() and len(more) == 8
    synth(tmp_path / "other", seed=6, size=4, val=2, test=2, digitised=True)
    assert not set(digests(tmp_path / "other").values()) & set(more.values())


def test_what_is_wrong_is_one_line(tmp_path):
    with pytest.raises(UserError, match="traps: corrupt, short take 4 shots of each split, but val has 2"):
        synth(tmp_path, size=4, traps=("corrupt", "short"))
    with pytest.raises(UserError, match="size: 1 is out of range, must be at least 2"):
        synth(tmp_path, size=1)
    with pytest.raises(UserError, match="did you mean corrupt"):
        further_options(["--traps=[corupt]"], synth)
    given = further_options(["--kind=hard", "--traps=[corrupt, tone]", "--dead_channels=3"], synth)
    assert given == {"kind": "hard", "traps": ("corrupt", "tone"), "dead_channels": 3}


# -- traps ---------------------------------------------------------------------------------------------------------


def test_traps(tmp_path):
    synth(tmp_path / "a", size=8, val=8, test=8, traps=("no_flattop", "late_disruption", "short", "corrupt"))
    truth = json.loads((tmp_path / "a" / "metadata.json").read_text())["truth"]
    disrupt, clear = (listed(tmp_path / "a" / "shots" / f"{home}.txt") for home in ("disrupt", "clear"))
    for split in (100_000, 200_000, 300_000):
        mine, others = (table[np.abs(table[:, 0] - split) < 100] for table in (disrupt, clear))
        assert np.isnan(mine[:, 6:8]).all(1).tolist() == [True, False, False, False] and not np.isnan(others).any()
        assert (mine[:, 8] > mine[:, 3]).tolist() == [False, True, False, False]
        assert (others[:, 3] == 300).tolist() == [False, False, True, False]
        assert [truth[str(int(n))]["corrupt"] for n in mine[:, 0]] == [False, False, False, True]
        broken = tmp_path / "a" / "disrupt" / f"{int(mine[3, 0])}.h5"
        with pytest.raises(OSError, match="truncated"):
            h5py.File(broken)


def test_a_split_without_disruptions():
    shots = {split: list(plan(0, split, 6, EASY, ("no_positives",))) for split in ("train", "val", "test")}
    disrupt = {split: sum(shot.truth.disruptive for shot in found) for split, found in shots.items()}
    assert disrupt == {"train": 3, "val": 0, "test": 3}


def test_dead_and_frozen_channels():
    truth, x = made(0, recipe=replace(EASY, dead_channels=3, frozen_channels=2))
    still = np.flatnonzero((np.diff(x, axis=1) == 0).all(1))
    assert still.tolist() == truth.dead and len(truth.dead) == 3 and not set(truth.dead) & set(truth.frozen)
    stuck = round((truth.frozen_ms - T0_MS) / DT_MS) + 1
    constant = np.flatnonzero((np.diff(x[:, stuck:], axis=1) == 0).all(1))
    assert constant.tolist() == sorted(truth.dead + truth.frozen)


def test_plain_slicing_folds_the_tone():
    """2.1 kHz look like 100 Hz at 2 kHz."""
    quiet, loud = (made(1, False, replace(EASY, tone=tone))[1][:, :-100] for tone in (False, True))
    alias = abs(TONE_HZ - 2000)

    def at(x, step):
        hz = np.fft.rfftfreq(x[:, ::step].shape[1], step * DT_MS / 1000)
        return np.abs(np.fft.rfft(x[:, ::step]))[:, np.abs(hz - alias) < 2].max(1).mean()

    assert at(loud, 5) > 3 * at(quiet, 5)
    assert at(loud, 1) < 1.1 * at(quiet, 1)


# -- physics -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.booleans(), st.sampled_from([EASY, HARD]))
def test_times_are_in_order(seed, place, disruptive, recipe):
    truth = draw(partial(_generator, seed, "train", place), disruptive, recipe)
    assert 0 < truth.flat_start_ms < truth.flat_stop_ms <= truth.end_ms <= truth.last_ms
    assert disruptive == (truth.flat_stop_ms == truth.end_ms) == (truth.onset_ms is not None)
    if disruptive:
        low, high = recipe.onset_ms
        assert low - 0.001 <= truth.end_ms - truth.onset_ms <= high + 0.001
    assert 3 <= truth.snr <= 20


def test_nothing_but_offset_and_noise_before_the_plasma():
    _, x = made(2)
    halves = between(x, T0_MS, 0).reshape(CHANNELS, 2, -1).mean(2)
    assert np.abs(np.diff(halves)).max() < 0.05 < np.abs(between(x, 300, 400).mean(1) - halves[:, 0]).mean()


def growth(number, disruptive, recipe):
    """Power of the mode's channels in its band, at the end of the flattop over 200 ms before. 6 dB are 4."""
    truth, x = made(number, disruptive, recipe)
    end = truth.flat_stop_ms
    late, early = (band_power(between(x, end - a, end - b)[MODE], 60, 900).mean() for a, b in ((60, 5), (260, 205)))
    return late / early


def test_classes_are_separable_by_the_power_of_the_precursor():
    disruptive, clear = ([growth(i, kind, EASY) for i in range(8)] for kind in (True, False))
    assert min(disruptive) > 10 > 5 > max(clear)


def test_the_power_of_the_precursor_does_not_do_if_it_is_hard():
    disruptive, clear = ([growth(i, kind, HARD) for i in range(24)] for kind in (True, False))
    assert np.median(disruptive) > 2 * np.median(clear)
    assert min(disruptive) < max(clear)


def test_the_mode_slows_down():
    truth, x = made(5)
    early, late = ((110, 90), (25, 5))
    peaks = []
    for a, b in (early, late):
        part = between(x, truth.end_ms - a, truth.end_ms - b)[MODE]
        hz = np.fft.rfftfreq(part.shape[1], DT_MS / 1000)
        power = (np.abs(np.fft.rfft(part - part.mean(1, keepdims=True))) ** 2).sum(0)
        peaks.append(hz[power.argmax()])
    assert peaks[0] > 2 * peaks[1] > 0


def test_an_impostor_is_a_precursor_of_the_other_channels():
    """The same series; over the profile, the same patterns at the other end of the rows. So what does not know places
    cannot tell them apart."""
    t = T0_MS + DT_MS * np.arange(8000)
    current = np.ones_like(t)
    recipe = replace(HARD, impostors=50.0)
    truth = replace(made(0, False, recipe)[0], flat_start_ms=0.0, flat_stop_ms=1e4)
    found = discharges._impostors(t, current, truth, recipe, np.random.default_rng(0))
    genuine = discharges._precursor(t, current, 100.0, 300.0, 30.0, recipe, np.random.default_rng(0))
    assert len(found) > 60 and len(found) % 3 == 0
    for place, (pattern, _) in enumerate(genuine):
        relative = (found[place][0] / discharges._PROFILE).reshape(20, 8)
        np.testing.assert_allclose(relative[:, ::-1].ravel(), pattern / discharges._PROFILE, atol=1e-12)
