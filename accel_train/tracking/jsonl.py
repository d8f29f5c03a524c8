"""The history of a run: ``metrics.jsonl`` with one line per record, ``metrics.json``, the same as plain lists,
``digests.jsonl`` for comparing runs step by step, and ``events.jsonl`` with what observers heard of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from accel_train.run.reports import Reports
from accel_train.system.writing import write_atomic
from accel_train.task import Event, Watches, hook
from accel_train.tracking.observer import Observer, Record, Run
from accel_train.tracking.records import plain


class Jsonl(Observer):
    """Appends every record to ``metrics.jsonl``; on evaluations and at the end, writes the histories.

    A resumed run forgets the lines behind the checkpoint it continues from, so the file is always that of a run which
    was never interrupted.

    Args:
        emit: takes the warning if the task's own ``histories`` fail.
    """

    _file: TextIO | None = None

    def __init__(self, emit: Callable[[Event], None] = lambda event: None):
        self.emit = emit

    def on_start(self, run: Run) -> None:
        self._reports = Reports(run.output_dir)
        self.path, self.task = run.output_dir / "metrics.jsonl", run.task
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A run that starts afresh has no past, not even an evaluation of the untrained model.
        truncate(self.path, run.start_step if run.start_step or run.resumed_from is not None else -1)
        self._file = open(self.path, "a", encoding="utf-8", newline="\n")
        self._rest_until = 0.0

    def on_log(self, record: Record) -> None:
        self._append(record)

    def on_evaluate(self, record: Record) -> None:
        self._append({**record, "kind": "eval"})
        self._write_histories()

    def on_add(self, step: int, name: str, value: Any) -> None:
        if isinstance(value, float | str):
            self._append({"kind": "own", "step": step, "wall_time": time.time(), name: value})

    def on_end(self, outcome: str, status: Record) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        file.close()
        self._rest_until = 0.0
        if outcome != "lost":
            self._write_histories()

    def _append(self, record: Record) -> None:
        assert self._file is not None
        self._file.write(json.dumps(plain(record), allow_nan=False) + "\n")
        self._file.flush()

    def _write_histories(self) -> None:
        """Histories grow, and evaluations may be frequent: rest long enough to spend at most 2% of the time here."""
        start = time.monotonic()
        if start < self._rest_until:
            return
        lists = histories(self.path)
        further: dict[str, list[Any]] = {}
        with self._reports("histories", self.emit):
            further = dict(hook(self.task, Watches, "histories")(lists))
            json.dumps(further, allow_nan=False)
        write_atomic(self.path.with_name("metrics.json"), json.dumps(lists | further, allow_nan=False))
        end = time.monotonic()
        self._rest_until = end + 50 * (end - start) if end - start > 0.05 else 0.0


class DigestLog(Observer):
    """Appends digests to ``digests.jsonl``. A resumed run forgets the lines behind its checkpoint, as in ``Jsonl``."""

    def on_start(self, run: Run) -> None:
        self._path = run.output_dir / "digests.jsonl"
        truncate(self._path, run.start_step)

    def on_digests(self, records: list[Record]) -> None:
        with open(self._path, "a", encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))


class EventLog(Observer):
    """Appends every event to ``events.jsonl``: wall_time, kind, title and fields. It is a diary: nothing is taken back,
    whatever a later session goes on from."""

    _path: Path | None = None

    def on_start(self, run: Run) -> None:
        self._path = run.output_dir / "events.jsonl"

    def on_event(self, event: Event) -> None:
        if self._path is not None:
            line = {"wall_time": time.time(), "kind": event.kind, "title": event.title, "fields": event.fields}
            with open(self._path, "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(plain(line), allow_nan=False) + "\n")


def truncate(path: Path, last_step: int) -> None:
    """Drop every line of a later step than ``last_step``, and lines torn by a kill. All at once or not at all."""
    if not path.exists():
        return
    old = path.read_bytes()
    kept = [line for line, record in _lines(old) if record.get("step", 0) <= last_step]
    new = "".join(line + "\n" for line in kept)
    if new.encode() != old:
        write_atomic(path, new, sync=True)


def histories(path: Path | str) -> dict[str, list[Any]]:
    """Plain lists by name: ``step`` and what was logged there, ``eval_step`` and ``eval_<metric>`` for evaluations,
    ``own_step`` and ``own_<name>`` for what observers have added.

    All lists of a kind are as long as its list of steps, with None where a record lacks the key or was not finite.
    """
    rows: dict[str, list[Record]] = {"": [], "eval_": [], "own_": []}
    for _, record in _lines(Path(path).read_bytes()):
        kind = record.get("kind")
        rows[f"{kind}_" if kind in ("eval", "own") else ""].append(record)
    lists: dict[str, list[Any]] = {}
    for prefix, records in rows.items():
        names = dict.fromkeys(key for record in records for key in record if key not in ("kind", "non_finite"))
        lists |= {prefix + name: [record.get(name) for record in records] for name in names}
    return lists


def _lines(data: bytes) -> list[tuple[str, Record]]:
    """The whole lines of a file, as text and as records; what is not a JSON object was torn and is left out."""
    whole = []
    for raw in data.split(b"\n"):
        try:
            line = raw.decode()
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            whole.append((line, record))
    return whole
