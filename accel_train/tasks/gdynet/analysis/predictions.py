"""Reading predictions, and what belongs to them: the run that made them, known states, coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.config.yaml_text import loads
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.analysis import moments
from accel_train.tasks.gdynet.files import open_array, read_object

INDEX = "predictions.json"
"""Beside the predictions: ``{"split", "tau", "dt_ns", "trajectories": [{"name", "file", "start", "frames"}]}``, where
``file`` may stand once for all trajectories, which are then one after another in it. All of it may be missing: a file
alone is one trajectory."""

ROUNDING = 1e-3  # that the probabilities of a row may miss one by (half precision)


@dataclass(frozen=True)
class Loaded:
    """Predictions [F, n, k] of trajectories, mapped from disk, and what is known of them.

    Args:
        about: dt_ns (ns per frame), tau (frames) and split, where they are known.
        history: metrics.json of the run, lists by name.
        pairs_per_batch: pairs of frames in a training batch.
        states: known states of each trajectory, integers [F, n].
        coords: coordinates [F, N, 3] in Angstrom, and the targets [n] among the N atoms.
    """

    names: list[str]
    files: list[Path]
    predictions: list[np.ndarray]
    about: dict[str, Any]
    history: dict[str, list[Any]]
    pairs_per_batch: int | None
    states: list[np.ndarray] | None = None
    coords: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def longest(self) -> int:
        return max(map(len, self.predictions))

    @cached_property
    def populations(self) -> list[np.ndarray]:
        """Mean probabilities over the targets, float64 [F, k], for each trajectory."""
        return moments.populations(self.predictions)


def load(
    what: str | Path | Sequence[str | Path], states: Sequence[str | Path] = (), coords: str | Path | None = None
) -> Loaded:
    """Predictions, every row of them checked.

    Args:
        what: a run folder, a folder of predictions, or files of them as .npy.
        states: true_states.npy of each trajectory.
        coords: traj_coords.npy of the one trajectory; ``target_index.npy`` beside it says which atoms are targets,
            and without that file all of them must be.

    Raises:
        UserError: there is nothing to read. DataError: a file is not what it should be, with file, frame and target.
    """
    paths = [Path(path) for path in ([what] if isinstance(what, str | Path) else what)]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise UserError(f"analyze: {folders[0]} is a folder; give one folder alone, or files")
    files = _files(paths[0]) if folders else paths
    names, of_file, predictions = [], [], []
    for path in files:
        p, index = _probabilities(path), read_object(path.parent / INDEX)
        parts = [t for t in index.get("trajectories") or [] if t.get("file", index.get("file")) == path.name]
        for part in parts or [{}]:
            start, frames = part.get("start", 0), part.get("frames", len(p))
            whole = isinstance(start, int) and isinstance(frames, int)
            if not (whole and 0 <= start < start + frames <= len(p)):
                raise DataError(f"{path}: has {len(p)} frames, {INDEX} beside it says {frames} from {start} on")
            names.append(str(part.get("name", path.stem)))
            of_file.append(path)
            predictions.append(p[start : start + frames])
    number = {path: p.shape[2] for path, p in zip(of_file, predictions, strict=True)}
    if len(set(number.values())) > 1:
        raise DataError("different models: " + ", ".join(f"{path} has {k} states" for path, k in number.items()))
    about = _common([read_object(folder / INDEX) for folder in {path.parent: None for path in files}])
    loaded = Loaded(names, of_file, predictions, about, read_object(paths[0] / "metrics.json"), _batch(paths[0]))
    return replace(
        loaded,
        states=_states([Path(path) for path in states], predictions) if states else None,
        coords=None if coords is None else _coords(Path(coords), predictions),
    )


def known_timescales(metadata: Path, states: int) -> list[float]:
    """In frames, slowest first, of what ``accel-train synth gdynet`` made: as many as so many states can show, of what
    distances show alone where that is as much.

    Raises:
        UserError: this file says none.
    """
    truth = read_object(metadata).get("truth") or {}
    seen = [each["timescales_frames"] for each in (truth, truth.get("vanilla") or {}) if "timescales_frames" in each]
    if not seen:
        raise UserError(f"--truth: {metadata} is no metadata.json of accel-train synth gdynet, which says timescales")
    return next((times for times in seen if len(times) == states - 1), seen[0])[: states - 1]


def _files(folder: Path) -> list[Path]:
    inside = (folder / "evaluation" / "predictions", folder / "predictions")
    found = next((path for path in inside if path.is_dir()), folder)
    index = read_object(found / INDEX)
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
            shown = " and ".join(map(str, values))
            raise DataError(f"analyze: {key} differs, {shown}; analyse these predictions alone")
        found[key] = values[0]
    return found


def _batch(run: Path) -> int | None:
    """Pairs of frames in a training batch, by the config of a run."""
    path = run / "config.yaml"
    return loads(path.read_text()).get("global_batch_size") if path.is_file() else None


# -- arrays ----------------------------------------------------------------------------------------------------------


def _probabilities(path: Path) -> np.ndarray:
    p = open_array(path)
    if p.ndim != 3 or p.dtype.kind != "f" or p.shape[2] < 2 or 0 in p.shape:
        what = f"{p.dtype} {p.shape}"
        raise DataError(f"{path}: holds {what}, not probabilities: floats (frames, targets, at least 2 states)")
    for at in moments.blocks(0, len(p), p.shape[1]):
        rows = p[at]
        bad = ~(np.abs(rows.sum(2, dtype=np.float64) - 1) <= ROUNDING) | (rows.min(2) < -ROUNDING)  # NaN is bad
        if bad.any():
            frame, target = np.argwhere(bad)[0]
            shown = np.array2string(rows[frame, target], precision=4, separator=", ", threshold=20)
            where = f"frame {at.start + frame}, target {target}"
            raise DataError(f"{path}: {where}: {shown} are not probabilities that sum to 1")
    return p


def _states(paths: list[Path], predictions: list[np.ndarray]) -> list[np.ndarray]:
    if len(paths) != len(predictions):
        raise UserError(f"--states: {len(paths)} files for {len(predictions)} trajectories; give one for each")
    found = [open_array(path) for path in paths]
    for path, states, p in zip(paths, found, predictions, strict=True):
        if states.dtype.kind not in "iu" or states.shape != p.shape[:2]:
            what = f"{states.dtype} {states.shape}"
            raise DataError(f"{path}: holds {what}, not a state (an integer) for each of {p.shape[:2]} predictions")
    return found


def _coords(path: Path, predictions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    coords, p = open_array(path), predictions[0]
    if len(predictions) > 1:
        raise UserError(f"--coords: there are {len(predictions)} trajectories; analyse one of them")
    if coords.ndim != 3 or coords.shape[2] != 3 or len(coords) != len(p):
        raise DataError(f"{path}: has shape {coords.shape}, not ({len(p)} frames, atoms, 3)")
    if (targets := path.with_name("target_index.npy")).is_file():
        chosen = open_array(targets)
        if len(chosen) != p.shape[1] or chosen.min() < 0 or chosen.max() >= coords.shape[1]:
            raise DataError(f"{targets}: does not fit {p.shape[1]} targets among {coords.shape[1]} atoms")
        return coords, chosen
    if coords.shape[1] != p.shape[1]:
        raise DataError(f"{path}: {coords.shape[1]} atoms for {p.shape[1]} targets; put target_index.npy beside it")
    return coords, np.arange(p.shape[1])
