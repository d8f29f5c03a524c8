"""An analysis in words: the table of the terminal, and what speaks against believing the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from accel_train.tracking.records import aligned, number

RISE = 1.1  # a curve of timescales that rises by more is not level

# -- a table ---------------------------------------------------------------------------------------------------------


def summary(found: dict[str, Any]) -> str:
    """The analysis, as in analysis.json, for a person to read."""
    dt, k, vamp, test = found["dt_ns"], found["states"], found["vamp"], found["chapman_kolmogorov"]
    frames = sum(t["frames"] for t in found["trajectories"])
    length = "" if dt is None else f" ({frames * dt:.4g} ns)"
    lag = "" if dt is None else f" ({found['lag_ns']:.4g} ns)"
    noise = ""
    if (floor := vamp.get("noise_floor_per_batch")) is not None:
        noise = f"; noise alone gives {number(floor)} in a batch of {vamp['rows_per_batch']:,} rows"
    lines = [
        f"trajectories {len(found['trajectories'])}, {frames:,} frames{length}, {found['predictions']['rows']:,} rows; "
        f"bands over {found['splits']} splits by {found['split_by']}",
        found["lag_choice"] + lag,
        "",
        *aligned([["", *(f"state {i}" for i in range(k))], *_state_rows(found)]),
        "",
        *aligned(_process_rows(found)),
        "",
        f"VAMP-1 {number(vamp['vamp1'])}, VAMP-2 {number(vamp['vamp2'])} of at most {k - 1}{noise}",
        f"mean largest probability {number(found['predictions']['mean_max_probability'])} (1: crisp, "
        f"{number(1 / k)}: none); {found['predictions']['switches']:,} switches of the likeliest state",
        f"Chapman-Kolmogorov, {test['steps']} steps: largest difference {number(test['max_difference'])}, "
        f"{test['share_within_band']:.0%} of entries within their bands",
    ]
    if known := found.get("agreement"):
        lines.append(
            f"known states: purity {number(known['purity'])}, {known['distinct']} of {len(known['states'])} have a "
            f"likeliest state of their own, largest error of a population {number(known['population_error'])}"
        )
    return "\n".join([*lines, *(f"warning: {text}" for text in found["warnings"])])


def _state_rows(found: dict[str, Any]) -> list[list[str]]:
    numbers, unit = found["predictions"], "ns" if found["dt_ns"] else "frames"
    rows = {
        "mean probability": numbers["mean"],
        "likeliest state": numbers["argmax_share"],
        "stationary": found["koopman"]["stationary"],
        "stationary, constrained": (found["constrained"] or {}).get("stationary", [None] * found["states"]),
        f"mean stay ({unit})": numbers[f"mean_stay_{unit}"],
    }
    rows |= {f"K from state {i}": row for i, row in enumerate(found["koopman"]["matrix"])}
    forms = {name: ".4g" if name.startswith("mean stay") else ".4f" for name in rows}
    return [[name, *(_text(value, forms[name]) for value in values)] for name, values in rows.items()]


def _process_rows(found: dict[str, Any]) -> list[list[str]]:
    unit, implied, states = "ns" if found["dt_ns"] else "frames", found["implied_timescales"], found["states"]
    here = implied["lags_frames"].index(found["lag_frames"])
    low, high = (implied[f"{name}_{unit}"][here] for name in ("low", "high"))
    others = [found["constrained"], found["argmax"]["likeliest"], found["argmax"]["reversible"]]
    known = implied[f"known_{unit}"]
    rows = [["process", "eigenvalue", f"timescale ({unit})", "95 % band", "constrained", "likeliest", "reversible"]]
    rows[0] += ["known"] if known else []
    for i in range(states - 1):
        times = [(each or {}).get(f"timescales_{unit}", []) for each in (found["koopman"], *others)]
        shown = [_text(each[i]) if i < len(each) else "-" for each in times]
        real, imaginary = (found["koopman"][name][i + 1] for name in ("eigenvalues", "eigenvalues_imaginary"))
        value = f"{real:.4f}" + (f"{imaginary:+.4f}i" if imaginary else "")
        shown += [_text(known[i]) if i < len(known) else "-"] if known else []
        rows.append([str(i + 1), value, shown[0], f"{_text(low[i])} to {_text(high[i])}", *shown[1:]])
    return rows


def _text(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)


# -- warnings --------------------------------------------------------------------------------------------------------


def cautions(
    koopman: np.ndarray, lag: int, implied: dict[str, np.ndarray], longest: int, connected: np.ndarray
) -> list[str]:
    """What speaks against believing the numbers.

    Args:
        koopman: the matrix [k, k] at ``lag`` frames.
        implied: ``timescales.implied_timescales``, among whose lags is ``lag``.
        longest: frames of the longest trajectory.
        connected: the states [m] that the likeliest state leaves and enters again.
    """
    found = []
    if (beyond := outside(koopman)).any():
        found.append(
            f"{beyond.sum()} entries of the Koopman matrix lie outside [0, 1] (from {koopman.min():.3f} to "
            f"{koopman.max():.3f}): states are soft; 'constrained' is the nearest transition matrix"
        )
    if len(connected) < len(koopman):
        others = sorted({*range(len(koopman))} - {*connected.tolist()})
        found.append(f"states {others} are not visited by the likeliest state, or not left and entered again")
    lags = implied["lags"].tolist()
    here = lags.index(lag)
    for i, time in enumerate(implied["timescales"][here]):
        if not np.isfinite(time):
            found.append(f"process {i + 1}: an eigenvalue of magnitude 1 or more, so no finite timescale")
        elif time > longest:
            found.append(f"process {i + 1}: timescale {time:,.0f} frames, but the longest trajectory has {longest:,}")
        elif time < lag:
            found.append(f"process {i + 1}: timescale {time:.3g} frames, shorter than the lag, so it is not resolved")
        if (rise := _rise(implied, lags, here, i)) is not None:
            a, b = rise
            grown = f"{implied['timescales'][a, i]:,.4g} to {implied['timescales'][b, i]:,.4g} frames"
            found.append(f"process {i + 1}: timescale still rises, {grown} from lag {lags[a]} to {lags[b]}")
    return found


def outside(matrix: np.ndarray) -> np.ndarray:
    """Which entries are no probabilities, but for rounding."""
    return (matrix < -1e-6) | (matrix > 1 + 1e-6)


def _rise(implied: dict[str, np.ndarray], lags: list[int], here: int, process: int) -> tuple[int, int] | None:
    """Two lags, the later at least twice the earlier, between which a timescale rises by more than bands can explain.

    The later one is the longest that is below its timescale, band and all: beyond it there is nothing but noise. The
    earlier one is at most the lag that is used.
    """
    times, low, high = (implied[name][:, process] for name in ("timescales", "low", "high"))
    b = max((i for i in range(len(lags)) if lags[i] < low[i]), default=0)
    a = max((i for i in range(here + 1) if 2 * lags[i] <= lags[b]), default=b)
    return (a, b) if times[b] > RISE * times[a] and low[b] > high[a] else None
