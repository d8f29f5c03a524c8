"""A tiny film and the brains that watch it, in memory, with the interface of what preprocess makes."""

from __future__ import annotations

from typing import Any

import numpy as np

MODALITIES: dict[str, dict[str, Any]] = {
    "video": {"kind": "frames", "shape": [2, 3, 4, 3]},
    "audio": {"kind": "mel", "shape": [3, 5]},
    "tokens": {"kind": "codes", "shape": [2, 3]},
    "text": {"kind": "vectors", "shape": [4]},
}
RUNS = {"a": 40, "b": 30, "c": 26}
SPLITS = {"train": ["a", "b"], "validation": ["c"]}


class Film:
    """Three runs; text is missing in run b, subject 2 in training, and one volume of subject 0. Two subjects agree.

    BOLD is a linear function of the brightness, the loudness and the first number of the text of two TRs before, plus
    noise; each column is standardised.
    """

    def __init__(self, voxels: int = 5, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.modalities, self.voxels = MODALITIES, voxels
        self.subjects, self.held_out, self.runs = ["one", "two", "new"], ["new"], RUNS
        self.rois = {"front": np.arange(voxels) < 2, "back": np.arange(voxels) >= 2}
        self.tr_s, self.preshift_trs = 1.5, 0
        self.stimulus: dict[tuple[str, str], np.ndarray] = {}
        self.bold: dict[tuple[int, str], np.ndarray] = {}
        self.missing = {("b", "text")}
        weights = random.normal(size=(3, voxels))
        for run, n in RUNS.items():
            latent = random.uniform(0.1, 0.9, (n, 3))
            noise = random.normal(scale=0.05, size=(n, *MODALITIES["video"]["shape"]))
            video = (latent[:, 0, None, None, None, None] + noise).clip(0, 1) * 255
            audio = 40 * latent[:, 1, None, None] + random.normal(size=(n, 3, 5))
            text = random.normal(size=(n, 4)) + [5, 0, 0, 0] * latent[:, 2:]
            self.stimulus |= {
                (run, "video"): video.astype(np.uint8), (run, "audio"): audio.astype(np.float32),
                (run, "tokens"): random.integers(0, 4, (n, 2, 3)).astype(np.int16),
                (run, "text"): text.astype(np.float32),
            }  # fmt: skip
            late = np.concatenate([np.zeros((2, 3)), latent[:-2]]) @ weights
            for subject in range(3):
                y = late + 0.1 * random.normal(size=(n, voxels))
                self.bold[subject, run] = ((y - y.mean(0)) / y.std(0)).astype(np.float32)
        self.bold[0, "a"][7] = np.nan

    @property
    def fmri_variance(self) -> dict[str, float]:
        mean = np.concatenate([np.mean([self.bold[0, run], self.bold[1, run]], 0) for run in SPLITS["train"]])
        return {"per_subject": 1.0, "average": float(np.nanmean(np.square(mean, dtype=np.float64)))}

    def stretches(self, split: str) -> list[tuple[str, int, int]]:
        return [(run, 0, RUNS[run]) for run in SPLITS.get(split, [])]

    def statistics(self, name: str) -> dict[str, np.ndarray]:
        assert name == "stimulus_stats"
        found: dict[str, np.ndarray] = {}
        for modality, about in self.modalities.items():
            runs = [run for run in SPLITS["train"] if (run, modality) not in self.missing]
            x = np.concatenate([self.stimulus[run, modality] for run in runs])
            if about["kind"] == "codes":
                counts = [np.bincount(book.ravel(), minlength=4) for book in x.swapaxes(0, 1)]
                found[f"{modality}_counts"] = np.stack(counts)
            else:
                found[f"{modality}_mean"] = x.mean(0, dtype=np.float64)
                found[f"{modality}_var"] = np.asarray(x.astype(float).var(0).mean())
        return found


class FilmItems:
    """Windows of ``window`` volumes, each stretch of a split cut without overlap."""

    def __init__(self, film: Film, split: str, window: int, lags: int, names: list[str], average: bool = False) -> None:
        self.film, self.window, self.lags, self.names, self.average = film, window, lags, names, average
        self.subjects = film.subjects[: 2 if split == "train" or average else 3]
        self.places = [
            (subject, run, tr)
            for run in SPLITS.get(split, [])
            for subject in ([-1] if average else range(len(self.subjects)))
            for tr in range(0, RUNS[run], window)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, indices: np.ndarray) -> dict[str, Any]:
        made = [self._item(int(i)) for i in indices]
        return {name: np.stack([item[name] for item in made]) for name in made[0]}

    def _item(self, i: int) -> dict[str, Any]:
        subject, run, tr = self.places[i]
        trs = np.arange(tr - self.lags, tr + self.window)
        present = (trs >= 0) & (trs < RUNS[run])
        inside = trs.clip(0, RUNS[run] - 1)
        viewers = [0, 1] if self.average else [subject]
        bold = np.mean([self.film.bold[viewer, run][inside[self.lags :]] for viewer in viewers], 0)
        item: dict[str, Any] = {
            "subject": np.int64(subject), "run": np.int64(list(RUNS).index(run)),
            "tr": np.int64(tr), "present": present, "fmri": np.nan_to_num(bold),
            "measured": ~np.isnan(bold).any(1) & present[self.lags :],
            "available": np.array([(run, name) not in self.film.missing for name in self.names]),
        }  # fmt: skip
        for m, name in enumerate(self.names):
            shape = (-1, *[1] * len(self.film.modalities[name]["shape"]))
            seen = present.reshape(shape) & item["available"][m]
            stored = self.film.stimulus[run, name][inside]
            item[f"stimulus/{name}"] = np.where(seen, stored, np.zeros_like(stored))
        return item

    def place(self, indices: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = [self.places[i] for i in indices]
        return tuple(np.array(each) for each in zip(*[(s, list(RUNS).index(r), t) for s, r, t in rows], strict=True))

    def fingerprint(self) -> dict[str, Any]:
        return {"items": len(self)}
