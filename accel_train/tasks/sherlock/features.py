"""A stimulus as a linear model takes it: one vector for each TR."""

from __future__ import annotations

import numpy as np

HIGH, WIDE = 18, 32
"""Pixels of a frame at most: what brightness is where, without what only a network can make of it."""
CHUNK = 64  # TRs at once


def linear_features(stimulus: np.ndarray, kind: str, codes: int = 0) -> np.ndarray:
    """float32 [T, D] of a modality as it is stored.

    frames [T, F, H, W, 3]: mean over the frames of a TR, by blocks of pixels down to at most 18 x 32. mel [T, frames,
    mels]: mean over the frames. codes [T, codebooks, frames]: how often each of ``codes`` codes comes in each codebook,
    as a share. vectors [T, D]: as they are.
    """
    parts = [_of(stimulus[first : first + CHUNK], kind, codes) for first in range(0, len(stimulus), CHUNK)]
    return np.concatenate(parts).astype(np.float32)


def _of(part: np.ndarray, kind: str, codes: int) -> np.ndarray:
    if kind == "frames":
        frame = part.mean(1, dtype=np.float32)
        by = max(-(-frame.shape[1] // HIGH), -(-frame.shape[2] // WIDE))
        frame = _block_means(_block_means(frame, by, 1), by, 2)
        return frame.reshape(len(part), -1)
    if kind == "mel":
        return part.mean(1, dtype=np.float32)
    if kind == "codes":
        flat = part.astype(np.int64) + codes * np.arange(part.shape[1])[:, None]
        counts = [np.bincount(each.ravel(), minlength=codes * part.shape[1]) for each in flat]
        return np.stack(counts) / part.shape[2]
    return part.reshape(len(part), -1)


def _block_means(x: np.ndarray, by: int, axis: int) -> np.ndarray:
    """Of ``by`` values after one another along an axis; the last block may have fewer."""
    if by == 1:
        return x
    edges = np.arange(0, x.shape[axis], by)
    sizes = np.diff(np.append(edges, x.shape[axis]))
    shape = [1] * x.ndim
    shape[axis] = len(sizes)
    return np.add.reduceat(x, edges, axis) / sizes.reshape(shape)
