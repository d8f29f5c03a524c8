"""Muon bundles from files: which reader, which showers are held out, what is too large to train on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from accel_train import keyed
from accel_train.contents import named_hash
from accel_train.data.lanes import Place
from accel_train.data.ragged import Ragged
from accel_train.data.remote.requests import path_of
from accel_train.errors import DataError
from accel_train.system.writing import refuse_unwritable, replacing, writing
from accel_train.task import Batch
from accel_train.tasks.muon.showers import drawn_again, units

if TYPE_CHECKING:
    from accel_train.tasks.muon.metrics import Sample

PARQUET, HDF5 = (".parquet", ".pq"), (".h5", ".hdf5")


SCHEMA = pa.schema({"primary": pa.list_(pa.float32()), "muons": pa.list_(pa.list_(pa.float32()))})
"""What bundles are written in: [E_GeV, zenith_rad, mass, depth_m], and per muon [E_GeV, x_m, y_m]."""


def table(events: Ragged) -> pa.Table:
    """Bundles in ``SCHEMA``."""
    primary, muons = (
        pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]).cast(pa.list_(pa.float32()))
        for values in (events.rows["primary"], events.flat["muons"])
    )
    lists = pa.ListArray.from_arrays(pa.array(events.offsets, pa.int32()), muons)
    return pa.table({"primary": primary, "muons": lists}, schema=SCHEMA)


class Outliers:
    """Events too large to train on are moved to files of their own, which the same reader takes.

    The rows are those of the input (energy in GeV, angles in rad, metres), with where they came from. A file is named
    after its origin, so that reading the same rows again, in another epoch or after a kill, writes nothing twice.

    Args:
        folder: None drops them.
    """

    def __init__(self, max_muons: int, folder: str | None, warn: Callable[[str], None]) -> None:
        self.max_muons, self.folder, self.warn = max_muons, Path(folder) if folder else None, warn
        if self.folder:
            refuse_unwritable("task.init_args.outliers_dir", self.folder)

    def remove(self, ragged: Ragged, place: Place) -> Ragged:
        large = ragged.counts > self.max_muons
        if not large.any():
            return ragged
        found = ragged.take(large)
        where = f"moved to {self.folder}" if self.folder else "dropped; outliers_dir keeps them"
        self.warn(
            f"{place}: {len(found)} event(s) with more than {self.max_muons:,} muons (largest {found.counts.max():,}), "
            f"{where}"
        )
        if self.folder:
            self._write(found, place)
        return ragged.take(~large)

    def _write(self, found: Ragged, place: Place) -> None:
        assert self.folder is not None
        name = f"part-{keyed.key(place.path):016x}-{place.group:05d}-{int(found.rows['row'][0]):09d}.parquet"
        if (self.folder / name).exists():
            return
        written = table(found)
        for column, values in (
            ("source_file", [place.path] * len(found)),
            ("source_row_group", [place.group] * len(found)),
            ("source_row", found.rows["row"]),
        ):
            written = written.append_column(column, pa.array(values))
        with writing("task.init_args.outliers_dir", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / name) as temporary:
                pq.write_table(written, temporary, write_page_checksum=True)


class HeldOut:
    """Events in memory, as ``IndexedSource`` reads them. Half of their showers are generated, half are the floor.

    Args:
        events: what was held out; the order decides which events share their conditions when these are shuffled.
        origin: the fingerprint of what they were read from.
    """

    def __init__(self, events: Ragged, origin: Mapping[str, Any] | None = None) -> None:
        content = named_hash(*events.rows.values(), events.counts, *events.flat.values())
        self._known_by = {**(origin or {}), "parts": {"the set of held-out events": content}}
        floor = drawn_again(events.rows["primary"], "floor", 2) == 1
        self.floor, self.events = events.take(floor), events.take(~floor)
        if len(self.events) == 0 or len(self.floor) == 0:
            raise DataError(f"only {len(events)} held-out events: give more data, or a larger held_out or eval_events")
        from accel_train.tasks.muon.observables import Cells  # with torch, which reading a config needs not

        self.cells = Cells.of(self.events.rows["primary"].astype(np.float64))
        self.other = np.random.Generator(np.random.Philox(key=0)).permutation(len(self.events))
        self.unit = units(self.events.rows["primary"])
        self.key = keyed.bits(keyed.key("evaluation"), np.arange(len(self.events)))[:, 0].view(np.int64)

    def __len__(self) -> int:
        return len(self.events)

    def fingerprint(self) -> dict[str, Any]:
        return self._known_by

    @cached_property
    def real(self) -> Sample:
        """The events that are generated, as they are."""
        from accel_train.tasks.muon.metrics import sample

        return sample(self.events, self.cells)

    @cached_property
    def own_errors(self) -> dict[str, float]:
        """Of the numbers of the truth, by showers: see ``metrics.own_errors``."""
        from accel_train.tasks.muon.metrics import own_errors

        return own_errors(self.real, self.cells)

    @cached_property
    def truth_against_truth(self) -> dict[str, float]:
        """The metrics of the other half: the same at every evaluation."""
        from accel_train.tasks.muon.metrics import compare, sample

        return compare(self.real, sample(self.floor, self.cells), self.cells)

    @cached_property
    def uncertain(self) -> dict[str, float]:
        """What no metric is given of, since there are too few showers for it: see ``metrics.uncertain``."""
        from accel_train.tasks.muon.metrics import uncertain

        return uncertain(self.own_errors, self.truth_against_truth)

    def read(self, indices: np.ndarray) -> Batch:
        """``other`` [B, 4]: conditions of another event."""
        part = self.events.take(indices)
        return {
            "primary": part.rows["primary"],
            "counts": part.counts,
            "host_counts": part.counts,
            "muons": part.flat["muons"],
            "key": self.key[indices],
            "slot": indices,
            "unit": self.unit[indices],
            "other": self.events.rows["primary"][self.other[indices]],
        }


Kind = Literal["parquet", "hdf5", "hf"]


def kind_of(path: str) -> Kind:
    """By which reader a file is read, from its extension."""
    suffix = os.path.splitext(path_of(path)[0])[1].lower()
    return "parquet" if suffix in PARQUET else "hdf5" if suffix in HDF5 else "hf"
