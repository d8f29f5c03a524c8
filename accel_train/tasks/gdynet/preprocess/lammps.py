"""A frame of a LAMMPS text dump: sections that begin with ``ITEM:``, in any order, the last of them ITEM: ATOMS."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from accel_train.tasks.gdynet.preprocess import rows
from accel_train.tasks.gdynet.preprocess.elements import Said
from accel_train.tasks.gdynet.preprocess.frames import even_spacing, library
from accel_train.tasks.gdynet.preprocess.rows import CutError, Parsed, WrongError

ITEM, ATOMS = b"ITEM:", b"ITEM: ATOMS"
COUNT, STEP, BOX, UNITS, TIME = "NUMBER OF ATOMS", "TIMESTEP", "BOX BOUNDS", "UNITS", "TIME"
LENGTHS = {UNITS: 1, TIME: 1, STEP: 1, COUNT: 1, BOX: 3}
"""Lines of the sections that are known. Others may have any number and are passed over."""

PLAIN = ("real", "metal")
"""Units in which lengths are in Angstrom and charges in e."""

STYLES = ("si", "cgs", "electron", "micro", "nano")
"""Units in which lengths are not in Angstrom."""

PLACES = (("x", "y", "z"), ("xs", "ys", "zs"), ("xu", "yu", "zu"), ("xsu", "ysu", "zsu"))


def begins(line: bytes) -> bool:
    return line.startswith(ITEM)


def pass_over(line: bytes, lines: Iterator[bytes]) -> dict[str, str]:
    """Read the frame that begins with ``line`` to its end; returns its TIMESTEP, and UNITS and TIME if it has them."""
    head = _Head(line, lines)
    rows.pass_over(lines, head.count, "atoms")
    return {name: head.value(name) for name in (STEP, UNITS, TIME) if name in head.sections}


def parse(lines: list[bytes], units: str | None = None) -> Parsed:
    """The frame, atoms in the order of their ids, lengths in Angstrom if ``units`` (a LAMMPS style) says which they
    are; without, and in lj, as they stand. Raises ``WrongError``."""
    head = _Head(lines[0], iter(lines[1:]))
    first = head.length
    fields = rows.split(lines, first, head.count, len(head.columns), exact=True)
    columns = dict(zip(head.columns, fields, strict=True))
    if "id" not in columns:
        raise WrongError(first - 1, "there is no column 'id', so the atoms may be in any order: dump the ids too")
    ids = rows.numbers(columns["id"], first, int)
    order = np.argsort(ids, kind="stable")
    if len(same := np.flatnonzero(np.diff(ids[order]) == 0)):
        raise WrongError(first + int(order[same[0] + 1]), f"the id {ids[order[same[0]]]} is there twice")
    place = next((names for names in PLACES if set(names) <= set(columns)), None)
    if place is None:
        raise WrongError(first - 1, "there are no columns x, y, z (nor xs, xu, xsu)")
    cell, periodic = _cell(head, lines)
    positions = rows.table([columns[name] for name in place], first)
    if "s" in place[0]:
        positions = positions @ cell

    def numbers(name: str) -> np.ndarray | None:
        return rows.numbers(columns[name], first)[order] if name in columns else None

    def words(name: str) -> np.ndarray | None:
        return np.array(columns[name], bytes)[order] if name in columns else None

    length, charges = _unit("distance", units), numbers("q")
    return Parsed(
        lines=first + order,
        said=Said(symbols=words("element"), masses=numbers("mass"), types=words("type")),
        positions=positions[order] * length,
        cell=cell * length,
        periodic=periodic,
        charges=None if charges is None else charges * _unit("charge", units),
        ids=ids[order],
    )


class _Head:
    """The sections before the atoms, and where each begins. ``length``: the lines that they and ITEM: ATOMS are."""

    def __init__(self, line: bytes, lines: Iterator[bytes]) -> None:
        self.sections: dict[str, list[bytes]] = {}
        self.at: dict[str, int] = {}
        self.flags: list[str] = []
        name, self.length = "", 1
        while not line.startswith(ATOMS):
            if line.startswith(ITEM):
                name = self._begin(line)
            else:
                self.sections[name].append(line)
            line = next(lines, b"")
            if not line:
                raise CutError("it ends before ITEM: ATOMS")
            self.length += 1
        for name, text in self.sections.items():
            if len(text) != LENGTHS.get(name, len(text)):
                raise WrongError(self.at[name], f"ITEM: {name} has {len(text)} lines, not {LENGTHS[name]}")
        self.columns = line[len(ATOMS) :].decode("utf-8", "backslashreplace").split()
        self.step, self.count = self._integer(STEP), self._integer(COUNT)

    def _begin(self, line: bytes) -> str:
        name = line[len(ITEM) :].strip().decode("utf-8", "backslashreplace")
        if name.startswith(BOX):
            name, self.flags = BOX, name[len(BOX) :].split()
        if name in self.sections:
            raise WrongError(self.length - 1, f"ITEM: {name} comes again before ITEM: ATOMS")
        self.sections[name], self.at[name] = [], self.length - 1
        return name

    def value(self, name: str) -> str:
        return self.sections[name][0].strip().decode("utf-8", "backslashreplace")

    def _integer(self, name: str) -> int:
        if name not in self.sections:
            raise WrongError(self.length - 1, f"there is no ITEM: {name} before ITEM: ATOMS")
        try:
            number = int(self.value(name))
            if abs(number) >= 2**63 or (number < 0 and name == COUNT):
                raise ValueError
        except ValueError:
            raise WrongError(self.at[name] + 1, f"{self.value(name)!r} is no {name}") from None
        return number


def _cell(head: _Head, lines: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors as rows, and along which the frame is periodic. Where the box begins does not matter."""
    if BOX not in head.sections:
        raise WrongError(head.length - 1, f"there is no ITEM: {BOX} before ITEM: ATOMS")
    at, flags = head.at[BOX], head.flags
    if len(flags) < 3 or any(set(flag) - set("pfsm") for flag in flags[-3:]):
        raise WrongError(at, "it is not said which sides of the box are periodic (as in BOX BOUNDS pp pp pp)")
    periodic, form = np.array(["p" in flag for flag in flags[-3:]]), flags[:-3]
    width = {"": 2, "xy xz yz": 3, "abc origin": 4}.get(" ".join(form))
    if width is None:
        raise WrongError(at, f"this form of the box is not known: {' '.join(form)}")
    bounds = rows.table(rows.split(lines, at + 1, 3, width, exact=True), at + 1)
    if width == 4:
        return bounds[:, :3], periodic
    xy, xz, yz = bounds[:, 2] if width == 3 else np.zeros(3)
    low = bounds[:, 0] - [min(0, xy, xz, xy + xz), min(0, yz), 0]
    high = bounds[:, 1] - [max(0, xy, xz, xy + xz), max(0, yz), 0]
    return np.diag(high - low) + [[0, 0, 0], [xy, 0, 0], [xz, yz, 0]], periodic


def spacing(heads: list[dict[str, str]], units: str | None) -> float | None:
    """Nanoseconds from one frame to the next, by TIME and UNITS, if the file has both."""
    if units in (None, "lj") or any(TIME not in head for head in heads):
        return None
    try:
        times = np.array([head[TIME] for head in heads], float)
    except ValueError:
        return None
    ns = _unit("time", units) / (1e6 * library("ase.units").fs)
    return even_spacing(times * ns, np.float32)[0]  # the digits that LAMMPS writes are fewer than those of a float64


def _unit(kind: str, units: str | None) -> float:
    """What to multiply by for Angstrom or e."""
    if units in (None, "lj") or (units in PLAIN and kind != "time"):
        return 1.0
    if units not in (*PLAIN, *STYLES):
        raise WrongError(0, f"ITEM: UNITS {units} is no style of units that is known")
    return float(library("ase.calculators.lammps").convert(1.0, kind, units, "ASE"))
