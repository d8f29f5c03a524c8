"""A preprocessed folder of shots: one memory-mapped array each, and a manifest of how they were made.

OUT/meta.json               the manifest: options, shots, what was left out, hashes
OUT/shots/NUMBER.npy        [C, T] int16, float16 or float32
OUT/scale.npy, offset.npy   float64 [shots, C], in the order of the manifest: physical = stored * scale + offset
OUT/baseline.npy            float64 [shots, C]: what was subtracted: value in the file = physical + baseline
OUT/norm.npz                mean, std: float64 [C], over the segments of the training split
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.contents import named_hash
from accel_train.data.preprocess import opened
from accel_train.errors import DataError
from accel_train.tasks.tcn.shots import Shot, refuse_twice

VERSION = 1
"""Of what is in the folder."""


class Store:
    """``Shots`` of a folder that ``accel-train tcn preprocess`` has made.

    Raises:
        DataError: there is none, it is damaged, or it was made by another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        with opened(self.folder, VERSION, "tcn preprocess", "shots") as self.manifest:
            self.shots = [_shot(each) for each in self.manifest["shots"]]
            self.bad, self.left_out = list(self.manifest["bad"]), list(self.manifest["left_out"])
            self.channels = int(self.manifest["channels"])
            self.dtype: np.dtype[Any] = np.dtype(self.manifest["options"]["dtype"])
            self._scale, self._offset = (self.per_shot(name).astype(np.float32) for name in ("scale", "offset"))
            with np.load(self.folder / "norm.npz") as norm:
                self.mean, self.std = norm["mean"], norm["std"]
        refuse_twice((shot.number for shot in self.shots), str(self.folder))
        self._row = {shot.number: row for row, shot in enumerate(self.shots)}
        self._mapped: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def split(self, name: str) -> list[Shot]:
        return [shot for shot in self.shots if shot.split == name]

    def read(self, number: int, first: int, last: int) -> np.ndarray:
        """A view of the mapped file: nothing is read before it is used. Raises ``DataError`` for a file that is not
        what the manifest says."""
        mapped = self._mapped.get(number)
        if mapped is None:
            with self._lock:
                mapped = self._mapped[number] = self._map(number)
        return mapped[:, first:last]

    def ahead(self, number: int, first: int, last: int) -> None:
        """Ask the system to fetch what ``read`` would give, and do not wait for it. A window is a range in each
        channel, and page faults would wait for one after the other. It is a hint: nothing depends on it."""
        if not hasattr(os, "posix_fadvise"):
            return
        shot, size = self.shots[self._row[number]], self.dtype.itemsize
        with suppress(OSError), open(self._path(number), "rb") as file:
            place = os.fstat(file.fileno()).st_size - self.channels * shot.samples * size  # behind the header
            starts = range(place + first * size, place + self.channels * shot.samples * size, shot.samples * size)
            if not _cached(file.fileno(), starts[len(starts) // 2]):
                for start in starts:
                    os.posix_fadvise(file.fileno(), start, (last - first) * size, os.POSIX_FADV_WILLNEED)

    def scale(self, number: int) -> np.ndarray:
        return self._scale[self._row[number]]

    def offset(self, number: int) -> np.ndarray:
        return self._offset[self._row[number]]

    def fingerprint(self) -> dict[str, Any]:
        said = {name: value for name, value in self.manifest.items() if name != "hash"}
        parts = {
            "meta.json": named_hash(json.dumps(said, sort_keys=True).encode()),
            "scale.npy and offset.npy": named_hash(self._scale, self._offset),
            "norm.npz": named_hash(self.mean, self.std),
        }
        meta = {"name": "meta.json", "rows": len(self.shots), "tag": self.manifest["hash"]}
        return {"files": [meta], "parts": parts}

    def files(self, shots: Sequence[Shot]) -> list[Path]:
        return [self._path(shot.number) for shot in shots]

    def verify(self) -> None:
        """Read all and compare with the hashes of the manifest. Raises ``DataError`` for the first that differs."""
        for shot, known in zip(self.shots, self.manifest["shots"], strict=True):
            if content_hash(self.read(shot.number, 0, shot.samples)) != known["hash"]:
                raise DataError(f"{self._path(shot.number)}: changed since it was made; preprocess again")

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes where the arrays are, not their content
        return Store, (self.folder,)

    def _path(self, number: int) -> Path:
        return self.folder / "shots" / f"{number}.npy"

    def per_shot(self, name: str) -> np.ndarray:
        """float64 [shots, C]: "scale", "offset" or "baseline", in the order of ``shots``."""
        array = np.load(self.folder / f"{name}.npy", allow_pickle=False)
        if array.shape != (len(self.shots), self.channels):
            raise ValueError(f"{name}.npy is {array.shape}, not {(len(self.shots), self.channels)}")
        return array

    def _map(self, number: int) -> np.ndarray:
        path, shot = self._path(number), self.shots[self._row[number]]
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); preprocess again") from None
        if array.shape != (self.channels, shot.samples) or array.dtype != self.dtype:
            expected = f"{self.dtype} {(self.channels, shot.samples)}"
            raise DataError(f"{path}: is {array.dtype} {array.shape}, the manifest says {expected}; preprocess again")
        return np.asarray(array)  # a plain view of the same pages: slices of a memmap take several times as long


def _cached(file: int, place: int) -> bool:
    """Whether a byte could be read without waiting; False where the file system cannot tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(file, [bytearray(1)], place, os.RWF_NOWAIT) > 0
    except OSError:
        return False


def as_json(shot: Shot) -> dict[str, Any]:
    """A shot as the manifest has it: None for no disruption, since JSON has no NaN."""
    return {**asdict(shot), "t_disruption_ms": shot.t_disruption_ms if shot.disruptive else None}


def _shot(known: dict[str, Any]) -> Shot:
    values: dict[str, Any] = {name: known[name] for name in Shot.__dataclass_fields__}
    if not values["disruptive"]:
        values["t_disruption_ms"] = float("nan")
    return Shot(**values)


class Array:
    """A .npy file that is written some rows at a time. ``hash``: of the rows so far."""

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self._file, self._hash = open(path, "wb"), hashlib.blake2b(digest_size=16)
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, about)

    def append(self, rows: np.ndarray) -> None:
        data = np.ascontiguousarray(rows).data
        self._file.write(data)
        self._hash.update(data)

    @property
    def hash(self) -> str:
        return self._hash.hexdigest()

    def __enter__(self) -> Array:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def content_hash(array: np.ndarray) -> str:
    """As ``Array`` has it."""
    found = hashlib.blake2b(digest_size=16)
    for row in array:
        found.update(np.ascontiguousarray(row).data)
    return found.hexdigest()
