"""What units have made, and a marker for each that is done, in the work folder: each whole or not there.

content/ will be OUT, parts/ is what the merge alone needs, writing/ what has no name yet, and done/ has the markers.
The name of a marker has a hash of the plan, the unit and the state of its input files. It is written when what the unit
has made has its name, so what has a marker needs not be done again.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from accel_train.data.units import Job, Unit, plain_hash, state_of
from accel_train.errors import AccessError, DataError, UserError
from accel_train.system.writing import flush, flush_folder, write_atomic


class Failure(NamedTuple):
    """Why a unit could not be done, and whether its data are to blame: then it may be one of ``max_bad``."""

    text: str
    of_data: bool


@dataclass(frozen=True)
class UnitFiles:
    """``folder``: the work folder, made for this plan."""

    folder: Path
    plan: dict[str, Any]

    @contextmanager
    def writing(self) -> Generator[Path]:
        """A folder of nobody else's, for what has no name yet; gone afterwards."""
        made = self.folder / "writing" / uuid.uuid4().hex
        made.parent.mkdir(exist_ok=True)
        made.mkdir()
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def marker(self, number: int, unit: Unit) -> Path:
        key = plain_hash([self.plan, unit.name, [state_of(path) for path in unit.inputs]])
        return self.folder / "done" / f"{number:08d}-{key[:16]}.json"

    def do(self, job: Job, number: int) -> Failure | None:
        """Do a unit and mark it as done; why that is not possible, if so."""
        unit = job.units[number]
        marker = self.marker(number, unit)  # of the files as they are before they are read
        with self.writing() as made:
            path, failure = made / PurePath(unit.name).name, None
            try:
                record = job.do(unit, path)
            except UserError as error:
                failure = Failure(str(error), isinstance(error, DataError) and not isinstance(error, AccessError))
                record = {"failed": failure.text}
            if marker.exists() or not self._place(path, number, unit, there=failure is None):
                return None  # another call was faster
        if failure is None or failure.of_data:
            marker = marker if failure is None else marker.with_suffix(".failed")
            write_atomic(marker, json.dumps(record, indent=1), sync=True)
        return failure

    def _place(self, path: Path, number: int, unit: Unit, there: bool) -> bool:
        """Give what a unit has made its name, in place of what was made of other files, or before a kill. False if
        another call does so at this very moment, whose marker then counts."""
        base = self.folder / ("content" if unit.kept else "parts")
        if not unit.kept:
            base.mkdir(exist_ok=True)
        final, there = base / unit.name, there and path.exists()
        if final.exists():
            for marker in (self.folder / "done").glob(f"{number:08d}-*"):
                marker.unlink(missing_ok=True)
            if final.is_dir() or not there:
                with suppress(FileNotFoundError):
                    final.rename(path.with_name(f"{path.name}.old"))
        if there:
            (flush_folder if path.is_dir() else flush)(path)
            for parent in reversed(PurePath(unit.name).parents[:-1]):
                (base / parent).mkdir(exist_ok=True)  # not what is above: content/ may be OUT by now
            try:
                path.replace(final)
            except OSError:
                if not final.is_dir():
                    raise
                return False
        return True

    def records(self, units: Sequence[Unit]) -> tuple[list[dict[str, Any] | None], dict[int, Failure]]:
        """Of each unit its record, ``{"failed": why}`` for those in the second, None if it is not done.

        Raises:
            FileNotFoundError: content/ is OUT already.
        """
        records, failed = list[dict[str, Any] | None](), dict[int, Failure]()
        for number, unit in enumerate(units):
            marker = self.marker(number, unit)
            record = _read(marker)
            if record is None and (record := _read(marker.with_suffix(".failed"))) is not None:
                failed[number] = Failure(record["failed"], of_data=True)
            records.append(record)
        if not (content := self.folder / "content").is_dir():
            raise FileNotFoundError(content)
        return records, failed

    def publish(self, made: Path, out: Path) -> None:
        """Move what is in ``made`` to content/, and that to ``out``. Others may do the same, with the same bytes."""
        content = self.folder / "content"
        flush_folder(made)
        for path in sorted(made.rglob("*")):
            place = content / path.relative_to(made)
            place.mkdir(exist_ok=True) if path.is_dir() else path.replace(place)
        content.rename(out)
        flush(out.parent)


def _read(marker: Path) -> dict[str, Any] | None:
    try:
        return json.loads(marker.read_text())
    except FileNotFoundError:
        return None
