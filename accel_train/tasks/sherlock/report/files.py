"""A report as files: report.json, maps.npz, and figures of what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from accel_train.run.figures import save_figures
from accel_train.run.folder import write_json
from accel_train.run.reports import Reports, warn
from accel_train.system.secrets import scrub_tree
from accel_train.tasks.sherlock import figures
from accel_train.tasks.sherlock.ceiling import WORTH
from accel_train.tasks.sherlock.lagscan import LagScan
from accel_train.tasks.sherlock.report.case import EVERYWHERE, NETWORK, RIDGE, SHUFFLED, Case, Predictions
from accel_train.tasks.sherlock.report.judge import Found
from accel_train.tasks.sherlock.scores import Estimate
from accel_train.tracking.records import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REGIONS = 7  # in a figure, as many as there are colours


def write(out: Path, case: Case, predicted: Predictions, found: Found, about: Mapping[str, Any]) -> list[str]:
    """report.json, maps.npz (float32 [V] by name) and figures into a folder; returns the names of figures. What fails
    of these is a warning."""
    write_json(out / "report.json", scrub_tree(plain({**about, **as_json(case, found)})))
    maps: Any = {name.replace("/", " "): values.astype(np.float32) for name, values in found.maps.items()}
    np.savez_compressed(out / "maps.npz", **maps)
    with Reports(out)("figures", warn):
        return save_figures(out, lambda: drawn(case, predicted, found))
    return []


def as_json(case: Case, found: Found) -> dict[str, Any]:
    """Plain values; an estimate as its value and the ends of its 95 % interval, of a shuffled stimulus those of the
    range over the shuffles."""
    return {
        "r": _tables(found.r),
        "network_better_by": _tables(found.better),
        "reconstruction_error_over_mean": _tables(found.reconstruction),
        "likeness_of_reconstructions": found.likeness,
        "volumes": found.volumes,
        "people": found.people,
        "unseen_people": case.held_out,
        "r_over_people": _plain(found.over_people),
        "ceiling": found.ceiling,
        "circular_shifts": found.shifts,
        "identification": {
            name: {f"{length}_trs": vars(each) for length, each in rows.items()}
            for name, rows in found.identified.items()
        },
        "lag_scans": {name: _scan(scan, case, name) for name, scan in found.lags.items()},
        "ridge_weights_of_bands": found.ridge_bands,
        "missing": found.missing,
        "warnings": found.warnings,
    }


def _scan(scan: LagScan, case: Case, name: str) -> dict[str, Any]:
    expected, found = case.must_peak(name), scan.peaks(case.rois)
    return {"shifts": scan.shifts.tolist(), "must_peak_at": expected, "peaks_at": found, "r": scan.curves(case.rois)}


def _tables(of: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    return {name: _plain(rows) for name, rows in of.items()}


def _plain(rows: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: each._asdict() for name, each in rows.items()}


def drawn(case: Case, predicted: Predictions, found: Found) -> dict[str, Figure]:
    """By name; what there is no ground for is left out."""
    rois = case.regions(REGIONS) or {EVERYWHERE: case.rois[EVERYWHERE]}
    ceilings = {roi: found.ceiling[f"ceiling/{roi}"] for roi in rois if f"ceiling/{roi}" in found.ceiling}
    r = {name: {roi: of_roi[roi] for roi in rois} for name, of_roi in found.r.items()}
    r["shuffled (range)"] = r.pop(SHUFFLED)
    scans = {name: (scan, case.must_peak(name)) for name, scan in found.lags.items()}
    label = "r with the mean over people" if len(predicted.fmri) > 1 else "r over time"
    made = {"models": figures.models_figure(r, ceilings), "lags": figures.lag_figure(scans, rois, label)}
    if "ceiling" in found.maps:
        made["ceiling"] = figures.ceiling_figure(found.maps[f"r/{NETWORK}"], found.maps["ceiling"], rois, WORTH)
    if case.places is not None:
        maps = {name: found.maps[f"r/{name}"] for name in (NETWORK, RIDGE)}
        top = max(float(np.nanmax(values, initial=0.1)) for values in maps.values())
        made["r_slices"] = figures.slices_figure(maps, case.places, "r over time", (0.0, top), "magma")
        lags = {name: (found.maps[f"lag/{name}"], case.must_peak(name)) for name in found.lags}
        made["lag_slices"] = figures.lag_slices_figure(lags, case.places)
    return made | {f"made_{name}": figure for name, figure in _made(case, predicted)}


def _made(case: Case, predicted: Predictions) -> list[tuple[str, Figure]]:
    found = []
    shown = case.shown(predicted.rows)
    rows = shown[shown >= 0]
    for name, all_made in predicted.made.items():
        true, made = case.stimulus(name, rows), all_made[shown >= 0]
        if true.ndim == 5:
            at = np.linspace(0, len(true) - 1, figures.MOMENTS).round().astype(int)
            names = [_moment(case, int(rows[t])) for t in at]
            found.append((name, figures.frames_figure(true[at, 0], made[at, 0], names)))
        elif true.dtype.kind == "f":
            flat = [each.mean(1) if each.ndim == 3 else each for each in (true, made)]
            found.append((name, figures.numbers_figure(flat[0], flat[1], name, case.tr_s)))
    return found


def _moment(case: Case, row: int) -> str:
    run = case.runs[row]
    return f"run {1 + run}, {(row - np.flatnonzero(case.runs == run)[0]) * case.tr_s:.0f} s"
