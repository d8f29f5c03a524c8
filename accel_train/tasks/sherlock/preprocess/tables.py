"""What happens in a movie, in words: rows of a table whose clock begins again with every run."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.errors import DataError, UserError, suggest
from accel_train.tasks.sherlock.libraries import library

RESTART_S = 5.0
"""A row that begins before the one above it, and no later than this, is the first of the next run."""
START = ("start time (s)", "start (s)", "start_s", "start", "onset")
END = ("end time (s)", "end (s)", "end_s", "end", "offset")
DURATION = ("duration", "duration (s)", "duration_s")
TEXT = ("scene details - a level", "details", "description", "text", "words", "transcript", "word")
TR_COLUMN = re.compile(r"start.*\btrs?\b")


@dataclass(frozen=True)
class Row:
    """A row that counts: seconds of its run, and what it says. ``line``: where it stands in the file, from 1."""

    line: int
    start_s: float
    end_s: float
    text: str
    tr: float | None = None


@dataclass(frozen=True)
class Annotations:
    """The rows of each run in order, and how many were left out because they have no length, or no TR."""

    runs: list[list[Row]]
    zero_length: int
    without_tr: int


def read(path: Path, columns: Sequence[str] | None = None) -> Annotations:
    """The rows of an .xlsx, .tsv or .csv.

    Args:
        columns: whose text is taken, together; by default the first of ``TEXT`` that there is.

    Raises:
        DataError: times run backwards within a run, a row ends before it begins, or has no time.
        UserError: there is no such column.
    """
    header, lines = _table(path)
    names = {" ".join(str(name or "").lower().split()): i for i, name in enumerate(header)}
    start, end, length = (_column(names, known) for known in (START, END, DURATION))
    if start is None or (end is None and length is None):
        raise DataError(f"{path}: has no columns for start and end; they are called {START[0]!r} and {END[0]!r}, or "
                        f"onset and duration; there are {', '.join(names)}")  # fmt: skip
    texts = _text_columns(path, names, columns)
    tr = next((i for name, i in names.items() if TR_COLUMN.search(name)), None)
    runs: list[list[Row]] = []
    before, zero, without = float("inf"), 0, 0
    for line, cells in lines:
        if all(cell in (None, "") for cell in cells):
            continue
        if tr is not None and cells[tr] in (None, ""):
            without += 1
            continue
        first = _seconds(path, line, cells[start])
        last = _seconds(path, line, cells[end]) if end is not None else first + _seconds(path, line, cells[length or 0])
        if first < before:
            if runs and first > RESTART_S:
                raise DataError(f"{path}, row {line}: begins at {first:g} s, after a row that begins at {before:g} s; "
                                f"times run backwards (a new run would begin within {RESTART_S:g} s)")  # fmt: skip
            runs.append([])
        before = first
        if last < first:
            raise DataError(f"{path}, row {line}: ends at {last:g} s, before it begins at {first:g} s")
        if last == first:
            zero += 1
        else:
            text = " ".join(str(cells[i]) for i in texts if cells[i] is not None)
            runs[-1].append(Row(line, first, last, text, None if tr is None else _number(cells[tr])))
    if not runs:
        raise DataError(f"{path}: has no rows")
    return Annotations(runs, zero, without)


def overlap(rows: Sequence[Row], tr_s: float, trs: int) -> np.ndarray:
    """float64 [trs, rows]: the share of each TR that each row takes."""
    first = np.arange(trs)[:, None] * tr_s
    start, end = (np.array([getattr(row, name) for row in rows])[None] for name in ("start_s", "end_s"))
    return np.maximum(0.0, np.minimum(end, first + tr_s) - np.maximum(start, first)) / tr_s


def trs_that_disagree(runs: Sequence[Sequence[Row]], tr_s: float) -> tuple[int, int]:
    """Of the rows with a TR: how many are more than one TR from where their seconds put them within their run, and how
    many there are. TRs may go on counting through the runs: those of a run are compared with its first row."""
    wrong = known = 0
    for rows in runs:
        there = [(row.tr, row.start_s) for row in rows if row.tr is not None]
        known += len(there)
        if there:
            (tr0, s0), *_ = there
            wrong += sum(abs((tr - tr0) - (s - s0) / tr_s) > 1.01 for tr, s in there)
    return wrong, known


def _table(path: Path) -> tuple[list[Any], list[tuple[int, list[Any]]]]:
    """The header, and the lines under it with their numbers, all as long as the header."""
    try:
        if path.suffix.lower() == ".xlsx":
            book = library("openpyxl").load_workbook(path, read_only=True, data_only=True)
            lines = [list(line) for line in book.worksheets[0].iter_rows(values_only=True)]
            book.close()
        else:
            with open(path, encoding="utf-8-sig", newline="") as file:
                lines = list(csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except UserError:
        raise
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8; save it as UTF-8, or as .xlsx") from None
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a table: {' '.join(str(error).split())[:160]}") from None
    if not lines:
        raise DataError(f"{path}: is empty")
    header, width = lines[0], len(lines[0])
    return header, [(2 + i, (line + [None] * width)[:width]) for i, line in enumerate(lines[1:])]


def _column(names: dict[str, int], known: Sequence[str]) -> int | None:
    return next((names[name] for name in known if name in names), None)


def _text_columns(path: Path, names: dict[str, int], asked: Sequence[str] | None) -> list[int]:
    if asked is None:
        found = _column(names, TEXT)
        if found is None:
            raise UserError(f"{path}: which column is the text? Give --text_columns; there are {', '.join(names)}")
        return [found]
    wanted = [" ".join(name.lower().split()) for name in asked]
    for name in wanted:
        if name not in names:
            raise UserError(f"{path}: has no column {name!r}{suggest(name, names)}; there are {', '.join(names)}")
    return [names[name] for name in wanted]


def _seconds(path: Path, line: int, cell: Any) -> float:
    value = _number(cell)
    if value is None or not 0 <= value < float("inf"):
        raise DataError(f"{path}, row {line}: {'an empty cell' if cell is None else repr(cell)} is no time in seconds")
    return value


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
