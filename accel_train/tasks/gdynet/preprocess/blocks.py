"""What ``preprocess`` computes: the rows of blocks of frames, and what is said of them when all are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.data.units import Unit, create_rows, refuse_no_room, write_rows
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess import polarization, trajectories
from accel_train.tasks.gdynet.preprocess.elements import element
from accel_train.tasks.gdynet.preprocess.frames import Source, library
from accel_train.tasks.gdynet.preprocess.neighbours import nearest

BYTES, MOST_FRAMES = 32 << 20, 1000
"""A block has at most so many bytes of rows, and frames. Smaller: less to repeat; larger: fewer files."""


class Job:
    """What a process needs to do blocks, which are the units of a ``WorkFolder``: the source, which of its frames, and
    what to compute. ``folder`` is where the source was prepared."""

    def __init__(self, folder: Path, plan: dict[str, Any], source: Path, topology: Path | None) -> None:
        self.plan, self.content, self.kind = plan, folder / "content", plan["directions"]
        self.source = trajectories.open_source(source, folder, plan["types"], topology)
        self.frames = range(len(self.source))[slice(*plan["frames"])]
        if not self.frames:
            raise UserError(f"{source} has {len(self.source)} frames, --frames leaves none")
        if self.source.fault and not _asks_for_whole_ones(plan["frames"], len(self.source)):
            raise DataError(self.source.fault)
        atoms, listed = len(self.source.types), plan["n_nbrs"]
        self.arrays = [("nbr_lists.npy", np.int32, (atoms, listed)), ("nbr_dists.npy", np.float32, (atoms, listed))]
        if self.kind != "none":
            self.arrays.append(("atom_directions.npy", np.float32, (atoms, 3)))
            charges = plan["charges"] and {int(k): v for k, v in plan["charges"].items()}
            a, b, o = (plan[f"{site}_site"] for site in "abo")
            self.sites = polarization.find_sites(self.source.types, a, b, o, plan["cage_radius"], charges)
        self.row_bytes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for _, dtype, shape in self.arrays]
        size, most = plan["block"]
        self.size = min(max(1, size // sum(self.row_bytes)), most)
        every = range(len(self.frames))
        blocks = (every[first : first + self.size] for first in every[:: self.size])
        self.rows = {Unit(f"rows {rows[0]} to {rows[-1]}", items=len(rows)): rows for rows in blocks}
        self.units = list(self.rows)

    def do(self, unit: Unit, path: Path) -> dict[str, Any]:
        """Compute the rows of a block and write them among those of others; returns their statistics."""
        rows, listed, radius = self.rows[unit], self.plan["n_nbrs"], self.plan["radius"]
        values = [np.empty((len(rows), *shape), dtype) for _, dtype, shape in self.arrays]
        counts, closest, reach, incomplete = np.zeros(listed + 2, np.int64), [], [], 0
        for i, row in enumerate(rows):
            frame = self.source[self.frames[row]]
            values[0][i], values[1][i], found = nearest(frame, listed, radius)
            few = np.flatnonzero(found < listed)
            if len(few) and not self.plan["pad"]:
                cell = "" if frame.periodic.any() else " (no periodic cell is given)"
                raise DataError(
                    f"{frame.place}, atom {few[0]}: {found[few[0]]} neighbours within {radius:g} A{cell}, {listed} "
                    "wanted; give a larger --radius, a smaller --n_nbrs, or --pad"
                )
            if len(same := np.flatnonzero((values[1][i][:, 0] == 0) & (found > 0))):
                other = values[0][i, same[0], 0]
                raise DataError(f"{frame.place}: atoms {same[0]} and {other} are at the same place; is the file right?")
            counts += np.bincount(found, minlength=len(counts))
            closest.append(values[1][i, found > 0, 0].min(initial=np.inf))
            last = values[1][i].max(1)
            reach += [last.min(), last.max()]
            if self.kind != "none":
                compute = polarization.displacement if self.kind == "displacement" else polarization.polarization
                values[2][i], missing = compute(frame, self.sites)
                incomplete += missing
        for (name, *_), value in zip(self.arrays, values, strict=True):
            write_rows(self.content / name, rows.start, value)
        return {"found": counts.tolist(), "closest": float(min(closest)), "incomplete": incomplete,
                "reach_min": float(min(reach)), "reach_max": float(max(reach))}  # fmt: skip

    def merge(self, records: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
        return describe(self, records)


def prepare(folder: Path, open_job: Callable[[Path], Job], source: Path, targets: str | None) -> None:
    """Scan the source, check the options against it, create the arrays."""
    trajectories.prepare(source, folder)
    job = open_job(folder)
    np.save(job.content / "atom_types.npy", job.source.types)
    np.save(job.content / "target_index.npy", find_targets(targets, job.source))
    refuse_no_room("preprocess: --out", folder, sum(job.row_bytes) * len(job.frames))
    for name, dtype, shape in job.arrays:
        create_rows(job.content / name, dtype, (len(job.frames), *shape))


def find_targets(asked: str | None, source: Source) -> np.ndarray:
    """int32 [n], atoms from 0. ``asked``: an element, a file, indices with commas, or None for the source's own."""
    if asked is None:
        if source.targets is None:
            raise UserError(f"preprocess: {source.path} names no targets: give --targets, as in --targets Ti")
        index = source.targets
    elif asked.endswith(".npy"):
        try:
            index = np.load(asked, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"preprocess: {asked}: {error}") from None
    elif "," in asked:
        try:
            index = np.array([int(part) for part in asked.split(",") if part])
        except ValueError:
            raise UserError(f"preprocess: --targets {asked!r}: with commas, these are indices of atoms") from None
    else:
        index = np.flatnonzero(source.types == element(asked))
        if len(index) == 0:
            raise UserError(f"preprocess: --targets {asked}: {source.path} has no such atom")
    if index.ndim != 1 or index.dtype.kind not in "iu" or len(index) == 0:
        raise DataError(f"preprocess: targets must be integers (n,), there is {index.dtype} {index.shape}")
    atoms = len(source.types)
    if index.min() < 0 or index.max() >= atoms:
        raise DataError(f"preprocess: targets go from {index.min()} to {index.max()}, atoms from 0 to {atoms - 1}")
    if len(np.unique(index)) < len(index):
        raise DataError(f"preprocess: {len(index) - len(np.unique(index))} targets are named more than once")
    return index.astype(np.int32)


def describe(job: Job, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What meta.json says besides the options, from the statistics of all blocks."""
    plan, counts = job.plan, np.sum([record["found"] for record in records], 0)
    lists, most = int(counts.sum()), plan["n_nbrs"]
    if not counts[1:].any():
        raise DataError(f"preprocess: {job.source.path}: no two atoms are within {plan['radius']:g} A in any frame")
    targets = np.load(job.content / "target_index.npy")
    units, directions = {"nbr_dists": "Angstrom", "dt_ns": "ns"}, None
    if job.kind != "none":
        units["atom_directions"] = "Angstrom" if job.kind == "displacement" else "C/m^2"
        directions = {
            "kind": job.kind,
            "incomplete": sum(record["incomplete"] for record in records) / (len(job.sites.b) * len(job.frames)),
            "targets_without": int((~np.isin(targets, job.sites.b)).sum()),
        }
    return {
        "radius": plan["radius"],
        "n_nbrs": most,
        **({"dt_ns": dt * job.frames.step} if (dt := plan["dt"] or job.source.dt) else {}),
        "frames": len(job.frames),
        "atoms": len(job.source.types),
        "targets": len(targets),
        "elements": {"counts": _counts(job.source.types), "by": job.source.how},
        "source": plan["source"]["name"],
        "units": units,
        "neighbours": {
            "min": int(np.flatnonzero(counts)[0]),
            "median": int(np.searchsorted(np.cumsum(counts), (lists + 1) // 2)),
            "padded": float(counts[:most].sum() / lists),
            "cut": float(counts[most + 1] / lists),
            "closest": min(record["closest"] for record in records),
            "reach_min": min(record["reach_min"] for record in records),
            "reach_max": max(record["reach_max"] for record in records),
        },
        "directions": directions,
        "uneven": _uneven(job),
        "dt_of_source": job.source.dt,
        "remark": job.source.remark,
    }


def _counts(types: np.ndarray) -> dict[str, int]:
    symbols = library("ase.data").chemical_symbols
    return {symbols[number]: count for number, count in enumerate(np.bincount(types).tolist()) if count}


def _asks_for_whole_ones(frames: list[int | None], whole: int) -> bool:
    """Whether --frames says by itself that it ends before what is no frame."""
    start, stop, _ = frames
    return stop is not None and 0 <= stop <= whole and (start or 0) >= 0


def _uneven(job: Job) -> int | None:
    """The first frame whose time step does not follow at the usual distance, if the file gives time steps."""
    if job.source.steps is None or len(job.frames) < 3:
        return None
    gaps = np.diff(job.source.steps[list(job.frames)])
    odd = np.flatnonzero((gaps != np.median(gaps)) | (gaps <= 0))
    return job.frames[int(odd[0]) + 1] if len(odd) else None
