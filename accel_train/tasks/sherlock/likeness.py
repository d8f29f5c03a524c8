"""How like a stimulus a reconstruction is, by what is usual for its kind: PSNR and SSIM of frames, correlation of mel
spectra, cosine and nearest neighbours of vectors, right codes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from accel_train.tasks.sherlock.scores import fisher_mean, temporal_r

TOP = (1, 5)
PEAK = 255.0
"""The largest value of a pixel."""
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
CHUNK = 64  # TRs at once: a TR of a film may be a million numbers


def likeness(made: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """By name; NaN for what is not defined, as the correlation of a constant.

    frames uint8 [T, F, height, width, 3]: ``PSNR`` in dB, ``SSIM``, the mean over frames. codes, integers [T, ...]:
    ``right``, the share of them. mel [T, frames, mels]: ``r`` over time of each number of a TR, their mean by Fisher's
    z. vectors [T, D]: ``cosine``, the mean over TRs, ``top-1`` and ``top-5`` (``found_among``).

    Args:
        made: as ``true``, of any dtype.
    """
    if true.dtype == np.uint8:
        each = np.concatenate([ssim(some_made, some) for some_made, some in _chunks(made, true)])
        return {"PSNR": psnr(made, true), "SSIM": float(each.mean())}
    if true.dtype.kind in "iu":
        return {"right": float((np.rint(made) == true).mean())}
    if true.ndim == 3:
        r = temporal_r(np.asarray(made, np.float64).reshape(len(made), -1), true.reshape(len(true), -1))
        return {"r": float(fisher_mean(r))}
    return {"cosine": cosine(made, true), **{f"top-{k}": found_among(made, true, k) for k in TOP}}


def by_chance(true: np.ndarray) -> dict[str, float]:
    """What guessing reaches of ``likeness``, where that is known."""
    if true.ndim != 2 or true.dtype.kind != "f":
        return {}
    different = len(np.unique(true[_there(true)], axis=0))
    return {f"top-{k}": min(k / max(different, 1), 1.0) for k in TOP}


def psnr(made: np.ndarray, true: np.ndarray) -> float:
    """10 log10(255² / mean squared error over all frames), in dB; what was made is first brought into 0 to 255."""
    squares = sum(float(np.square(some_made - some).sum()) for some_made, some in _chunks(made, true))
    return float(10 * np.log10(PEAK**2 * true.size / squares)) if squares else float("inf")


def ssim(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The structural similarity of each frame, float64 [...] (Wang, Bovik, Sheikh and Simoncelli, IEEE Trans. Image
    Process. 13, 600, 2004): a Gaussian window of 11 x 11 pixels with a deviation of 1.5 at each place where it lies
    inside the frame, K1 = 0.01, K2 = 0.03; the mean over places and colours. A smaller frame has a smaller window.

    Args:
        made, true: [..., height, width, colours], 0 to 255.
    """
    x, y = (np.moveaxis(np.asarray(each, np.float64), -1, -3) for each in (made, true))
    rows, columns = (_windows(length) for length in x.shape[-2:])

    def local(image: np.ndarray) -> np.ndarray:
        return rows @ image @ columns.T

    mean_x, mean_y = local(x), local(y)
    spread = local(x * x) + local(y * y) - mean_x**2 - mean_y**2
    both = local(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    found = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (spread + c2))
    return found.mean((-3, -2, -1))


def cosine(made: np.ndarray, true: np.ndarray) -> float:
    """The mean over TRs, of those that have a vector; NaN without any. ``made``, ``true``: [T, D]."""
    there = _there(true)
    return float((_unit(made[there]) * _unit(true[there])).sum(1).mean()) if there.any() else float("nan")


def found_among(made: np.ndarray, true: np.ndarray, k: int) -> float:
    """The share of the TRs whose own vector is one of the k nearest, by cosine, to what was made, among all different
    ones that these TRs have; NaN without any. Others that are as near count as nearer by one half.

    Args:
        made, true: [T, D]; rows of zeros in ``true`` are TRs without a vector, and left out.
    """
    there = _there(true)
    if not there.any():
        return float("nan")
    known, own = np.unique(true[there], axis=0, return_inverse=True)
    near = _unit(made[there]) @ _unit(known).T
    mine = near[np.arange(len(near)), own.ravel()][:, None]
    before = (near > mine).sum(1) + ((near == mine).sum(1) - 1) / 2
    return float((before < k).mean())


def _there(vectors: np.ndarray) -> np.ndarray:
    return np.any(vectors != 0, axis=1)


def _chunks(made: np.ndarray, true: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(true), CHUNK):
        at = slice(first, first + CHUNK)
        yield np.clip(np.asarray(made[at], np.float64), 0, PEAK), np.asarray(true[at], np.float64)


def _windows(length: int) -> np.ndarray:
    """[places, length]: the weights of the window along an axis, at each place where it lies inside."""
    size = min(WINDOW, length - 1 + length % 2)
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * SIGMA**2))
    found = np.zeros((length - size + 1, length))
    for place, row in enumerate(found):
        row[place : place + size] = weights / weights.sum()
    return found


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
