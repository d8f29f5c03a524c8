"""Generator, critic and multiplicity of muon bundles. Sets are ragged: flat muons and the event each belongs to."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SENTINEL = -1e9


def owners(counts: Tensor, muons: int) -> Tensor:
    """Event of every muon, int64 [M]. ``muons`` is their number, so that nothing waits for the device."""
    events = torch.arange(len(counts), device=counts.device)
    return events.repeat_interleave(counts, output_size=muons)


def joint(layer: nn.Module, per_event: Tensor, event: Tensor, per_muon: Tensor, event_first: bool) -> Tensor:
    """A linear layer on the concatenation of an event's and a muon's features, the event's part computed once."""
    assert isinstance(layer, nn.Linear)
    n = per_event.shape[1] if event_first else per_muon.shape[1]
    left, right = layer.weight[:, :n], layer.weight[:, n:]
    of_event, of_muon = (left, right) if event_first else (right, left)
    return functional.linear(per_event, of_event, layer.bias)[event] + functional.linear(per_muon, of_muon)


class Generator(nn.Module):
    """Muons of events whose multiplicity is given.

    Args:
        conditions, features: widths of what it is given and gives per event and per muon.
        latent_dim_global, latent_dim_local: noise per event, and per muon.
        hidden_dim: width of the event's context.
    """

    def __init__(
        self, conditions: int, features: int, latent_dim_global: int, latent_dim_local: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.latent_dims = (latent_dim_global, latent_dim_local)
        self.event = nn.Sequential(
            nn.Linear(latent_dim_global + conditions + 1, 128), nn.LayerNorm(128), nn.LeakyReLU(0.2),
            nn.Linear(128, hidden_dim), nn.LayerNorm(hidden_dim), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.muon = nn.Sequential(
            nn.Linear(hidden_dim + latent_dim_local, 128), nn.LeakyReLU(0.2),
            nn.Linear(128, 64), nn.LeakyReLU(0.2), nn.Linear(64, features),
        )  # fmt: skip

    def forward(
        self, conditions: Tensor, counts: Tensor, event: Tensor, noise_event: Tensor, noise_muon: Tensor
    ) -> Tensor:
        """[B, C], int64 [B], int64 [M], [B, zg], [M, zl] to [M, F]."""
        size = counts.to(conditions.dtype).add(1).log10()[:, None]
        context = self.event(torch.cat([noise_event, conditions, size], 1))
        return self.muon[1:](joint(self.muon[0], context, event, noise_muon, event_first=True))


class Critic(nn.Module):
    """A score per event that depends on its muons as a set, not on their order, and on how many they are.

    Muons are pooled by mean and maximum; an event without any has a learned embedding instead.
    """

    def __init__(self, conditions: int, features: int, width: int = 128) -> None:
        super().__init__()
        self.muon = nn.Sequential(
            nn.Linear(features + conditions, width), nn.LeakyReLU(0.2),
            nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.empty = nn.Parameter(torch.zeros(2 * width))
        # Only differences of scores count. The gradient by a constant would be zero but for rounding, of which Adam
        # makes whole steps, and the logged loss of the generator would wander with it.
        self.decide = nn.Sequential(
            nn.Linear(2 * width + conditions + 1, width), nn.LeakyReLU(0.2),
            nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1, bias=False),
        )  # fmt: skip

    def forward(self, muons: Tensor, conditions: Tensor, counts: Tensor, event: Tensor) -> Tensor:
        """[M, F], [B, C], int64 [B], int64 [M] to [B]."""
        points = self.muon[1:](joint(self.muon[0], conditions, event, muons, event_first=False))
        size = counts.to(points.dtype)[:, None]
        index = event[:, None].expand_as(points)
        mean = points.new_zeros(len(counts), points.shape[1]).index_add(0, event, points) / size.clamp(min=1)
        largest = points.new_zeros(mean.shape).scatter_reduce(0, index, points, "amax", include_self=False)
        pooled = torch.where(size > 0, torch.cat([mean, largest], 1), self.empty)
        return self.decide(torch.cat([pooled, conditions, size.log1p()], 1)).squeeze(1)


class LegacyCritic(nn.Module):
    """The critic of the legacy preset: element-wise maximum over muons, no multiplicity, and a sentinel of -1e9 for
    events without muons, whose scores are then some hundred million."""

    def __init__(self, conditions: int, features: int) -> None:
        super().__init__()
        self.muon = nn.Sequential(
            nn.Linear(features + conditions, 64), nn.LeakyReLU(0.2), nn.Linear(64, 128), nn.LeakyReLU(0.2)
        )
        self.decide = nn.Sequential(nn.Linear(128 + conditions, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))

    def forward(self, muons: Tensor, conditions: Tensor, counts: Tensor, event: Tensor) -> Tensor:
        """[M, F], [B, C], int64 [B], int64 [M] to [B]."""
        points = self.muon[1:](joint(self.muon[0], conditions, event, muons, event_first=False))
        index = event[:, None].expand_as(points)
        largest = points.new_full((len(counts), points.shape[1]), SENTINEL).scatter_reduce(0, index, points, "amax")
        return self.decide(torch.cat([largest, conditions], 1)).squeeze(1)


class Multiplicity(nn.Module):
    """How many muons: a zero-inflated negative binomial given the conditions."""

    def __init__(self, conditions: int, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(conditions, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3)
        )

    def forward(self, conditions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C] to log of the mean of the negative binomial, log of its shape k (variance mean + mean^2 / k), and the
        logit of the share of extra zeros, [B] each, float64."""
        log_mean, log_shape, extra = self.net(conditions).double().unbind(1)
        return log_mean.clamp(-20, 15), (log_shape + 1.5).clamp(-4, 7), extra - 4

    def negative_log_likelihood(self, conditions: Tensor, counts: Tensor) -> Tensor:
        """Per event, in nats, [B], float64."""
        log_mean, log_shape, extra = self(conditions)
        n, k = counts.double(), log_shape.exp()
        log_total = torch.logaddexp(log_mean, log_shape)
        log_p = (
            torch.lgamma(n + k) - torch.lgamma(k) - torch.lgamma(n + 1)
            + k * (log_shape - log_total) + n * (log_mean - log_total)
        )  # fmt: skip
        no_extra = functional.logsigmoid(-extra) + log_p
        zero = torch.logaddexp(functional.logsigmoid(extra), no_extra)
        return -torch.where(counts == 0, zero, no_extra)

    def moments(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, and probability of no muon, [B] each, float64."""
        log_mean, log_shape, extra = self(conditions)
        zero = (log_shape.exp() * (log_shape - torch.logaddexp(log_mean, log_shape))).exp()
        some = torch.sigmoid(-extra)
        return some * log_mean.exp(), 1 - some * (1 - zero)

    def sample(self, conditions: Tensor, uniform: Tensor) -> Tensor:
        """Counts, int64 [B], from three uniform numbers per event, [B, 3]: the inverse distribution function of a gamma
        mean, then of a Poisson count, then the extra zeros. A pure function, on any device."""
        log_mean, log_shape, extra = self(conditions)
        rate = gamma_quantile(uniform[:, 0], log_shape.exp()) * (log_mean - log_shape).exp()
        counts = poisson_quantile(uniform[:, 1], rate)
        return torch.where(uniform[:, 2] < torch.sigmoid(extra), 0, counts)


def gamma_quantile(u: Tensor, shape: Tensor) -> Tensor:
    """x with P(shape, x) = u for a gamma distribution of scale 1, by bisection of ln x; float64."""
    low, high = torch.full_like(u, -700.0), torch.full_like(u, 9.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle.exp()) < u
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return high.exp()


def poisson_quantile(u: Tensor, rate: Tensor) -> Tensor:
    """The least n with P(N <= n) > u, int64."""
    rate = rate.clamp(max=1e12)
    low, high = torch.full_like(u, -1.0), (rate + 40 * rate.sqrt() + 60).ceil()
    while bool((high - low > 1).any()):
        middle = ((low + high) / 2).floor()
        above = torch.special.gammaincc(middle + 1, rate) > u
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return high.long()
