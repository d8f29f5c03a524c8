"""``accel-train gdynet analyze``: populations, Koopman matrix, timescales and their tests from predictions on disk."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet import analysis
from accel_train.tracking.records import is_number, number, plain
from accel_train.values import in_range, loads

INDEX = "predictions.json"
"""Beside the predictions: ``{"split", "tau", "dt_ns", "trajectories": [{"name", "file", "start", "frames"}]}``, where
``file`` may stand once for all trajectories, which are then one after another in it. All of it may be missing: a file
alone is one trajectory."""

LAGS = 12  # of the timescale curves where none are given
ROUNDING = 1e-3  # that the probabilities of a row may miss one by (half precision)
RISE = 1.1  # a curve of timescales that rises by more is not level


@dataclass(frozen=True)
class Loaded:
    """Predictions [F, n, k] of trajectories, mapped from disk, and what is known of them.

    Args:
        about: dt_ns (ns per frame), tau (frames) and split, where they are known.
        history: metrics.json of the run, lists by name.
        pairs_per_batch: pairs of frames in a training batch.
    """

    names: list[str]
    files: list[Path]
    predictions: list[np.ndarray]
    about: dict[str, Any]
    history: dict[str, list[Any]]
    pairs_per_batch: int | None

    @property
    def longest(self) -> int:
        return max(map(len, self.predictions))


def main(argv: list[str]) -> int:
    """Run the command: a table on the terminal, analysis.json and figures in a folder."""
    options = _parser().parse_args(argv)
    loaded = load(options.what)
    coords = None if options.coords is None else load_coords(options.coords, loaded)
    found, per_frame = analyse(
        loaded, options.lag, options.lags, options.steps, options.splits, options.split_by, options.dt_ns
    )
    print(summary(found))
    map_of = None if coords is None else (*coords, loaded.predictions[0])
    write(options.out or _beside(options.what[0]), found, per_frame, loaded.history, map_of)
    return 0


def _parser() -> argparse.ArgumentParser:
    class Parser(argparse.ArgumentParser):
        def error(self, message: str):  # noqa: ANN202
            raise UserError(f"analyze: {message}")

    parser = Parser(prog="accel-train gdynet analyze", description=__doc__)
    parser.add_argument("what", type=Path, nargs="+", help="a run folder with predictions, or predictions as .npy")
    parser.add_argument("--lag", type=int, help="frames, of the Koopman matrix (default: tau of the model)")
    parser.add_argument("--lags", type=int, nargs="+", help="frames, of the curves of timescales")
    parser.add_argument("--steps", type=int, default=5, help="of the Chapman-Kolmogorov test, at least 3 (default: 5)")
    parser.add_argument("--splits", type=int, default=5, help="of the data, for error bands (default: 5)")
    parser.add_argument("--split_by", choices=analysis.SPLIT_BY, help="default: targets where there are enough")
    parser.add_argument("--dt_ns", type=float, help="ns per frame (default: as predictions.json says)")
    parser.add_argument("--coords", type=Path, help="traj_coords.npy of the one trajectory, for maps in space")
    parser.add_argument("--out", type=Path, help="folder for the results (default: analysis beside the predictions)")
    return parser


# -- reading ---------------------------------------------------------------------------------------------------------


def load(what: Sequence[Path]) -> Loaded:
    """A run folder, or a folder or files of predictions. Raises DataError with file, frame and target."""
    folders = [path for path in what if path.is_dir()]
    if folders and len(what) > 1:
        raise UserError(f"analyze: {folders[0]} is a folder; give one folder alone, or files")
    files = _files(what[0]) if folders else list(what)
    names, of_file, predictions = [], [], []
    for path in files:
        p, index = _open(path), _json(path.parent / INDEX)
        parts = [t for t in index.get("trajectories") or [] if t.get("file", index.get("file")) == path.name]
        for part in parts or [{}]:
            start, frames = part.get("start", 0), part.get("frames", len(p))
            whole = isinstance(start, int) and isinstance(frames, int)
            if not (whole and 0 <= start < start + frames <= len(p)):
                raise DataError(f"{path}: has {len(p)} frames, {INDEX} beside it says {frames} from {start} on")
            names.append(str(part.get("name", path.stem)))
            of_file.append(path)
            predictions.append(p[start : start + frames])
    states = {path: p.shape[2] for path, p in zip(of_file, predictions, strict=True)}
    if len(set(states.values())) > 1:
        raise DataError("different models: " + ", ".join(f"{path} has {k} states" for path, k in states.items()))
    about = _common([_json(folder / INDEX) for folder in {path.parent: None for path in files}])
    return Loaded(names, of_file, predictions, about, _json(what[0] / "metrics.json"), _batch(what[0]))


def _files(folder: Path) -> list[Path]:
    inside = (folder / "evaluation" / "predictions", folder / "predictions")
    found = next((path for path in inside if path.is_dir()), folder)
    index = _json(found / INDEX)
    listed = dict.fromkeys(str(t.get("file", index.get("file"))) for t in index.get("trajectories") or [])
    for name in listed:
        if Path(name).name != name:
            raise DataError(f"{found / INDEX}: file {name!r} must be the name of a file beside it")
    files = [found / name for name in listed] or sorted(found.glob("*.npy"))
    if not files:
        raise UserError(f"analyze: no predictions (.npy) in {found}; accel-train evaluate makes those of a run")
    return files


def _common(indices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for key in ("dt_ns", "tau", "split"):
        values = [index.get(key) for index in indices]
        if any(value != values[0] for value in values):
            raise DataError(
                f"analyze: {key} differs, {' and '.join(map(str, values))}; analyse these predictions alone"
            )
        found[key] = values[0]
    return found


def _json(path: Path) -> dict[str, Any]:
    """Nothing where there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be an object")
    return found


def _batch(run: Path) -> int | None:
    """Pairs of frames in a training batch, by the config of a run."""
    path = run / "config.yaml"
    return loads(path.read_text()).get("global_batch_size") if path.is_file() else None


def _map(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array as np.save writes it ({' '.join(str(error).split())})") from None


def _open(path: Path) -> np.ndarray:
    p = _map(path)
    if p.ndim != 3 or p.dtype.kind != "f" or p.shape[2] < 2 or 0 in p.shape:
        what = f"{p.dtype} {p.shape}"
        raise DataError(f"{path}: holds {what}, not probabilities: floats (frames, targets, at least 2 states)")
    step = max(analysis.ROWS // p.shape[1], 1)
    for t in range(0, len(p), step):
        rows = p[t : t + step]
        bad = ~(np.abs(rows.sum(2, dtype=np.float64) - 1) <= ROUNDING) | (rows.min(2) < -ROUNDING)  # NaN is bad
        if bad.any():
            frame, target = np.argwhere(bad)[0]
            shown = np.array2string(rows[frame, target], precision=4, separator=", ", threshold=20)
            raise DataError(f"{path}: frame {t + frame}, target {target}: {shown} are not probabilities that sum to 1")
    return p


def load_coords(path: Path, loaded: Loaded) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates [F, N, 3] in Angstrom and the targets among the atoms [n], by ``target_index.npy`` beside the file.

    Without that file every atom must be a target.
    """
    coords, p = _map(path), loaded.predictions[0]
    if len(loaded.predictions) > 1:
        raise UserError(f"--coords: there are {len(loaded.predictions)} trajectories; analyse one of them")
    if coords.ndim != 3 or coords.shape[2] != 3 or len(coords) != len(p):
        raise DataError(f"{path}: has shape {coords.shape}, not ({len(p)} frames, atoms, 3)")
    if (targets := path.with_name("target_index.npy")).is_file():
        chosen = _map(targets)
        if len(chosen) != p.shape[1] or chosen.min() < 0 or chosen.max() >= coords.shape[1]:
            raise DataError(f"{targets}: does not fit {p.shape[1]} targets among {coords.shape[1]} atoms")
        return coords, chosen
    if coords.shape[1] != p.shape[1]:
        raise DataError(f"{path}: {coords.shape[1]} atoms for {p.shape[1]} targets; put target_index.npy beside it")
    return coords, np.arange(p.shape[1])


# -- analysing -------------------------------------------------------------------------------------------------------


def analyse(
    loaded: Loaded,
    lag: int | None = None,
    lags: Sequence[int] | None = None,
    steps: int = 5,
    splits: int = 5,
    split_by: str | None = None,
    dt_ns: float | None = None,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Everything as JSON can hold it (not finite: null), times in frames and, where dt is known, in ns; and the
    populations [F, k] of each trajectory over its frames. Arguments as on the command line."""
    analysis.check_steps(steps)
    in_range("--splits", splits, 2)
    dt = _dt(loaded.about.get("dt_ns") if dt_ns is None else dt_ns)
    lag, note = _choose_lag(loaded, lag, steps)
    curve = sorted({*(lags or _default_lags(loaded.longest, lag)), lag})
    if not 1 <= curve[0] <= curve[-1] < loaded.longest:
        raise UserError(f"--lags: must be from 1 to {loaded.longest - 1} frames, the longest trajectory less one")
    predictions, k = loaded.predictions, loaded.predictions[0].shape[2]
    targets = min(p.shape[1] for p in predictions)
    split_by = split_by or ("targets" if targets >= splits else "time")

    table = {
        each: analysis.moments(predictions, each, splits, split_by)
        for each in sorted({*curve, *(m * lag for m in range(1, steps))})
    }
    on_curve = {each: table[each] for each in curve}
    whole = table[lag].sum(0)
    numbers = analysis.statistics(predictions)
    counts, next_counts = analysis.transition_counts(predictions, lag), analysis.transition_counts(predictions, 1)
    states = analysis.connected(counts)
    visited = counts[np.ix_(states, states)]
    implied, test = analysis.implied_timescales(on_curve), analysis.chapman_kolmogorov(table, lag, steps)
    correlation = analysis.autocorrelations(on_curve)
    operator = analysis.operator(whole)
    warnings = cautions(operator, lag, implied, loaded.longest, states)

    def described(estimate: Callable[[np.ndarray], np.ndarray], of: np.ndarray) -> dict[str, Any] | None:
        try:
            return _described(estimate(of), lag, dt)
        except UserError as error:  # no convergence; everything else is still worth having
            warnings.append(str(error))
            return None

    found = {
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
            **_switching(next_counts, dt),
        },
        "koopman": _described(operator, lag, dt) | {"entries_outside_0_1": int(_outside(operator).sum())},
        "constrained": described(analysis.constrained, whole),
        "argmax": {
            "counts": counts,
            "connected_states": states,
            "likeliest": described(analysis.likeliest, visited),
            "reversible": described(analysis.reversible, visited),
        },
        "implied_timescales": {
            **_time("lags", implied["lags"], dt),
            **_time("timescales", implied["timescales"], dt),
            **_time("low", implied["low"], dt),
            **_time("high", implied["high"], dt),
            "splits_used": implied["splits_used"],
        },
        "chapman_kolmogorov": {"steps": steps, **_time("lags", np.arange(steps) * lag, dt), **test},
        "autocorrelation": {**_time("lags", correlation["lags"], dt), "correlation": correlation["correlation"]},
        "vamp": {"pairs": int(whole[0, 0]), "ceiling": k - 1, **analysis.vamp(whole)},
        "training": training(loaded.history),
    }
    if loaded.pairs_per_batch:
        rows = loaded.pairs_per_batch * targets
        found["vamp"] |= {"rows_per_batch": rows, "noise_floor_per_batch": analysis.noise_floor(k, rows)}
    if loaded.about.get("dt_ns") not in (None, dt):
        warnings.append(f"dt_ns is {dt} as given, but {loaded.about['dt_ns']} in {INDEX}")
    return plain(_lists(found | {"warnings": warnings})), numbers.per_frame


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
            raise UserError(
                f"--lag {lag}: must be from 1 to {most}, for (steps - 1) x lag to be within {longest} frames"
            )
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


def _time(name: str, frames: Any, dt: float | None) -> dict[str, Any]:
    if frames is None:
        return {}
    return {f"{name}_frames": frames} | ({} if dt is None else {f"{name}_ns": np.asarray(frames) * dt})


def _outside(matrix: np.ndarray) -> np.ndarray:
    return (matrix < -1e-6) | (matrix > 1 + 1e-6)


def _described(matrix: np.ndarray, lag: int, dt: float | None) -> dict[str, Any]:
    found = analysis.spectrum(matrix, lag)
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


def training(history: dict[str, list[Any]]) -> dict[str, Any]:
    """Epochs, and final and best loss, vamp1 and vamp2 by name; of the loss by phase, as phases are not comparable."""
    found: dict[str, Any] = {}
    for prefix in ("", "eval_"):
        steps, phases = history.get(f"{prefix}step") or [], history.get(f"{prefix}phase") or []
        for name in ("loss", "vamp1", "vamp2"):
            values = history.get(prefix + name) or []
            parts = dict.fromkeys(map(str, phases)) if name == "loss" else [""]
            for part in parts:
                rows = [i for i, v in enumerate(values) if is_number(v) and part in ("", str(phases[i]))]
                if rows:
                    best = (min if name == "loss" else max)(rows, key=lambda i, values=values: values[i])
                    found[prefix + name + (f"/{part}" if part else "")] = {
                        "final": values[rows[-1]], "best": values[best], "best_step": steps[best],
                    }  # fmt: skip
    last = {name: max(filter(is_number, history.get(name) or []), default=None) for name in ("epoch", "step")}
    return {"epochs": last["epoch"], "steps": last["step"], "metrics": found} if found else {}


def cautions(
    operator: np.ndarray, lag: int, implied: dict[str, np.ndarray], longest: int, connected: np.ndarray
) -> list[str]:
    """What speaks against believing the numbers, in words."""
    found = []
    if (outside := _outside(operator)).any():
        found.append(
            f"{outside.sum()} entries of the Koopman matrix lie outside [0, 1] (from {operator.min():.3f} to "
            f"{operator.max():.3f}): states are soft; 'constrained' is the nearest transition matrix"
        )
    if len(connected) < len(operator):
        others = sorted({*range(len(operator))} - {*connected.tolist()})
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


def _rise(implied: dict[str, np.ndarray], lags: list[int], here: int, process: int) -> tuple[int, int] | None:
    """Two lags, the later at least twice the earlier, between which a timescale rises by more than bands can explain.

    The later one is the longest that is below its timescale, band and all: beyond it there is nothing but noise. The
    earlier one is at most the lag that is used.
    """
    times, low, high = (implied[name][:, process] for name in ("timescales", "low", "high"))
    b = max((i for i in range(len(lags)) if lags[i] < low[i]), default=0)
    a = max((i for i in range(here + 1) if 2 * lags[i] <= lags[b]), default=b)
    return (a, b) if times[b] > RISE * times[a] and low[b] > high[a] else None


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(each) for key, each in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# -- telling ---------------------------------------------------------------------------------------------------------


def summary(found: dict[str, Any]) -> str:
    """The analysis for a person to read."""
    dt, k, vamp, test = found["dt_ns"], found["states"], found["vamp"], found["chapman_kolmogorov"]
    frames = sum(t["frames"] for t in found["trajectories"])
    shown = "" if dt is None else f" ({frames * dt:.4g} ns)"
    floor = vamp.get("noise_floor_per_batch")
    lines = [
        f"trajectories {len(found['trajectories'])}, {frames:,} frames{shown}, {found['predictions']['rows']:,} rows; "
        f"bands over {found['splits']} splits by {found['split_by']}",
        found["lag_choice"] + ("" if dt is None else f" ({found['lag_ns']:.4g} ns)"),
        "",
        *_aligned([["", *(f"state {i}" for i in range(k))], *_state_rows(found)]),
        "",
        *_aligned(_process_rows(found)),
        "",
        f"VAMP-1 {number(vamp['vamp1'])}, VAMP-2 {number(vamp['vamp2'])} of at most {k - 1}"
        + (
            ""
            if floor is None
            else f"; noise alone gives {number(floor)} in a batch of {vamp['rows_per_batch']:,} rows"
        ),
        f"mean largest probability {number(found['predictions']['mean_max_probability'])} (1: crisp, "
        f"{number(1 / k)}: none); {found['predictions']['switches']:,} switches of the likeliest state",
        f"Chapman-Kolmogorov, {test['steps']} steps: largest difference {number(test['max_difference'])}, "
        f"{test['share_within_band']:.0%} of entries within their bands",
        *(f"warning: {text}" for text in found["warnings"]),
    ]
    return "\n".join(lines)


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
    rows = [["process", "eigenvalue", f"timescale ({unit})", "95 % band", "constrained", "likeliest", "reversible"]]
    for i in range(states - 1):
        times = [(each or {}).get(f"timescales_{unit}", []) for each in (found["koopman"], *others)]
        shown = [_text(each[i]) if i < len(each) else "-" for each in times]
        real, imaginary = (found["koopman"][name][i + 1] for name in ("eigenvalues", "eigenvalues_imaginary"))
        value = f"{real:.4f}" + (f"{imaginary:+.4f}i" if imaginary else "")
        rows.append([str(i + 1), value, shown[0], f"{_text(low[i])} to {_text(high[i])}", *shown[1:]])
    return rows


def _text(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else format(value, form)


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{each:{'>' if i else ''}{widths[i]}}" for i, each in enumerate(row)).rstrip() for row in rows]


def _beside(what: Path) -> Path:
    folder = what if what.is_dir() else what.parent
    return folder / "evaluation" / "analysis" if (folder / "config.yaml").is_file() else folder / "analysis"


def write(
    out: Path,
    found: dict[str, Any],
    per_frame: Sequence[np.ndarray],
    history: dict[str, list[Any]],
    map_of: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
) -> None:
    """analysis.json, populations.npz (float32 [F, k] as arr_0, arr_1, ... in order), and figures as PNG and PDF.

    Where matplotlib is missing there are no figures, and a line that says so. Arguments as for ``figures``.
    """
    from accel_train.run_folder import write_json
    from accel_train.tasks.gdynet.figures import figures

    write_json(out / "analysis.json", found)
    np.savez_compressed(out / "populations.npz", *(p.astype(np.float32) for p in per_frame))
    print(f"wrote {out / 'analysis.json'} and {out / 'populations.npz'}")
    try:
        drawn = figures(found, per_frame, history, map_of)
    except ImportError as error:  # matplotlib is an extra
        print(f"no figures: {error} (pip install -e '.[plots]')")
        return
    for name, figure in drawn.items():
        for suffix in ("png", "pdf"):
            figure.savefig(out / f"{name}.{suffix}", dpi=200)
    print(f"figures in {out}, as PNG and PDF: {', '.join(drawn)}")
