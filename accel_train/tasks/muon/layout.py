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

UNITS = {"zenith_deg": ("zenith", np.pi / 180), "depth_km": ("depth", 1000.0)}
"""Names that a layout may have for numbers in other units, and what these are multiplied by."""

UPRIGHT = 3.1416
"""Largest zenith in rad: pi, and a rounding."""

KILOMETRES, NUCLEI = 20.0, 300.0
"""A depth in m below this is one in km, and a mass in GeV above is none of a nucleus: unless a layout was given."""

COLUMNS = b"columns"
"""Key in the Arrow metadata of a field under which a file may say its own layout."""


class MuonLayout:
    """Decodes record batches with the columns ``primary`` (numbers) and ``muons`` (lists of numbers).

    Args:
        primary, muons: what the numbers are: names in order, separated by commas, such as
            "major,minor,E,zenith,mass,depth"; those that are not used may have any name, and ``UNITS`` has other units.
            "auto": what the file's own metadata says, or else what their number means (``LAYOUTS``).
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
            BadRows: rows of another length, nulls, numbers that are not finite, a primary that cannot be one (see
                ``primaries``), or muons of negative energy.
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
        BadRows: numbers that are not finite, an energy or a mass that is not positive, a zenith outside of 0 to pi, a
            depth above the ground; for "auto" also a depth in km or a mass of no nucleus.
    """
    known = {**LAYOUTS["primary"], **known}
    primary = _pick("primary", values, layout, known, PRIMARY)
    if len(primary):
        _check_primaries(primary, "" if layout != "auto" else known[values.shape[1]])
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
    names = [UNITS.get(part.strip(), (part.strip(), 1))[0] for part in layout.split(",")]
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
    found = values if places == list(range(width)) else values.take(places, axis=1)
    units = [UNITS.get(part.strip(), ("", 1.0))[1] for part in layout.split(",")]
    factors = np.array([units[place] for place in places], np.float32)
    return found if (factors == 1).all() else found * factors


def _finite(values: np.ndarray) -> bool:
    """Surely all finite. A sum of finite numbers may overflow, so False only asks for a closer look."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


def _check_primaries(primary: np.ndarray, guessed: str) -> None:
    """Args: ``guessed``, the layout that their number stands for; "" if one was given, which is believed more."""
    low, high = primary.min(0), primary.max(0)
    energy, zenith, mass, depth = range(4)
    shallowest, heaviest = (KILOMETRES, NUCLEI) if guessed else (0, np.inf)
    if (
        _finite(primary) and low[energy] > 0 and low[mass] > 0 and high[mass] <= heaviest
        and low[zenith] >= 0 and high[zenith] <= UPRIGHT and low[depth] >= shallowest
    ):  # fmt: skip
        return
    e, z, m, d = primary.T
    asks = f"; taken for {guessed}, which --task.init_args.primary_layout says better" if guessed else ""
    for what, wrong in (
        ("is not finite", ~np.isfinite(primary).all(1)),
        ("needs a positive energy and mass", (e <= 0) | (m <= 0)),
        ("has a zenith outside of 0 to pi rad (one in degrees is called zenith_deg)", (z < 0) | (z > UPRIGHT)),
        ("has a negative depth", d < 0),
        (f"has a depth below {KILOMETRES:g} m (one in km is called depth_km)", d < shallowest),
        ("has a mass in GeV that no nucleus has", m > heaviest),
    ):
        bad = np.flatnonzero(wrong)
        if len(bad):
            raise BadRows(f"primary {what}: {_show(PRIMARY, primary[bad[0]])}{asks}", bad)


def _check_muons(muons: np.ndarray, counts: np.ndarray) -> None:
    for what, wrong in (("not finite", ~np.isfinite(muons).all(1)), ("of negative energy", muons[:, 0] < 0)):
        bad = np.flatnonzero(wrong)
        if len(bad):
            rows = np.unique(np.searchsorted(np.cumsum(counts), bad, side="right"))
            raise BadRows(f"a muon is {what}: {_show(MUON, muons[bad[0]])}", rows)


def _show(names: tuple[str, ...], values: np.ndarray) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in zip(names, values, strict=True))
