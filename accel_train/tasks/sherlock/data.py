"""A preprocessed folder, and the windows of it that are items: some TRs of a viewer, and the stimulus that led there.

OUT/meta.json                      the manifest: options, runs, modalities, viewers, split, what was found, hash
OUT/stimulus/RUN/MODALITY.npy      [TRs, ...], stored once however many viewers: frames uint8 [n, F, H, W, 3], RGB; mel
                                   float32 [n, frames, mels]; codes int16 [n, codebooks, frames]; vectors float32 [n, D]
OUT/fmri/VIEWER/RUN.npy            float32 [TRs, V], mean 0 and variance 1 in the TRs for training; NaN: not measured
OUT/fmri_stats.npz                 mean, std: float64 [viewers, V], in the units of the files
OUT/stimulus_stats.npz             MODALITY_mean [of one TR], MODALITY_var (a number); MODALITY_counts of codes
OUT/mask.nii.gz, rois.nii.gz       which voxels of the grid are columns, in C order; labels
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from accel_train.contents import Contents, named_hash
from accel_train.data.preprocess import opened
from accel_train.errors import DataError, UserError, suggest

VERSION = 1
"""Of what is in the folder."""

Arrays = dict[str, np.ndarray]


class Prepared:
    """A folder that ``accel-train sherlock preprocess`` has made.

    Attributes:
        manifest: what meta.json says.
        runs: TRs of each run.
        modalities: of each, kind ("frames", "mel", "codes", "vectors"), shape of one TR, dtype.
        subjects, held_out: names of the viewers, and of those of whom nothing is for training.
        voxels: columns V of the brain, which may be parcels.
        rois: int64 columns of each region by its name; empty where there are none.
        fmri_variance: mean square of the volumes for training by ``target`` of ``Items``: 1 of each viewer, and less of
            their mean, in which a part of the noise cancels.

    Raises:
        DataError: there is none, it is damaged, or it was made by another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with opened(self.folder, VERSION, "sherlock preprocess", "scans") as known:
            self.manifest = known
            self.tr_s, self.preshift_trs = float(known["tr_s"]), int(known["preshift_trs"])
            self.runs: dict[str, int] = {run["name"]: run["trs"] for run in known["runs"]}
            self.modalities: dict[str, dict[str, Any]] = known["modalities"]
            self.subjects: list[str] = known["subjects"]
            self.held_out: list[str] = known["held_out_subjects"]
            self.voxels = int(known["voxels"])
            self.rois = _rois(known["rois"])
            self.fmri_variance: dict[str, float] = known["fmri_variance"]
            self._has = {(run["name"], name) for run in known["runs"] for name in run["modalities"]}
        self._mapped: dict[Path, np.ndarray] = {}
        self._lock = threading.Lock()

    def has(self, run: str, modality: str) -> bool:
        return (run, modality) in self._has

    def stimulus(self, run: str, modality: str) -> np.ndarray:
        """[TRs, ...] as stored, mapped. Raises ``DataError`` if it is not as the manifest says."""
        about = self.modalities[modality]
        return self._map(f"stimulus/{run}/{modality}.npy", (self.runs[run], *about["shape"]), about["dtype"])

    def fmri(self, subject: str, run: str) -> np.ndarray:
        """float32 [TRs, V], mapped. Raises ``DataError`` if it is not as the manifest says."""
        return self._map(f"fmri/{subject}/{run}.npy", (self.runs[run], self.voxels), "float32")

    def measured(self, subject: str, run: str) -> np.ndarray:
        """bool [TRs]: which volumes there are."""
        there = np.ones(self.runs[run], bool)
        there[self.manifest["missing"][subject][run]] = False
        return there

    def stretches(self, split: str) -> list[tuple[str, int, int]]:
        """(run, first, last) of "train", "validation" or "test": TRs from first to below last, in order."""
        known = self.manifest["split"]
        if split not in known:
            raise UserError(f"split: there is no {split!r}{suggest(split, known)}; there are {', '.join(known)}")
        return [(each["run"], each["first"], each["last"]) for each in known[split]]

    def statistics(self, name: Literal["stimulus_stats", "fmri_stats"]) -> Arrays:
        """The arrays of NAME.npz. Raises ``DataError``."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as file:
                return dict(file)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder / name}.npz: cannot be read ({error}); preprocess again") from None

    def fingerprint(self) -> dict[str, Any]:
        meta = {"name": "meta.json", "rows": sum(self.runs.values()), "tag": self.manifest["hash"]}
        said = {name: value for name, value in self.manifest.items() if name != "hash"}
        parts = {"meta.json": named_hash(json.dumps(said, sort_keys=True).encode())}
        for name in ("stimulus_stats", "fmri_stats"):
            if (self.folder / f"{name}.npz").is_file():  # who needs it says that it is missing
                arrays = self.statistics(name)
                parts[f"{name}.npz"] = named_hash(*(arrays[key] for key in sorted(arrays)))
        return {"files": [meta], "parts": parts}

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes where the arrays are, not their content
        return Prepared, (self.folder,)

    def _map(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        path = self.folder / name
        with self._lock:
            if path in self._mapped:
                return self._mapped[path]
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); preprocess again") from None
            if array.shape != shape or array.dtype != dtype:
                raise DataError(f"{path}: is {array.dtype} {array.shape}, the manifest says {dtype} {shape}; "
                                "preprocess again")  # fmt: skip
            self._mapped[path] = np.asarray(array)  # a plain view of the same pages: slices of a memmap take longer
            return self._mapped[path]


class Items:
    """Windows of ``window_trs`` volumes of one split, for an ``IndexedSource``: those of the first viewer, then those
    of the next. They tile each stretch of the split; the last of a stretch may go beyond it.

    Args:
        prepared: the folder.
        split: "train", "validation" or "test".
        window_trs: W, volumes of a window.
        lags: L, TRs of stimulus before its first volume.
        target: the volumes of each viewer, or their mean over viewers.
        subjects: viewers; by default all that are not held out.
        modalities: names in the order of ``available``; by default all.

    Attributes:
        unmeasured: windows that are left out since none of their volumes was measured.

    Raises:
        UserError: a name is not known, W is below 1 or L below 0, or the split has no TRs.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        window_trs: int = 1,
        lags: int = 0,
        target: Literal["per_subject", "average"] = "per_subject",
        subjects: Sequence[str] | None = None,
        modalities: Sequence[str] | None = None,
    ) -> None:
        if window_trs < 1 or lags < 0:
            raise UserError(f"a window has 1 volume or more and 0 lags or more, not {window_trs} and {lags}")
        self.prepared, self.split, self.window_trs, self.lags, self.target = prepared, split, window_trs, lags, target
        default = [name for name in prepared.subjects if name not in prepared.held_out]
        self.subjects = _known("subject", default if subjects is None else subjects, prepared.subjects)
        self.modalities = _known("modality", modalities or list(prepared.modalities), prepared.modalities)
        self._runs = list(prepared.runs)
        self._there = {(name, run): prepared.measured(name, run) for name in self.subjects for run in prepared.runs}
        stretches = prepared.stretches(split)
        if not stretches:
            raise UserError(f"{split}: no TRs of {prepared.folder} are for it; preprocess with --{split}")
        windows = [
            (self._runs.index(run), start, min(start + window_trs, last))
            for run, first, last in stretches
            for start in range(first, last, window_trs)
        ]
        groups = self.subjects if target == "per_subject" else [""]
        self._windows = np.array([
            (viewer, *window) for viewer in range(len(groups)) for window in windows if self._measured(viewer, window)
        ], np.int64).reshape(-1, 4)  # fmt: skip
        self.unmeasured = len(groups) * len(windows) - len(self._windows)
        self.contents = Contents(len(self), self._words, self._mapped(stretches))

    def __len__(self) -> int:
        return len(self._windows)

    def place(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 [B] each: number of the viewer in ``prepared.subjects`` (-1: the mean over viewers), of the run in
        ``prepared.runs``, and the TR of the first volume."""
        viewer, run, first, _ = self._windows[indices].T
        if self.target == "average":
            return np.full(len(viewer), -1), run, first
        numbers = np.array([self.prepared.subjects.index(name) for name in self.subjects], np.int64)
        return numbers[viewer], run, first

    def item_names(self, batch: Mapping[str, Any]) -> list[str]:
        places = zip(*(batch[name].tolist() for name in ("subject", "run", "tr")), strict=True)
        subjects = [*self.prepared.subjects, "the mean over viewers"]  # number -1
        return [
            f"{subjects[subject]}, {self._runs[run]}, TRs {tr} to {tr + self.window_trs - 1}"
            for subject, run, tr in places
        ]

    def read(self, indices: np.ndarray) -> Arrays:
        """A batch, in memory of its own.

        Returns:
            stimulus/NAME [B, L + W, ...] as stored, zeros where a TR is not present: the last W are of when the volumes
            were measured, so after them by ``preshift_trs``. fmri float32 [B, W, V], zeros where a volume was not
            measured; measured bool [B, W]; present bool [B, L + W], False before the run, behind it and behind the
            stretch; available bool [B, M], whether the run has the modality; subject, run, tr int64 [B] as
            ``place`` gives them.
        """
        indices = np.asarray(indices)
        _, run, first, last = self._windows[indices].T
        volumes = first[:, None] + np.arange(self.window_trs) < last[:, None]
        shift = self.prepared.preshift_trs
        lengths = np.array([self.prepared.runs[each] for each in self._runs])[run]
        trs = first[:, None] + shift + np.arange(-self.lags, self.window_trs)
        present = (trs >= 0) & (trs < np.minimum(last + shift, lengths)[:, None])
        batch: Arrays = {f"stimulus/{name}": self._stimulus(name, indices) for name in self.modalities}
        batch["fmri"], batch["measured"] = self._fmri(indices, volumes)
        batch["present"] = present
        has = np.array([[self.prepared.has(each, name) for name in self.modalities] for each in self._runs])
        batch["available"] = has[run]
        batch["subject"], batch["run"], batch["tr"] = self.place(indices)
        for row in self.contents.due(indices):
            looked_at = (batch["fmri"], *(batch[f"stimulus/{name}"] for name in self.modalities))
            self.contents.look(int(indices[row]), (array[row] for array in looked_at))
        return batch

    def fingerprint(self) -> dict[str, Any]:
        return {"items": len(self), **self.prepared.fingerprint()}

    def _words(self, item: int) -> str:
        viewer, run, first, last = self._windows[item].tolist()
        return (
            f"{self.prepared.folder}, {', '.join(self._viewers(viewer))}, {self._runs[run]}, TRs {first} to {last - 1}"
        )

    def _stimulus(self, name: str, indices: np.ndarray) -> np.ndarray:
        about = self.prepared.modalities[name]
        out = np.zeros((len(indices), self.lags + self.window_trs, *about["shape"]), about["dtype"])
        for row, item in enumerate(indices.tolist()):
            _, run, first, last = self._windows[item].tolist()
            if self.prepared.has(self._runs[run], name):
                first, last = first + self.prepared.preshift_trs, last + self.prepared.preshift_trs
                begin = max(first - self.lags, 0)
                seen = self.prepared.stimulus(self._runs[run], name)[begin:last]
                out[row, begin - first + self.lags :][: len(seen)] = seen
        return out

    def _fmri(self, indices: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = np.zeros((*wanted.shape, self.prepared.voxels), np.float32)
        counts = np.zeros(wanted.shape, np.int64)
        for row, item in enumerate(indices.tolist()):
            viewer, run, first, last = self._windows[item].tolist()
            for subject in self._viewers(viewer):
                volumes = self.prepared.fmri(subject, self._runs[run])[first:last]
                there = self._there[subject, self._runs[run]][first:last]
                out[row, : last - first][there] += volumes[there]
                counts[row, : last - first] += there
        if self.target == "average":
            out /= np.maximum(counts, 1)[..., None].astype(np.float32)
        return out, counts > 0

    def _mapped(self, stretches: list[tuple[str, int, int]]) -> list[Path]:
        runs = {run: None for run, _, _ in stretches}
        stimuli = [f"stimulus/{run}/{name}" for run in runs for name in self.modalities if self.prepared.has(run, name)]
        volumes = [f"fmri/{subject}/{run}" for run in runs for subject in self.subjects]
        return [self.prepared.folder / f"{name}.npy" for name in (*stimuli, *volumes)]

    def _measured(self, viewer: int, window: tuple[int, int, int]) -> bool:
        run, first, last = window
        return any(self._there[name, self._runs[run]][first:last].any() for name in self._viewers(viewer))

    def _viewers(self, viewer: int) -> Sequence[str]:
        return self.subjects if self.target == "average" else self.subjects[viewer : viewer + 1]


# -- small things ----------------------------------------------------------------------------------------------------


def array_hash(array: np.ndarray) -> str:
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()


def _rois(known: dict[str, Any] | None) -> dict[str, np.ndarray]:
    if known is None:
        return {}
    columns = np.array(known["columns"], np.int64)
    return {name: np.flatnonzero(columns == int(label)) for label, name in known["names"].items()}


def _known(what: str, names: Sequence[str], there: Sequence[str] | dict[str, Any]) -> list[str]:
    for name in names:
        if name not in there:
            raise UserError(f"{what}: there is no {name!r}{suggest(name, there)}; there are {', '.join(there)}")
    return list(names)


def named_stretches(manifest: dict[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Of each split: its name, its stretches in words, and how many TRs they are."""
    for name, stretches in manifest["split"].items():
        words = ", ".join(f"{each['run']} {each['first']}-{each['last']}" for each in stretches)
        yield name, words or "none", sum(each["last"] - each["first"] for each in stretches)
