"""What ``preprocess`` does: a shot at a time to an array, and what the manifest says when all are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.data.bad import BadDataPolicy
from accel_train.data.units import Unit, plain_hash, refuse_no_room
from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.decimate import decimate
from accel_train.tasks.tcn.hdf5 import Reading, Record, describe, open_record, refuse_channels
from accel_train.tasks.tcn.lists import Entry
from accel_train.tasks.tcn.norm import Moments, moments, norm, together
from accel_train.tasks.tcn.quantise import store
from accel_train.tasks.tcn.robustness import forward_fill
from accel_train.tasks.tcn.store import VERSION, Array, as_json

PER_SHOT = ("scale", "offset", "baseline")


class Job:
    """Shots, each a unit of a ``WorkFolder``."""

    def __init__(self, folder: Path, plan: dict[str, Any], entries: Sequence[Entry], left_out: Sequence[str]) -> None:
        self.plan, self.left_out = plan, list(left_out)
        self.entries = {Unit(f"shots/{entry.number}.npy", (entry.path,)): entry for entry in entries}
        self.units = list(self.entries)
        self.reading = Reading(plan["step"], plan["baseline_ms"], plan["t0_ms"], plan["dt_ms"])
        self.channels = int((folder / "channels.txt").read_text())

    def do(self, unit: Unit, path: Path) -> dict[str, Any]:
        """Raises ``DataError`` for a file that cannot be used, ``AccessError`` if it is the machine's fault."""
        entry, policy = self.entries[unit], BadDataPolicy("skip")
        with policy.at_stake("shots", entry.path), open_record(entry, self.reading) as record:
            refuse_channels(record, self.channels)
            return self._convert(entry, record, path)
        raise DataError(policy.events()[0].title)

    def _convert(self, entry: Entry, record: Record, path: Path) -> dict[str, Any]:
        """Read and write some channels at a time, so that memory is that of these."""
        shot, integers = describe(entry, record, self.reading), self.plan["dtype"] == "int16"
        columns: dict[str, list[float]] = {name: [] for name in (*PER_SHOT, "error", "mean", "squares")}
        exact = filled = 0
        with Array(path, self.plan["dtype"], (record.channels, shot.samples)) as array:
            for first in range(0, record.channels, record.group):
                last = min(first + record.group, record.channels)
                baseline = record.baseline(first, last)
                values = record.read(first, last)
                if self.plan["forward_fill"]:
                    filled += int(np.isnan(values).sum())
                    values = forward_fill(values)
                kept = decimate(values, self.reading.step, self.plan["antialias"])
                if not integers:  # their offset takes it up, and nothing is rounded
                    kept -= baseline[:, None].astype(np.float32)
                stored = store(kept, self.plan["dtype"], first)
                array.append(stored.values)
                offset = stored.offset - baseline if integers else stored.offset
                segment = stored.values[:, shot.start : shot.stop].astype(np.float64)
                of = moments(segment * stored.scale[:, None] + offset[:, None])
                found = (stored.scale, offset, baseline, stored.error, of.mean, of.squares)
                for name, value in zip(columns, found, strict=True):
                    columns[name] += value.tolist()
                exact += int(stored.counts.sum())
        return {**as_json(shot), "exact": exact, "filled": filled, "bytes": entry.path.stat().st_size,
                "hash": array.hash, "columns": columns}  # fmt: skip

    def merge(self, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        return manifest(self, records, folder)


def prepare(folder: Path, entries: Sequence[Entry], plan: dict[str, Any]) -> None:
    """See how many channels there are, by the first file that can be read, and whether there is room."""
    reading = Reading(plan["step"], plan["baseline_ms"], plan["t0_ms"], plan["dt_ms"])
    policy = BadDataPolicy("skip")
    for entry in entries:
        with policy.at_stake("shots", entry.path), open_record(entry, reading) as record:
            size = np.dtype(plan["dtype"]).itemsize * record.channels * -(-record.samples // reading.step)
            refuse_no_room("preprocess: --out", folder, size * len(entries) // 2)  # shots differ; clearly too little
            (folder / "channels.txt").write_text(str(record.channels))
            return
    raise UserError(f"preprocess: none of {len(entries)} files can be read; the first: {policy.events()[0].title}")


def manifest(job: Job, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What meta.json says besides the options. Writes the arrays beside it."""
    bad = [record["failed"] for record in records if "failed" in record]
    good = [record for record in records if "failed" not in record]
    train = [row for row, record in enumerate(good) if record["split"] == "train"]
    if not train:
        raise DataError(
            "preprocess: no shot is for training, of which mean and deviation are taken; look at the splits"
        )
    columns = {name: np.array([record["columns"][name] for record in good]) for name in good[0]["columns"]}
    total = together(_moments(good[row], columns, row) for row in train)
    mean, std = norm(total)
    for name in PER_SHOT:
        np.save(folder / f"{name}.npy", columns[name])
    np.savez(folder / "norm.npz", mean=mean, std=std)
    shots = [{name: value for name, value in record.items() if name != "columns"} for record in good]
    content = {
        "version": VERSION,
        "channels": job.channels,
        "shots": shots,
        "bad": bad,
        "left_out": job.left_out,
        "norm": {"shots": len(train), "samples": total.count, "constant": np.flatnonzero(total.squares == 0).tolist()},
        "exact": sum(record["exact"] for record in good) / (job.channels * len(good)),
        "largest_error": float((columns["error"] / std).max()),
    }
    sums = [columns[name].tolist() for name in PER_SHOT]
    return {**content, "hash": plain_hash([content, job.plan, sums, mean.tolist(), std.tolist()])}


def _moments(record: dict[str, Any], columns: dict[str, np.ndarray], row: int) -> Moments:
    return Moments(record["stop"] - record["start"], columns["mean"][row], columns["squares"][row])
