"""Mean and deviation of each channel over a training split, by sums per shot that are put together in their order.

So they are the same, bit for bit, whoever did which shot.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accel_train.errors import DataError
from accel_train.system.writing import replacing, writing


@dataclass(frozen=True)
class Moments:
    """Of some samples: how many, and float64 [C] their mean and the sum of squared differences to it."""

    count: int
    mean: np.ndarray
    squares: np.ndarray


def moments(x: np.ndarray) -> Moments:
    """Of [C, n]."""
    x = np.ascontiguousarray(x, np.float64)
    mean = x.mean(1) if x.shape[1] else np.zeros(len(x))
    return Moments(x.shape[1], mean, np.square(x - mean[:, None]).sum(1))


def together(parts: Iterable[Moments]) -> Moments:
    """Of all samples of all parts, added in this order (Chan, Golub and LeVeque, 1979); there must be one part."""
    total: Moments | None = None
    for part in parts:
        if total is None or total.count == 0:
            total = part
        elif part.count:
            count, difference = total.count + part.count, part.mean - total.mean
            mean = total.mean + difference * (part.count / count)
            between = difference * difference * (total.count * part.count / count)
            total = Moments(count, mean, total.squares + part.squares + between)
    assert total is not None
    return total


def norm(of: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 [C]; 1 for a channel that never changes, whose z is then 0."""
    std = np.sqrt(of.squares / max(1, of.count))
    return of.mean, np.where(std > 1e-9 * np.maximum(1e-300, np.abs(of.mean)), std, 1.0)


Norm = tuple[np.ndarray, np.ndarray]


def kept_norm(path: Path | None, channels: int, identity: str, compute: Callable[[], Norm]) -> Norm:
    """Mean and deviation of an .npz, or computed and written there for the next time. Never those of other data.

    Args:
        path: with ``mean`` and ``std``, or ``mean_flat`` and ``std_flat``, of (rows, columns) or (C,). None: computed
            each time. Several ranks write the same file, one whole one over another.
        identity: of the data and all options; written down, and compared if the file says its own. A file of another
            tool does not, and is taken as it is.

    Returns:
        float64 [C] each.

    Raises:
        DataError: it is of other data, or cannot be used.
    """
    if path is None:
        return compute()
    if path.is_file():
        return _read_norm(path, channels, identity)
    mean, std = compute()
    with writing("raw.norm_stats", path.parent), replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, mean=mean, std=std, identity=np.array(identity))
    return mean, std


def _read_norm(path: Path, channels: int, identity: str) -> Norm:
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = next(kind for kind in ("", "_flat") if f"mean{kind}" in file)
            mean, std = (np.asarray(file[f"{name}{kind}"], np.float64).ravel() for name in ("mean", "std"))
            said = str(file["identity"]) if "identity" in file else identity
    except (OSError, ValueError, KeyError, StopIteration, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz with mean and std: {error}") from None
    if said != identity:
        raise DataError(f"{path}: is of other files or options than these; delete it, and it is made anew")
    if len(mean) != channels or len(std) != channels or not (std > 0).all() or not np.isfinite(mean).all():
        raise DataError(f"{path}: mean {len(mean)} and std {len(std)} must be of {channels} channels, std above 0")
    return mean, std
