"""A frame of XYZ or extended XYZ: a count, a comment that may give cell and columns, a line per atom."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from accel_train.tasks.gdynet.preprocess import rows
from accel_train.tasks.gdynet.preprocess.elements import Said
from accel_train.tasks.gdynet.preprocess.rows import Parsed, WrongError

KEY = re.compile(
    r"""(?<![A-Za-z0-9_-])(lattice|properties|pbc)\s*=\s*("[^"]*"|'[^']*'|\{[^}]*\}|\[[^]]*\]|[^\s,]+)""", re.IGNORECASE
)
"""The keys that matter, found wherever they are: whatever else a comment holds, quotes left open too, is harmless."""

BOOLEANS = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
PLAIN = "species:S:1:pos:R:3"
CHARGES = ("initial_charges", "charge", "charges", "q")


def begins(line: bytes) -> bool:
    return line.strip().isdigit() and len(line.strip()) < 19


def pass_over(line: bytes, lines: Iterator[bytes]) -> dict[str, str]:
    """Read the frame that begins with ``line`` to its end."""
    rows.pass_over(lines, 1, "comment lines")
    rows.pass_over(lines, int(line), "atoms")
    return {}


def parse(lines: list[bytes]) -> Parsed:
    """The frame. Raises ``WrongError``."""
    count, comment = int(lines[0]), _comment(lines[1].decode("utf-8", "replace"))
    columns = _columns(comment.get("properties", PLAIN))
    fields = rows.split(lines, 2, count, max(end for _, end in columns.values()), exact="properties" in comment)

    def find(*names: str) -> list[tuple[bytes, ...]]:
        return next((fields[slice(*columns[name])] for name in names if name in columns), [])

    place, charge = find("pos", "positions"), find(*CHARGES)
    number, label = find("Z", "numbers"), find("species", "symbols")
    if len(place) != 3 or not (number or label):
        raise WrongError(1, f"Properties name no pos:R:3 or no species:S:1: {comment['properties']!r}")
    cell, periodic = _cell(comment)
    return Parsed(
        lines=np.arange(2, 2 + count),
        said=Said(
            numbers=rows.numbers(number[0], 2, int) if number else None,
            symbols=np.array(label[0], bytes) if label else None,
        ),
        positions=rows.table(place, 2),
        cell=cell,
        periodic=periodic,
        charges=rows.numbers(charge[0], 2) if charge else None,
    )


def _comment(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in KEY.findall(text):
        key, value = key.lower(), value.strip("\"'{}[]")
        if found.setdefault(key, value) != value:
            raise WrongError(1, f"{key} is given twice")
    return found


def _columns(text: str) -> dict[str, tuple[int, int]]:
    """Where the columns of each property begin and end."""
    parts, columns, end = text.split(":"), {}, 0
    try:
        for name, kind, count in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            if kind not in ("S", "R", "I", "L") or int(count) < 1:
                raise ValueError
            columns[name], end = (end, end + int(count)), end + int(count)
    except ValueError:
        raise WrongError(1, f"Properties are NAME:S, R, I or L:COLUMNS with colons, not {text!r}") from None
    return columns


def _cell(comment: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """The vectors as rows, and along which the frame is periodic: all, if there is a lattice and nothing else said."""
    cell, periodic = np.zeros((3, 3)), np.full(3, "lattice" in comment)
    if "lattice" in comment:
        try:
            cell = np.array(comment["lattice"].replace(",", " ").split(), float).reshape(3, 3)
        except ValueError:
            raise WrongError(1, f"Lattice is not nine numbers: {comment['lattice']!r}") from None
    if "pbc" in comment:
        flags = [BOOLEANS.get(flag.lower()) for flag in comment["pbc"].replace(",", " ").split()]
        if len(flags) != 3 or None in flags:
            raise WrongError(1, f"pbc is not three of T and F: {comment['pbc']!r}")
        periodic = np.array(flags, bool)
    return cell, periodic
