"""Models that are trivial: what a network must be better than, and what must not foresee anything.

"logistic" and "boosting" (where scikit-learn is installed) see twenty statistics of the last window. The leak detectors
see no signal: "time since start" knows how long the segment has lasted, "file position" which part of the file has
passed. Where one of these foresees disruptions, so may a network, for a reason that says nothing of plasmas.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from accel_train.errors import DataError, UserError, suggest

BANDS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Edges of the frequency bands, over the highest frequency of the samples."""

STATISTICS = tuple(
    f"{what}, {over}"
    for what, overs in {
        "level": ("mean", "spread", "lowest tenth", "highest tenth"),
        "slope": ("mean", "spread", "lowest tenth", "highest tenth"),
        "log fluctuation": ("mean", "highest tenth"),
        **{f"log power, {low:g} to {high:g}": ("mean", "highest tenth")
           for low, high in pairwise(BANDS)},
    }.items()
    for over in overs
)  # fmt: skip
"""What ``statistics`` gives: something of each channel, and how it is over the channels."""

THREADS = 8  # at most: each has a shot in memory
FLOOR = 1e-12  # of a variance: what a dead channel has
MIN_WINDOW = 64  # samples: so that there is a frequency in each band


def statistics(x: np.ndarray) -> np.ndarray:
    """float64 [B, len(STATISTICS)] of windows.

    Args:
        x: [B, C, n] with n >= ``MIN_WINDOW``, any real dtype; normalised by channel, so that none outweighs the others.

    Raises:
        DataError: a value is not finite.
    """
    n = x.shape[-1]
    if n < MIN_WINDOW:
        raise UserError(f"baselines: a window of {n} samples has no statistics; give at least {MIN_WINDOW}")
    x = np.ascontiguousarray(x, np.float32)
    level = x.mean(-1, dtype=np.float64)
    if not np.isfinite(level).all():
        window, channel = np.argwhere(~np.isfinite(level))[0]
        raise DataError(f"baselines: channel {channel} of window {window} is not finite; mend it or leave it out")
    ramp = np.linspace(-1, 1, n)
    slope = x @ (ramp / (ramp @ ramp)).astype(np.float32)
    rest = x - level[..., None].astype(np.float32) - slope[..., None] * ramp.astype(np.float32)
    fluctuation = np.log(np.square(rest).mean(-1, dtype=np.float64) + FLOOR) / 2
    power = np.square(np.abs(np.fft.rfft(rest * np.hanning(n).astype(np.float32)))) / n
    found = [*_over_channels(level), *_over_channels(slope), *_over_channels(fluctuation)[::3]]
    edges = np.round(np.array(BANDS) * (power.shape[-1] - 1)).astype(int)
    for low, high in pairwise(edges):
        in_band = power[..., low:high].mean(-1, dtype=np.float64)
        found += _over_channels(np.log(in_band + FLOOR))[::3]
    return np.stack(found, -1)


def _over_channels(values: np.ndarray) -> list[np.ndarray]:
    """Mean, spread, lowest and highest tenth over the channels of [B, C]: each [B]."""
    low, high = np.quantile(values, (0.1, 0.9), axis=-1)
    return [values.mean(-1), values.std(-1), low, high]


# -- what they are shown ---------------------------------------------------------------------------------------------


class Segment(Protocol):
    """Of a shot: its number, ms between samples, samples of its file, and the part that counts, start to stop - 1."""

    @property
    def number(self) -> int: ...
    @property
    def dt_ms(self) -> float: ...
    @property
    def samples(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...


@dataclass(frozen=True)
class Examples:
    """Moments of shots, each with the window that ends there.

    Args:
        statistics: float64 [N, len(STATISTICS)].
        elapsed_ms: float64 [N], since the start of the segment.
        position: float64 [N] in [0, 0.9], the part of the file that has passed. In tenths, so that the few samples
            behind a disruption, or the distance of the moments, do not tell it from another end.
        target, counts: bool [N]: is a disruption near, and does the moment count?
        shot, sample: int64 [N]: number of the shot and of the window's last sample in it.
    """

    statistics: np.ndarray
    elapsed_ms: np.ndarray
    position: np.ndarray
    target: np.ndarray
    counts: np.ndarray
    shot: np.ndarray
    sample: np.ndarray


def examples(
    shots: Iterable[Segment],
    read: Callable[[int, int, int], np.ndarray],
    label: Callable[[int, int, int], tuple[np.ndarray, np.ndarray]],
    window: int,
    every: int,
) -> Examples:
    """A window that ends at every ``every``-th sample of a segment, as long as it fits into it.

    Args:
        read: of (shot number, first, last), samples first to last - 1: normalised [C, n]. It is called by several
            threads, as is ``label``.
        label: of the same, target and counts: bool [n] each.
        window: its length in samples, such as the receptive field of the network to compare with.

    Raises:
        UserError: no segment is as long as a window.
    """
    long_enough = [shot for shot in shots if shot.stop - shot.start >= window]
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), THREADS)) as threads:
        found = list(threads.map(lambda shot: _of_shot(shot, read, label, window, every), long_enough))
    if not found:
        raise UserError(f"baselines: no shot has {window} samples that count; give shorter windows or longer shots")
    names = [field.name for field in fields(Examples)]
    return Examples(**{name: np.concatenate([getattr(each, name) for each in found]) for name in names})


def _of_shot(shot: Segment, read: Any, label: Any, window: int, every: int) -> Examples:
    x = read(shot.number, shot.start, shot.stop)
    windows = np.lib.stride_tricks.sliding_window_view(x, window, axis=-1)[:, ::every].swapaxes(0, 1)
    sample = shot.start + window - 1 + every * np.arange(len(windows))
    target, counts = label(shot.number, shot.start, shot.stop)
    batch = max(1, 2**22 // (window * len(x)))  # of 16 MB, whatever the length of the shot
    return Examples(
        np.concatenate([statistics(windows[i : i + batch]) for i in range(0, len(windows), batch)]),
        (sample - shot.start) * shot.dt_ms,
        np.minimum(10 * (sample + 1) // shot.samples, 9) / 10,
        target[sample - shot.start],
        counts[sample - shot.start],
        np.full(len(sample), shot.number),
        sample,
    )


# -- models ----------------------------------------------------------------------------------------------------------


class Logistic:
    """Logistic regression in which both classes weigh the same, by Newton's method: no random numbers, one solution.

    Args:
        x: float64 [N, F]. A column that is constant counts for nothing.
        target: bool [N].
        ridge: of the squares of the slopes per standard deviation, over the mean loss.
    """

    def __init__(self, x: np.ndarray, target: np.ndarray, ridge: float = 1e-4) -> None:
        self.mean, std = x.mean(0), x.std(0)
        self.scale = np.where(std > 1e-9 * (1 + abs(self.mean)), std, np.inf)
        z = self._columns(x)
        sign = np.where(target, 1.0, -1.0)
        weight = np.where(target, 0.5 / target.sum(), 0.5 / (~target).sum())
        penalty = np.full(z.shape[1], ridge)
        penalty[0] = 1e-12  # the constant

        def loss(w: np.ndarray) -> float:
            return float(weight @ np.logaddexp(0, -sign * (z @ w)) + penalty @ w**2 / 2)

        self.w = np.zeros(z.shape[1])
        for _ in range(100):
            p = 1 / (1 + np.exp(np.clip(sign * (z @ self.w), -500, 500)))  # of the wrong class
            gradient = -z.T @ (weight * sign * p) + penalty * self.w
            hessian = (z.T * (weight * p * (1 - p))) @ z + np.diag(penalty)
            step = np.linalg.solve(hessian, gradient)
            decrease = float(gradient @ step)
            if decrease < 1e-14:
                return
            size, before = 1.0, loss(self.w)
            while size > 1e-6 and loss(self.w - size * step) > before - 1e-4 * size * decrease:
                size /= 2
            self.w -= size * step

    def _columns(self, x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones((len(x), 1)), (x - self.mean) / self.scale], 1)

    def logit(self, x: np.ndarray) -> np.ndarray:
        """float64 [N]."""
        return self._columns(x) @ self.w


class Boosting:
    """Gradient-boosted trees of scikit-learn, in which both classes weigh the same."""

    def __init__(self, x: np.ndarray, target: np.ndarray) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        trees: Any = HistGradientBoostingClassifier  # whose own types do not know that early_stopping may be a bool
        self.trees = trees(max_leaf_nodes=15, early_stopping=False, class_weight="balanced", random_state=0)
        self.trees.fit(x, target)

    def logit(self, x: np.ndarray) -> np.ndarray:
        """float64 [N]."""
        return self.trees.decision_function(x)


_KINDS: dict[str, tuple[type[Logistic] | type[Boosting], Callable[[Examples], np.ndarray]]] = {
    "logistic": (Logistic, lambda shown: shown.statistics),
    "boosting": (Boosting, lambda shown: shown.statistics),
    "time since start": (Logistic, lambda shown: shown.elapsed_ms[:, None]),
    "file position": (Logistic, lambda shown: shown.position[:, None]),
}

LEAKS = ("time since start", "file position")


def names() -> list[str]:
    """Those that can be fitted here."""
    return [name for name in _KINDS if name != "boosting" or importlib.util.find_spec("sklearn")]


@dataclass(frozen=True)
class Baseline:
    """A fitted one."""

    name: str
    model: Logistic | Boosting

    def logit(self, shown: Examples) -> np.ndarray:
        """float64 [N]: higher where a disruption is near."""
        return self.model.logit(_KINDS[self.name][1](shown))


def fit(name: str, train: Examples) -> Baseline:
    """One of ``names()``, fitted to the moments that count. The same examples give the same model.

    Raises:
        UserError: an unknown name, or only one class.
    """
    if name not in names():
        raise UserError(f"baselines: no {name!r} here{suggest(name, names())}; there are {', '.join(names())}")
    target = train.target[train.counts]
    if target.all() or not target.any():
        raise UserError(f"baselines: all {len(target)} moments that count are of one class; fit to both")
    kind, columns = _KINDS[name]
    return Baseline(name, kind(columns(train)[train.counts], target))


def track(sample: np.ndarray, logit: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Scores of all samples from ``start`` to ``stop`` - 1 of a shot: each moment's is held until the next one; before
    the first it is -inf. Causal, so that alarms are those of a control room. float64 [stop - start].

    Args:
        sample, logit: [N], increasing samples of this shot, and their scores.
    """
    last = np.searchsorted(sample, np.arange(start, stop), side="right") - 1
    return np.where(last >= 0, np.append(logit, 0.0)[last], -np.inf)
