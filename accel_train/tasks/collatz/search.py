"""Look for closed orbits in a range of numbers: does each number ever fall below itself?

If every number does, none lies on a new cycle, by induction on its smallest member. For 3n+1 on positive numbers the
test runs on the jumps of ``trajectory``; the neighbouring maps, where cycles are known, run in Python integers. All
positive numbers below 2^71 are verified for 3n+1 (Barina, J. Supercomputing 81, 2025), so the search begins there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from accel_train.command import Parser
from accel_train.errors import DataError, UserError
from accel_train.system.writing import write_atomic, writing
from accel_train.tasks.collatz.cycles import Cycle, find_cycle, step
from accel_train.tasks.collatz.trajectory import JUMP, PATIENCE, jump

DEFAULT_START = 1 << 71
MAPS = {"3n+1": (3, 1), "3n-1": (3, -1), "5n+1": (5, 1)}

_ROWS = 8192  # tested at once; keeps the working set in the second-level cache
_PATIENCE_OTHER = 2_000  # steps; under 5n+1 most orbits grow for ever, and each step of a long number costs more


@dataclass
class Search:
    """Where a search stands.

    Args:
        start: the first number, or its magnitude if ``negative``.
        multiplier, offset, negative: the map, and the side of zero.
        done: numbers covered so far, from ``start`` on.
        tested: those of them whose orbit was followed; the others fall by the map's own arithmetic.
        cycles: the closed orbits found, each once.
        undecided: magnitudes that neither fell below themselves nor closed within the patience of the search.
        seconds: time spent, over all its runs.
    """

    start: int = DEFAULT_START
    multiplier: int = 3
    offset: int = 1
    negative: bool = False
    done: int = 0
    tested: int = 0
    cycles: list[Cycle] = field(default_factory=list)
    undecided: list[int] = field(default_factory=list)
    seconds: float = 0.0


def search(
    start: int = DEFAULT_START,
    count: int = 1 << 24,
    chunk: int = 1 << 20,
    progress_file: str | os.PathLike[str] | None = None,
    multiplier: int = 3,
    offset: int = 1,
    on_cycle: Callable[[Cycle], None] | None = None,
    negative: bool = False,
) -> Search:
    """Cover ``count`` numbers from ``start`` on, each once.

    Args:
        start, count: the range [start, start + count); its mirror image if ``negative``.
        chunk: numbers between two writes of the progress file.
        progress_file: JSON. If it exists the search goes on where it stopped; a greater ``count`` extends it.
        multiplier, offset: the map for odd numbers, both odd.
        on_cycle: called once for each new cycle, after it was followed in exact integers.

    Raises:
        UserError: the range or the map makes no sense, or the progress file belongs to another search.
        DataError: the progress file cannot be read.
    """
    if start < 1 or count < 0 or chunk < 1:
        raise UserError(f"a search needs start >= 1, count >= 0 and chunk >= 1, got {start}, {count} and {chunk}")
    if multiplier % 2 == 0 or offset % 2 == 0 or multiplier < 1:
        raise UserError(f"multiplier and offset must be odd and the multiplier positive, got {multiplier} and {offset}")
    state = Search(start, multiplier, offset, negative)
    path = Path(progress_file) if progress_file is not None else None
    if path is not None and path.exists():
        state = _read(path, state)
    while state.done < count:
        begun = time.perf_counter()
        first, size = start + state.done, min(chunk, count - state.done)
        tested, suspects = _suspects(state, first, first + size)
        for n in suspects:
            cycle = _follow(n, multiplier, offset)
            if cycle is None:
                state.undecided.append(abs(n))
            elif cycle.members and cycle.members not in [known.members for known in state.cycles]:
                state.cycles.append(cycle)
                if on_cycle is not None:
                    on_cycle(cycle)
        state.done += size
        state.tested += tested
        state.seconds += time.perf_counter() - begun
        if path is not None:
            _write(path, state)
    return state


def _suspects(state: Search, first: int, end: int) -> tuple[int, list[int]]:
    """How many numbers of [first, end) had to be tested, and those not seen to fall below themselves.

    An even number falls at once. Under 3n+1 so does n = 4m + 1, in three steps to 3m + 1, which leaves 3 mod 4; under
    3n-1 it is the mirror image, which leaves 1 mod 4. Other maps have no such shortcut.
    """
    modulus = 4 if (state.multiplier, abs(state.offset)) == (3, 1) else 2
    residue = -state.offset % 4 if modulus == 4 else 1
    if state.negative:
        residue = -residue % modulus
    first += (residue - first) % modulus
    numbers = range(first, end, modulus)
    if (state.multiplier, state.offset, state.negative) == (3, 1, False) and end <= 1 << 128:
        return len(numbers), [n for i in range(0, len(numbers), _ROWS) for n in _unfallen(numbers[i : i + _ROWS])]
    return len(numbers), [-n for n in numbers] if state.negative else list(numbers)


def _unfallen(numbers: range) -> list[int]:
    """Those of the numbers (all above 2) that leave 128 bits, or stay above themselves, before a jump lands below."""
    low = np.uint64(numbers.start & 0xFFFFFFFFFFFFFFFF) + np.arange(len(numbers), dtype=np.uint64) * np.uint64(4)
    high = np.uint64(numbers.start >> 64) + (low < low[0]).astype(np.uint64)
    rows, start_high, start_low = np.arange(len(numbers)), high, low
    lost: list[np.ndarray] = []
    for _ in range(PATIENCE // JUMP):
        if not rows.size:
            break
        high, low, _, overflow = jump(high, low)
        above = (high > start_high) | ((high == start_high) & (low >= start_low))
        lost.append(rows[overflow])
        stay = np.flatnonzero(above & ~overflow)
        rows, high, low, start_high, start_low = (x[stay] for x in (rows, high, low, start_high, start_low))
    return [numbers[row] for row in np.concatenate([*lost, rows]).tolist()]


def _follow(n: int, multiplier: int, offset: int) -> Cycle | None:
    """What becomes of ``n``, exactly: a cycle, one without members if it falls below itself, or None if neither."""
    patience = PATIENCE if (multiplier, offset) == (3, 1) else _PATIENCE_OTHER
    value, floor = n, abs(n)
    for _ in range(patience):
        value = step(value, multiplier, offset)
        if abs(value) < floor:
            return Cycle((), n, multiplier, offset)
        if value == n:
            break
    return find_cycle(n, multiplier, offset, max_steps=patience)


# -- the progress file ---------------------------------------------------------------------------------------------


def _write(path: Path, state: Search) -> None:
    """Replace the file in one step, so that whenever the search is killed an entire one is there."""
    content = {
        "map": [state.multiplier, state.offset],
        "negative": state.negative,
        "start": str(state.start),  # text: other readers of JSON take numbers for floats
        "done": state.done,
        "tested": state.tested,
        "cycles": [{"start": str(c.start), "members": [str(m) for m in c.members]} for c in state.cycles],
        "undecided": [str(n) for n in state.undecided],
        "seconds": round(state.seconds, 3),
    }
    try:
        write_atomic(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the progress file {path}: {error.strerror}") from error


def _read(path: Path, wanted: Search) -> Search:
    try:
        content = json.loads(path.read_text())
        a, b = content["map"]
        cycles = [Cycle(tuple(int(m) for m in c["members"]), int(c["start"]), a, b) for c in content["cycles"]]
        undecided = [int(n) for n in content["undecided"]]
        counts = int(content["done"]), int(content["tested"])
        found = Search(int(content["start"]), a, b, content["negative"], *counts, cycles, undecided, content["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a readable progress file ({error!r}); mend or delete it") from error
    for name in ("start", "multiplier", "offset", "negative"):
        if getattr(found, name) != getattr(wanted, name):
            raise UserError(
                f"{path} belongs to another search: its {name} is {getattr(found, name)}, not {getattr(wanted, name)}"
            )
    return found


# -- the command ---------------------------------------------------------------------------------------------------


def parse_number(text: str) -> int:
    """An integer as a person writes it: ``1000``, ``10_000``, ``2^71``, ``2**71+1``, ``2^71-1``."""
    match = re.fullmatch(r"([\d_]+)(?:(?:\^|\*\*)(\d{1,4}))?([+-]\d+)?", text.replace(" ", ""))
    if match is None or not match[1].strip("_"):
        raise UserError(f"{text!r} is not a number; write 1000 or 2^71 or 2^71+1")
    return int(match[1].replace("_", "")) ** int(match[2] or 1) + int(match[3] or 0)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--start", default="2^71", help="first number, as 2^71 or 1000; its magnitude if negative")
    parser.add_argument("--count", default="2^24", help="how many numbers to cover")
    parser.add_argument("--map", choices=list(MAPS), default="3n+1", help="the rule for odd numbers")
    parser.add_argument("--negative", action="store_true", help="search the negative numbers instead")
    parser.add_argument("--progress", metavar="FILE", help="keep the progress here, and go on from it")


def run(options: argparse.Namespace) -> int:
    """Returns 0, whether or not a cycle was found."""
    start, count = parse_number(options.start), parse_number(options.count)
    multiplier, offset = MAPS[options.map]
    begun = time.perf_counter()
    before = 0
    if options.progress and Path(options.progress).exists():
        before = _read(Path(options.progress), Search(start, multiplier, offset, options.negative)).done
        print(f"going on after {before:,} numbers")
    with writing("--progress", Path(options.progress or ".")):
        result = search(
            start,
            count,
            progress_file=options.progress,
            multiplier=multiplier,
            offset=offset,
            negative=options.negative,
            on_cycle=lambda cycle: print(f"found a {cycle}"),
        )
    rate = (result.done - before) / max(time.perf_counter() - begun, 1e-9)
    sign = "-" if options.negative else ""
    print(f"{options.map}: covered {result.done:,} numbers from {sign}{start}, followed {result.tested:,}")
    print(f"cycles: {len(result.cycles)}  undecided: {len(result.undecided)}  rate: {rate:,.0f} numbers/s")
    return 0
