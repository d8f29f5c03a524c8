"""Likeness of reconstructions, against definitions written out pixel by pixel and text by text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.tasks.sherlock.likeness import by_chance, cosine, found_among, likeness, psnr, ssim


def frames(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def one_place(x: np.ndarray, y: np.ndarray, window: np.ndarray) -> float:
    """Equation 13 of the paper, of one window of one colour."""
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * (x - mean_x) ** 2).sum(), (window * (y - mean_y) ** 2).sum()
    both = (window * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(13, 15, 11, 11), (11, 11, 11, 11), (4, 7, 3, 7)])
def test_ssim_is_what_the_paper_says(height: int, width: int, rows: int, columns: int):
    true = frames(0, 2, height, width)
    made = np.clip(true + np.random.default_rng(1).normal(0, 40, true.shape), 0, 255)
    gauss = [np.exp(-((np.arange(n) - n // 2) ** 2) / (2 * 1.5**2)) for n in (rows, columns)]
    window = np.outer(*gauss) / np.outer(*gauss).sum()
    wanted = [
        np.mean([
            one_place(made[i, a : a + rows, b : b + columns, c], true[i, a : a + rows, b : b + columns, c], window)
            for a in range(height - rows + 1) for b in range(width - columns + 1) for c in range(3)
        ])
        for i in range(2)
    ]  # fmt: skip
    np.testing.assert_allclose(ssim(made, true), wanted, rtol=1e-9)


def test_the_same_frames_and_no_frames():
    true = frames(0, 70, 2, 12, 16)
    same = likeness(true.astype(float), true)
    assert same["SSIM"] == pytest.approx(1) and same["PSNR"] == np.inf
    other = likeness(frames(1, 70, 2, 12, 16), true)
    assert abs(other["SSIM"]) < 0.05 and 6 < other["PSNR"] < 9


@given(st.floats(0.5, 60))
def test_psnr_of_a_known_error(error: float):
    true = np.full((70, 1, 4, 4, 3), 100, np.uint8)
    signs = np.random.default_rng(0).choice([-1, 1], true.shape)
    assert psnr(true + error * signs, true) == pytest.approx(20 * np.log10(255 / error))
    assert psnr(true + 1000.0, true) == pytest.approx(20 * np.log10(255 / 155))  # at most white


def test_texts_one_by_one():
    draw = np.random.default_rng(0)
    texts = draw.normal(size=(9, 6))
    true = texts[np.repeat(np.arange(9), 4)].astype(np.float32)
    true[[3, 20]] = 0  # nothing is said
    made = true + draw.normal(size=true.shape)
    said = [t for t in range(len(true)) if true[t].any()]
    near = {t: [made[t] @ x / np.linalg.norm(made[t]) / np.linalg.norm(x) for x in texts] for t in said}
    place = {t: int(np.argsort(np.argsort(-np.array(near[t])))[t // 4]) for t in said}
    assert cosine(made, true) == pytest.approx(np.mean([near[t][t // 4] for t in said]), abs=1e-6)
    for k in (1, 2, 5):
        assert found_among(made, true, k) == pytest.approx(np.mean([place[t] < k for t in said]))
    assert by_chance(true) == {"top-1": 1 / 9, "top-5": 5 / 9}


def test_what_says_nothing_finds_nothing():
    """One guess for all finds the text that is nearest to it, and zeros find none."""
    true = np.random.default_rng(0).normal(size=(40, 5))
    assert found_among(np.broadcast_to(true.mean(0), true.shape), true, 1) == 1 / 40
    assert found_among(np.zeros_like(true), true, 5) == 0 and cosine(np.zeros_like(true), true) == 0
    assert np.isnan(found_among(true, np.zeros_like(true), 1)) and np.isnan(cosine(true, np.zeros_like(true)))


def test_spectra_and_codes():
    draw = np.random.default_rng(0)
    mel = draw.normal(-20, 5, (200, 2, 3)).astype(np.float32)
    assert likeness(3 * mel - 7, mel)["r"] == pytest.approx(1)
    assert likeness(mel + draw.normal(0, 5, mel.shape), mel)["r"] == pytest.approx(np.sqrt(0.5), abs=0.05)
    assert np.isnan(likeness(np.broadcast_to(mel.mean(0), mel.shape), mel)["r"])
    codes = draw.integers(0, 4, (50, 2, 3)).astype(np.int16)
    assert likeness(codes + 0.2, codes) == {"right": 1} and likeness(codes + 1, codes) == {"right": 0}
    assert by_chance(mel) == by_chance(codes) == by_chance(frames(0, 3, 1, 4, 4)) == {}
