"""Slow dynamics from state probabilities: everything that ``accel-train gdynet analyze`` finds, for a notebook too.

    from accel_train.tasks.gdynet.analysis.analyse import analyse, figures, load, summary

    loaded = load("runs/ferro", states=["data/gdynet/test/true_states.npy"])
    found = analyse(loaded, lag=10)
    drawn = figures(found, loaded)

``found`` is what analysis.json holds, ``print(summary(found))`` is the table of the terminal, and ``drawn`` are
matplotlib figures by name, such as ``drawn["implied_timescales"]``. Arrays will do in place of files:
``koopman(moments([p], lag=10)[0])`` is the Koopman matrix of p [F, n, k], and ``spectrum`` gives its timescales.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from accel_train.arguments import Range
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.analysis.agreement import agreement
from accel_train.tasks.gdynet.analysis.figures import figures
from accel_train.tasks.gdynet.analysis.history import training
from accel_train.tasks.gdynet.analysis.koopman import (
    connected,
    constrained,
    koopman,
    likeliest,
    reversible,
    spectrum,
    vamp,
)
from accel_train.tasks.gdynet.analysis.moments import moments, statistics, transition_counts
from accel_train.tasks.gdynet.analysis.predictions import INDEX, Loaded, load
from accel_train.tasks.gdynet.analysis.summary import cautions, outside, summary
from accel_train.tasks.gdynet.analysis.timescales import (
    autocorrelations,
    chapman_kolmogorov,
    check_steps,
    implied_timescales,
)
from accel_train.tasks.gdynet.truth import noise_floor
from accel_train.tracking.records import is_number, plain

__all__ = [
    "agreement", "analyse", "autocorrelations", "chapman_kolmogorov", "connected", "constrained", "figures",
    "implied_timescales", "koopman", "likeliest", "load", "moments", "reversible", "spectrum", "statistics", "summary",
    "transition_counts", "vamp",
]  # fmt: skip

LAGS = 12  # of the timescale curves where none are given


def analyse(
    loaded: Loaded,
    lag: int | None = None,
    lags: Sequence[int] = (),
    steps: int = 5,
    splits: int = 5,
    split_by: str | None = None,
    dt_ns: float | None = None,
    known_timescales: Sequence[float] = (),
) -> dict[str, Any]:
    """Everything as JSON can hold it (not finite: null), times in frames and, where dt is known, in ns.

    Args:
        lag: frames, of the Koopman matrix (default: tau of the model).
        lags: frames, of the curves of timescales.
        steps: of the Chapman-Kolmogorov test, at least 3.
        splits: of the data, for error bands, at least 2.
        split_by: ``targets`` or ``time`` (default: targets where there are enough).
        dt_ns: ns per frame (default: as predictions.json says).
        known_timescales: frames, of a system whose truth is known.

    Raises:
        UserError: an argument that does not fit the predictions. DataError: predictions.json makes no sense.
    """
    check_steps(steps)
    Range(2).check("--splits", splits)
    dt = _dt(loaded.about.get("dt_ns") if dt_ns is None else dt_ns)
    lag, note = _choose_lag(loaded, lag, steps)
    curve = sorted({*(lags or _default_lags(loaded.longest, lag)), lag})
    if not 1 <= curve[0] <= curve[-1] < loaded.longest:
        raise UserError(f"--lags: must be from 1 to {loaded.longest - 1} frames, the longest trajectory less one")
    predictions, k = loaded.predictions, loaded.predictions[0].shape[2]
    targets = min(p.shape[1] for p in predictions)
    split_by = split_by or ("targets" if targets >= splits else "time")

    everywhere = sorted({*curve, *(m * lag for m in range(1, steps))})
    table = {each: moments(predictions, each, splits, split_by) for each in everywhere}
    on_curve = {each: table[each] for each in curve}
    whole = table[lag].sum(0)
    numbers = statistics(predictions)
    counts = transition_counts(predictions, lag)
    states = connected(counts)
    visited = counts[np.ix_(states, states)]
    matrix, implied, correlation = koopman(whole), implied_timescales(on_curve), autocorrelations(on_curve)
    unsolved = []

    def described(estimate: Callable[[np.ndarray], np.ndarray], of: np.ndarray) -> dict[str, Any] | None:
        try:
            return _described(estimate(of), lag, dt)
        except UserError as error:  # no convergence; everything else is still worth having
            unsolved.append(str(error))
            return None

    found: dict[str, Any] = {
        "trajectories": [
            {"name": name, "file": str(path), "frames": len(p), "targets": p.shape[1]}
            for name, path, p in zip(loaded.names, loaded.files, predictions, strict=True)
        ],
        "split": loaded.about.get("split"),
        "states": k,
        "dt_ns": dt,
        **_time("tau", loaded.about.get("tau"), dt),
        **_time("lag", lag, dt),
        "lag_choice": note,
        "splits": splits,
        "split_by": split_by,
        "predictions": {
            "rows": sum(p.shape[0] * p.shape[1] for p in predictions),
            "mean": numbers.mean,
            "std": numbers.std,
            "min": numbers.smallest,
            "max": numbers.largest,
            "argmax_share": numbers.argmax_share,
            "mean_max_probability": numbers.crispness,
            **_switching(transition_counts(predictions, 1), dt),
        },
        "koopman": _described(matrix, lag, dt) | {"entries_outside_0_1": int(outside(matrix).sum())},
        "constrained": described(constrained, whole),
        "argmax": {
            "counts": counts,
            "connected_states": states,
            "likeliest": described(likeliest, visited),
            "reversible": described(reversible, visited),
        },
        "implied_timescales": {
            **_time("lags", implied["lags"], dt),
            **_time("timescales", implied["timescales"], dt),
            **_time("low", implied["low"], dt),
            **_time("high", implied["high"], dt),
            **_time("known", np.asarray(known_timescales, float), dt),
            "splits_used": implied["splits_used"],
        },
        "chapman_kolmogorov": {
            "steps": steps,
            **_time("lags", np.arange(steps) * lag, dt),
            **chapman_kolmogorov(table, lag, steps),
        },
        "autocorrelation": {**_time("lags", correlation["lags"], dt), "correlation": correlation["correlation"]},
        "vamp": {"pairs": int(whole[0, 0]), "ceiling": k - 1, **vamp(whole)},
        "training": training(loaded.history),
    }
    if loaded.pairs_per_batch:
        rows = loaded.pairs_per_batch * targets
        found["vamp"] |= {"rows_per_batch": rows, "noise_floor_per_batch": noise_floor(k, rows)}
    if loaded.states is not None:
        found["agreement"] = agreement(predictions, loaded.states)
    warnings = [*cautions(matrix, lag, implied, loaded.longest, states), *unsolved]
    if loaded.about.get("dt_ns") not in (None, dt):
        warnings.append(f"dt_ns is {dt} as given, but {loaded.about['dt_ns']} in {INDEX}")
    return plain(_lists(found | {"warnings": warnings}))


def at_one_lag(around: np.ndarray, lag: int, dt_ns: float | None) -> dict[str, Any]:
    """What the sums of an evaluation tell, for the ``basic`` figures.

    Args:
        around: ``vamp.moments`` of x at t and y at t + lag (frames), which are around 1/k, float64 [2k+1, 2k+1].
        dt_ns: ns per frame.
    """
    k = len(around) // 2
    back = np.eye(len(around))
    back[0, 1:] = 1 / k
    whole = back.T @ around @ back
    return plain(
        _lists(
            {
                "states": k,
                "dt_ns": dt_ns,
                **_time("lag", lag, dt_ns),
                "predictions": {"mean": whole[0, 1 : k + 1] / whole[0, 0]},
                "koopman": _described(koopman(whole), lag, dt_ns),
                "constrained": None,
            }
        )
    )


# -- choices ---------------------------------------------------------------------------------------------------------


def _dt(value: Any) -> float | None:
    if value is not None and not (is_number(value) and 0 < value < math.inf):
        raise UserError(f"dt_ns: {value!r} is no time per frame in ns; give it with --dt_ns")
    return value


def _choose_lag(loaded: Loaded, lag: int | None, steps: int) -> tuple[int, str]:
    longest, tau = loaded.longest, loaded.about.get("tau")
    if tau is not None and not (isinstance(tau, int) and tau >= 1):
        raise DataError(f"{INDEX}: tau {tau!r} is no number of frames")
    most = (longest - 1) // (steps - 1)
    if most < 1:
        raise UserError(f"--steps {steps}: the longest trajectory has {longest} frames, fewer than the test needs")
    if lag is not None:
        if not 1 <= lag <= most:
            within = f"for (steps - 1) x lag to be within {longest} frames"
            raise UserError(f"--lag {lag}: must be from 1 to {most}, {within}")
        return lag, f"lag {lag} frames, as given"
    if tau is None:
        return 1, "lag 1 frame, as no tau is known; give one with --lag, from where the timescales are level"
    half = max(longest // 2 // (steps - 1), 1)
    if tau > half:
        return half, f"lag {half} frames, so that the test stays within half a trajectory; tau is {tau}"
    return tau, f"lag {tau} frames, the tau of the model; another with --lag"


def _default_lags(longest: int, lag: int) -> list[int]:
    """Evenly on a logarithmic scale, to a quarter of a trajectory at most."""
    return np.unique(np.geomspace(1, max(min(longest // 4, 100 * lag), 1), LAGS).round().astype(int)).tolist()


# -- for JSON --------------------------------------------------------------------------------------------------------


def _time(name: str, frames: Any, dt: float | None) -> dict[str, Any]:
    if frames is None:
        return {}
    return {f"{name}_frames": frames} | ({} if dt is None else {f"{name}_ns": np.asarray(frames) * dt})


def _described(matrix: np.ndarray, lag: int, dt: float | None) -> dict[str, Any]:
    found = spectrum(matrix, lag)
    return {
        "matrix": matrix,
        "eigenvalues": np.real(found.eigenvalues),
        "eigenvalues_imaginary": np.imag(found.eigenvalues),
        "stationary": found.stationary,
        "left_eigenvectors": found.vectors,
        **_time("timescales", found.timescales, dt),
    }


def _switching(counts: np.ndarray, dt: float | None) -> dict[str, Any]:
    """Changes of the likeliest state from one frame to the next, and the mean stay in each; NaN if never left."""
    visits = counts.sum(1)
    left = visits - np.diag(counts)
    stay = np.divide(visits, left, out=np.full(len(counts), np.nan), where=left > 0)
    return {"switches": int(left.sum()), **_time("mean_stay", stay, dt)}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
