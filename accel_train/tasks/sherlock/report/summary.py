"""A report in words: the table of the terminal."""

from __future__ import annotations

import math

import numpy as np

from accel_train.tasks.sherlock.report.case import (
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
)
from accel_train.tasks.sherlock.report.judge import NOISE, SEGMENTS, Found
from accel_train.tasks.sherlock.scores import Estimate
from accel_train.tracking.records import aligned

COLUMNS = 12  # regions in a table; report.json has all


def summary(case: Case, predicted: Predictions, found: Found) -> str:
    """For a person to read; under a number its 95 % interval."""
    people, voxels = list(predicted.fmri), len(case.rois[EVERYWHERE])
    of = f"{len(people)} people" if len(people) > 1 else people[0]
    return "\n".join([
        f"{len(predicted.rows):,} TRs of the {predicted.about.get('split', '')} split, {of}, {voxels:,} voxels",
        f"r over time, the mean over voxels and people; below it the 95 % interval over blocks of {case.hrf_trs} TRs",
        "(shuffled stimulus: the range)",
        "",
        *_correlations(case, found),
        "",
        *_volumes(case, found),
        *_reconstructions(found),
        "",
        *_lags(case, predicted, found),
        *_people(case, found),
        *(f"missing: {text}" for text in found.missing),
        *(f"warning: {text}" for text in found.warnings),
    ])  # fmt: skip


def _correlations(case: Case, found: Found) -> list[str]:
    rois = [EVERYWHERE, *case.regions(COLUMNS)]
    lines = [["", *rois]]
    for name, of_roi in found.r.items():
        lines += _with_intervals(name, [of_roi[roi] for roi in rois])
    lines.append([MEAN, *("-" for _ in rois)])  # a constant has no correlation
    if found.ceiling:
        lines.append(["ceiling", *(_number(found.ceiling[f"ceiling/{roi}"]) for roi in rois)])
    lines += [["", *("" for _ in rois)]]
    lines += _with_intervals("network - ridge", [found.better[RIDGE][roi] for roi in rois])
    return aligned(lines)


def _volumes(case: Case, found: Found) -> list[str]:
    heads = ["median r", "r2", "r/ceiling", "significant"]
    heads += [f"{what}, {length} TR" for length in SEGMENTS for what in ("2-way", "top-1")]
    lines = [["", *heads]]
    for name, numbers in found.volumes.items():
        row = [_number(numbers.get(key)) for key in ("median", "r2", f"of_ceiling/{EVERYWHERE}")]
        row.append(_percent(numbers.get(f"significant/{EVERYWHERE}")))
        for length in SEGMENTS:
            known = found.identified.get(name, {}).get(length)
            row += [_percent(known.two_way), _percent(known.top1)] if known else ["-", "-"]
        lines.append([name, *row])
    by_chance = [_percent(each.chance) for each in found.identified[NETWORK].values()]
    if len(by_chance) == len(SEGMENTS):
        lines.append(["chance", *[""] * 4, *(text for each in by_chance for text in ("50 %", each))])
    # no p is below 1 / (1 + shifts), so a few voxels alone cannot be told from as many that are best by chance
    least = math.ceil(len(case.rois[EVERYWHERE]) / (1 + found.shifts) / 0.05)
    few = f"; fewer than {least:,} cannot be found" if found.shifts and least > 1 else ""
    text = [
        "over all voxels; r/ceiling where the ceiling is above 0.1;",
        f"significant: share of the voxels, at most 5 % of them false, against {found.shifts} circular shifts" + few,
        *aligned(lines),
    ]
    significant = {roi: found.volumes[NETWORK].get(f"significant/{roi}") for roi in case.regions(COLUMNS)}
    shares = {roi: share for roi, share in significant.items() if share is not None}
    if shares:
        text.append("significant by region: " + ", ".join(f"{roi} {_percent(value)}" for roi, value in shares.items()))
    return text


def _reconstructions(found: Found) -> list[str]:
    if not found.reconstruction:
        return []
    names = list(found.reconstruction)
    models = dict.fromkeys(model for rows in found.reconstruction.values() for model in rows)
    nothing = Estimate(math.nan, math.nan, math.nan)
    lines = [["", *names]]
    for model in models:
        lines += _with_intervals(model, [found.reconstruction[name].get(model, nothing) for name in names])
    heads = [(name, key) for name, models in found.likeness.items() for key in models[NETWORK]]
    like = [["", *(f"{name} {key}" for name, key in heads)]]
    for model in (NETWORK, SHUFFLED, MEAN, CHANCE):
        of_model = {(name, key): x for name, models in found.likeness.items() for key, x in models[model].items()}
        like.append([model, *(_number(of_model.get(head)) for head in heads)])
    return [
        "",
        "error of the reconstruction over that of the training mean: below 1 is better",
        *aligned(lines),
        "",
        "likeness of reconstructions: more is better; PSNR in dB, top-k: the own one is among the k nearest",
        *aligned(like),
    ]


def _lags(case: Case, predicted: Predictions, found: Found) -> list[str]:
    lines, least = [], NOISE / math.sqrt(len(predicted.rows)) / 2  # half that of a voxel, since a region is a mean
    shown = {EVERYWHERE: case.rois[EVERYWHERE], **case.regions(COLUMNS)}
    for name, scan in found.lags.items():
        rois = {roi: shown[roi] for roi, curve in scan.curves(shown).items() if np.nan_to_num(curve).max() > least}
        peaks = ", ".join(f"{roi} {peak:+d}" for roi, peak in scan.peaks(rois).items())
        must = f"{case.must_peak(name):+d}" + (", as declared" if name == STIMULUS else "")
        lines.append(f"lag scan of the {name} peaks at (TRs; must be {must}): {peaks or 'nowhere'}")
    return lines


def _people(case: Case, found: Found) -> list[str]:
    if len(found.people) < 2:
        return []
    models = (NETWORK, RIDGE, OTHERS)
    lines = [["", *models]]
    for person, r in found.people.items():
        unseen = " (unseen)" if person in case.held_out else ""
        numbers = [_number(r[name][EVERYWHERE]) if name in r else "-" for name in models]
        lines.append([f"{person}{unseen}", *numbers])
    over = found.over_people[EVERYWHERE]
    return [
        "",
        f"r of each person; of the network with other people (95 %) {_interval(over)}",
        "(an unseen one has the ridge of the mean of the rest; what the others' brains do, nobody knows of a new film)",
        *aligned(lines),
    ]


# -- parts -----------------------------------------------------------------------------------------------------------


def _with_intervals(name: str, estimates: list[Estimate]) -> list[list[str]]:
    lines = [[name, *(_number(each.value) for each in estimates)]]
    below = [_interval(each) for each in estimates]
    return [*lines, ["", *below]] if any(below) else lines


def _interval(each: Estimate) -> str:
    known = not math.isnan(each.low) and each.low < each.high
    return f"{each.low:.2f}..{each.high:.2f}" if known else ""


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.3g} %"
