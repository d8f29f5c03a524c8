"""What a stimulus is made of, each with a row per TR: frames, mel spectra, text, features made elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.preprocess import mel, movie, tables, words

Kind = Literal["frames", "mel", "codes", "vectors"]
MOST_CODES = 2**15


@dataclass(frozen=True)
class Clock:
    """TR in seconds, TRs of every run, and which of them are for training: bool [TRs] of each run."""

    tr_s: float
    trs: dict[str, int]
    train: dict[str, np.ndarray]


class Source(Protocol):
    """One modality. ``files``: of each run that has it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def files(self) -> dict[str, Path]: ...
    def length(self, run: str, tr_s: float) -> int | None:
        """Whole TRs that there are of it; None where it does not end. Raises ``DataError``."""
        ...

    def at_trs(self, run: str, clock: Clock) -> np.ndarray:
        """[TRs of the run, ...]: row t depends on nothing behind the end of TR t. Raises ``DataError``."""
        ...

    def found(self, clock: Clock) -> list[str]:
        """What a person should know of it."""
        ...


@dataclass(frozen=True)
class Video:
    """Frames uint8 [per_tr, height, width, 3]."""

    files: dict[str, Path]
    per_tr: int
    height: int
    width: int
    name: str = "video"
    kind: Kind = "frames"

    def length(self, run: str, tr_s: float) -> int:
        return whole(movie.duration_s(self.files[run], "video"), tr_s)

    def at_trs(self, run: str, clock: Clock) -> np.ndarray:
        return movie.frames(self.files[run], clock.tr_s, clock.trs[run], self.per_tr, self.height, self.width)

    def found(self, clock: Clock) -> list[str]:
        return []


@dataclass(frozen=True)
class Sound:
    """Logarithms of mel power, float32 [frames, mels]."""

    files: dict[str, Path]
    frames: int
    mels: int
    name: str = "audio"
    kind: Kind = "mel"

    def length(self, run: str, tr_s: float) -> int:
        if tr_s * mel.HZ < self.frames * mel.HOP:
            raise UserError(f"preprocess: --audio_frames {self.frames}: a TR of {tr_s:g} s has at most "
                            f"{int(tr_s * mel.HZ / mel.HOP)}, of {mel.HOP / mel.HZ * 1e3:.0f} ms each")  # fmt: skip
        return whole(movie.duration_s(self.files[run], "audio"), tr_s)

    def at_trs(self, run: str, clock: Clock) -> np.ndarray:
        sound = movie.samples(self.files[run], mel.HZ)
        trs = clock.trs[run]
        if len(sound) < (trs * clock.tr_s - movie.LATE_S) * mel.HZ:
            raise DataError(f"{self.files[run]}: its sound ends at {len(sound) / mel.HZ:.1f} s, {trs * clock.tr_s:.1f} "
                            "s are needed; is the file complete?")  # fmt: skip
        return mel.log_mel(sound, clock.tr_s, trs, self.frames, self.mels)

    def found(self, clock: Clock) -> list[str]:
        return []


@dataclass(frozen=True)
class Text:
    """Vectors float32 [D] of the rows of a table that overlap a TR, weighed by how much of it they take; of length 1,
    or zeros where no row is.

    Args:
        files: of each run; the same table for several runs holds them one behind the other, in this order.
    """

    files: dict[str, Path]
    dim: int
    columns: tuple[str, ...] | None = None
    model: Path | None = None
    name: str = "text"
    kind: Kind = "vectors"

    def length(self, run: str, tr_s: float) -> None:
        return None

    def at_trs(self, run: str, clock: Clock) -> np.ndarray:
        each = self._rows()
        if self.model is not None:
            return self._at(run, each[run], clock, words.embedded([row.text for row in each[run]], self.model))
        counts = {name: self._counts(name, each[name], clock) for name in self.files}
        train = [counts[name][clock.train[name]] for name in self.files]
        return words.unit(counts[run] * words.inverse_frequencies(np.concatenate(train))).astype(np.float32)

    def found(self, clock: Clock) -> list[str]:
        each, texts = self._rows(), []
        for path in dict.fromkeys(self.files.values()):
            table = tables.read(path, self.columns)
            if table.zero_length:
                texts.append(f"{path.name}: {_rows(table.zero_length)} of zero length, left out")
            if table.without_tr:
                texts.append(f"{path.name}: {_rows(table.without_tr)} without a TR, left out")
            wrong, known = tables.trs_that_disagree(table.runs, clock.tr_s)
            if wrong:
                texts.append(f"{path.name}: {wrong} of {_rows(known)} name a TR that is more than one from their "
                             f"seconds / {clock.tr_s:g} s; is the TR right?")  # fmt: skip
        for run, rows in each.items():
            covered = tables.overlap(rows, clock.tr_s, clock.trs[run]).sum(1) > 0
            if behind := sum(row.start_s >= clock.trs[run] * clock.tr_s for row in rows):
                texts.append(f"text of {run}: {_rows(behind)} behind its last TR, left out")
            if missing := int((~covered).sum()):
                texts.append(f"text of {run}: {missing} of {len(covered)} TRs have none, and are zeros")
        if self.model is None:
            texts.append(f"text: hashed words and pairs, TF-IDF, {self.dim} numbers; --text_model gives meaning")
        return texts

    def _rows(self) -> dict[str, list[tables.Row]]:
        found: dict[str, list[tables.Row]] = {}
        for path in dict.fromkeys(self.files.values()):
            runs = [run for run, file in self.files.items() if file == path]
            table = tables.read(path, self.columns)
            if len(table.runs) != len(runs):
                first = [str(rows[0].line) for rows in table.runs[1:] if rows]
                where = f" (a clock begins again in row {', '.join(first)})" if first else ""
                raise DataError(f"{path}: has {len(table.runs)} runs{where}, there are {len(runs)}: "
                                f"{', '.join(runs)}; name all in --runs, or give each its table")  # fmt: skip
            found |= dict(zip(runs, table.runs, strict=True))
        return found

    def _counts(self, run: str, rows: list[tables.Row], clock: Clock) -> np.ndarray:
        return tables.overlap(rows, clock.tr_s, clock.trs[run]) @ words.hashed([r.text for r in rows], self.dim)

    def _at(self, run: str, rows: list[tables.Row], clock: Clock, vectors: np.ndarray) -> np.ndarray:
        taken = tables.overlap(rows, clock.tr_s, clock.trs[run])
        return words.unit(taken @ words.unit(vectors)).astype(np.float32)


@dataclass(frozen=True)
class Features:
    """Rows that were computed elsewhere: .npy, or a data set of HDF5. Real numbers become vectors float32 [D], the mean
    of the rows of a TR; whole numbers are codes int16 [codebooks, frames].

    Args:
        rate_hz: rows a second, the first at time 0; None: one row per TR, or what the file says (attribute rate_hz).
        layer: data set of the HDF5 files; None where there is one only.
    """

    name: str
    files: dict[str, Path]
    rate_hz: float | None = None
    layer: str | None = None

    @property
    def kind(self) -> Kind:
        return "codes" if self._open(next(iter(self.files)))[0].dtype.kind in "iu" else "vectors"

    def length(self, run: str, tr_s: float) -> int:
        rows, rate = self._open(run)
        return len(rows) if rate is None else whole(len(rows) / rate, tr_s)

    def at_trs(self, run: str, clock: Clock) -> np.ndarray:
        array, rate = self._open(run)
        trs = clock.trs[run]
        if rate is None:
            rows = np.asarray(array[:trs])
        elif self.kind == "codes":
            per_tr = int(rate * clock.tr_s + 1e-6)
            first = np.ceil(np.arange(trs) * clock.tr_s * rate - 1e-6).astype(int)
            rows = np.stack([np.asarray(array[i : i + per_tr]).T for i in first])
        else:
            edges = np.ceil(np.arange(trs + 1) * clock.tr_s * rate - 1e-6).astype(int)
            if (np.diff(edges) < 1).any():
                raise DataError(f"{self.files[run]}: {rate:g} rows a second are fewer than one per TR")
            rows = np.stack([np.asarray(array[a:b], np.float64).mean(0) for a, b in pairwise(edges)])
        return self._checked(rows, run)

    def rate(self, run: str) -> float | None:
        """Rows a second, asked for or said by the file. Raises ``DataError``."""
        return self._open(run)[1]

    def found(self, clock: Clock) -> list[str]:
        return []

    def _checked(self, rows: np.ndarray, run: str) -> np.ndarray:
        path = self.files[run]
        if self.kind == "codes":
            if rows.ndim != 3 or rows.min() < 0 or rows.max() >= MOST_CODES:
                raise DataError(f"{path}: codes are whole numbers from 0 to {MOST_CODES - 1}, [TRs, codebooks, frames] "
                                f"or [rows, codebooks] with a rate; here {rows.min()} to {rows.max()}, "
                                f"{' x '.join(map(str, rows.shape))}")  # fmt: skip
            return rows.astype(np.int16)
        rows = rows.reshape(len(rows), -1).astype(np.float32)
        if not np.isfinite(rows).all():
            row, column = np.argwhere(~np.isfinite(rows))[0]
            raise DataError(f"{path}: number {column} of TR {row} is {rows[row, column]}")
        return rows

    def _open(self, run: str) -> tuple[Any, float | None]:
        array, said = open_array(self.files[run], self.layer)
        return array, self.rate_hz or said


def open_array(path: Path, layer: str | None) -> tuple[Any, float | None]:
    """Rows of a .npy or HDF5 file, not read yet, and how many a second if it says. Raises ``DataError``."""
    try:
        if path.suffix.lower() == ".npy":
            array, rate = np.load(path, mmap_mode="r", allow_pickle=False), None
        else:
            import h5py

            file: Any = h5py.File(path, "r")
            sets: list[str] = []
            file.visititems(lambda name, each: sets.append(name) if isinstance(each, h5py.Dataset) else None)
            if layer is None and len(sets) != 1:
                raise DataError(f"{path}: holds {len(sets)} data sets; name one by --layer: {', '.join(sets[:8])}")
            if layer is not None and layer not in sets:
                raise DataError(f"{path}: has no data set {layer!r}; there are {', '.join(sets[:8])}")
            array = file[layer or sets[0]]
            said = array.attrs.get("rate_hz", file.attrs.get("rate_hz"))
            rate = None if said is None else float(said)
            if rate is not None and not 0 < rate < float("inf"):
                raise DataError(f"{path}: rate_hz is {rate:g}, rows a second are a number above 0; give --feature_rate")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:160]}") from None
    if array.ndim < 2 or array.dtype.kind not in "iuf":
        raise DataError(f"{path}: is {array.dtype} {array.shape}, features are numbers with a row per time")
    return array, rate


def whole(seconds: float, tr_s: float) -> int:
    """TRs that are there to their end, give or take a millisecond."""
    return int((seconds + 1e-3) / tr_s)


def _rows(count: int) -> str:
    return f"{count} row" + ("s" if count != 1 else "")
