"""Pictures of generated muon bundles over true ones, in colours (Okabe and Ito) that all can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from accel_train.tasks.muon.metrics import SUM_ENERGY, Sample, azimuth_flatness, correlation, count_numbers
from accel_train.tasks.muon.observables import AXES, AZIMUTH_EDGES, ENERGY_EDGES, RADIUS_EDGES, Cells, coordinates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {"truth": "0.35", "generated": "#D55E00"}
TITLES = {"E": "log10(primary E / GeV)", "cos": "cos zenith", "mass": "primary mass (GeV)", "depth": "depth (m)"}
BINS = 40  # of a distribution, about
SLICES = 12  # of the primary energy in the figure of multiplicities
Weighted = tuple[np.ndarray, np.ndarray]  # values and their weights


def figures(real: Sample, fake: Sample, cells: Cells) -> dict[str, Figure]:
    """``distributions``, ``multiplicity``, ``correlation`` and ``azimuth`` as matplotlib figures."""
    (_, true), (_, made) = next(real.strata(cells)), next(fake.strata(cells))
    return {
        "distributions": _distributions(true, made),
        "multiplicity": _multiplicity(true, made),
        "correlation": _correlation(real, fake, cells),
        "azimuth": _azimuth(true, made),
    }


def _with_ratios(columns: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """Two rows of axes, the lower one for what is above divided by the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * columns, 5.4), layout="constrained")
    tops, bottoms = figure.subplots(2, columns, sharex="col", height_ratios=[3, 1], squeeze=False)
    for bottom in bottoms:
        bottom.axhline(1, color="0.35", lw=0.8)
        bottom.set(ylim=(0.4, 1.6))
    bottoms[0].set_ylabel("generated / truth")
    return figure, list(tops), list(bottoms)


# -- distributions ---------------------------------------------------------------------------------------------------


def _distributions(true: Sample, made: Sample) -> Figure:
    """Normalised distributions of log10 E and r over muons, N over events, log10 sum E over events with muons."""
    figure, tops, bottoms = _with_ratios(4)
    counts = np.unique(np.geomspace(1, max(true.counts.max(initial=0), 1) + 1, BINS // 2).round())
    sums = [s.features[s.counts > 0, SUM_ENERGY] for s in (true, made)]
    sums = [values[np.isfinite(values)] for values in sums]
    widest = (sums[0].min(), sums[0].max() + 1e-9) if len(sums[0]) else (0, 1)
    panels: dict[str, tuple[np.ndarray, list[Weighted]]] = {
        "log10(muon E / GeV)": _fine("energy", ENERGY_EDGES, true, made),
        "muon r (m)": _fine("radius", RADIUS_EDGES, true, made),
        "muons per event, N": (np.append(0, counts) - 0.5, [(s.counts, np.ones(len(s.counts))) for s in (true, made)]),
        "log10(sum of muon E / GeV)": (np.linspace(*widest, BINS + 1), [(s, np.ones(len(s))) for s in sums]),
    }
    for top, bottom, (label, (edges, samples)) in zip(tops, bottoms, panels.items(), strict=True):
        _overlay(top, bottom, edges, *samples)
        bottom.set_xlabel(label)
    tops[2].set_xscale("symlog", linthresh=1)
    tops[0].set_ylabel("probability density")
    tops[0].legend(frameon=False)
    return figure


def _fine(name: str, edges: np.ndarray, true: Sample, made: Sample) -> tuple[np.ndarray, list[Weighted]]:
    """Coarser edges where the truth lies, all but one muon in a thousand, and the entries of both fine histograms."""
    below = np.cumsum(true.muons[name]) / max(true.muons[name].sum(), 1)
    low, high = np.searchsorted(below, [0.0005, 0.9995]) if below[-1] else (0, len(edges) - 2)
    step = max(-(-(high - low) // BINS), 1)
    centres = (edges[1:] + edges[:-1]) / 2
    return edges[low : high + step + 1 : step], [(centres, s.muons[name]) for s in (true, made)]


def _overlay(top: Axes, bottom: Axes, edges: np.ndarray, true: Weighted, made: Weighted) -> None:
    """Both as densities, with the statistical error of each; values beyond the edges count in the norm alone."""
    entries = [np.histogram(values, edges, weights=weights)[0] for values, weights in (true, made)]
    per_entry = [1 / max(weights.sum(), 1) for _, weights in (true, made)]
    shares = [n * one for n, one in zip(entries, per_entry, strict=True)]
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2
    relative = [_divided(1, np.sqrt(n)) for n in entries]

    top.stairs(shares[0] / width, edges, fill=True, color="0.85")
    top.stairs(shares[0] / width, edges, color=LOOKS["truth"], label="truth")
    top.stairs(shares[1] / width, edges, color=LOOKS["generated"], lw=1.6, label="generated")
    if all(n.any() for n in entries):
        top.set_yscale("log")
    _band(bottom, edges, relative[0])
    ratio = _divided(shares[1], shares[0])
    bottom.errorbar(middle, ratio, ratio * relative[1], fmt="o", ms=3, lw=1, color=LOOKS["generated"])


def _band(axes: Axes, edges: np.ndarray, error: np.ndarray) -> None:
    """The relative error of the truth, around one."""
    low, high = np.repeat(1 - error, 2), np.repeat(1 + error, 2)
    axes.fill_between(np.repeat(edges, 2)[1:-1], low, high, color="0.85")


def _divided(a: np.ndarray | float, b: np.ndarray) -> np.ndarray:
    """a / b, NaN (which leaves a gap) where b is zero."""
    return np.divide(a, b, out=np.full(b.shape, np.nan), where=b > 0)


# -- multiplicity ----------------------------------------------------------------------------------------------------


def _multiplicity(true: Sample, made: Sample) -> Figure:
    """Mean N, P(N = 0) and Fano factor over the primary energy, with ratios."""
    figure, tops, bottoms = _with_ratios(3)
    energy = coordinates(torch.from_numpy(true.conditions))[:, 0].numpy()
    edges = np.linspace(energy.min(), energy.max() + 1e-9, SLICES + 1) if len(energy) else np.linspace(0, 1, SLICES + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    slices = [_slices(s, edges) for s in (true, made)]
    for top, bottom, (name, label) in zip(
        tops, bottoms, {"mean_n": "mean N", "p_zero": "P(N = 0)", "fano": "Fano factor of N"}.items(), strict=True
    ):
        values = [np.array([count_numbers(counts)[name] for counts in parts]) for parts in slices]
        errors = [np.array([_error(counts, name) for counts in parts]) for parts in slices]
        for look, marker, value, error in zip(("truth", "generated"), "so", values, errors, strict=True):
            top.errorbar(middle, value, error, fmt=marker, ms=4, lw=1, color=LOOKS[look], label=look)
        if name != "p_zero" and all((value > 0).any() for value in values):
            top.set_yscale("log")
        ratio = _divided(values[1], values[0])
        bottom.errorbar(middle, ratio, _divided(errors[1], values[0]), fmt="o", ms=4, lw=1, color=LOOKS["generated"])
        _band(bottom, edges, _divided(errors[0], values[0]))
        top.set(title=label)
        bottom.set_xlabel(TITLES["E"])
    tops[0].legend(frameon=False)
    return figure


def _slices(sample: Sample, edges: np.ndarray) -> list[np.ndarray]:
    energy = coordinates(torch.from_numpy(sample.conditions))[:, 0].numpy()
    place = np.digitize(energy, edges[1:-1])
    return [sample.counts[place == i] for i in range(len(edges) - 1)]


def _error(counts: np.ndarray, name: str) -> float:
    """Standard error of one number of ``count_numbers``, for independent events and by the delta method."""
    n, mean = len(counts), counts.mean() if len(counts) else 0.0
    if not mean:
        return np.nan
    share, spread = (counts == 0).mean(), (counts - mean) ** 2
    influence = {
        "mean_n": counts - mean,
        "p_zero": (counts == 0) - share,
        "fano": (spread - spread.mean() * counts / mean) / mean,
    }[name]
    return float(np.sqrt((influence**2).mean() / n))


# -- what has no distribution ----------------------------------------------------------------------------------------


def _correlation(real: Sample, fake: Sample, cells: Cells) -> Figure:
    """Correlation of log10 E with log10 r over muons, in each cell, with the error of independent muons."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axis, panel in zip(AXES, panels, strict=True):
        cut = cells.of_axis(axis)
        names = [name.removeprefix(axis) for name in cells.names[cut]]
        for shift, marker, look, sample in ((-0.1, "s", "truth", real), (0.1, "o", "generated", fake)):
            moments = sample.muons["moments"][cut]
            values = correlation(moments)
            errors = (1 - values**2) / np.sqrt(np.maximum(moments[:, 0], 1))
            where = np.arange(len(names)) + shift
            panel.errorbar(where, values, errors, fmt=marker, ms=5, lw=1, capsize=2, color=LOOKS[look], label=look)
        panel.set(xticks=range(len(names)), xticklabels=names, xlabel=TITLES[axis], xlim=(-0.5, len(names) - 0.5))
        panel.tick_params(axis="x", labelrotation=20)
        panel.axhline(0, color="0.7", lw=0.8)
    panels[0].set_ylabel("corr(log E, log r) of muons")
    panels[0].legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.9))
    return figure


def _azimuth(true: Sample, made: Sample) -> Figure:
    """Azimuth of muons relative to flat."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    edges = AZIMUTH_EDGES[::2]
    for marker, look, sample in (("s", "truth", true), ("o", "generated", made)):
        histogram = sample.muons["azimuth"]
        n = histogram.reshape(-1, 2).sum(1)
        flat = max(n.mean(), 1e-9)
        amplitude, expected = azimuth_flatness(histogram)
        label = f"{look}: largest harmonic {amplitude:.3f} (flat: about {expected:.3f})"
        middle = np.degrees(edges[1:] + edges[:-1]) / 2 + (2 if look == "generated" else -2)
        axes.errorbar(middle, n / flat, np.sqrt(n) / flat, fmt=marker, ms=4, lw=1, color=LOOKS[look], label=label)
    axes.axhline(1, color="0.7", lw=0.8)
    axes.set(xlabel="muon azimuth (degrees)", ylabel="muons relative to flat", xlim=(-180, 180))
    axes.set_xticks(range(-180, 181, 60))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
