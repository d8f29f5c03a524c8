"""What is known exactly about the synthetic muon bundles: the distribution of the number of muons given the shower.

A muon reaches a depth or not on its own, so the count is negative binomial at *every* depth, with the same K and the
mean of ``expected_count``. Yield: Elbert's formula as refitted to MCEq with SIBYLL 2.3c for IceCube's CORSIKA muon
bias; effective cosine: Chirkin, hep-ph/0407078; energy loss in ice: dE/dX = -(a + bE).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

ATOMIC_MASS = 0.9314941  # GeV/c^2
FIRN_KM, FIRN_DENSITY, ICE_DENSITY = 0.2, 0.832, 0.917
LOSS_A, LOSS_B = 250.0, 0.42  # GeV/(km w.e.), 1/(km w.e.)
MIN_ENERGY = 1.0  # GeV at the depth; a muon below it is gone
CONVENTIONAL_SCALE, CONVENTIONAL = 14.7, (1.79, 0.64, 3.27)  # GeV; the exponents of ``_shape``
PROMPT_SCALE, PROMPT = 2.8e-5, (1.0, 0.78, 6.73)
CHIRKIN = (0.102573, -0.068287, 0.958633, 0.0407253, 0.817285)
K = 6  # variance of a count: mean + mean^2 / K


def slant(zenith: ArrayLike, depth: ArrayLike) -> np.ndarray:
    """Overburden in km water equivalent along a track: zenith in rad (below pi/2), vertical depth in m."""
    km = np.asarray(depth, float) / 1000
    vertical = FIRN_DENSITY * np.minimum(km, FIRN_KM) + ICE_DENSITY * np.maximum(km - FIRN_KM, 0)
    return vertical / np.cos(np.asarray(zenith, float))


def threshold(zenith: ArrayLike, depth: ArrayLike) -> np.ndarray:
    """Surface energy in GeV of a muon that arrives at this depth [m] with ``MIN_ENERGY``."""
    return (MIN_ENERGY + LOSS_A / LOSS_B) * np.exp(LOSS_B * slant(zenith, depth)) - LOSS_A / LOSS_B


def energy_at(surface: np.ndarray, zenith: ArrayLike, depth: ArrayLike) -> np.ndarray:
    """Energy in GeV at this depth [m] of a muon with this energy at the surface; negative if it stopped before."""
    return (surface + LOSS_A / LOSS_B) * np.exp(-LOSS_B * slant(zenith, depth)) - LOSS_A / LOSS_B


def expected_count(energy: ArrayLike, mass: ArrayLike, zenith: ArrayLike, depth: ArrayLike) -> np.ndarray:
    """Mean number of muons of a row: float64, the shape the arguments broadcast to.

    Args:
        energy: of the primary, GeV.
        mass: of the primary, GeV/c^2.
        zenith: rad, below pi/2.
        depth: vertical, m.
    """
    nucleons = _nucleons(mass)
    x = nucleons * threshold(zenith, depth) / np.asarray(energy, float)
    return _elbert(x, *_scales(energy, nucleons, zenith))


def surface_energies(
    u: np.ndarray, energy: ArrayLike, mass: ArrayLike, zenith: ArrayLike, depth: ArrayLike
) -> np.ndarray:
    """Surface energies in GeV of muons that reach a depth, from uniform numbers ``u`` in [0, 1); the rest as above.

    Solves yield(above E) = u * yield(above the threshold) by bisection: exact, so that those of them which get deeper
    still have the mean of ``expected_count`` there.
    """
    nucleons = _nucleons(mass)
    per_nucleon = np.asarray(energy, float) / nucleons
    scales = _scales(energy, nucleons, zenith)
    low, high = np.log(threshold(zenith, depth) / per_nucleon), np.zeros(len(u))
    target = u * _elbert(np.exp(low), *scales)
    for _ in range(40):
        middle = (low + high) / 2
        more = _elbert(np.exp(middle), *scales) > target
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return per_nucleon * np.exp(low)


def p_zero(mean: np.ndarray) -> np.ndarray:
    """Probability of a row without muons."""
    return (1 + mean / K) ** -K


def _nucleons(mass: ArrayLike) -> np.ndarray:
    return np.rint(np.asarray(mass, float) / ATOMIC_MASS)


def _scales(energy: ArrayLike, nucleons: np.ndarray, zenith: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the conventional and of the prompt yield that do not depend on the muon."""
    cosine = np.cos(np.asarray(zenith, float))
    p1, p2, p3, p4, p5 = CHIRKIN
    effective = np.sqrt((cosine**2 + p1**2 + p2 * cosine**p3 + p4 * cosine**p5) / (1 + p1**2 + p2 + p4))
    return CONVENTIONAL_SCALE * nucleons**2 / (np.asarray(energy, float) * effective), PROMPT_SCALE * nucleons


def _elbert(x: np.ndarray, conventional: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """Mean number of muons above x = nucleons * muon energy / primary energy; none above x = 1."""
    x = np.minimum(x, 1.0)
    return conventional * _shape(x, *CONVENTIONAL) + prompt * _shape(x, *PROMPT)


def _shape(x: np.ndarray, steepness: float, inner: float, outer: float) -> np.ndarray:
    return x**-steepness * (1 - x**inner) ** outer
