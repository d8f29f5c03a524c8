"""What an evaluation keeps of true and generated muon bundles: sums over events, so that any cut gives the same.

``set_features`` makes the row that an event adds to a table of the held-out split, ``muon_sums`` the histograms of
muons, in ``Cells`` of the conditions and by ``units`` of independent showers. One implementation in torch, for the
device and for files alike.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accel_train.tasks.muon.showers import UNITS

ENERGY_EDGES = np.linspace(-2, 8, 2001)  # log10 of a muon's energy in GeV
RADIUS_EDGES = np.linspace(0, 1000, 4001)  # m
AZIMUTH_EDGES = np.linspace(-np.pi, np.pi, 73)
HARMONICS = 4  # of the azimuth that are looked at
TINY = 1e-3  # GeV and m: what is smaller counts as this where a logarithm is taken

AXES = ("E", "cos", "mass", "depth")  # that the cells cut
DIGITS = (2, 2, 3, 4)  # of the numbers in their names, more where names would be alike
MANY = 6  # distinct values on an axis; with more, it is cut at its quartiles


# -- one event -----------------------------------------------------------------------------------------------------


def set_features(counts: Tensor, energy: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """What one number can say of a bundle, float64 [B, 8] on the device of the input.

    In order: log10(N + 1), log10 sum E, log10 max E, max E / sum E, mean r, rms r, E-weighted mean r, log10 median E.
    Zeros for an event without muons. A value that is not finite stays so, and is counted where samples are compared.

    Args:
        counts: int64 [B], muons of each event.
        energy, x, y: [M] in GeV, m, m; the muons of one event after another.
    """
    counts = counts.long()
    energy, x, y = energy.double().clamp(min=TINY), x.double(), y.double()
    r = torch.hypot(x, y)

    event = torch.repeat_interleave(counts)

    def total(values: Tensor) -> Tensor:
        return energy.new_zeros(len(counts)).index_add(0, event, values)

    order = torch.argsort(energy)
    ranked = energy[order[torch.argsort(event[order], stable=True)]]  # within each event by energy
    filled = counts > 0
    first, n = (counts.cumsum(0) - counts)[filled], counts[filled]
    largest, median, total_energy = energy.new_ones(3, len(counts))
    largest[filled] = ranked[first + n - 1]
    median[filled] = (ranked[first + (n - 1) // 2] + ranked[first + n // 2]) / 2
    total_energy[filled] = total(energy)[filled]

    one = counts.clamp(min=1)
    features = [
        (counts + 1.0).log10(),
        total_energy.log10(),
        largest.log10(),
        largest / total_energy,
        total(r) / one,
        (total(r.square()) / one).sqrt(),
        total(energy * r) / total_energy,
        median.log10(),
    ]
    return torch.stack(features, 1) * filled[:, None]


# -- cells of the conditions -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cells:
    """Bins on each of the four axes of the conditions; cells are numbered through, one axis after another.

    Args:
        names: of all cells, such as ``E5-6`` (powers of ten in GeV), ``cos0.42-0.71``, ``mass13``, ``depth1000-1450``.
        inner: for each axis float64 edges between its cells. What lies beyond the ends is in the outermost cells.
    """

    names: tuple[str, ...]
    inner: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, conditions: np.ndarray) -> Cells:
        """Decades of energy; for the others a cell per value or, where there are more than 6, quartiles.

        Args:
            conditions: float64 [B, 4] with at least one event, as in ``coordinates``.
        """
        names, inner = [], []
        for axis, digits, values in zip(AXES, DIGITS, coordinates(torch.from_numpy(conditions)).numpy().T, strict=True):
            distinct = np.unique(values)
            if axis == "E":
                low, high = np.floor(distinct[0] + 1e-6), np.ceil(distinct[-1] - 1e-6)
                edges = np.arange(low, max(high, low + 1) + 1)
            elif len(distinct) > MANY:
                edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
            else:
                edges = np.concatenate([distinct[:1], (distinct[1:] + distinct[:-1]) / 2, distinct[-1:]])
            singly = axis != "E" and len(distinct) <= MANY
            names += _names(axis, distinct if singly else edges, singly, digits)
            inner.append(edges[1:-1])
        return cls(tuple(names), tuple(inner))

    def of_axis(self, axis: str) -> slice:
        """Which cells belong to an axis of ``AXES``."""
        starts = np.cumsum([0] + [len(inner) + 1 for inner in self.inner])
        i = AXES.index(axis)
        return slice(int(starts[i]), int(starts[i + 1]))

    def index(self, conditions: Tensor) -> Tensor:
        """int64 [B, 4]: the cell of each event on each axis, for conditions [B, 4] as in ``coordinates``."""
        return torch.stack(
            [
                torch.bucketize(values.contiguous(), torch.from_numpy(inner).to(values.device), right=True)
                + self.of_axis(axis).start
                for axis, inner, values in zip(AXES, self.inner, coordinates(conditions).T, strict=True)
            ],
            1,
        )


def _names(axis: str, numbers: np.ndarray, singly: bool, digits: int) -> list[str]:
    """One for each number, or for each pair of neighbours, no two alike."""
    texts = [f"{number:.{digits}g}" for number in numbers]
    if len(set(texts)) < len(texts) and digits < 17:
        return _names(axis, numbers, singly, digits + 1)
    return [f"{axis}{text}" for text in (texts if singly else map("-".join, itertools.pairwise(texts)))]


def coordinates(conditions: Tensor) -> Tensor:
    """Conditions [B, 4] (energy in GeV, zenith in rad, mass in GeV, depth in m) as log10 energy, cos, mass, depth."""
    energy, zenith, mass, depth = conditions.double().T
    return torch.stack([energy.log10(), zenith.cos(), mass, depth], 1)


def muon_sums(
    cells: Cells, conditions: Tensor, unit: Tensor, counts: Tensor, energy: Tensor, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """Statistics of all muons that may be summed over events; arguments as in ``coordinates``, ``units`` and
    ``set_features``.

    Returns:
        ``energy``, ``radius``, ``azimuth``: int64 [cells, bins], histograms over the edges above; what lies outside is
            in the outermost bins, what is not finite in the last one.
        ``moments``: float64 [cells, 6], ``Correlation.sums`` of log10 E and log10 r, the finite ones.
        ``unit_energy``, ``unit_radius``, ``unit_azimuth``, ``unit_moments``: the same of each unit, [UNITS, bins] of
            all cells and [UNITS, cells, 6].
    """
    cell = cells.index(conditions).repeat_interleave(counts.long(), 0)  # [M, 4]
    unit = unit.repeat_interleave(counts.long())
    u, r = energy.double().clamp(min=TINY).log10(), torch.hypot(x.double(), y.double())
    v, phi = r.clamp(min=TINY).log10(), torch.atan2(y.double(), x.double())
    number = len(cells.names)

    found: dict[str, Tensor] = {}
    for name, values, edges in (
        ("energy", u, ENERGY_EDGES), ("radius", r, RADIUS_EDGES), ("azimuth", phi, AZIMUTH_EDGES),
    ):  # fmt: skip
        bins = len(edges) - 1
        place = (values - edges[0]) / (edges[-1] - edges[0]) * bins
        place = place.nan_to_num(nan=bins).clamp(0, bins - 1).long()
        inside = (cell * bins + place[:, None]).flatten()
        found[name] = torch.bincount(inside, minlength=number * bins).view(-1, bins)
        found[f"unit_{name}"] = torch.bincount(unit * bins + place, minlength=UNITS * bins).view(-1, bins)

    moments = torch.stack([torch.ones_like(u), u, v, u * u, v * v, u * v], 1)
    moments = (moments * moments.isfinite().all(1, keepdim=True)).nan_to_num().repeat_interleave(cell.shape[1], 0)
    inside = (unit[:, None] * number + cell).flatten()
    by_unit = moments.new_zeros(UNITS * number, 6).index_add(0, inside, moments).view(UNITS, number, 6)
    return {**found, "moments": by_unit.sum(0), "unit_moments": by_unit}
