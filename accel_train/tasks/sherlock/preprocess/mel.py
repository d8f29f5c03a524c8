"""Mel spectra of sound, by torch alone. Windows are causal: no value of a TR depends on sound behind its end."""

from __future__ import annotations

import math

import numpy as np

from accel_train.errors import UserError

HZ, WINDOW, HOP = 16_000, 1024, 256
"""Samples a second, samples of a window, samples from one window to the next."""
FLOOR = 1e-10
"""Power below which all is silence."""


def mel_frequencies(count: int, highest_hz: float) -> np.ndarray:
    """``count`` frequencies in Hz from 0 to ``highest_hz``, evenly spaced on the mel scale of Slaney's Auditory Toolbox
    (1998): linear to 1000 Hz, 200/3 Hz a mel, logarithmic beyond, 27 mels for each factor of 6.4."""
    step, knee = 200.0 / 3, 1000.0
    ratio = math.log(6.4) / 27
    top = highest_hz / step if highest_hz < knee else knee / step + math.log(highest_hz / knee) / ratio
    mels = np.linspace(0.0, top, count)
    return np.where(mels < knee / step, mels * step, knee * np.exp(ratio * (mels - knee / step)))


def filters(hz: int, window: int, count: int) -> np.ndarray:
    """float64 [count, window // 2 + 1]: triangles over the powers of a spectrum, each of area 1 in Hz."""
    edges = mel_frequencies(count + 2, hz / 2)[:, None]
    at = np.fft.rfftfreq(window, 1 / hz)[None]
    rise = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])


def refuse_empty(count: int) -> None:
    """A ``UserError`` if so many bands are too narrow for our windows: some would hear nothing."""
    if empty := int((~filters(HZ, WINDOW, count).any(1)).sum()):
        window_ms = f"{WINDOW / HZ * 1e3:.0f} ms"
        raise UserError(
            f"preprocess: --mels {count}: {empty} bands are too narrow for windows of {window_ms}; give fewer"
        )


def log_mel(sound: np.ndarray, tr_s: float, trs: int, frames: int, mels: int) -> np.ndarray:
    """float32 [trs, frames, mels]: the logarithm of the mean power of the windows that end in each part of a TR.

    Args:
        sound: float32 [n] at ``HZ``; silence before and behind.
        frames: parts of a TR.
    """
    import torch

    part = tr_s * HZ / frames
    ends = HOP * np.arange(1, int(trs * frames * part) // HOP + 1)
    cell = np.minimum(np.ceil(ends / part).astype(np.int64) - 1, trs * frames - 1)
    padded = torch.zeros(WINDOW + int(ends[-1]))
    kept = torch.from_numpy(np.ascontiguousarray(sound[: ends[-1]], np.float32))
    padded[WINDOW : WINDOW + len(kept)] = kept
    bank = torch.from_numpy(filters(HZ, WINDOW, mels).astype(np.float32)).T
    hann = torch.hann_window(WINDOW)
    power = torch.zeros(trs * frames, mels)
    windows = padded[HOP:].unfold(0, WINDOW, HOP)  # window i ends at ends[i]
    for first in range(0, len(ends), 4096):
        spectra = torch.fft.rfft(windows[first : first + 4096][: len(ends) - first] * hann).abs().square()
        power.index_add_(0, torch.from_numpy(cell[first : first + 4096]), spectra @ bank)
    counts = torch.from_numpy(np.bincount(cell, minlength=trs * frames)).clamp(min=1)[:, None]
    return (power / counts).clamp(min=FLOOR).log().reshape(trs, frames, mels).numpy()
