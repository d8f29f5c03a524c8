"""Everything that ``accel-train sherlock report`` finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.sherlock import ceiling, lagscan, nulls, reconstruction, ridge, scores
from accel_train.tasks.sherlock.identification import Identified, identify
from accel_train.tasks.sherlock.likeness import by_chance, likeness
from accel_train.tasks.sherlock.report.case import (
    AVERAGE,
    CHANCE,
    EVERYWHERE,
    MEAN,
    NETWORK,
    OTHERS,
    RIDGE,
    SHUFFLED,
    STIMULUS,
    Case,
    Predictions,
    average,
)
from accel_train.tasks.sherlock.scores import Estimate

SEGMENTS = (1, 10)  # TRs, for identification
RIDGE_S = 12.0  # delays of ridge: from one TR to so long after the stimulus
NOISE = 4.0  # a voxel whose r is below NOISE / sqrt(TRs) at its best shift has no lag to speak of
PEAK_AT_MOST = 1  # TRs that a lag scan may peak from where it must

Of = Callable[[str], np.ndarray]
"""Predictions [n, V] of a person."""


@dataclass(eq=False)
class Found:
    """What is known in the end.

    r: of each model and region, with the interval over time; ``better``: by how much the network is better.
    volumes: of each model, numbers over all voxels (``r2``, ``median``, ``of_ceiling``, ``significant/ROI``).
    people: r of each person, by model and region: the network, ridge, and ``OTHERS``, the mean of what the others'
        brains did at the same film, which nobody has for a new one. over_people: the network's, with the interval over
        them.
    maps: float64 [V] by name, for figures. reconstruction: by modality and model. likeness: of these, by modality,
        model and name (``likeness``), chance among the models.
    """

    r: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    better: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    volumes: dict[str, dict[str, float]] = field(default_factory=dict)
    people: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    over_people: dict[str, Estimate] = field(default_factory=dict)
    ceiling: dict[str, float] = field(default_factory=dict)
    identified: dict[str, dict[int, Identified]] = field(default_factory=dict)
    reconstruction: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    likeness: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    lags: dict[str, lagscan.LagScan] = field(default_factory=dict)
    maps: dict[str, np.ndarray] = field(default_factory=dict)
    shifts: int = 0
    ridge_bands: dict[str, dict[str, float]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find(case: Case, predicted: Predictions, seed: int, say: Callable[[str], None]) -> Found:
    """All rows of the table, from predictions of a split that the network was not trained on.

    Raises:
        UserError: the rows that were predicted are too few, or in the training.
    """
    if case.train[predicted.rows].any():
        raise UserError("report: these are predictions of TRs that the network was trained on; evaluate --split=test")
    found = Found(missing=list(predicted.missing))
    if case.places is None:
        found.missing.append("no slices of the brain: it takes the images of the prepared folder, and nibabel")
    runs = scores.numbered(predicted.rows, case.runs)
    by_ridge = _ridge(case, predicted, seed, found, say)
    models: dict[str, Of] = {NETWORK: predicted.fmri.__getitem__, RIDGE: by_ridge.__getitem__}
    models |= {f"without {name}": made.__getitem__ for name, made in predicted.without.items()}
    say("correlations over time")
    _correlations(case, predicted, runs, models, seed, found)
    _shuffled(case, predicted, runs, found)
    say("ceiling, significance, identification")
    _ceiling(case, predicted, found)
    for name in (NETWORK, RIDGE):
        _volumes(case, predicted, runs, models[name], name, found)
    found.volumes[MEAN] = {"r2": 0.0}
    say("lag scans")
    _lags(case, predicted, runs, found)
    say("reconstructions")
    _reconstructions(case, predicted, seed, found)
    found.warnings += _cautions(case, predicted, found)
    return found


def _ridge(
    case: Case, predicted: Predictions, seed: int, found: Found, say: Callable[[str], None]
) -> dict[str, np.ndarray]:
    """Predictions of a fit for each person to the training rows: to their own, or to the mean of all others, if the
    network has not seen theirs."""
    last = max(int(RIDGE_S / case.tr_s), 1)
    delays = range(1 - case.preshift, last + 1 - case.preshift)
    design = ridge.Design(case.features, case.runs, case.train, delays)
    candidates, made = ridge.simplex(len(design.names), seed), {}
    weights = []
    for person in predicted.fmri:
        fitted = ridge.fit(
            design, case.fmri(AVERAGE if person in case.held_out else person), candidates, gap=case.hrf_trs
        )
        made[person] = fitted.predict(predicted.rows).astype(np.float32)
        weights.append(fitted.weights)
    mean = np.mean(weights, 0)
    found.ridge_bands = {
        roi: dict(zip(design.names, mean[columns].mean(0).tolist(), strict=True)) for roi, columns in case.rois.items()
    }
    return made


def _correlations(
    case: Case, predicted: Predictions, runs: np.ndarray, models: Mapping[str, Of], seed: int, found: Found
) -> None:
    block = scores.time_blocks(runs, case.hrf_trs)
    draws = scores.draws_of_blocks(int(block.max()) + 1, seed)
    z: dict[str, np.ndarray] = {}
    for name, of in models.items():
        z[name] = np.stack([
            scores.drawn_z(scores.block_sums(of(person), true, block), draws, case.rois)
            for person, true in _measured(case, predicted)
        ])  # fmt: skip
    means = {name: np.tanh(_mean(each)) for name, each in z.items()}
    for name, r in means.items():
        found.r[name] = {roi: scores.estimate(r[:, i]) for i, roi in enumerate(case.rois)}
        if name != NETWORK:
            gain = means[NETWORK] - r
            found.better[name] = {roi: scores.estimate(gain[:, i]) for i, roi in enumerate(case.rois)}
    for i, person in enumerate(predicted.fmri):
        of_models = {name: np.tanh(z[name][i, 0]).tolist() for name in (NETWORK, RIDGE)}
        found.people[person] = {name: dict(zip(case.rois, r, strict=True)) for name, r in of_models.items()}
    own = z[NETWORK][:, 0]
    found.over_people = {roi: scores.over_people(own[:, i], seed) for i, roi in enumerate(case.rois)}


def _shuffled(case: Case, predicted: Predictions, runs: np.ndarray, found: Found) -> None:
    """Its interval is the range over the shuffles."""
    tried: list[dict[str, float]] = []
    people = list(_measured(case, predicted))
    for rows in reconstruction.shuffles(runs, case.hrf_trs):
        r = np.stack([scores.temporal_r(predicted.fmri[person][rows], true) for person, true in people])
        tried.append(scores.by_roi(r, case.rois))
    found.r[SHUFFLED] = {
        roi: Estimate(float(np.mean(values)), min(values), max(values))
        for roi, values in {roi: [each[roi] for each in tried] for roi in case.rois}.items()
    }


def _ceiling(case: Case, predicted: Predictions, found: Found) -> None:
    try:
        shared = ceiling.isc([case.fmri(person)[predicted.rows] for person in case.people])
    except UserError as error:
        found.missing.append(f"no ceiling: {error}")
        return
    for person, r in zip(case.people, shared.leave_one_out, strict=True):
        if person in found.people:
            found.people[person][OTHERS] = scores.by_roi(r, case.rois)
    averaged = len(case.people) - len(case.held_out) if AVERAGE in predicted.fmri else 1
    limit = shared.ceiling(averaged)
    found.maps["ceiling"] = limit
    everywhere = case.rois[EVERYWHERE]
    found.ceiling = {
        "pairwise_isc": float(scores.fisher_mean(shared.pairwise[everywhere])),
        "leave_one_out_isc": float(scores.fisher_mean(shared.leave_one_out[:, everywhere])),
        "people": shared.people,
        "volumes": shared.volumes,
        "voxels_above_0.1": int((limit > ceiling.WORTH).sum()),
        # of the mean over a region, since that of a voxel cannot be negative and is above 0 by noise
        **{f"ceiling/{roi}": float(shared.within(columns, averaged)) for roi, columns in case.rois.items()},
    }


def _volumes(case: Case, predicted: Predictions, runs: np.ndarray, of: Of, name: str, found: Found) -> None:
    """Numbers that need each voxel's own r, and maps of it."""
    pairs = [(of(person), true) for person, true in _measured(case, predicted)]
    each = np.stack([scores.temporal_r(*pair) for pair in pairs])
    r = scores.fisher_mean(each, 0)
    found.maps[f"r/{name}"] = r
    numbers = {"median": _of_defined(np.median, r), "percentile_95": _of_defined(lambda x: np.quantile(x, 0.95), r)}
    numbers["without_r"] = float(np.isnan(r).sum())
    numbers["r2"] = _of_defined(np.mean, np.stack([_r2(*pair) for pair in pairs]))
    if (limit := found.maps.get("ceiling")) is not None:
        share = ceiling.of_ceiling(r, limit)
        numbers |= {f"of_ceiling/{roi}": _of_defined(np.mean, share[columns]) for roi, columns in case.rois.items()}
    try:
        null = nulls.circular_shifts(pairs, runs)
    except UserError as error:
        found.missing.append(f"no significance of {name}: {error}")
    else:
        significant = nulls.significant(null.p)
        found.maps[f"significant/{name}"], found.shifts = significant.astype(np.float64), null.shifts
        numbers |= {f"significant/{roi}": float(significant[at].mean()) for roi, at in case.rois.items()}
    found.volumes[name] = numbers
    true = np.mean([pair[1] for pair in pairs], 0)
    made = np.mean([pair[0] for pair in pairs], 0)
    found.identified[name] = {}
    for length in SEGMENTS:
        try:
            found.identified[name][length] = identify(made, true, runs, length, case.hrf_trs)
        except UserError as error:
            found.missing.append(f"no identification by {name}: {error}")


def _lags(case: Case, predicted: Predictions, runs: np.ndarray, found: Found) -> None:
    true = average(case.fmri(person) for person in predicted.fmri)
    test = np.zeros(len(case.runs), bool)
    test[predicted.rows] = True
    found.lags[STIMULUS] = lagscan.stimulus_lag_scan(case.features, case.response, true, case.runs, case.train, test)
    made = np.mean([predicted.fmri[person] for person in predicted.fmri], 0)
    found.lags[NETWORK] = lagscan.lag_scan(made, true[predicted.rows], runs)
    for name, scan in found.lags.items():
        best = np.nan_to_num(scan.r, nan=-1).max(0)
        found.maps[f"lag/{name}"] = np.where(best > NOISE / np.sqrt(len(predicted.rows)), scan.peak, np.nan)


def _reconstructions(case: Case, predicted: Predictions, seed: int, found: Found) -> None:
    for name, all_made in predicted.made.items():
        shown = case.shown(predicted.rows)
        there = (shown >= 0) & case.there[name][shown]
        rows, made = shown[there], all_made[there]
        if not len(rows):
            found.missing.append(f"no reconstruction of {name}: no run of these TRs has it")
            continue
        runs = scores.numbered(rows, case.runs)
        block, true, mean = scores.time_blocks(runs, case.hrf_trs), case.stimulus(name, rows), case.mean[name]
        error, orders = reconstruction.errors(made, true, mean), reconstruction.shuffles(runs, case.hrf_trs)
        turned = [
            reconstruction.over_mean(reconstruction.errors(made[order], true, mean), block, seed).value
            for order in orders
        ]
        found.likeness[name] = {
            NETWORK: likeness(made, true),
            SHUFFLED: likeness(made[orders[len(orders) // 2]], true),
            MEAN: likeness(np.broadcast_to(mean, true.shape), true),
            CHANCE: by_chance(true),
        }
        models = {
            NETWORK: reconstruction.over_mean(error, block, seed),
            SHUFFLED: Estimate(float(np.mean(turned)), min(turned), max(turned)),
            MEAN: Estimate(1.0, 1.0, 1.0),
        }
        for roi, of_roi in predicted.lesioned.items():
            if name in of_roi:
                lesioned = np.stack([of_roi[name][there], error[:, 1]], 1)
                models[f"lesion of {roi}"] = reconstruction.over_mean(lesioned, block, seed)
        found.reconstruction[name] = models


def _cautions(case: Case, predicted: Predictions, found: Found) -> list[str]:
    """What speaks against believing it."""
    said: list[str] = []
    if predicted.about.get("split") == "validation":
        said.append("the weights may have been chosen by these TRs; the test split is for judging")
    for name, scan in found.lags.items():
        expected = case.must_peak(name)
        curve = scan.curves({EVERYWHERE: case.rois[EVERYWHERE]})[EVERYWHERE]
        if np.isnan(curve).all():
            continue
        peak = int(scan.shifts[np.nanargmax(curve)])
        if abs(peak - expected) > PEAK_AT_MOST:
            said.append(f"the lag scan of the {name} peaks at {peak:+d} TRs and must at {expected:+d}"
                        + (": is --preshift of preprocess right?" if name == STIMULUS else ""))  # fmt: skip
    network, bar = (found.r[name][EVERYWHERE].value for name in (NETWORK, RIDGE))
    if not network > bar:
        said.append(f"banded ridge is at least as good as the network (r {bar:.3f} and {network:.3f})")
    if not found.r[NETWORK][EVERYWHERE].low > 0:
        said.append("the network is not better than chance: its interval over time holds 0")
    return [*said, *_idle_lesions(found)]


def _idle_lesions(found: Found) -> Iterator[str]:
    """Lesions of regions where nothing is predicted, and which matter all the same: the network hides things there."""
    for modality, models in found.reconstruction.items():
        harm = {name.removeprefix("lesion of "): error.value - models[NETWORK].value
                for name, error in models.items() if name.startswith("lesion of ")}  # fmt: skip
        idle = [roi for roi in harm if found.volumes[NETWORK].get(f"significant/{roi}", 1.0) <= 0.05]
        roi = max(idle, key=harm.__getitem__, default=None)
        if roi is not None and harm[roi] > 0.01:
            yield (f"a lesion of {roi}, where no more voxels are predicted than by chance, raises the error of the "
                   f"{modality} by {harm[roi]:.2f}: other lesions say something only above that")  # fmt: skip


# -- parts -----------------------------------------------------------------------------------------------------------


def _measured(case: Case, predicted: Predictions) -> Iterator[tuple[str, np.ndarray]]:
    return ((person, case.fmri(person)[predicted.rows]) for person in predicted.fmri)


def _mean(z: np.ndarray) -> np.ndarray:
    """Over the people, [people, draws, rois], who have a value."""
    defined = ~np.isnan(z)
    count = defined.sum(0)
    return np.divide(np.where(defined, z, 0).sum(0), count, out=np.full(z.shape[1:], np.nan), where=count > 0)


def _of_defined(statistic: Callable[[np.ndarray], Any], x: np.ndarray) -> float:
    """Of what is no NaN; NaN without any."""
    defined = x[~np.isnan(x)]
    return float(statistic(defined)) if len(defined) else float("nan")


def _r2(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """float64 [V]: 1 - squared error / that of the training mean, which is 0 in stored volumes."""
    rows = scores.measured(predicted, true)
    square = (true[rows].astype(np.float64) ** 2).sum(0)
    error = ((predicted[rows].astype(np.float64) - true[rows]) ** 2).sum(0)
    return 1 - np.divide(error, square, out=np.full(len(square), np.nan), where=square > 0)
