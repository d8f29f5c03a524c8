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
BATCHES, BATCH, FOLDS = 10, 5000, 10  # of the kernel distance
EPOCHS, WIDTH, ROWS = 20, 64, 128  # of the classifier
NAN, TINY = float("nan"), 1e-300


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


Groups = tuple[np.ndarray, np.ndarray]
"""For every row [n], [m] of two samples the name (float64 or 64-bit integers) of what it was drawn with. Rows of one
shower are alike: what cuts a sample leaves them together, since halves of one shower know each other."""


def fpd(real: np.ndarray, fake: np.ndarray, seed: int = 0, groups: Groups | None = None) -> tuple[float, float]:
    """Frechet distance of features [n, d], [m, d] at infinite sample size, and its error.

    The distance of n groups (rows, without ``groups``) is too large by about b/n. As in JetNet (Kansal et al., PRD 107,
    076017) it is taken at several sizes, and a straight line in 1/n gives the value at 1/n = 0. There batches are drawn
    with replacement, which extrapolates to the given sample instead of what it was drawn from; here the sample is cut
    into 1 to 5 equal parts of at least 4 groups, over and over. The error is that of a jackknife of the whole, which
    leaves out a tenth of the groups at a time. Features are measured in standard deviations of the real ones.
    """
    real, fake = _standardised(real, fake)
    groups = groups or _singly(real, fake)
    n = min(len(np.unique(names)) for names in groups)
    if n < 4:
        return NAN, NAN
    parts = min(PARTS, n // 4)
    distances = np.zeros((REPEATS, parts))
    for repeat in range(REPEATS):
        a, b = (_drawn(names, key(seed, "fpd", repeat)) for names in groups)
        for k in range(1, parts + 1):
            cut = [(real[a // (n // k) == i], fake[b // (n // k) == i]) for i in range(k)]
            distances[repeat, k - 1] = np.mean([_frechet(*part) for part in cut])
    inverse = np.array([1 / (n // k) for k in range(1, parts + 1)])
    slope = inverse - inverse.mean()
    weights = 1 / parts - inverse.mean() * slope / max(slope @ slope, TINY)  # of least squares for the value at 1/n = 0
    folds = min(FOLDS, n)
    a, b = (_folds(names, folds, key(seed, "fpd")) for names in groups)
    without = [_frechet(real[a != fold], fake[b != fold]) for fold in range(folds)]
    return float((distances @ weights).mean()), _jackknife(without)


def _singly(real: np.ndarray, fake: np.ndarray) -> Groups:
    return np.arange(len(real)), len(real) + np.arange(len(fake))


def _drawn(names: np.ndarray, seed: int) -> np.ndarray:
    """For each row the place of its group in an order that is drawn by name, int64: a group that two samples have in
    common stands at about the same place in both."""
    names, index = np.unique(names, return_inverse=True)
    return np.argsort(np.argsort(uniform(seed, names.view(np.uint64))[:, 0]))[index]


def _folds(names: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """For each row which of so many parts its group is in."""
    place = _drawn(names, seed)
    return place * folds // (place.max() + 1)


def _jackknife(without: list[float]) -> float:
    """Error of a number that is this without each fold (Efron, Ann. Statist. 7, 1, 1979)."""
    return float(np.std(without) * np.sqrt(len(without) - 1))


def _frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) of the Gaussians with the means and covariances of two samples."""
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    mixed = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * mixed)


def kpd(real: np.ndarray, fake: np.ndarray, seed: int = 0, groups: Groups | None = None) -> tuple[float, float]:
    """Kernel distance of features [n, d], [m, d] and its error: the unbiased squared MMD with the kernel
    (x.y / d + 1)^4, over pairs of rows that are not of one group.

    The mean over batches of 5000 rows, up to 10 of them (JetNet has their median). The error is that of a jackknife
    which leaves out a tenth of the groups at a time. Features are measured in standard deviations of the real ones. May
    be negative: the mean is zero for equal distributions.
    """
    real, fake = _standardised(real, fake)
    of_real, of_fake = groups or _singly(real, fake)
    n = min(len(np.unique(of_real)), len(np.unique(of_fake)))
    if n < 4:
        return NAN, NAN
    folds = min(FOLDS, n)
    samples = [
        (rows, names, _folds(names, folds, key(seed, "kpd"))) for rows, names in ((real, of_real), (fake, of_fake))
    ]
    batches = min(BATCHES, -(-max(len(real), len(fake)) // BATCH))
    generator = np.random.default_rng(key(seed, "kpd batches"))
    cuts = [np.array_split(generator.permutation(len(sample[0]))[: batches * BATCH], batches) for sample in samples]
    sums = np.zeros((2, 3, folds, folds))
    for rows in zip(*cuts, strict=True):
        a, b = (tuple(part[at] for part in sample) for sample, at in zip(samples, rows, strict=True))
        sums += np.stack([_kernel(x, y, folds) for x, y in ((a, a), (b, b), (a, b))], 1)
    without = [_mmd(np.delete(np.delete(sums, fold, 2), fold, 3)) for fold in range(folds)]
    return _mmd(sums), _jackknife(without)


Grouped = tuple[np.ndarray, ...]  # rows [n, d], the names of their groups [n], and in which fold these are [n]


def _kernel(a: Grouped, b: Grouped, folds: int) -> np.ndarray:
    """Sum of the kernel over pairs that are not of one group, and their number, by folds: [2, folds, folds]."""
    (x, of_x, fold_x), (y, of_y, fold_y) = a, b
    others = (of_x[:, None] != of_y).astype(np.float64)
    values = np.square(np.square(x @ y.T / x.shape[1] + 1)) * others
    in_x, in_y = np.eye(folds)[fold_x], np.eye(folds)[fold_y]
    return np.stack([in_x.T @ pairs @ in_y for pairs in (values, others)])


def _mmd(sums: np.ndarray) -> float:
    """Of the sums of ``_kernel`` for real and real, fake and fake, real and fake: [2, 3, folds, folds]."""
    real, fake, both = np.divide(*sums.sum((2, 3)))
    return float(real + fake - 2 * both)


def classifier_auc(real: np.ndarray, fake: np.ndarray, seed: int = 0, groups: Groups | None = None) -> float:
    """How well a small network separates features [n, d] from [m, d]: the area under its ROC curve on other rows.

    One half of the rows trains it, the other is scored. 0.5 is the ideal, and 1 means separated without error; values
    below 0.5 are chance.
    """
    real, fake = _standardised(real, fake)
    trains = [uniform(key(seed, "half"), names.view(np.uint64))[:, 0] < 0.5 for names in groups or _singly(real, fake)]
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
