"""What must hold of trajectories.

``quick`` is what every run begins with, ``look_at`` checks a frame when it is read for the first time, and ``thorough``
reads everything. All use the same checks, so none of them is softer than another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.choices import ELEMENTS
from accel_train.tasks.gdynet.files import Trajectory

KINDS = {"atom_types": "iu", "target_index": "iu", "nbr_lists": "iu", "nbr_dists": "f", "atom_directions": "f"}
LARGEST = np.finfo(np.float32).max  # a float32, so that float16 is not compared as such
BLOCK = 2**20  # neighbours looked at together
BIN, BINS = 0.01, 10_000  # Angstrom; of the histogram that quantiles are read from
MANY = 0.01  # share of distances beyond the cutoff that deserves a warning

CHECKS: tuple[str, ...] = (
    "files", "dtypes", "shapes", "atom types", "targets", "frames", "neighbour indices", "distances", "zero distances",
    "directions", "self-edges", "isolated atoms", "cutoff", "meta.json", "same system",
)  # fmt: skip


class Finding(NamedTuple):
    """check: one of ``CHECKS``. text: one line that says what is wrong, where, and what to do."""

    check: str
    level: Literal["error", "warning"]
    text: str


def quick(trajectory: Trajectory, cutoff: float | None = None) -> list[Finding]:
    """All checks, but of the frames only the first and the last. ``cutoff``: of the model, Angstrom."""
    found = without_frames(trajectory)
    if stops(found):
        return found
    scan = Scan(trajectory, cutoff)
    for frame in sorted({0, trajectory.frames - 1}):
        scan.add(frame, frame + 1)
    return [*found, *scan.findings()]


def thorough(trajectory: Trajectory, tau: int | None = None, cutoff: float | None = None) -> tuple[list[Finding], Scan]:
    """All checks of all frames, in blocks of bounded size, and the numbers found. tau: lag in frames."""
    found, scan = without_frames(trajectory), Scan(trajectory, cutoff)
    if stops(found):
        return found, scan
    if tau is not None:
        found += too_short(trajectory, tau)
    block = max(1, BLOCK // (trajectory.atoms * trajectory.neighbours))
    for start in range(0, trajectory.frames, block):
        scan.add(start, min(start + block, trajectory.frames))
    return [*found, *scan.findings()], scan


def look_at(trajectory: Trajectory, frame: int) -> None:
    """Raises DataError if something in one frame is wrong."""
    for _, array, wrong, says in _faults(trajectory, frame, frame + 1):
        if wrong.any():
            raise DataError(_first(trajectory, array, wrong, frame, says))


def same_system(trajectories: Sequence[Trajectory]) -> None:
    """Raises DataError unless types, targets and M are the same, so that one model fits all. Give it those of all
    splits."""
    for other in trajectories[1:]:
        for finding in differences(trajectories[0], other):
            raise DataError(finding.text)


def differences(a: Trajectory, b: Trajectory) -> Iterator[Finding]:
    """What keeps ``b`` from being of the same system as ``a``."""
    for name in ("atom_types", "target_index"):
        mine, its = a.arrays[name], b.arrays[name]
        if not np.array_equal(mine, its):
            where = f"{len(its)} entries and not {len(mine)}"
            if len(its) == len(mine):
                i = int(np.flatnonzero(mine != its)[0])
                where = f"entry {i} is {its[i]} and not {mine[i]}"
            says = f"another system than {a.paths[name]}: {where}; all trajectories must agree"
            yield Finding("same system", "error", f"{b.paths[name]}: {says}")
    if a.neighbours != b.neighbours:
        says = f"M={b.neighbours} neighbours, but {a.paths['nbr_lists']} has M={a.neighbours}"
        text = f"{b.paths['nbr_lists']}: {says}; all trajectories must agree (pad with index -1)"
        yield Finding("same system", "error", text)


# -- what needs no frames --------------------------------------------------------------------------------------------


def without_frames(trajectory: Trajectory) -> list[Finding]:
    """Types of data, shapes, types of atoms, targets and meta.json."""
    found = [*_dtypes(trajectory), *_shapes(trajectory)]
    if stops(found):
        return found  # the others could not be computed
    return [*found, *_types(trajectory), *_targets(trajectory), *_meta(trajectory)]


def stops(found: list[Finding]) -> bool:
    """Whether arrays are such that nothing else can be said of them."""
    return any(finding.level == "error" and finding.check in ("dtypes", "shapes") for finding in found)


def too_short(trajectory: Trajectory, tau: int) -> Iterator[Finding]:
    """Fewer frames than one pair needs."""
    if trajectory.frames <= tau:
        says = f"n_frames ({trajectory.frames}) must be > tau ({tau}); use a longer trajectory or a smaller tau"
        yield Finding("frames", "error", f"{trajectory.paths['nbr_lists']}: {says}")


def _dtypes(trajectory: Trajectory) -> Iterator[Finding]:
    for name, array in trajectory.arrays.items():
        if array.dtype.kind not in KINDS[name]:
            kind, cast = ("integers", "int32") if KINDS[name] == "iu" else ("floating-point numbers", "float32")
            yield Finding("dtypes", "error", f"{trajectory.paths[name]}: {array.dtype}, must be {kind}; save as {cast}")


def _shapes(trajectory: Trajectory) -> Iterator[Finding]:
    shapes, paths = {name: array.shape for name, array in trajectory.arrays.items()}, trajectory.paths
    axes = {"atom_types": ("N",), "target_index": ("n",), "nbr_lists": ("F", "N", "M")}
    bad = [name for name, axis in axes.items() if len(shapes[name]) != len(axis) or 0 in shapes[name]]
    for name in bad:
        says = f"Invalid {name} shape: {shapes[name]}, expected ({', '.join(axes[name])}), none of them 0"
        yield Finding("shapes", "error", f"{paths[name]}: {says}")
    if "nbr_lists" in bad:
        return
    if shapes["nbr_lists"] != shapes["nbr_dists"]:
        says = f"Shape mismatch between nbr_lists and nbr_dists: {shapes['nbr_lists']} and {shapes['nbr_dists']}"
        yield Finding("shapes", "error", f"{paths['nbr_dists']}: {says}; both must have the same frames and atoms")
    frames, atoms, _ = shapes["nbr_lists"]
    if "atom_types" not in bad and shapes["atom_types"] != (atoms,):
        says = f"Invalid atom_types shape: {shapes['atom_types']}, but nbr_lists has N={atoms} atoms"
        yield Finding("shapes", "error", f"{paths['atom_types']}: {says}; give one atomic number for each")
    if shapes.get("atom_directions", (frames, atoms, 3)) != (frames, atoms, 3):
        says = f"Invalid atom_directions shape: {shapes['atom_directions']}, expected {(frames, atoms, 3)}"
        yield Finding("shapes", "error", f"{paths['atom_directions']}: {says}, one vector per frame and atom")
    for name, array in trajectory.arrays.items():
        if not array.flags.c_contiguous:
            says = "in Fortran order: a frame lies scattered over the whole file and is slow to read"
            yield Finding("shapes", "warning", f"{paths[name]}: {says}; save np.ascontiguousarray of it")


def _types(trajectory: Trajectory) -> Iterator[Finding]:
    types = trajectory.arrays["atom_types"]
    wrong = np.flatnonzero((types < 0) | (types >= ELEMENTS))
    if len(wrong):
        says = f"atom {wrong[0]} has type {types[wrong[0]]}; atomic numbers must be 0 to {ELEMENTS - 1}"
        yield Finding("atom types", "error", f"{trajectory.paths['atom_types']}: {says}")


def _targets(trajectory: Trajectory) -> Iterator[Finding]:
    target, path = trajectory.arrays["target_index"], trajectory.paths["target_index"]
    valid = f"valid are 0 to {trajectory.atoms - 1}"
    if target.max() >= trajectory.atoms:
        says = f"entry {target.argmax()} is {target.max()}, but there are N={trajectory.atoms} atoms"
        yield Finding("targets", "error", f"{path}: Invalid target_index: {says}; {valid}")
    if target.min() < 0:
        says = f"entry {target.argmin()} is {target.min()}"
        yield Finding("targets", "error", f"{path}: target_index contains negative values: {says}; {valid}")
    if duplicates := len(target) - len(np.unique(target)):
        says = f"target_index contains {duplicates} duplicate entries; such atoms count several times in the loss"
        yield Finding("targets", "warning", f"{path}: {says}. If that is not meant, save np.unique of it")


def _meta(trajectory: Trajectory) -> Iterator[Finding]:
    stated = trajectory.meta.get("n_nbrs", trajectory.neighbours)
    if stated != trajectory.neighbours:
        says = f"n_nbrs is {stated}, but nbr_lists has M={trajectory.neighbours}; was it written for other files?"
        yield Finding("meta.json", "warning", f"{trajectory.name}/meta.json: {says}")


# -- what is in the frames -------------------------------------------------------------------------------------------


def _faults(trajectory: Trajectory, start: int, stop: int) -> Iterator[tuple[str, str, np.ndarray, str]]:
    """Every check of frames: its name, the array, where that is wrong (bool, of its shape), and what is wrong."""
    lists, dists = trajectory.nbr_lists[start:stop], trajectory.nbr_dists[start:stop]
    last = trajectory.atoms - 1
    says = f"is no atom; valid are 0 to {last}, and -1 for no neighbour"
    yield "neighbour indices", "nbr_lists", (lists < -1) | (lists > last), says
    yield "distances", "nbr_dists", ~((dists >= 0) & (dists <= LARGEST)), "is no distance: NaN, infinite or negative"
    says = "is no distance to a neighbour; an atom is not its own, and a missing one has index -1"
    yield "zero distances", "nbr_dists", (dists == 0) & (lists != -1), says
    if trajectory.directions is not None:
        vectors = trajectory.directions[start:stop]
        yield "directions", "atom_directions", ~(np.abs(vectors) <= LARGEST), "is no component of a direction"


def _first(trajectory: Trajectory, array: str, wrong: np.ndarray, start: int, says: str) -> str:
    """The first of them in words."""
    frame, atom, i = np.argwhere(wrong)[0].tolist()
    what = "component" if array == "atom_directions" else "neighbour"
    value = trajectory.arrays[array][start + frame, atom, i]
    number = start + frame + (trajectory.span[0] if trajectory.span else 0)  # in the file
    return f"{trajectory.paths[array]}: frame {number}, atom {atom}, {what} {i}: {value} {says}"


@dataclass
class Scan:
    """What is in the frames of a trajectory that were looked at so far."""

    trajectory: Trajectory
    cutoff: float | None = None
    wrong: dict[str, tuple[str, int]] = field(default_factory=dict)  # by check: the first in words, how many
    edges: int = 0
    self_edges: int = 0
    isolated: int = 0
    beyond: int = 0
    least: float = np.inf
    largest: float = 0.0
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 1, np.int64))

    def add(self, start: int, stop: int) -> None:
        """Frames from ``start`` to ``stop``, exclusive."""
        for check, array, wrong, says in _faults(self.trajectory, start, stop):
            if count := int(np.count_nonzero(wrong)):
                first, before = self.wrong.get(check) or (_first(self.trajectory, array, wrong, start, says), 0)
                self.wrong[check] = first, before + count
        lists, dists = self.trajectory.nbr_lists[start:stop], self.trajectory.nbr_dists[start:stop]
        real = lists != -1
        self.edges += int(np.count_nonzero(real))
        self.self_edges += int(np.count_nonzero((lists == np.arange(self.trajectory.atoms)[:, None]) & (dists != 0)))
        self.isolated += int(np.count_nonzero(~real.any(axis=2)))
        dists = dists[real & (dists >= 0) & (dists <= LARGEST)].astype(np.float32, copy=False)
        if len(dists):
            self.least, self.largest = min(self.least, float(dists.min())), max(self.largest, float(dists.max()))
            self.beyond += 0 if self.cutoff is None else int(np.count_nonzero(dists > self.cutoff))
            bins = (np.minimum(dists, BIN * BINS) / BIN).astype(np.int64)
            self.histogram += np.bincount(bins, minlength=BINS + 1)

    def findings(self) -> Iterator[Finding]:
        for check, (first, count) in self.wrong.items():
            yield Finding(check, "error", first + (f" ({count:,} such values)" if count > 1 else ""))
        lists = self.trajectory.paths["nbr_lists"]
        if self.self_edges:
            says = f"{self.self_edges:,} of {self.edges:,} neighbours are the atom itself"
            yield Finding("self-edges", "warning", f"{lists}: {says}, right only for its images in a small cell")
        if self.isolated:
            says = f"{self.isolated:,} times an atom has no neighbour at all; a larger radius gives it some"
            yield Finding("isolated atoms", "warning", f"{lists}: {says}")
        if self.beyond > MANY * self.edges:
            says = f"{self.beyond / self.edges:.1%} of the distances are beyond the cutoff of {self.cutoff:g} A"
            text = f"{self.trajectory.paths['nbr_dists']}: {says} (up to {self.largest:.2f} A)"
            yield Finding("cutoff", "warning", f"{text}, where all look alike to the model; raise it, or save fewer")

    def quantile(self, q: float) -> float:
        """Upper end of the bin where it lies, Angstrom; no more than the largest."""
        at = int(np.searchsorted(np.cumsum(self.histogram), q * self.histogram.sum()))
        return min((at + 1) * BIN, self.largest)
