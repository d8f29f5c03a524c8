"""How far apart two samples are: the usual distances between a generated and a true sample, larger is further.

Each is zero, or for a classifier one half, in expectation where the two samples come from one distribution. All are
functions of their arguments alone, seeds included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from accel_train.keyed import key, uniform

PARTS, REPEATS = 5, 8  # of the extrapolation: sizes n, n/2 ... n/PARTS, and how often the sample is cut anew
BATCHES, BATCH = 10, 5000  # of the kernel distance
EPOCHS, WIDTH, ROWS = 20, 64, 128  # of the classifier
NAN = float("nan")


def w1(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples [n], [m], exact: the area between their distribution functions."""
    if not len(a) or not len(b):
        return NAN
    points, below_a, below_b = _distributions(a, b)
    return float(np.sum(np.abs(below_a - below_b)[:-1] * np.diff(points)))


def w1_histograms(p: np.ndarray, q: np.ndarray, edges: np.ndarray) -> float:
    """Wasserstein-1 distance of two samples of which histograms [bins] over ``edges`` [bins + 1] were kept.

    Every entry counts at the centre of its bin, which moves it by half a width at most: the distance of the samples
    themselves differs by no more than the largest width.
    """
    if not p.sum() or not q.sum():
        return NAN
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(p / p.sum() - q / q.sum())
    return float(np.sum(np.abs(below)[:-1] * np.diff(centres)))


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples [n], [m]: the largest gap between their distribution functions."""
    if not len(a) or not len(b):
        return NAN
    _, below_a, below_b = _distributions(a, b)
    return float(np.abs(below_a - below_b).max())


def _distributions(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both distribution functions at the points where either jumps."""
    points = np.unique(np.concatenate([a, b]))
    below_a, below_b = (np.searchsorted(np.sort(x), points, side="right") / len(x) for x in (a, b))
    return points, below_a, below_b


def fpd(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Frechet distance of features [n, d], [m, d] at infinite sample size, and its error.

    The distance of finite samples is too large by about b/n. As in JetNet (Kansal et al., PRD 107, 076017) it is taken
    at several sizes, and a straight line in 1/n gives the value at 1/n = 0. There batches are drawn with replacement,
    which extrapolates to the given sample instead of what it was drawn from; here the sample is cut into 1 to 5 equal
    parts, over and over. The error is the scatter from one cutting to the next, about the sampling error where the two
    samples are alike. Features are measured in standard deviations of the real ones.
    """
    real, fake = _standardised(real, fake)
    n = min(len(real), len(fake))
    if n < 4 * PARTS:
        return NAN, NAN
    generator = np.random.default_rng(key(seed, "fpd"))
    distances = np.zeros((REPEATS, PARTS))
    for repeat in range(REPEATS):
        a, b = generator.permutation(real), generator.permutation(fake)
        for k in range(1, PARTS + 1):
            cuts = [slice(i * (n // k), (i + 1) * (n // k)) for i in range(k)]
            distances[repeat, k - 1] = np.mean([_frechet(a[cut], b[cut]) for cut in cuts])
    inverse = np.array([1 / (n // k) for k in range(1, PARTS + 1)])
    slope = inverse - inverse.mean()
    weights = 1 / PARTS - inverse.mean() * slope / (slope @ slope)  # of least squares for the value at 1/n = 0
    values = distances @ weights
    return float(values.mean()), float(values.std(ddof=1))


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) of the Gaussians with the means and covariances of two samples."""
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * mixed)


def kpd(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Kernel distance of features [n, d], [m, d]: the unbiased squared MMD with the kernel (x.y / d + 1)^4.

    Median over 10 batches and half the width of the central 68 % (JetNet's definition). Batches hold 5000 rows, fewer
    if the sample does not give that many without using a row twice, so that the batches are independent. Features are
    measured in standard deviations of the real ones. May be negative: the mean is zero for equal distributions.
    """
    real, fake = _standardised(real, fake)
    n = min(len(real), len(fake))
    size = min(BATCH, n // min(BATCHES, max(n // 2, 1)))
    if size < 2:
        return NAN, NAN
    generator = np.random.default_rng(key(seed, "kpd"))
    a, b = generator.permutation(real), generator.permutation(fake)
    cuts = [slice(i * size, (i + 1) * size) for i in range(min(BATCHES, n // size))]
    low, median, high = np.percentile([_mmd(a[cut], b[cut]) for cut in cuts], [16, 50, 84])
    return float(median), float((high - low) / 2)


def _mmd(a: np.ndarray, b: np.ndarray) -> float:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.square(np.square(x @ y.T / x.shape[1] + 1))

    def others(x: np.ndarray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(others(a) + others(b) - 2 * kernel(a, b).mean())


def classifier_auc(
    real: np.ndarray, fake: np.ndarray, seed: int = 0, groups: tuple[np.ndarray, np.ndarray] | None = None
) -> float:
    """How well a small network separates features [n, d] from [m, d]: the area under its ROC curve on other rows.

    One half of the rows trains it, the other is scored. 0.5 is the ideal, and 1 means separated without error; values
    below 0.5 are chance. Rows of one shower are alike, so ``groups`` ([n] and [m] float64 or 64-bit integers)
    names what must stay on one side.
    """
    real, fake = _standardised(real, fake)
    labels = groups or (np.arange(len(real)), len(real) + np.arange(len(fake)))
    trains = [uniform(key(seed, "half"), label.view(np.uint64))[:, 0] < 0.5 for label in labels]
    if not all(half.any() and not half.all() for half in trains):
        return NAN
    with _single_threaded(key(seed, "auc") % 2**63):
        network = _trained(real[trains[0]], fake[trains[1]])
        held_out = [torch.from_numpy(x[~half]).float() for x, half in zip((real, fake), trains, strict=True)]
        scores = [network(x)[:, 0].detach().numpy() for x in held_out]
    return auc(*scores)


@contextlib.contextmanager
def _single_threaded(seed: int) -> Generator[None]:
    """One thread, and the generator of the CPU (no other) seeded: so that ranks and runs agree.

    Threads would also cost more than they bring: the matrices are tiny.
    """
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _trained(real: np.ndarray, fake: np.ndarray) -> nn.Module:
    inputs = torch.from_numpy(np.concatenate([real, fake])).float()
    target = torch.cat([torch.zeros(len(real), 1), torch.ones(len(fake), 1)])
    network = nn.Sequential(
        nn.Linear(inputs.shape[1], WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)
    )
    steps = EPOCHS * -(-len(inputs) // ROWS)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-2, total_steps=max(steps, 2))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(ROWS):
            optimiser.zero_grad()
            functional.binary_cross_entropy_with_logits(network(inputs[rows]), target[rows]).backward()
            optimiser.step()
            schedule.step()
    return network


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """Chance that a score [m] of ``high`` exceeds one [n] of ``low``; a tie counts one half (Mann-Whitney)."""
    _, where, many = np.unique(np.concatenate([low, high]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(many) - (many - 1) / 2)[where]
    return float((ranks[len(low) :].sum() - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def _standardised(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the units in which the real sample has mean 0 and deviation 1; a constant feature keeps its unit."""
    if not len(real):
        return real, fake
    scale = real.std(0)
    scale = np.where(scale > 1e-9 * np.abs(real).max(0), scale, 1.0)
    return (real - real.mean(0)) / scale, (fake - real.mean(0)) / scale
