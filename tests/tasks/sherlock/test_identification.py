"""Segments found by their prediction."""

from __future__ import annotations

import numpy as np
import pytest
from support.movie_brain import movie

from accel_train.errors import UserError
from accel_train.tasks.sherlock.identification import identify


def test_the_mean_of_three_people_is_found_and_noise_is_not():
    film = movie(0)
    test = ~film.train
    average, runs = np.mean(film.people, 0)[test], film.runs[test]
    found = identify(film.signal[test], average, runs, length=10, apart=21)
    assert (found.segments, found.top1) == (26, 1.0) and found.two_way == 1.0
    single = identify(film.signal[test], average, runs, length=1, apart=21)
    assert single.two_way > 0.95 and single.top1 > 0.2 and single.chance < 0.006
    noise = identify(np.random.default_rng(0).normal(size=average.shape), average, runs, length=10, apart=21)
    assert noise.top1 < 0.3 and abs(noise.two_way - 0.5) < 0.15


def test_against_pairs_one_by_one():
    draw = np.random.default_rng(0)
    true = draw.normal(size=(25, 4))
    predicted = true + draw.normal(size=(25, 4))
    runs = np.repeat([0, 1], [16, 9])
    found = identify(predicted, true, runs, length=2, apart=3)
    starts = [*range(0, 16, 2), *range(16, 24, 2)]
    kept = np.concatenate([np.arange(start, start + 2) for start in starts])
    x, y = (((z[kept] - z[kept].mean(0)) / z[kept].std(0)).reshape(12, 8) for z in (predicted, true))
    two_way, top1, chance = [], [], []
    for i, a in enumerate(starts):
        others = [j for j, b in enumerate(starts) if (a < 16) != (b < 16) or abs(a - b) >= 2 + 3]
        own = np.corrcoef(x[i], y[i])[0, 1]
        better = [own > np.corrcoef(x[i], y[j])[0, 1] for j in others]
        two_way.append(np.mean(better))
        top1.append(all(better))
        chance.append(1 / (1 + len(others)))
    assert (found.two_way, found.top1, found.chance, found.segments) == pytest.approx(
        (np.mean(two_way), np.mean(top1), np.mean(chance), 12)
    )
    assert 0.5 < found.two_way < 1


def test_what_says_nothing_is_at_chance():
    found = identify(np.ones((8, 3)), np.random.default_rng(0).normal(size=(8, 3)), np.zeros(8, int), 1, 0)
    assert (found.two_way, found.top1) == (0.5, 0.0)


def test_segments_with_a_missing_volume_are_left_out():
    film = movie(1)
    y = film.people[0].copy()
    y[55] = np.nan
    assert identify(film.signal, y, film.runs, length=10, apart=0).segments == 24 + 26 - 1
    with pytest.raises(UserError, match="no others 21 TRs away"):
        identify(film.signal[:30], y[:30], film.runs[:30], length=10, apart=21)
