"""What keeps a critic's slope near one, on sets of different size."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def by_energy(features: Tensor, event: Tensor) -> Tensor:
    """An order of the muons, int64 [M], by falling first feature (energy) within each event."""
    order = features[:, 0].argsort(descending=True, stable=True)
    return order[event[order].argsort(stable=True)]


def between(real: Tensor, fake: Tensor, event: Tensor, alpha: Tensor, paired: bool) -> Tensor:
    """Points on lines from generated to real muons, one ``alpha`` [B] per event.

    ``paired``: muons are paired by energy, so that the points do not depend on the order in which a set is written;
    otherwise by position in the event, as the legacy preset has it.
    """
    if paired:
        real, fake = real[by_energy(real, event)], fake[by_energy(fake, event)]
    weight = alpha[event][:, None]
    return (weight * real + (1 - weight) * fake).detach().requires_grad_()


def slopes(critic: nn.Module, points: Tensor, conditions: Tensor, counts: Tensor, event: Tensor) -> Tensor:
    """Gradient of each event's score with respect to its muons, [M, F], differentiable."""
    scores = critic(points, conditions, counts, event)
    return torch.autograd.grad(scores.sum(), points, create_graph=True)[0]


def penalty(slope: Tensor, event: Tensor, counts: Tensor, kind: str) -> Tensor:
    """Sum over events with muons (over muons for ``muon``) of what is added to the critic's loss.

    event: (||g||_F - 1)^2 with the norm over all muons of the event. WGAN-GP (arXiv 1704.00028) on the set as a whole.
    one_sided: the same, but only slopes above 1 cost.
    r1: ||g||_F^2, to be taken at real points (arXiv 1801.04406).
    muon: (||g_m|| - 1)^2 of every muon alone, as the legacy preset has it; with maximum pooling most muons have no
        slope and add a constant 1, so that large events decide.
    """
    squares = slope.square().sum(1)
    if kind == "muon":
        return (_root(squares) - 1).square().sum()
    squares = squares.new_zeros(len(counts)).index_add(0, event, squares)
    if kind == "r1":
        return squares.sum()
    excess = _root(squares) - 1
    return ((excess.clamp(min=0) if kind == "one_sided" else excess).square() * (counts > 0)).sum()


def _root(squares: Tensor) -> Tensor:
    return (squares + 1e-12).sqrt()  # its derivative at zero exists
