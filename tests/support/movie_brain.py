"""Brains of people who saw one film, as arrays, with all that a metric should find in them known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import gamma
from pathlib import Path
from typing import Any

import numpy as np

C = 0.6
"""Correlation of a voxel of one person with what the stimulus makes of it."""
TR_S = 1.5
ROIS = {"null": np.arange(0, 20), "visual": np.arange(20, 40), "auditory": np.arange(40, 60)}
BANDS = {"video": (0, 1), "audio": (2, 3)}


@dataclass(frozen=True, eq=False)
class Movie:
    """features: [T, 2] of each modality. signal: [T, V], variance 1 in each run, 0 in the null region. people: [T, V]
    of each. runs: int [T]. train: bool [T], the first run."""

    features: dict[str, np.ndarray]
    signal: np.ndarray
    people: list[np.ndarray]
    runs: np.ndarray

    @property
    def train(self) -> np.ndarray:
        return self.runs == 0


def response(tr_s: float = TR_S) -> np.ndarray:
    """Two gamma densities, of 6 and 16 s, as a scanner samples them over 32 s; sum 1."""
    t = np.arange(0, 32, tr_s)
    found = t**5 * np.exp(-t) / gamma(6) - t**15 * np.exp(-t) / gamma(16) / 6
    return found / found.sum()


def movie(seed: int = 0, people: int = 3, trs: tuple[int, ...] = (240, 260), preshift: int = 0, c: float = C) -> Movie:
    """The volumes stand ``preshift`` rows earlier than a scanner would have put them."""
    draw = np.random.default_rng(seed)
    weights = np.zeros((4, 60))
    for latents, roi in zip(BANDS.values(), ("visual", "auditory"), strict=True):
        weights[latents[0] : latents[1] + 1, ROIS[roi]] = draw.normal(size=(2, 20))
    latents, signal, noise = [], [], [[] for _ in range(people)]
    for length in trs:
        z = _ar1(draw, length + preshift, 4, 0.5)
        after = np.stack([np.convolve(each, response())[: len(each)] for each in z.T], 1)[preshift:] @ weights
        std = after.std(0)
        latents.append(z[:length])
        signal.append(np.divide(after - after.mean(0), std, out=np.zeros_like(after), where=std > 0))
        for each in noise:
            each.append(_ar1(draw, length, 60, 0.3))
    s = np.concatenate(signal)
    share = np.where(s.std(0) > 0, c, 0.0)
    z = np.concatenate(latents)
    return Movie(
        {name: z[:, columns] for name, columns in BANDS.items()},
        s,
        [(share * s + np.sqrt(1 - share**2) * np.concatenate(each)).astype(np.float32) for each in noise],
        np.repeat(np.arange(len(trs)), trs),
    )


def _ar1(draw: np.random.Generator, length: int, columns: int, phi: float) -> np.ndarray:
    """Variance 1 in the long run."""
    x = draw.normal(size=(length + 20, columns)) * np.sqrt(1 - phi**2)
    for t in range(1, len(x)):
        x[t] += phi * x[t - 1]
    return x[20:]


def write_prepared(folder: Path, film: Movie, test: tuple[tuple[int, int], ...] = ((0, 260),)) -> Path:
    """As preprocess leaves it: part1 for training, stretches of part2 for the test; s2 is held out, and part2 has no
    text."""
    trs = {"part1": 240, "part2": 260}
    rows = {"part1": film.runs == 0, "part2": film.runs == 1}
    z = film.features
    halves = np.clip(128 + 30 * z["video"], 0, 255).repeat(2, 1)[:, None, None, :, None]  # of 4 pixels a row
    stimulus = {
        "video": halves.repeat(2, 1).repeat(2, 2).repeat(3, 4).astype(np.uint8),
        "audio": z["audio"][:, None].repeat(3, 1).astype(np.float32),
        "tokens": np.digitize(z["audio"], [-1.0, 0.0, 1.0])[:, :, None].repeat(2, 2).astype(np.int16),
        "text": np.concatenate(list(z.values()), 1).astype(np.float32),
    }
    kinds = {"video": "frames", "audio": "mel", "tokens": "codes", "text": "vectors"}
    there = {run: [name for name in kinds if (run, name) != ("part2", "text")] for run in trs}
    labels = np.concatenate([np.full(len(columns), 1 + i) for i, columns in enumerate(ROIS.values())])
    people = [f"s{i}" for i in range(len(film.people))]
    stats: dict[str, Any] = {}
    for name, values in stimulus.items():
        train = values[film.train]
        if name == "tokens":
            stats["tokens_counts"] = np.stack([np.bincount(book.ravel(), minlength=4) for book in train.swapaxes(0, 1)])
        else:
            stats |= {f"{name}_mean": train.mean(0), f"{name}_var": train.var(0).mean()}
    for run, at in rows.items():
        for name in there[run]:
            _save(folder / "stimulus" / run / f"{name}.npy", stimulus[name][at])
        for person, y in zip(people, film.people, strict=True):
            _save(folder / "fmri" / person / f"{run}.npy", y[at])
    np.savez(folder / "stimulus_stats.npz", **stats)
    about = {
        "version": 1, "tr_s": TR_S, "preshift_trs": 0, "hash": "0", "voxels": 60, "targets": "voxels", "found": [],
        "runs": [{"name": run, "trs": count, "modalities": there[run]} for run, count in trs.items()],
        "modalities": {
            name: {"kind": kind, "shape": list(stimulus[name].shape[1:]), "dtype": str(stimulus[name].dtype)}
            for name, kind in kinds.items()
        },
        "subjects": people, "held_out_subjects": ["s2"], "fmri_variance": {"per_subject": 1.0, "average": 0.5},
        "missing": {person: {run: [] for run in trs} for person in people},
        "rois": {"columns": labels.tolist(), "names": {str(1 + i): name for i, name in enumerate(ROIS)}},
        "split": {
            "train": [{"run": "part1", "first": 0, "last": 150}],
            "validation": [{"run": "part1", "first": 171, "last": 240}],
            "test": [{"run": "part2", "first": first, "last": last} for first, last in test],
        },
    }  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(about))
    return folder


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
