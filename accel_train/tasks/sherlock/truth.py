"""What synthetic viewers see, hear and read, and what their brains make of it. Nothing here is used in training.

Six latents a TR: luminance of the left and right half of the frame, loudness of a low and a high tone, and whether the
annotation speaks of a face and of a house. Each region of the brain hears of some of them, blurred by its blood flow;
one of a product, of which no linear model of the stimulus can know.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TR_S = 1.5
LATENTS = ("left", "right", "low", "high", "face", "house")
ROIS = ("null", "visual", "auditory", "semantic", "interaction")
"""In the order of their labels, from 1 on."""
LOADS = {"visual": (0, 1), "auditory": (2, 3), "semantic": (4, 5)}
PRODUCT = (2, 4)
"""Latents whose product, each less its mean, is all that the interaction region hears of: loudness of a face."""
GRID, VOXEL_MM = (14, 16, 12), 3.0
CARTOON = 20
"""TRs at the beginning of every run, the same in all, where that trap is set."""
FINE, HRF_S = 10, 32.0
"""Steps of a TR in which blood flow is computed, and for how long it answers, in seconds."""


@dataclass(frozen=True)
class Segment:
    """A row of the annotations: TRs from ``first`` to below ``last`` of its run."""

    first: int
    last: int
    face: bool
    house: bool


def latents(random: np.random.Generator, trs: int) -> tuple[np.ndarray, list[Segment]]:
    """[trs, 6] float64 in [0, 1] as in ``LATENTS``, and the segments behind the last two."""
    steps, ar = random.normal(size=(trs, 4)), np.empty((trs, 4))
    ar[0] = steps[0]
    for t in range(1, trs):
        ar[t] = 0.5 * ar[t - 1] + math.sqrt(0.75) * steps[t]
    segments: list[Segment] = []
    while (first := segments[-1].last if segments else 0) < trs:
        last = min(first + int(random.integers(2, 7)), trs)
        segments.append(Segment(first, last, bool(random.random() < 0.5), bool(random.random() < 0.5)))
    words = np.concatenate([np.tile([s.face, s.house], (s.last - s.first, 1)) for s in segments])
    return np.concatenate([np.clip(0.5 + 0.2 * ar, 0.05, 0.95), words.astype(float)], 1), segments


def hemodynamics() -> np.ndarray:
    """Answer to a short event in steps of TR / 10, over 32 s, sum 1: a difference of two gamma densities of orders 6
    and 16, the second a sixth (Glover, NeuroImage 9, 1999, in its usual canonical form)."""
    t = np.arange(0, HRF_S, TR_S / FINE)
    h = t**5 * np.exp(-t) / math.factorial(5) - t**15 * np.exp(-t) / math.factorial(15) / 6
    return h / h.sum()


def blurred(features: np.ndarray, later_trs: int = 0) -> np.ndarray:
    """[trs, k] as the blood shows it in the middle of each TR, ``later_trs`` late."""
    fine = np.repeat(features, FINE, 0)
    kernel = hemodynamics()
    full = np.stack([np.convolve(column, kernel)[: len(fine)] for column in fine.T], 1)
    late = full[FINE // 2 :: FINE]
    return np.concatenate([np.repeat(late[:1], later_trs, 0), late])[: len(features)]


def heard_of(z: np.ndarray) -> dict[str, np.ndarray]:
    """[trs, k] of each region that hears anything."""
    a, b = (z[:, [latent]] - z[:, latent].mean() for latent in PRODUCT)
    return {**{roi: z[:, loads] for roi, loads in LOADS.items()}, "interaction": a * b}


def brain() -> np.ndarray:
    """uint8 [14, 16, 12]: 0 outside an ellipsoid, inside it 1 and more by fifths from back to front, as in ``ROIS``."""
    place = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in GRID), indexing="ij"), -1)
    inside = ((place / (6.2, 7.2, 5.2)) ** 2).sum(-1) <= 1
    rank = np.argsort(np.argsort(place[inside][:, 1], kind="stable"), kind="stable")
    labels = np.zeros(GRID, np.uint8)
    labels[inside] = 1 + rank * len(ROIS) // len(rank)
    return labels


def weights(random: np.random.Generator, labels: np.ndarray) -> dict[str, np.ndarray]:
    """[k, voxels] of each region: how much each voxel takes of what the region hears of. ``labels``: [V], from 1."""
    counts = {roi: int((labels == 1 + i).sum()) for i, roi in enumerate(ROIS)}
    sizes = {**{roi: len(loads) for roi, loads in LOADS.items()}, "interaction": 1}
    return {roi: random.normal(size=(size, counts[roi])) for roi, size in sizes.items()}


def signal(
    z: np.ndarray, labels: np.ndarray, taken: dict[str, np.ndarray], later_trs: dict[str, int], preshift: int
) -> np.ndarray:
    """What all viewers share, [trs, V], every voxel of mean 0 and variance 1 over the run, 0 in the null region.

    Args:
        later_trs: of regions whose blood is late.
        preshift: TRs by which the run was moved earlier; what comes last is the answer to the last TR, held on.
    """
    longer = np.concatenate([z, np.repeat(z[-1:], preshift, 0)])
    out = np.zeros((len(z), len(labels)))
    for roi, features in heard_of(longer).items():
        seen = blurred(features, later_trs.get(roi, 0))[preshift:]
        voxels = standard(standard(seen) @ taken[roi])
        out[:, labels == 1 + ROIS.index(roi)] = voxels
    return out


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / x.std(0)


def measured(random: np.random.Generator, shared: np.ndarray, labels: np.ndarray, reliability: float) -> np.ndarray:
    """[trs, V]: the shared signal and a viewer's own noise, AR(1) of 0.3, of variance 1 in all. ``reliability``: the
    correlation of both, which is 0 in the null region."""
    steps, noise = random.normal(size=shared.shape), np.empty(shared.shape)
    noise[0] = steps[0]
    for t in range(1, len(noise)):
        noise[t] = 0.3 * noise[t - 1] + math.sqrt(1 - 0.09) * steps[t]
    c = np.where(labels == 1 + ROIS.index("null"), 0.0, reliability)
    return c * shared + np.sqrt(1 - c**2) * noise


def ceilings(reliability: float, subjects: int) -> dict[str, float]:
    """The largest correlation with one viewer, with the mean of all, and leave-one-out ISC (regions with signal)."""
    shared, own = reliability**2, 1 - reliability**2
    return {
        "single": reliability,
        "average": reliability / math.sqrt(shared + own / subjects),
        "isc": shared / math.sqrt(shared + own / (subjects - 1)) if subjects > 1 else 0.0,
    }
