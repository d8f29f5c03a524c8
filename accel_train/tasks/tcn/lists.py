"""Which shots there are: the files of a folder for each class, and what meta.csv and the shot lists say of them.

meta.csv           shot, split (train, val, test), t_disruption [ms]; perhaps t_last, t_segment_end or t_segment_end_ms
a shot list        9 columns: shot, segments, tstart, tlast, dt, SNR, start and duration of the flattop, tdisrupt
                   (-1000: clear); times in ms
"""

from __future__ import annotations

import csv
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.shots import SPLITS, refuse_twice, split_of

ENDS = ("t_last", "t_segment_end", "t_segment_end_ms")
CLEAR = -1000.0
AGREE = 1.0
"""ms by which two sources of a time may differ."""
COLUMNS = 9


@dataclass(frozen=True)
class Entry:
    """A file, and what is said of its shot. Times in ms; None: nothing is said.

    Args:
        path: the HDF5 file.
        start_ms, stop_ms: of the segment that counts. Without them it begins after the baseline, and ends with the
            disruption or the record.
        t0_ms, dt_ms: of the first sample, and between samples, of a raw file.
    """

    number: int
    path: Path
    disruptive: bool
    split: str
    t_disruption_ms: float = math.nan
    start_ms: float | None = None
    stop_ms: float | None = None
    t0_ms: float | None = None
    dt_ms: float | None = None

    def as_json(self) -> dict[str, Any]:
        time = self.t_disruption_ms if self.disruptive else None
        return {**asdict(self), "path": self.path.name, "t_disruption_ms": time}


@dataclass(frozen=True)
class Found:
    """Shots in order of their numbers, and why others were left out, in lines."""

    entries: list[Entry]
    left_out: list[str]


def find(
    disrupt: Path | None,
    clear: Path | None,
    disrupt_list: Path | None = None,
    clear_list: Path | None = None,
    flattop_only: bool = False,
) -> Found:
    """The shots of both classes.

    Args:
        disrupt, clear: folders of NUMBER.h5, with meta.csv or not.
        disrupt_list, clear_list: 9-column lists; a shot that is in the folder but not in its list is left out.
        flattop_only: segments are the flattop, and shots without one are left out. Needs the lists.

    Raises:
        UserError: nothing was found, or what an option needs is not given.
        DataError: a list cannot be read, or two sources disagree.
    """
    entries: list[Entry] = []
    left_out: list[str] = []
    for folder, shot_list, disruptive in ((disrupt, disrupt_list, True), (clear, clear_list, False)):
        if folder is None:
            if shot_list is not None:
                raise UserError(f"{shot_list}: a shot list needs the folder of its files")
            continue
        if flattop_only and shot_list is None:
            raise UserError(f"{folder}: only a shot list says when the flattop is; give one")
        found = _of_class(folder, shot_list, disruptive, flattop_only)
        entries += found.entries
        left_out += found.left_out
    refuse_twice((entry.number for entry in entries), "disruptive and clear shots")
    if not entries:
        raise UserError(
            f"no shots in {disrupt or clear}{f' and {clear}' if disrupt and clear else ''}: NUMBER.h5 files"
        )
    return Found(sorted(entries, key=lambda entry: entry.number), left_out)


def _of_class(folder: Path, shot_list: Path | None, disruptive: bool, flattop_only: bool) -> Found:
    files, odd = _files(folder)
    meta = folder / "meta.csv"
    rows = read_meta(meta, disruptive) if meta.is_file() else None
    listed = None if shot_list is None else read_list(shot_list, disruptive, flattop_only)
    if rows is None and listed is None and disruptive:
        raise UserError(f"{folder}: nothing says when its shots disrupt; it needs a meta.csv, or give a shot list")
    left_out = [f"{folder / name}: its name is no shot number" for name in odd]
    known = [each for each in (listed, rows) if each is not None]
    entries: list[Entry] = []
    for number, path in files.items():
        said = [each.get(number) for each in known]
        if known and None in said[:1]:
            left_out.append(f"{path}: not in {shot_list or meta}")
        elif any(each is not None and "no_flattop" in each for each in said):
            left_out.append(f"{path}: has no flattop")
        else:
            entries.append(_entry(number, path, disruptive, [each or {} for each in said]))
    missing = sorted({number for each in known[:1] for number in each} - set(files))
    left_out += [f"{folder / f'{number}.h5'}: no such file, but {shot_list or meta} has it" for number in missing]
    return Found(entries, left_out)


def _files(folder: Path) -> tuple[dict[int, Path], list[str]]:
    """By number, in order; and names that are none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    paths = sorted(folder.glob("*.h5"))
    good = [path for path in paths if path.stem.isdecimal()]
    refuse_twice((int(path.stem) for path in good), str(folder))
    return {int(path.stem): path for path in good}, [path.name for path in paths if not path.stem.isdecimal()]


def _entry(number: int, path: Path, disruptive: bool, said: list[dict[str, Any]]) -> Entry:
    """From what the sources say, the first before the second."""
    times = [each["t_disruption_ms"] for each in said if "t_disruption_ms" in each]
    if disruptive and max(times) - min(times) > AGREE:
        raise DataError(
            f"shot {number}: the shot list says it disrupts at {times[0]:g} ms, meta.csv at {times[1]:g} ms; mend one"
        )
    values = {name: value for each in reversed(said) for name, value in each.items()}
    return replace(Entry(number, path, disruptive, split_of(number)), **values)


def read_meta(path: Path, disruptive: bool) -> dict[int, dict[str, Any]]:
    """What a meta.csv says, by shot, as arguments of ``Entry``. Raises ``DataError`` with the line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [str(name).strip() for name in reader.fieldnames or ()]
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    for name in ("shot", *(["t_disruption"] if disruptive else [])):
        if name not in columns:
            raise DataError(f"{path}: has no column {name}; there are {', '.join(columns) or 'none'}")
    end = next((name for name in ENDS if name in columns), None)
    found: dict[int, dict[str, Any]] = {}
    for line, row in rows:
        row, where = {str(key).strip(): value for key, value in row.items()}, f"{path}, line {line}"
        number = int(_number(row["shot"], where, "shot"))
        if number in found:
            raise DataError(f"{where}: shot {number} is there for the second time")
        said = found[number] = {}
        if split := (row.get("split") or "").strip().lower():
            said["split"] = "validation" if split in ("val", "valid") else split
            if said["split"] not in SPLITS:
                raise DataError(f"{where}: split is {split!r}, must be train, val or test")
        if disruptive:
            said["t_disruption_ms"] = _number(row["t_disruption"], where, "t_disruption", above=0.0)
        if end and (row[end] or "").strip().lower() not in ("", "nan"):
            said["stop_ms"] = _number(row[end], where, end)
    return found


def read_list(path: Path, disruptive: bool, flattop_only: bool) -> dict[int, dict[str, Any]]:
    """What a 9-column shot list says, by shot, as arguments of ``Entry``; ``no_flattop`` for a shot that has none and
    should. Raises ``DataError`` with the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    found: dict[int, dict[str, Any]] = {}
    for place, line in enumerate(lines, 1):
        fields, where = line.split(), f"{path}, line {place}"
        if not fields or line.lstrip().startswith("#"):
            continue
        if len(fields) != COLUMNS:
            raise DataError(f"{where}: has {len(fields)} columns, not {COLUMNS}")
        number, _, t0, last, dt, _, flat, duration, time = (
            _number(text, where, f"column {i}", finite=i not in (1, 5, 6, 7)) for i, text in enumerate(fields)
        )
        if int(number) in found:
            raise DataError(f"{where}: shot {int(number)} is there for the second time")
        if (time == CLEAR) == disruptive:
            text = "is clear (tdisrupt -1000)" if disruptive else f"disrupts at {time:g} ms"
            raise DataError(
                f"{where}: shot {int(number)} {text}, in a list of {'' if disruptive else 'not '}disruptive shots"
            )
        said: dict[str, Any] = {"t0_ms": t0, "dt_ms": dt, "start_ms": 0.0, "stop_ms": last}
        if flattop_only:
            said |= {"start_ms": flat, "stop_ms": min(last, flat + duration)}
            if math.isnan(flat) or math.isnan(duration):
                said["no_flattop"] = True
        if disruptive:
            said |= {"t_disruption_ms": time, "stop_ms": time}
        found[int(number)] = said
    return found


def _number(text: str | None, where: str, name: str, finite: bool = True, above: float = -math.inf) -> float:
    try:
        value = float(text or "")
        if (finite and not math.isfinite(value)) or value <= above:
            raise ValueError
    except ValueError:
        raise DataError(
            f"{where}: {name} is {text!r}, must be a number{f' above {above:g}' if above > -1 else ''}"
        ) from None
    return value
