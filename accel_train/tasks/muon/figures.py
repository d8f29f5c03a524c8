"""Pictures of generated muon bundles over true ones, in colours (Okabe and Ito) that all can tell apart.

Every bar is the central 68 % of a bootstrap over showers; those of a ratio have both samples redrawn with the same
showers, which they share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from accel_train.intervals import bootstrap
from accel_train.run.figures import new_figure
from accel_train.tasks.muon.metrics import SUM_ENERGY, Sample, azimuth_flatness, correlation
from accel_train.tasks.muon.observables import AXES, AZIMUTH_EDGES, ENERGY_EDGES, RADIUS_EDGES, Cells, coordinates
from accel_train.tasks.muon.showers import UNITS, units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = {"truth": "0.35", "generated": "#D55E00"}
TITLES = {"E": "log10(primary E / GeV)", "cos": "cos zenith", "mass": "primary mass (GeV)", "depth": "depth (m)"}
BINS = 40  # of a distribution, about
SLICES = 12  # of the primary energy in the figure of multiplicities
Numbers = tuple[np.ndarray, np.ndarray]  # values [...], and below and above them the lengths of their bars [2, ...]


def figures(real: Sample, fake: Sample, cells: Cells) -> dict[str, Figure]:
    """``distributions``, ``multiplicity``, ``correlation`` and ``azimuth`` as matplotlib figures."""
    (_, true), (_, made) = next(real.strata(cells)), next(fake.strata(cells))
    return {
        "distributions": _distributions(true, made),
        "multiplicity": _multiplicity(true, made),
        "correlation": _correlation(real, fake, cells),
        "azimuth": _azimuth(true, made),
    }


def numbers(of: Callable[[dict[str, np.ndarray]], np.ndarray], sums: dict[str, np.ndarray]) -> Numbers:
    """What a function says of sums over all showers, and how far it would move if others had been thrown.

    Args:
        sums: [UNITS, ...], what each unit adds.
    """

    def drawn(sums: dict[str, torch.Tensor]) -> dict[str, float]:
        found = of({name: values.numpy() for name, values in sums.items()}).ravel()
        return {str(i): value for i, value in enumerate(found.tolist())}

    whole = of({name: values.sum(0) for name, values in sums.items()})
    tables = {name: torch.from_numpy(values) for name, values in sums.items()}
    found = bootstrap(drawn, tables, seed=0, resamples=200, level=0.683)
    low, high = (np.array([getattr(i, end) for i in found.values()]).reshape(whole.shape) for end in ("low", "high"))
    return whole, np.stack([whole - low, high - whole]).clip(0)


def compared(of: Callable[[np.ndarray], np.ndarray], true: np.ndarray, made: np.ndarray) -> tuple[Numbers, ...]:
    """Of sums [UNITS, ...] of both samples: a function of the true ones, of the generated ones, and the ratio."""

    def both(sums: dict[str, np.ndarray]) -> np.ndarray:
        one, two = of(sums["true"]), of(sums["made"])
        return np.stack([one, two, _divided(two, one)])

    values, bars = numbers(both, {"true": true, "made": made})
    return tuple((values[i], bars[:, i]) for i in range(3))


def by_unit(sample: Sample, place: np.ndarray, bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """How many events (or the sum of their weights) are at each place below ``bins``: float64 [UNITS, bins]."""
    number = units(sample.conditions) * bins + place
    return np.bincount(number, weights, UNITS * bins).reshape(UNITS, bins).astype(np.float64)


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN (which leaves a gap) where b is zero."""
    return np.divide(a, b, out=np.full(np.shape(b), np.nan), where=b > 0)


def _bars(axes: Axes, where: np.ndarray, shown: Numbers, **looks: Any) -> None:
    values, bars = shown
    axes.errorbar(where, values, np.nan_to_num(bars), lw=1, **looks)


def _with_ratios(columns: int) -> tuple[Figure, list[Axes], list[Axes]]:
    """Two rows of axes, the lower one for what is above divided by the truth."""
    figure = new_figure(4.2 * columns, 5.4)
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
    most = max(true.counts.max(initial=0), 1)
    counts = np.append(0, np.unique(np.geomspace(1, most + 1, BINS // 2).round())) - 0.5
    sums = true.features[(true.counts > 0) & np.isfinite(true.features[:, SUM_ENERGY]), SUM_ENERGY]
    widest = np.linspace(*((sums.min(), sums.max() + 1e-9) if len(sums) else (0, 1)), BINS + 1)
    panels = {
        "log10(muon E / GeV)": _of_muons("energy", ENERGY_EDGES, true, made),
        "muon r (m)": _of_muons("radius", RADIUS_EDGES, true, made),
        "muons per event, N": (counts, [_of_events(s, s.counts, counts) for s in (true, made)]),
        "log10(sum of muon E / GeV)": (widest, [_of_events(s, _sum_energy(s), widest) for s in (true, made)]),
    }
    for top, bottom, (label, (edges, entries)) in zip(tops, bottoms, panels.items(), strict=True):
        _overlay(top, bottom, edges, *entries)
        bottom.set_xlabel(label)
    tops[2].set_xscale("symlog", linthresh=1)
    tops[0].set_ylabel("probability density")
    tops[0].legend(frameon=False)
    return figure


def _sum_energy(sample: Sample) -> np.ndarray:
    """NaN for events without muons."""
    return np.where(sample.counts > 0, sample.features[:, SUM_ENERGY], np.nan)


def _of_events(sample: Sample, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Entries by unit between the edges, and before and behind them those beyond: [UNITS, bins + 2]. NaN is none."""
    place = np.digitize(values, edges)
    return by_unit(sample, place, len(edges) + 1, np.isfinite(values).astype(float))


def _of_muons(name: str, edges: np.ndarray, true: Sample, made: Sample) -> tuple[np.ndarray, list[np.ndarray]]:
    """Coarser edges where the truth lies, all but one muon in a thousand, and the entries as in ``_of_events``."""
    below = np.cumsum(true.muons[name]) / max(true.muons[name].sum(), 1)
    low, high = np.searchsorted(below, [0.0005, 0.9995]) if below[-1] else (0, len(edges) - 2)
    step = max(-(-(high - low) // BINS), 1)
    at = np.arange(low, min(high + step + 1, len(edges)), step)
    entries = []
    for sample in (true, made):
        until = np.pad(sample.muons[f"unit_{name}"].cumsum(1), ((0, 0), (1, 0)))
        entries.append(np.diff(until[:, at], axis=1, prepend=0, append=until[:, -1:]).astype(np.float64))
    return edges[at], entries


def _overlay(top: Axes, bottom: Axes, edges: np.ndarray, true: np.ndarray, made: np.ndarray) -> None:
    """Both as densities; values beyond the edges count in the norm alone."""
    width, middle = np.diff(edges), (edges[1:] + edges[:-1]) / 2

    def density(entries: np.ndarray) -> np.ndarray:
        return entries[1:-1] / max(entries.sum(), 1) / width

    one, two, ratio = compared(density, true, made)
    top.stairs(one[0], edges, fill=True, color="0.85")
    for look, shown in (("truth", one), ("generated", two)):
        top.stairs(shown[0], edges, color=LOOKS[look], lw=1.6 if look == "generated" else 1, label=look)
        _bars(top, middle, shown, fmt="none", color=LOOKS[look])
    if one[0].any() and two[0].any():
        top.set_yscale("log")
    _bars(bottom, middle, ratio, fmt="o", ms=3, color=LOOKS["generated"])


# -- multiplicity ----------------------------------------------------------------------------------------------------


def _multiplicity(true: Sample, made: Sample) -> Figure:
    """Mean N, P(N = 0) and Fano factor over the primary energy, with ratios."""
    figure, tops, bottoms = _with_ratios(3)
    energy = coordinates(torch.from_numpy(true.conditions))[:, 0].numpy()
    edges = np.linspace(energy.min(), energy.max() + 1e-9, SLICES + 1) if len(energy) else np.linspace(0, 1, SLICES + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    sums = [_powers(s, edges) for s in (true, made)]
    titles = {"mean N": _mean, "P(N = 0)": _empty, "Fano factor of N": _fano}
    for top, bottom, (title, of) in zip(tops, bottoms, titles.items(), strict=True):
        one, two, ratio = compared(of, *sums)
        _bars(top, middle, one, fmt="s", ms=4, color=LOOKS["truth"], label="truth")
        _bars(top, middle, two, fmt="o", ms=4, color=LOOKS["generated"], label="generated")
        if of is not _empty and (one[0] > 0).any() and (two[0] > 0).any():
            top.set_yscale("log")
        _bars(bottom, middle, ratio, fmt="o", ms=4, color=LOOKS["generated"])
        top.set(title=title)
        bottom.set_xlabel(TITLES["E"])
    tops[0].legend(frameon=False)
    return figure


def _powers(sample: Sample, edges: np.ndarray) -> np.ndarray:
    """Sums over the events of a slice: their number, how many are empty, N, N squared: float64 [UNITS, slices, 4]."""
    energy = coordinates(torch.from_numpy(sample.conditions))[:, 0].numpy()
    place, counts = np.digitize(energy, edges[1:-1]), sample.counts.astype(np.float64)
    weights = (np.ones(len(counts)), (counts == 0).astype(float), counts, counts**2)
    return np.stack([by_unit(sample, place, len(edges) - 1, weight) for weight in weights], 2)


def _mean(powers: np.ndarray) -> np.ndarray:
    return _divided(powers[:, 2], powers[:, 0])


def _empty(powers: np.ndarray) -> np.ndarray:
    return _divided(powers[:, 1], powers[:, 0])


def _fano(powers: np.ndarray) -> np.ndarray:
    mean = _mean(powers)
    return _divided(_divided(powers[:, 3], powers[:, 0]) - mean**2, mean)


# -- what has no distribution ----------------------------------------------------------------------------------------


def _correlation(real: Sample, fake: Sample, cells: Cells) -> Figure:
    """Correlation of log10 E with log10 r over muons, in each cell."""
    figure = new_figure(13, 3.8)
    panels = figure.subplots(1, len(AXES), sharey=True)
    for axis, panel in zip(AXES, panels, strict=True):
        cut = cells.of_axis(axis)
        names = [name.removeprefix(axis) for name in cells.names[cut]]
        for shift, marker, look, sample in ((-0.1, "s", "truth", real), (0.1, "o", "generated", fake)):
            moments = sample.muons["unit_moments"][:, cut]
            shown, where = numbers(lambda sums: correlation(sums["of"]), {"of": moments}), np.arange(len(names)) + shift
            _bars(panel, where, shown, fmt=marker, ms=5, capsize=2, color=LOOKS[look], label=look)
        panel.set(xticks=range(len(names)), xticklabels=names, xlabel=TITLES[axis], xlim=(-0.5, len(names) - 0.5))
        panel.tick_params(axis="x", labelrotation=20)
        panel.axhline(0, color="0.7", lw=0.8)
    panels[0].set_ylabel("corr(log E, log r) of muons")
    panels[0].legend(frameon=False, loc="upper right", bbox_to_anchor=(1.0, 0.9))
    return figure


def _azimuth(true: Sample, made: Sample) -> Figure:
    """Azimuth of muons relative to flat."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    edges = AZIMUTH_EDGES[::2]
    for marker, look, sample in (("s", "truth", true), ("o", "generated", made)):
        histogram = sample.muons["azimuth"]
        amplitude, expected = azimuth_flatness(histogram)
        label = f"{look}: largest harmonic {amplitude:.3f} (flat: about {expected:.3f})"
        middle = np.degrees(edges[1:] + edges[:-1]) / 2 + (2 if look == "generated" else -2)
        pairs = sample.muons["unit_azimuth"].reshape(UNITS, -1, 2).sum(2).astype(np.float64)
        shown = numbers(lambda sums: sums["pairs"] / max(sums["pairs"].mean(), 1e-9), {"pairs": pairs})
        _bars(axes, middle, shown, fmt=marker, ms=4, color=LOOKS[look], label=label)
    axes.axhline(1, color="0.7", lw=0.8)
    axes.set(xlabel="muon azimuth (degrees)", ylabel="muons relative to flat", xlim=(-180, 180))
    axes.set_xticks(range(-180, 181, 60))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
