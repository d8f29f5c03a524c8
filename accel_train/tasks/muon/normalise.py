"""Physical units to what networks see, and back. The constants are buffers: they travel with the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ENERGY_FLOOR = 1e-3
"""GeV; muons below it are counted as having it, since the logarithm needs something."""


class Fitted(nn.Module):
    """Standardised logarithms, with means and deviations from a sample of the training data.

    Conditions, 5: log10 E, cos(zenith), log10 mass, depth, slant depth (depth / cos(zenith)), which is what a muon
    has to cross. Muons, 2: log10 E and ln(1 + r / 1 m). The azimuth is uniform and independent in this physics, so it
    is drawn, not learned.
    """

    conditions, features = 5, 2
    constant_buffers = True
    condition_mean: Tensor
    condition_std: Tensor
    muon_mean: Tensor
    muon_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, size in (("condition", self.conditions), ("muon", self.features)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    @torch.no_grad()
    def fit(self, primaries: Tensor, muons: Tensor) -> None:
        """Take mean and deviation of these; a feature that never changes keeps deviation 1."""
        for name, values in (("condition", self._conditions(primaries)), ("muon", self._muons(muons))):
            if len(values) > 1:
                std, mean = torch.std_mean(values.double(), 0)
                getattr(self, f"{name}_mean").copy_(mean)
                getattr(self, f"{name}_std").copy_(torch.where(std > 1e-6, std, 1.0))

    def encode_conditions(self, primaries: Tensor) -> Tensor:
        """[B, 4] = E [GeV], zenith [rad], mass, depth [m] to [B, 5]."""
        return (self._conditions(primaries) - self.condition_mean) / self.condition_std

    def encode_muons(self, muons: Tensor) -> Tensor:
        """[M, 3] = E [GeV], x [m], y [m] to [M, 2]."""
        return (self._muons(muons) - self.muon_mean) / self.muon_std

    def decode_muons(self, features: Tensor, turn: Tensor) -> Tensor:
        """[M, 2] and a uniform number per muon, [M], which gives the azimuth, to [M, 3]."""
        values = features * self.muon_std + self.muon_mean
        radius = values[:, 1].expm1().clamp(min=0)
        angle = 2 * torch.pi * turn
        return torch.stack([10 ** values[:, 0], radius * angle.sin(), radius * angle.cos()], 1)

    def _conditions(self, primaries: Tensor) -> Tensor:
        energy, zenith, mass, depth = primaries.unbind(1)
        cosine = zenith.cos().clamp(min=0.02)
        km = depth / 1000
        return torch.stack([energy.log10(), cosine, mass.log10(), km, km / cosine], 1)

    @staticmethod
    def _muons(muons: Tensor) -> Tensor:
        radius = torch.hypot(muons[:, 1], muons[:, 2])
        return torch.stack([muons[:, 0].clamp(min=ENERGY_FLOOR).log10(), radius.log1p()], 1)


class Fixed(nn.Module):
    """The constants of the legacy preset: no fit. Positions come out some fifty times smaller than energies."""

    conditions, features = 4, 3

    def fit(self, primaries: Tensor, muons: Tensor) -> None:
        """Nothing to fit."""

    def encode_conditions(self, primaries: Tensor) -> Tensor:
        """[B, 4] to log10(E / PeV), cos(zenith), log10 mass, depth / km."""
        energy, zenith, mass, depth = primaries.unbind(1)
        return torch.stack([(energy / 1e6).log10(), zenith.cos(), mass.log10(), depth / 1000], 1)

    def encode_muons(self, muons: Tensor) -> Tensor:
        """[M, 3] to log10(E / PeV + 1e-10), x / 500 m, y / 500 m."""
        return torch.stack([(muons[:, 0] / 1e6 + 1e-10).log10(), muons[:, 1] / 500, muons[:, 2] / 500], 1)

    def decode_muons(self, features: Tensor, turn: Tensor) -> Tensor:
        """[M, 3] to GeV and metres."""
        return torch.stack([1e6 * 10 ** features[:, 0], 500 * features[:, 1], 500 * features[:, 2]], 1)
