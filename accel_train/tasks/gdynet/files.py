"""The files of a trajectory: where they are, and their arrays as they lie on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from accel_train.errors import DataError, relative_to

NAMES = ("atom_types", "target_index", "nbr_lists", "nbr_dists", "atom_directions")
"""The arrays of a trajectory, in the order of a flat list of files; the last for the ferro model only."""


@dataclass(frozen=True)
class Trajectory:
    """One trajectory of F frames, N atoms with M neighbours each, and n target atoms.

    Args:
        paths: of the files, by name of the array.
        arrays: types and targets in memory, the large ones mapped; dtypes as on disk.
        meta: what meta.json beside nbr_lists.npy says: radius (Angstrom), n_nbrs, dt_ns (ns per frame); or nothing.
        warnings: what a person should hear of these files.
    """

    paths: dict[str, Path]
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    warnings: tuple[str, ...] = ()
    span: tuple[int, int] | None = None  # of the files' frames, if only some of them are meant

    @property
    def name(self) -> str:
        return str(self.paths["nbr_lists"].parent)

    def part(self, start: int, stop: int) -> Trajectory:
        """The frames from ``start`` to ``stop`` (exclusive) of a whole trajectory."""
        arrays = {name: array[start:stop] if array.ndim > 1 else array for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, warnings=() if start else self.warnings, span=(start, stop))

    @property
    def shape(self) -> tuple[int, int, int]:
        """F, N, M."""
        frames, atoms, neighbours = self.arrays["nbr_lists"].shape
        return frames, atoms, neighbours

    @property
    def frames(self) -> int:
        return self.shape[0]

    @property
    def atoms(self) -> int:
        return self.shape[1]

    @property
    def neighbours(self) -> int:
        return self.shape[2]

    @property
    def atom_types(self) -> np.ndarray:
        """Atomic numbers, int64 (N,)."""
        return self.arrays["atom_types"].astype(np.int64)

    @property
    def target_index(self) -> np.ndarray:
        """Target atoms, int64 (n,)."""
        return self.arrays["target_index"].astype(np.int64)

    @property
    def nbr_lists(self) -> np.ndarray:
        """Neighbours of every atom, integers (F, N, M); -1: none."""
        return self.arrays["nbr_lists"]

    @property
    def nbr_dists(self) -> np.ndarray:
        """Their distances in Angstrom, floating point (F, N, M)."""
        return self.arrays["nbr_dists"]

    @property
    def directions(self) -> np.ndarray | None:
        """Local polarisation, floating point (F, N, 3); None for the vanilla model."""
        return self.arrays.get("atom_directions")

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes where the arrays are, not their content
        return _reopen, (self.paths, self.warnings, self.span)


def _reopen(paths: dict[str, Path], warnings: tuple[str, ...], span: tuple[int, int] | None) -> Trajectory:
    opened = replace(open_trajectory(paths), warnings=warnings)
    return opened.part(*span) if span else opened


def locate(fnames: str | Path | Sequence[str | Path], ferro: bool | None) -> list[dict[str, Path]]:
    """Paths by name of the array, for each trajectory. Raises DataError for a wrong number of them.

    Args:
        fnames: folders, each one trajectory, or the 4 or 5 files of one trajectory in the order of ``NAMES``.
        ferro: whether directions are wanted; None: if there are any.
    """
    paths = [Path(fname) for fname in ([fnames] if isinstance(fnames, str | Path) else fnames)]
    if paths and not any(path.suffix == ".npy" or path.is_file() for path in paths):
        return [_in_folder(folder, ferro) for folder in paths]
    wanted = NAMES if (len(paths) > 4 if ferro is None else ferro) else NAMES[:4]
    if not len(wanted) <= len(paths) <= len(NAMES):
        raise DataError(
            f"Expected {len(wanted)} file paths for {_model(wanted)} dataset, got {len(paths)}; required, in this "
            f"order: {_npy(wanted)} (or give folders that have files of these names, one for each trajectory)"
        )
    return [dict(zip(wanted, paths, strict=False))]


def _in_folder(folder: Path, ferro: bool | None) -> dict[str, Path]:
    paths = {name: folder / f"{name}.npy" for name in NAMES}
    if not (paths["atom_directions"].exists() if ferro is None else ferro):
        del paths["atom_directions"]
    return paths


def open_trajectory(paths: dict[str, Path]) -> Trajectory:
    """Raises DataError for a file that is missing or holds no array. What is in the arrays is not looked at."""
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise DataError(
            f"Missing required data files for {_model(paths)} dataset: {', '.join(missing)}; required: "
            f"{_npy(paths)}{relative_to(missing[0])}; accel-train gdynet preprocess makes them of a trajectory, "
            "accel-train synth gdynet some to try"
        )
    arrays = {
        name: open_array(path, None if name in ("atom_types", "target_index") else "r") for name, path in paths.items()
    }
    return Trajectory(paths, arrays, _meta(paths["nbr_lists"].parent / "meta.json"))


def _model(names: Iterable[str]) -> str:
    return "ferro" if "atom_directions" in names else "vanilla"


def _npy(names: Iterable[str]) -> str:
    return ", ".join(f"{name}.npy" for name in names)


def open_array(path: Path, mmap_mode: Literal["r"] | None = "r") -> np.ndarray:
    """An array as it lies on disk, mapped or read. Raises DataError."""
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array as np.save writes it ({' '.join(str(error).split())})") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: an archive of arrays; save each as a file of its own with np.save")
    return np.asarray(array)  # a plain view of the same pages: slices of a memmap take several times as long


def read_object(path: Path, of_what: str = "") -> dict[str, Any]:
    """The object in a file of JSON; nothing where there is no such file. Raises DataError."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be an object{of_what}")
    return found


def _meta(path: Path) -> dict[str, Any]:
    meta = read_object(path, " with keys such as radius, n_nbrs, dt_ns")
    for key in ("radius", "n_nbrs", "dt_ns"):
        if key in meta and not (isinstance(meta[key], int | float) and meta[key] > 0):
            raise DataError(f"{path}: {key} is {meta[key]!r}, must be a number above 0")
    return meta
