"""Which elements the atoms of a file are: by what the file says of them, and what ``--types`` says of that."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess.frames import library

MASS = 0.3
"""How far a mass may be from that of its element."""

SHOWN = 6
"""Names of atoms in one message."""


@dataclass(frozen=True)
class Said:
    """What a file says of its N atoms, that which it has: atomic ``numbers``, ``symbols`` of elements (also Ba1, TI),
    ``names`` of atoms (CA is carbon or calcium), ``masses`` in u, and ``types``, which only --types can explain."""

    numbers: np.ndarray | None = None
    symbols: np.ndarray | None = None
    names: np.ndarray | None = None
    masses: np.ndarray | None = None
    types: np.ndarray | None = None

    @property
    def count(self) -> int | None:
        """N; None if the file says nothing."""
        return next((len(each) for each in vars(self).values() if each is not None), None)


class Elements(NamedTuple):
    """Atomic numbers int32 [N], and how they were found, in words."""

    numbers: np.ndarray
    how: str


class UnknownError(Exception):
    """What is said of this atom is no element."""

    def __init__(self, atom: int, text: str) -> None:
        super().__init__(text)
        self.atom = atom


def find(said: Said, mapping: dict[str, int] | None, place: str) -> Elements:
    """What ``mapping`` has a number for, a type if there are any, or else a symbol or name, is that; all else is what
    the file says. Raises ``UnknownError``, and ``DataError`` or ``UserError`` where it is not about one atom."""
    if said.count is None:
        raise DataError(f"{place} names no elements, nor types of atoms that --types could explain")
    numbers, ways = np.full(said.count, -1), []
    if mapping:
        numbers, ways = _mapped(said, mapping, place), ["--types"]
    if len(rest := np.flatnonzero(numbers < 0)):
        numbers[rest], how = _told(said, rest, place, bool(mapping))
        ways.append(how)
    return Elements(check_types(numbers, place), " and ".join(ways))


def _mapped(said: Said, mapping: dict[str, int], place: str) -> np.ndarray:
    """-1 for what the mapping does not name."""
    error = DataError(f"{place} has no types or names of atoms for --types")
    for keys in (said.types, said.symbols, said.names):
        if keys is None:
            continue
        kinds, which = np.unique(keys, return_inverse=True)
        texts = [_text(kind) for kind in kinds.tolist()]
        unused = sorted(mapping.keys() - texts)
        if not unused or (keys is said.types and len(unused) < len(mapping)):  # a type may have no atoms
            return np.array([mapping.get(text, -1) for text in texts])[which]
        error = UserError(f"{place} has no atom {_some(unused)}, which --types names; there are {_some(texts)}")
    raise error


def _told(said: Said, rest: np.ndarray, place: str, mapped: bool) -> tuple[np.ndarray, str]:
    """What the file says of these atoms."""
    if said.numbers is not None:
        return said.numbers[rest], "atomic numbers"
    if said.symbols is not None:
        return _by_word(said.symbols, rest, atomic_number, "symbols")
    if said.masses is not None:
        return _by_mass(said, said.masses, rest)
    if said.names is not None:
        return _by_word(said.names, rest, of_name, "names")
    if mapped and said.types is not None:
        missing = [_text(kind) for kind in np.unique(said.types[rest]).tolist()]
        raise DataError(f"{place} has type {_some(missing)}, which --types does not name")
    raise DataError(f"{place} names no elements: give --types, as in --types 1=Ba,2=Ti,3=O")


def _by_word(
    words: np.ndarray, rest: np.ndarray, read: Callable[[str], int | None], what: str
) -> tuple[np.ndarray, str]:
    kinds, which = np.unique(words[rest], return_inverse=True)
    texts = [_text(kind) for kind in kinds.tolist()]
    known = {text: number for text in texts if (number := read(text)) is not None}
    if unknown := [text for text in texts if text not in known]:
        one = f"{unknown[0]!r} is no element: give"
        if what == "names":
            one = f"{_some(unknown)}: such names may mean several elements, or none: give a topology that says it, or"
        first = int(rest[np.argmax(which == texts.index(unknown[0]))])
        raise UnknownError(first, f"{one} --types, as in --types {unknown[-1]}=C")
    symbols = library("ase.data").chemical_symbols
    other = [f"{text} is {symbols[number]}" for text, number in known.items() if symbols[number] != text]
    return np.array(list(known.values()))[which], what + (f" ({_some(other)})" if other else "")


def _by_mass(said: Said, masses: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, str]:
    """The elements whose masses are nearest."""
    table = library("ase.data").atomic_masses[:100]
    kinds, which = np.unique(masses[rest], return_inverse=True)
    nearest = np.abs(table[None, 1:] - kinds[:, None]).argmin(1) + 1
    far = np.flatnonzero(~(abs(table[nearest] - kinds) <= MASS))
    if len(far):
        first = int(rest[np.argmax(which == far[0])])
        words = said.types if said.types is not None else said.names
        what = "" if words is None else f", as in --types {_text(words[first])}=" + ("C" if kinds[far[0]] else "X")
        raise UnknownError(first, f"{kinds[far[0]]:g} is the mass of no element: give --types{what}")
    return nearest[which], "masses"


def _text(word: bytes | str | int) -> str:
    return word.decode("utf-8", "backslashreplace") if isinstance(word, bytes) else str(word)


def _some(words: Sequence[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more


def atomic_number(label: str) -> int | None:
    """Z of a symbol in capitals or not, of D and T, or of an atom's name such as Ba1 (symbol and number); else None."""
    symbol = re.fullmatch(r"([A-Z][a-z]?)[0-9]+", label)
    name = symbol[1] if symbol else label.capitalize()
    return library("ase.data").atomic_numbers.get({"D": "H", "T": "H"}.get(name, name))


def of_name(name: str) -> int | None:
    """Z of an atom's name, where it can be of one element only: Ba1, H12 and MG can, CA, CD1 and HW1 cannot."""
    two = re.fullmatch("[A-Z]{2}.*", name)
    several = two and (len(name) > 2 or name[0] in library("ase.data").atomic_numbers)
    return None if several or re.fullmatch("[DT][0-9]*", name) else atomic_number(name)


def element(text: str) -> int:
    """Atomic number of a symbol or a number, 1 to 99. Raises ``UserError``."""
    number = int(text) if text.isdecimal() else library("ase.data").atomic_numbers.get(text)
    if number is None or not 1 <= number <= 99:
        raise UserError(f"{text!r} is no element: give a symbol (Ti) or an atomic number from 1 to 99")
    return number


def element_or_site(text: str) -> int:
    """The same; X is 0, for what has a place and is no atom. Raises ``UserError``."""
    return 0 if text == "X" else element(text)


def check_types(numbers: np.ndarray, place: str) -> np.ndarray:
    """The numbers as int32. Raises ``DataError`` unless all are from 0 to 99: a network has vectors for these."""
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) == 0:
        raise DataError(f"{place}: atomic numbers must be integers (N,), there is {numbers.dtype} {numbers.shape}")
    if numbers.min() < 0 or numbers.max() > 99:
        raise DataError(f"{place}: atomic numbers go from {numbers.min()} to {numbers.max()}; 0 to 99 are possible")
    return numbers.astype(np.int32)
