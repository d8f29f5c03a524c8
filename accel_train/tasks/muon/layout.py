"""What the numbers of a primary and of a muon mean in the files that exist, and their way into arrays.

| numbers per primary | in order                                      | numbers per muon | in order                   |
|---------------------|-----------------------------------------------|------------------|----------------------------|
| 4                   | E, zenith, mass, depth                        | 3                | E, x, y                    |
| 5                   | E, zenith, mass, time, depth                  | 4                | E, r, x, y                 |
| 6                   | in HDF5 major, minor and 4; else to be given  | 5                | major, minor, E, x, y      |
| 7                   | major, minor, E, zenith, mass, time, depth    | 6                | major, minor, E, x, y, time|
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from accel_train.data.bad import BadRows
from accel_train.data.formats import arrow
from accel_train.data.ragged import Ragged
from accel_train.errors import DataError

PRIMARY = ("E", "zenith", "mass", "depth")
MUON = ("E", "x", "y")
LAYOUTS = {
    "primary": {
        4: "E,zenith,mass,depth",
        5: "E,zenith,mass,time,depth",
        7: "major,minor,E,zenith,mass,time,depth",
    },
    "muons": {3: "E,x,y", 4: "E,r,x,y", 5: "major,minor,E,x,y", 6: "major,minor,E,x,y,time"},
}
"""Column -> numbers per entry -> what they are, where the number alone says it."""
IN_HDF5 = {6: "major,minor,E,zenith,mass,depth"}
"""More of them for primaries: those who write HDF5 always begin with the ids."""

COLUMNS = b"columns"
"""Key in the Arrow metadata of a field under which a file may say its own layout."""


class MuonLayout:
    """Decodes record batches with the columns ``primary`` (numbers) and ``muons`` (lists of numbers).

    Args:
        primary, muons: what the numbers are: names in order, separated by commas, such as
            "major,minor,E,zenith,mass,depth"; those that are not used may have any name. "auto": what the file's own
            metadata says, or else what their number means (``LAYOUTS``).
        warn: called with one line when the first fake muon is met.

    A row whose only muon has E = x = y = 0 has no muon: some dumpers write empty events so. ``fakes`` counts them.

    Raises:
        DataError: a layout lacks one of the names that are needed.
    """

    columns = ("primary", "muons")

    def __init__(
        self,
        primary: str = "auto",
        muons: str = "auto",
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.primary, self.muons, self.warn = primary, muons, warn
        self.fakes = 0
        self._lock = threading.Lock()
        for name, layout, wanted in (("primary", primary, PRIMARY), ("muons", muons, MUON)):
            if layout != "auto":
                _positions(name, layout, wanted)

    def decode(self, batch: pa.RecordBatch) -> Ragged:
        """``primary`` float32 [B, 4]: E / GeV, zenith, mass, depth / m; ``muons`` float32 [M, 3]: E / GeV, x and y / m.

        Raises:
            DataError: a column is missing, of another type, or its layout is not known.
            BadRows: rows of another length, nulls, numbers that are not finite, a primary whose energy or mass is not
                positive, or muons of negative energy.
        """
        column, layout = _find(batch, "primary", self.primary)
        known = IN_HDF5 if (batch.schema.metadata or {}).get(b"format") == b"hdf5" else {}
        primary = primaries(arrow.vectors(column, "primary", _width(layout)), layout, known)
        column, layout = _find(batch, "muons", self.muons)
        counts, muons = arrow.nested(column, "muons", _width(layout))
        muons = _pick("muons", muons, layout, LAYOUTS["muons"], MUON)
        if len(muons) and not (_finite(muons) and muons[:, 0].min() > 0):
            _check_muons(muons, counts)
            counts, muons = self._without_fakes(counts, muons)
        return Ragged({"primary": primary}, counts, {"muons": muons})

    def _without_fakes(self, counts: np.ndarray, muons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        zero = (muons == 0).all(1)
        alone = np.repeat(counts == 1, counts)
        fake = zero & alone
        counts = counts.copy()
        counts[np.repeat(np.arange(len(counts)), counts)[fake]] = 0
        with self._lock:
            first, self.fakes = self.fakes == 0, self.fakes + int(fake.sum())
        if first and self.fakes and self.warn:
            self.warn("events whose only muon has E = x = y = 0 are taken as empty: some dumpers write them so")
        return counts, muons[~fake]


def primaries(values: np.ndarray, layout: str = "auto", known: Mapping[int, str] = MappingProxyType({})) -> np.ndarray:
    """float32 [B, W] in a layout as float32 [B, 4] = E / GeV, zenith, mass, depth / m.

    Args:
        known: layouts by W for "auto", beside those of ``LAYOUTS``.

    Raises:
        DataError: W does not say the layout.
        BadRows: numbers that are not finite, an energy or a mass that is not positive.
    """
    primary = _pick("primary", values, layout, {**LAYOUTS["primary"], **known}, PRIMARY)
    _check_primaries(primary)
    return primary


def _find(batch: pa.RecordBatch, name: str, layout: str) -> tuple[arrow.Column, str]:
    """The column, and its layout as given here or in the file; "auto" where neither says it."""
    column = arrow.column(batch, name)
    if layout == "auto":
        layout = (batch.schema.field(name).metadata or {}).get(COLUMNS, b"auto").decode()
    return column, layout


def _width(layout: str) -> int | None:
    return None if layout == "auto" else len(layout.split(","))


def _positions(name: str, layout: str, wanted: tuple[str, ...]) -> list[int]:
    """Where in a layout the wanted numbers stand."""
    names = [part.strip() for part in layout.split(",")]
    for one in wanted:
        if names.count(one) != 1:
            raise DataError(f"layout of {name}: {layout!r} must name {one} once; needed are {', '.join(wanted)}")
    return [names.index(one) for one in wanted]


def _pick(name: str, values: np.ndarray, layout: str, known: Mapping[int, str], wanted: tuple[str, ...]) -> np.ndarray:
    """The wanted numbers, in our order; ``values`` itself if it has just these."""
    if len(values) == 0:
        return np.zeros((0, len(wanted)), np.float32)
    width = values.shape[1]
    if layout == "auto":
        if width not in known:
            raise DataError(
                f"column {name!r} has {width} numbers, which does not say what they are ({', '.join(map(str, known))}"
                f" would); set its layout, such as major,minor,{','.join(wanted)}"
            )
        layout = known[width]
    places = _positions(name, layout, wanted)
    return values if places == list(range(width)) else values.take(places, axis=1)


def _finite(values: np.ndarray) -> bool:
    """Surely all finite. A sum of finite numbers may overflow, so False only asks for a closer look."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


def _check_primaries(primary: np.ndarray) -> None:
    if not len(primary) or (_finite(primary) and primary[:, 0].min() > 0 and primary[:, 2].min() > 0):
        return
    bad = np.flatnonzero(~np.isfinite(primary).all(1))
    if len(bad):
        raise BadRows(f"primary is not finite: {_show(PRIMARY, primary[bad[0]])}", bad)
    bad = np.flatnonzero((primary[:, 0] <= 0) | (primary[:, 2] <= 0))
    if len(bad):
        raise BadRows(f"primary needs a positive energy and mass: {_show(PRIMARY, primary[bad[0]])}", bad)


def _check_muons(muons: np.ndarray, counts: np.ndarray) -> None:
    for what, wrong in (("not finite", ~np.isfinite(muons).all(1)), ("of negative energy", muons[:, 0] < 0)):
        bad = np.flatnonzero(wrong)
        if len(bad):
            rows = np.unique(np.searchsorted(np.cumsum(counts), bad, side="right"))
            raise BadRows(f"a muon is {what}: {_show(MUON, muons[bad[0]])}", rows)


def _show(names: tuple[str, ...], values: np.ndarray) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in zip(names, values, strict=True))
