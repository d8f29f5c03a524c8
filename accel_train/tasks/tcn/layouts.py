"""The layouts that data may have, which of them a folder or file is, and how shots are read that were not preprocessed.

Nothing is said that the content does not show: train/ or test/ is of prebuilt windows, meta.json of preprocessed shots,
folders for the classes are of HDF5 files, and a table is a .csv or .parquet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from accel_train.arguments import Range
from accel_train.config.setting import Checked, setting
from accel_train.errors import UserError, relative_to
from accel_train.tasks.tcn.prebuilt import is_prebuilt
from accel_train.tasks.tcn.shots import Shots

Layout = Literal["preprocessed", "prebuilt", "hdf5", "table"]

TABLES = (".csv", ".parquet")


@dataclass
class RawFiles(Checked):
    """How HDF5 files and tables are read. Names are those of ``accel-train tcn preprocess``."""

    disrupt: str = setting("disrupt", "folder of NUMBER.h5 of disruptive shots, with meta.csv or not; below ``data``.")
    clear: str = setting("clear", "the same of shots that did not disrupt.")
    disrupt_list: str | None = setting(None, "9-column shot list of ``disrupt``; below ``data``, too.")
    clear_list: str | None = setting(None, "9-column shot list of ``clear``.")
    flattop_only: bool = setting(False, "segments are the flattop of the shot lists.")
    step: int = setting(1, "keep every so many samples, without a filter.", Range(1))
    baseline_ms: float = setting(
        40.0, "the mean of so much at the beginning is subtracted, unless the file says it was.", Range(0)
    )
    t0_ms: float | None = setting(None, "time of the first sample, whatever file and list say.")
    dt_ms: float | None = setting(
        None, "from one sample of a file to the next, whatever file and list say; of a table: of its grid.", Range(1e-9)
    )
    max_bad: int = setting(0, "shots that may be unreadable.", Range(0))
    norm_stats: str | None = setting(
        None, "an .npz with mean and std; made if it is not there yet. null: they are computed at every start."
    )
    signals: list[str] | None = setting(None, "columns of a table; null: all numbers besides the key.")


MADE_WITH = ("step", "baseline_ms", "t0_ms", "dt_ms", "flattop_only")
"""What preprocessed shots were made with, too: one config is for both, as long as they agree."""
MEANT_FOR: dict[Layout, set[str]] = {
    "hdf5": {field.name for field in fields(RawFiles)} - {"signals"},
    "table": {"dt_ms", "signals"},
    "preprocessed": set(MADE_WITH),
    "prebuilt": set(),
}


def layout_of(data: str | Path, raw: RawFiles) -> Layout:
    """Raises ``UserError`` if it is none of the four."""
    path = Path(data)
    if path.suffix.lower() in TABLES and not path.is_dir():
        return "table"
    if is_prebuilt(path):
        return "prebuilt"
    if (path / "meta.json").is_file():
        return "preprocessed"
    if any((path / name).is_dir() for name in (raw.disrupt, raw.clear)):
        return "hdf5"
    what = "not one of the four layouts" if path.is_dir() else "no such folder" if not path.exists() else "not a folder"
    raise UserError(
        f"data: {path}: {what}{relative_to(path)}: shots of accel-train tcn preprocess (meta.json), HDF5 files "
        f"({raw.disrupt}/ and {raw.clear}/ with NUMBER.h5; raw.disrupt and raw.clear name others), a table (.csv or "
        ".parquet), or prebuilt windows (train/, test/); accel-train synth tcn makes shots to try"
    )


def open_shots(data: str | Path, raw: RawFiles) -> Shots:
    """Of all layouts but the prebuilt one, which has no shots.

    Raises:
        UserError: the layout is not known, or ``raw`` says what has no meaning for it.
        DataError: what is there cannot be used.
    """
    layout, path = layout_of(data, raw), Path(data)
    refuse_meaningless(layout, raw)
    if layout == "table":
        from accel_train.tasks.tcn.tables import Table

        if raw.dt_ms is None:
            raise UserError(f"raw.dt_ms: {path} is a table, whose rows may be uneven: give the ms between samples")
        return Table(path, raw.dt_ms, raw.signals)
    if layout == "hdf5":
        return _hdf5(path, raw)
    from accel_train.tasks.tcn.store import Store

    store, default = Store(path), RawFiles()
    for name in MADE_WITH:
        given, made = getattr(raw, name), store.manifest["options"][name]
        if given not in (getattr(default, name), made):
            raise UserError(
                f"raw.{name}: {given}, but {path} was preprocessed with {made}; leave it out, or make it anew"
            )
    return store


def refuse_meaningless(layout: Layout, raw: RawFiles) -> None:
    """Raises ``UserError`` for what is given and would change nothing."""
    default = RawFiles()
    for field in fields(raw):
        given = getattr(raw, field.name)
        if field.name not in MEANT_FOR[layout] and given != getattr(default, field.name):
            raise UserError(f"raw.{field.name}: {given} has no meaning where data are {layout}; leave it out")


def _hdf5(path: Path, raw: RawFiles) -> Shots:
    from accel_train.tasks.tcn.hdf5 import Hdf5Shots, Reading
    from accel_train.tasks.tcn.lists import find

    default = RawFiles()
    disrupt, clear = (  # one that is named must be there; without a name there may be no such class
        path / name if (path / name).is_dir() or name != usual else None
        for name, usual in ((raw.disrupt, default.disrupt), (raw.clear, default.clear))
    )
    disrupt_list, clear_list = (path / name if name else None for name in (raw.disrupt_list, raw.clear_list))
    found = find(disrupt, clear, disrupt_list, clear_list, raw.flattop_only)
    reading = Reading(raw.step, raw.baseline_ms, raw.t0_ms, raw.dt_ms)
    norm_stats = Path(raw.norm_stats) if raw.norm_stats else None
    return Hdf5Shots(found.entries, reading, norm_stats, raw.max_bad, found.left_out)
