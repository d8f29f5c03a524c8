"""From the task's settings to readers: training batches from lanes, held-out events in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from accel_train.data.bad import BadDataPolicy
from accel_train.data.lanes import Format, LanesSource, Place, Shuffle, read_groups
from accel_train.data.ragged import Ragged
from accel_train.data.remote.settings import RemoteFiles
from accel_train.data.remote.storage import expand, open_file, place
from accel_train.errors import UserError
from accel_train.tasks.muon.data import HeldOut, Kind, Outliers, kind_of
from accel_train.tasks.muon.layout import MuonLayout
from accel_train.tasks.muon.showers import in_split

if TYPE_CHECKING:
    from accel_train.data.flat_cache import CachedSource

HELD_OUT_ROWS = 65_536
"""Rows read at once when held-out events are collected."""


@dataclass(frozen=True)
class Reading:
    """What a task reads, and how; each of its arguments of the same name."""

    files: list[str]
    validation_files: list[str]
    held_out: float
    eval_events: int
    reader: Literal["auto", "parquet", "hdf5", "hf"]
    primary_layout: str
    muon_layout: str
    lanes: int
    shuffle: Shuffle
    on_bad_file: Literal["raise", "skip"]
    max_muons_per_event: int | None
    outliers_dir: str | None
    cache_dir: str | None
    remote: RemoteFiles


class Sources:
    """One for all splits of a task: patterns are expanded and row groups asked for once."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.bad = BadDataPolicy(reading.on_bad_file)
        layout = MuonLayout(reading.primary_layout, reading.muon_layout, warn=self.bad.warn)
        self.format = Files(layout, self.bad, reading.reader)
        urls = [path for path in [*reading.files, *reading.validation_files] if "://" in path]
        self.access = reading.remote.access(urls) if urls or reading.remote.write_to else None
        self.staging = reading.remote.staging(self.access) if urls and self.access else None
        self._compared = False
        self._scanned: dict[tuple[str, ...], tuple[list[str], list[list[int]]]] = {}

    def train(self, batch_size: int, seed: int) -> LanesSource:
        """Straight from the files. A batch is so many of their rows that ``batch_size`` are left on average: how many
        are held out of just these is known only when they are read, and where a batch begins must be known before."""
        held_out = 0 if self.reading.validation_files else self.reading.held_out
        rows = round(batch_size / (1 - held_out))
        return self._train(rows, seed, self.reading.lanes, self.reading.shuffle)

    def cached(self, batch_size: int, seed: int) -> CachedSource:
        """From a flat copy of what is trained on, shuffled as a whole."""
        from accel_train.data.flat_cache import cached

        reading = self.reading
        assert reading.cache_dir is not None
        in_order = self._train(65_536, seed, lanes=1, shuffle="none")
        names = ("primary_layout", "muon_layout", "held_out", "max_muons_per_event", "reader")
        settings = {name: getattr(reading, name) for name in names}
        settings["held_out"] = 0 if reading.validation_files else reading.held_out
        return cached(reading.cache_dir, in_order, settings, batch_size, seed, shuffle=reading.shuffle != "none")

    def _train(self, batch_size: int, seed: int, lanes: int, shuffle: Shuffle) -> LanesSource:
        reading, warn = self.reading, self.bad.warn
        outliers = (
            Outliers(reading.max_muons_per_event, reading.outliers_dir, warn) if reading.max_muons_per_event else None
        )

        def prepare(ragged: Ragged, place: Place) -> Ragged:
            if not reading.validation_files and reading.held_out > 0:
                ragged = ragged.take(in_split(ragged.rows["primary"], "train", reading.held_out))
            return outliers.remove(ragged, place) if outliers else ragged

        files, groups = self._scan(reading.files)
        return LanesSource(
            files, self.format, batch_size, seed, lanes, shuffle, prepare, self.bad, self.staging, groups
        )

    def held_out(self, split: str) -> HeldOut:
        """The first events of a split, in memory: evaluations come often, and read no file again."""
        reading = self.reading

        def prepare(ragged: Ragged, place: Place) -> Ragged:
            # Of files that are held out as a whole, half of the showers is for the test.
            share = 1.0 if reading.validation_files else reading.held_out
            return ragged.take(in_split(ragged.rows["primary"], split, share))

        files, groups = self._scan(reading.validation_files or reading.files)
        if reading.validation_files and tuple(reading.files) in self._scanned and not self._compared:
            self._compared = True
            trained = {place(path) for path in self._scan(reading.files)[0]}
            for path in (path for path in files if place(path) in trained):
                self.bad.warn(f"validation_files: {path} is also trained on, so metrics will look better than they are")
        source = LanesSource(
            files, self.format, HELD_OUT_ROWS, lanes=reading.lanes, shuffle="files", prepare=prepare,
            staging=self.staging, groups=groups,
        )  # fmt: skip
        return HeldOut(source.first(reading.eval_events), source.fingerprint())

    def _scan(self, patterns: Sequence[str]) -> tuple[list[str], list[list[int]]]:
        """The files, and the rows of their row groups."""
        key = tuple(patterns)
        if key not in self._scanned:
            files = expand(patterns)
            if not files:
                raise UserError("task.init_args.files: [] names no files")
            names = {place(path): path for path in reversed(files)}
            for path in (path for path in files if names[place(path)] != path):
                self.bad.warn(f"{path} and {names[place(path)]} are one file, and what is in it is read twice")
            self._scanned[key] = (files, read_groups(files, self.format))
        return self._scanned[key]


class Files:
    """The format of ``LanesSource`` for all that this task reads: each file by its own reader, by the extension unless
    ``reader`` says it."""

    def __init__(
        self, layout: MuonLayout, bad: BadDataPolicy, reader: Literal["auto", "parquet", "hdf5", "hf"] = "auto"
    ) -> None:
        self.layout, self.bad, self.reader = layout, bad, reader
        self._of_kind = cache(self._make)

    def groups(self, path: str) -> list[int]:
        return self._of(path).groups(path)

    def blocks(self, path: str, group: int, rows: int) -> Iterator[Ragged]:
        return self._of(path).blocks(path, group, rows)

    def header(self, path: str) -> str:
        header = getattr(self._of(path), "header", None)
        return "" if header is None else header(path)

    def _of(self, path: str) -> Format:
        return self._of_kind(kind_of(path) if self.reader == "auto" else self.reader)

    def _make(self, kind: Kind) -> Format:
        layout, bad = self.layout, self.bad
        if kind == "parquet":
            from accel_train.data.formats.parquet import Parquet

            return Parquet(layout.columns, layout.decode, bad, open_file)
        if kind == "hdf5":
            from accel_train.data.formats.hdf5 import Hdf5

            return Hdf5(layout.decode, bad, {"primary": "primaries"}, {"muons": "muons"}, "counts")
        from accel_train.data.formats.streaming import Streaming

        return Streaming(layout.decode, bad)
