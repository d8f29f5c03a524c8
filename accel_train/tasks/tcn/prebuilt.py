"""Windows that others have cut: FOLDER/{train,val,test} with labels.npy, and X, target, weight as mmap_ninja's ragged
arrays or as one .npz per window. They are read, not written.

They are normalised already, and nothing says of which shots they are: scale 1, offset 0, and shot and first are -1.
Where windows overlap by less than a receptive field steps stay unscored, and by more they are scored twice; most
folders do not tell (they have no stride).
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.contents import Contents, named_hash
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.windows import Arrays

NAMES = ("X", "target", "weight")
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def is_prebuilt(folder: str | Path) -> bool:
    """Whether windows, not shots, are in a folder, be they whole or not."""
    return any((Path(folder) / name).is_dir() for name in FOLDERS.values())


class Prebuilt:
    """The windows of a split; for ``WindowSource`` and ``Stratified``, as ``Windows``.

    Args:
        folder: with train/, test/, perhaps val/ and meta.json.
        split: "train", "validation" or "test".
        receptive_field: of the model, in samples; outputs are nsub - receptive_field + 1.
        balance: of the loss. Some tools wrote class weights where others have 0 and 1. A loss that balances the classes
            itself must not get them, too; with "none" batches have them as ``weight``.

    Attributes:
        nsub, channels, outputs: of all windows.
        counted, positive: int64 [windows], as for ``Windows``; they are found by one pass over all targets.
        weighted: whether batches have ``weight``.

    Raises:
        DataError: the split is not there, is not whole, or its windows differ in shape.
        UserError: its windows are shorter than the receptive field, or the classes would be balanced twice.
    """

    def __init__(self, folder: str | Path, split: str, receptive_field: int, balance: str = "none") -> None:
        self.folder = Path(folder) / FOLDERS[split]
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such folder; prebuilt windows are in {', '.join(FOLDERS.values())}")
        self._files = _open(self.folder)
        labels = _load(self.folder / "labels.npy")
        if len(labels) != len(self._files):
            raise DataError(
                f"{self.folder}: {len(self._files):,} windows and {len(labels):,} labels; was it cut off while it was "
                "made? Make it again"
            )
        self.channels, self.nsub, self.dtype = _first(self._files)
        self.receptive_field, self.outputs = receptive_field, self.nsub - receptive_field + 1
        if receptive_field < 1 or self.outputs < 1:
            raise UserError(
                f"{self.folder}: windows of {self.nsub} samples are shorter than the receptive field "
                f"{receptive_field}, which levels, kernel_size, dilation_base and nrecept_target set"
            )
        self.mean, self.std = np.zeros(self.channels), np.ones(self.channels)
        self.contents = Contents(len(labels), lambda item: f"{self.folder}, window {item}", self._files.mapped)
        self.counted, self.positive = np.zeros((2, len(labels)), np.int64)
        class_weights = np.zeros(0)
        for item, said in enumerate(labels):
            target, weight = self._target(item)
            self.counted[item], self.positive[item] = (weight > 0).sum(), (target & (weight > 0)).sum()
            if self.positive[item] and not said:
                raise DataError(
                    f"{self.folder}: labels.npy says that window {item} is clear, but it has positive steps; make it "
                    "again"
                )
            class_weights = class_weights if len(class_weights) else weight[(weight != 0) & (weight != 1)]
        self.weighted = split == "train" and len(class_weights) > 0  # held-out steps count alike
        if self.weighted and balance != "none":
            raise UserError(
                f"balance: {balance}, but the weights in {self.folder} are class weights already (such as "
                f"{class_weights[0]:.3g}): both at once weigh positive steps twice, and the model learns to say 1 "
                "everywhere; balance=none trains with those weights alone, and weights of 0 and 1 go with any balance"
            )
        self.warnings = self._check_meta(Path(folder) / "meta.json", FOLDERS[split])

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: np.ndarray) -> Arrays:
        """As ``Windows.read``, and ``weight`` float32 [B, V] if ``weighted``."""
        items = np.asarray(indices).tolist()
        batch = {
            "x": np.empty((len(items), self.channels, self.nsub), self.dtype),
            "scale": np.ones((len(items), self.channels), np.float32),
            "offset": np.zeros((len(items), self.channels), np.float32),
            "target": np.empty((len(items), self.outputs), bool),
            "counts": np.empty((len(items), self.outputs), bool),
            "onset_ms": np.full(len(items), np.nan),
            "dt_ms": np.ones(len(items)),
            "shot": np.full(len(items), -1, np.int64),
            "first": np.full(len(items), -1, np.int64),
        }
        if self.weighted:
            batch["weight"] = np.empty((len(items), self.outputs), np.float32)
        for row, item in enumerate(items):
            batch["x"][row] = self._get(item, "X", self.channels * self.nsub).reshape(self.channels, self.nsub)
            target, weight = self._target(item)
            batch["counts"][row] = weight > 0
            batch["target"][row] = target & batch["counts"][row]
            if self.weighted:
                batch["weight"][row] = weight
        for row in self.contents.due(np.asarray(items)):
            self.contents.look(items[row], (batch[name][row] for name in ("x", "target", "counts", *self._also)))
        return batch

    @property
    def _also(self) -> tuple[str, ...]:
        return ("weight",) if self.weighted else ()

    def fingerprint(self) -> dict[str, Any]:
        parts = {"steps that count, and positive ones": named_hash(self.counted, self.positive)}
        shape = f"{self.channels} channels, {self.nsub} samples, {self.dtype}"
        return {"items": len(self), "parts": parts, "windows": shape}

    def _target(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each step is positive, and its weight; 0 where it does not count."""
        target, weight = (self._get(item, name, self.nsub)[self.receptive_field - 1 :] for name in ("target", "weight"))
        return target > 0.5, weight

    def _get(self, item: int, name: str, size: int) -> np.ndarray:
        """One array of a window, flat."""
        array = self._files.get(item, name).ravel()
        if array.size != size:
            raise DataError(
                f"{self.folder}: {name} of window {item} has {array.size:,} values; by the first it should be {size:,}"
            )
        return array

    def _check_meta(self, path: Path, name: str) -> list[str]:
        """What the folder says of its windows, against what they are; warnings. Tools say different things."""
        said: Any = {}
        if path.is_file():
            try:
                said = json.loads(path.read_text())
            except ValueError as error:
                raise DataError(f"{path}: not JSON ({error})") from None
        step = said.get("data_step", 1)
        length, count = (
            said.get("T_sub", said.get("nsub", self.nsub * step) // step),
            said.get(name, said.get(f"n_{name}")),
        )
        if length != self.nsub:
            raise DataError(f"{path}: says windows of {length} samples, they have {self.nsub}")
        if isinstance(count, int) and count != len(self):
            raise DataError(f"{path}: says {count:,} windows in {name}, there are {len(self):,}; make it again")
        stride = said.get("stride", self.outputs * step) // step
        if stride <= self.outputs:
            return []
        share = 1 - self.outputs / stride
        return [
            f"{path}: its windows are {stride:,} steps apart and each has {self.outputs:,} outputs, so {share:.0%} of "
            "the steps are never scored: they were made for a shorter receptive field"
        ]


def channels_of(folder: str | Path) -> int:
    """By the first window that there is. Raises ``DataError``."""
    there = next(path for name in FOLDERS.values() if (path := Path(folder) / name).is_dir())
    return _first(_open(there))[0]


def _open(folder: Path) -> _Ninja | _Npz:
    files = _Ninja(folder) if (folder / "X").is_dir() else _Npz(folder)
    if not len(files):
        raise DataError(f"{folder}: has no windows: neither X/ of mmap_ninja nor NUMBER.npz")
    return files


def _first(files: _Ninja | _Npz) -> tuple[int, int, np.dtype[Any]]:
    """Channels and samples of the first window, and of which type it is."""
    x, target = files.get(0, "X"), files.get(0, "target")
    return x.size // max(1, target.size), target.size, x.dtype


class _Ragged:
    """A ragged array of mmap_ninja: ``data.ninja``, all values one behind the other, and where each item begins and
    ends, in values."""

    def __init__(self, folder: Path) -> None:
        try:
            self._data = np.memmap(folder / "data.ninja", (folder / "dtype.ninja").read_text().strip(), "r")
            self.starts, self.ends = (
                np.fromfile(folder / name / "data.ninja", (folder / name / "dtype.ninja").read_text().strip())
                for name in ("starts", "ends")
            )
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder}: not a ragged array of mmap_ninja: {error}") from None
        if len(self.starts) != len(self.ends) or (len(self.ends) and int(self.ends.max()) > len(self._data)):
            raise DataError(f"{folder}: its data are cut off; make it again")

    def __len__(self) -> int:
        return len(self.starts)

    def get(self, item: int) -> np.ndarray:
        return np.asarray(self._data[int(self.starts[item]) : int(self.ends[item])])


class _Ninja:
    def __init__(self, folder: Path) -> None:
        self.mapped = [folder / name / "data.ninja" for name in NAMES]
        self._arrays = {name: _Ragged(folder / name) for name in NAMES}
        lengths = [len(array) for array in self._arrays.values()]
        if len(set(lengths)) > 1:
            raise DataError(f"{folder}: {', '.join(NAMES)} have {', '.join(map(str, lengths))} windows; make it again")

    def __len__(self) -> int:
        return len(self._arrays["X"])

    def get(self, item: int, name: str) -> np.ndarray:
        return self._arrays[name].get(item)


class _Npz:
    """NUMBER.npz in the order of their numbers."""

    mapped = None

    def __init__(self, folder: Path) -> None:
        self._paths = sorted((p for p in folder.glob("*.npz") if p.stem.isdecimal()), key=lambda path: int(path.stem))

    def __len__(self) -> int:
        return len(self._paths)

    def get(self, item: int, name: str) -> np.ndarray:
        """The others are not decompressed."""
        try:
            with np.load(self._paths[item], allow_pickle=False) as file:
                return file[name]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{self._paths[item]}: not an .npz with X, target and weight: {error}") from None


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); without it the windows are not whole: make them again"
        ) from None
