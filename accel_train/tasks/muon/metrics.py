"""Is a generated sample of muon bundles the true one? Every number stands beside the floor, truth against truth.

Bundles follow their primary: a generator that ignores it may still have every inclusive distribution right. Hence all
is also measured in cells of the conditions; FPD, KPD and the classifier see the conditions beside the features; and a
generator that was given the conditions of other events shows how much each number notices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from accel_train.data.ragged import Ragged
from accel_train.intervals import bootstrap
from accel_train.sums import Correlation
from accel_train.tasks.muon.distances import classifier_auc, fpd, kpd, ks, w1, w1_histograms
from accel_train.tasks.muon.observables import (
    ENERGY_EDGES,
    RADIUS_EDGES,
    TINY,
    Cells,
    coordinates,
    muon_sums,
    set_features,
)
from accel_train.tasks.muon.showers import UNITS, units
from accel_train.tracking.records import aligned

HARMONICS = 4  # of the azimuth
ENOUGH = 100  # true events (for what is measured on muons: true muons) below which a cell is not reported
SUM_ENERGY, MEAN_RADIUS, RADII = 1, 4, slice(4, 7)  # columns of the features
LARGEST_ERROR = 0.25  # of the truth's own number, relative: with more nothing can be said of the generated one
RELATIVE = ("mean_n", "fano", "q999")
IN_CELLS = ("mean_n", "p_zero", "fano", "q999", "ks_count", "w1_energy", "w1_radius", "corr")
NAN = float("nan")


@dataclass(frozen=True)
class Sample:
    """Events of one origin, as gathered by an evaluation.

    Args:
        conditions: float64 [B, 4]: energy in GeV, zenith in rad, mass in GeV, depth in m. For bundles generated under
            shuffled conditions, those of the true event they stand for.
        counts: int64 [B], muons of each event.
        features: float64 [B, 8] by ``set_features``.
        muons: the summed ``muon_sums``; of a cell, without those of the units.
    """

    conditions: np.ndarray
    counts: np.ndarray
    features: np.ndarray
    muons: dict[str, np.ndarray]

    def strata(self, cells: Cells) -> Iterator[tuple[str, Sample]]:
        """All events, under the name "", and then those of each cell."""
        everything = cells.of_axis("E")
        muons = {k: v if k.startswith("unit") else v[everything].sum(0) for k, v in self.muons.items()}
        yield "", Sample(self.conditions, self.counts, self.features, muons)
        index = cells.index(torch.from_numpy(self.conditions)).numpy()
        for i, name in enumerate(cells.names):
            rows = (index == i).any(1)
            muons = {k: v[i] for k, v in self.muons.items() if not k.startswith("unit")}
            yield name, Sample(self.conditions[rows], self.counts[rows], self.features[rows], muons)


def sample(events: Ragged, cells: Cells) -> Sample:
    """True events as a ``Sample``."""
    primary, counts = (torch.from_numpy(values) for values in (events.rows["primary"], events.counts))
    energy, x, y = torch.from_numpy(events.flat["muons"]).unbind(1)
    features = set_features(counts, energy, x, y).numpy()
    unit = torch.from_numpy(units(events.rows["primary"]))
    muons = {name: values.numpy() for name, values in muon_sums(cells, primary, unit, counts, energy, x, y).items()}
    return Sample(primary.double().numpy(), events.counts, features, muons)


# -- numbers of one sample -------------------------------------------------------------------------------------------


def count_numbers(counts: np.ndarray) -> dict[str, float]:
    """For muons per event [B]: ``mean_n``, ``p_zero``, ``fano`` (variance over mean), ``q999`` (99.9 % quantile)."""
    return _count_numbers(*np.unique(counts, return_counts=True))


def _count_numbers(values: np.ndarray, times: np.ndarray) -> dict[str, float]:
    """The same of distinct numbers, ascending, and how often each is there."""
    events = times.sum()
    if not events:
        return dict.fromkeys(("mean_n", "p_zero", "fano", "q999"), NAN)
    mean = float(values @ times / events)
    return {
        "mean_n": mean,
        "p_zero": float(times[values == 0].sum() / events),
        "fano": float((values - mean) ** 2 @ times / events) / mean if mean else NAN,
        "q999": float(values[np.searchsorted(times.cumsum(), 0.999 * events)]),
    }


def own_errors(truth: Sample, cells: Cells) -> dict[str, float]:
    """Standard errors of the truth's own ``count_numbers``, had other showers been thrown: names as in ``compare``,
    relative ones of ``RELATIVE``. By bootstrap over ``units`` of showers; the metrics know the truth no better."""
    return {
        f"{metric}/{name}" if name else metric: error
        for name, part in truth.strata(cells)
        if not name or len(part.counts) >= ENOUGH
        for metric, error in _own_errors(part).items()
    }


def _own_errors(truth: Sample) -> dict[str, float]:
    values, number = np.unique(truth.counts, return_inverse=True)
    table = np.zeros((UNITS, len(values)))
    np.add.at(table, (units(truth.conditions), number), 1)
    found = bootstrap(
        lambda sums: _count_numbers(values, sums["times"].numpy()), {"times": torch.from_numpy(table)}, seed=0,
        resamples=200, level=0.683,
    )  # fmt: skip
    whole = _count_numbers(values, table.sum(0))
    scale = {name: whole[name] if name in RELATIVE else 1.0 for name in whole}
    return {name: (high - low) / 2 / scale[name] if scale[name] else NAN for name, (low, high, _) in found.items()}


def uncertain(errors: dict[str, float], floor: dict[str, float]) -> dict[str, float]:
    """The relative metrics that so few showers say nothing of, worst first, and to what they know the truth: by its own
    error or by how much other truth differs, whichever is larger, as a heavy tail is not seen in every sample."""
    known = {
        name: max(error, abs(floor[name]) / math.sqrt(2))
        for name, error in errors.items() if name in floor and name.split("/")[0] in RELATIVE
    }  # fmt: skip
    left_out = {name: error for name, error in known.items() if not error <= LARGEST_ERROR}
    return dict(sorted(left_out.items(), key=lambda pair: -pair[1]))


def correlation(moments: np.ndarray) -> np.ndarray:
    """Pearson's coefficient of log E with log r over muons, [...], from the ``moments`` [..., 6] of ``muon_sums``."""
    return Correlation(torch.from_numpy(moments)).pearson.numpy()


def azimuth_flatness(histogram: np.ndarray) -> tuple[float, float]:
    """The largest amplitude among the first harmonics of an azimuth histogram [bins], and what to expect if it is flat.

    A density 1 + A cos(k phi - psi) has amplitude A. For n independent muons of flat azimuth n A^2 / 4 is exponential
    of mean 1, the largest of K such has mean H_K = 1 + 1/2 + ... + 1/K, hence about 2 sqrt(H_K / n).
    """
    n = float(histogram.sum())
    if not n:
        return NAN, NAN
    harmonics = np.abs(np.fft.rfft(histogram)[1 : HARMONICS + 1]) * 2 / n
    return float(harmonics.max()), 2 * math.sqrt(sum(1 / k for k in range(1, HARMONICS + 1)) / n)


# -- comparisons -----------------------------------------------------------------------------------------------------


def compare(real: Sample, fake: Sample, cells: Cells, seed: int = 0) -> dict[str, float]:
    """Metrics by name, zero for equal distributions (``auc``: one half); those in a cell as ``name/cell``.

    ``mean_n``, ``fano``, ``q999``: generated over true, minus 1. ``p_zero``, ``corr`` (of log E with log r over muons):
    generated minus true. ``ks_count``: Kolmogorov-Smirnov distance of N. ``w1_*``: Wasserstein-1 distance of the muons'
    log10 E and r (m), and over events with muons of N, log10 sum E and mean r (m). ``azimuth``: see
    ``azimuth_flatness``. ``fpd``, ``kpd`` (with ``_error``) and ``auc``: on features and conditions of the events with
    muons, radii as logarithms (a fourth power would else hear the farthest muons alone). ``not_finite``: share of
    generated events that have a feature which is not finite; those are left out of the comparisons by features. NaN
    where there is nothing to compare; cells with too little truth are left out.
    """
    found: dict[str, float] = {}
    for (name, a), (_, b) in zip(real.strata(cells), fake.strata(cells), strict=True):
        if not name:
            found |= _numbers(a, b) | _inclusive(a, b, seed)
        elif len(a.counts) >= ENOUGH:
            found |= {f"{metric}/{name}": value for metric, value in _numbers(a, b).items() if metric in IN_CELLS}
    return found


def _numbers(a: Sample, b: Sample) -> dict[str, float]:
    true, made = count_numbers(a.counts), count_numbers(b.counts)
    found = {key: made[key] / true[key] - 1 if true[key] else NAN for key in ("mean_n", "fano", "q999")}
    found |= {"p_zero": made["p_zero"] - true["p_zero"], "ks_count": ks(a.counts, b.counts)}
    if a.counts.sum() >= ENOUGH:
        found |= {
            "w1_energy": w1_histograms(a.muons["energy"], b.muons["energy"], ENERGY_EDGES),
            "w1_radius": w1_histograms(a.muons["radius"], b.muons["radius"], RADIUS_EDGES),
            "corr": float(correlation(b.muons["moments"]) - correlation(a.muons["moments"])),
        }
    return found


def _inclusive(a: Sample, b: Sample, seed: int) -> dict[str, float]:
    (true, showers), (made, made_showers) = _bundles(a), _bundles(b)
    fpd_value, fpd_error = fpd(true, made, seed, (showers, made_showers))
    kpd_value, kpd_error = kpd(true, made, seed, (showers, made_showers))
    return {
        "w1_count": w1(a.counts[a.counts > 0], b.counts[b.counts > 0]),
        "w1_sum_energy": w1(true[:, SUM_ENERGY], made[:, SUM_ENERGY]),
        "w1_mean_radius": w1(*(10.0 ** s[:, MEAN_RADIUS] for s in (true, made))),
        "azimuth": azimuth_flatness(b.muons["azimuth"])[0],
        "fpd": fpd_value,
        "fpd_error": fpd_error,
        "kpd": kpd_value,
        "kpd_error": kpd_error,
        "auc": classifier_auc(true, made, seed, (showers, made_showers)),
        "not_finite": float(1 - np.isfinite(b.features).all(1).mean()) if len(b.features) else NAN,
    }


def _bundles(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Features and conditions [n, 12] of the events with muons, and the energy of their primary, which names a shower.

    Rows of one shower at several depths have that energy in common, to the last bit.
    """
    kept = (sample.counts > 0) & np.isfinite(sample.features).all(1)
    features = sample.features[kept]
    conditions = coordinates(torch.from_numpy(sample.conditions[kept])).numpy()
    conditions[:, 2] = np.log10(conditions[:, 2])
    features[:, RADII] = np.log10(features[:, RADII].clip(TINY))
    return np.concatenate([features, conditions], 1), sample.conditions[kept, 0].astype(np.float64)


def report(
    real: Sample, fake: Sample, shuffled: Sample, floor: dict[str, float], cells: Cells, seed: int = 0
) -> dict[str, float]:
    """Each metric of ``compare`` that ``floor`` has too, beside it ``name/floor`` and ``name/shuffled``.

    Args:
        real: truth.
        fake: generated under the conditions of ``real``.
        shuffled: generated under the conditions of ``real`` handed to other events: what ignores the primary.
        floor: ``compare`` with independent truth, of other showers (rows of one shower at several depths are nearly the
            same). The values compare directly where it has as many events as ``fake``: cut the held-out showers in two
            halves.
    """
    found: dict[str, float] = {}
    beside = {"": compare(real, fake, cells, seed), "/floor": floor, "/shuffled": compare(real, shuffled, cells, seed)}
    for suffix, values in beside.items():
        found |= {f"{name}{suffix}": values[name] for name in floor}
    return found


def table(metrics: dict[str, float]) -> str:
    """The metrics of a ``report`` as text: inclusive ones with ``name/error`` where there is one, then the cells with
    the floor in brackets."""

    def text(name: str) -> str:
        return f"{metrics[name]:.3g}" if name in metrics else ""

    def both(name: str) -> str:
        return f"{text(name)} ({text(f'{name}/floor')})" if name in metrics else ""

    cells = dict.fromkeys(name.split("/")[1] for name in metrics if f"{name}/floor" in metrics and "/" in name)
    columns = ("", "/error", "/floor", "/shuffled")
    beside = [[name, *(text(name + column) for column in columns)] for name in metrics if "/" not in name]
    inside = [[cell, *(both(f"{name}/{cell}") for name in IN_CELLS)] for cell in cells]
    return "\n".join(
        [*aligned([["", "generated", "error", "truth", "shuffled"], *beside]), "", *aligned([["", *IN_CELLS], *inside])]
    )
