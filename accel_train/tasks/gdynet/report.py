"""How trajectories stand: every check over every frame, and what is in the files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.checks import CHECKS, Finding, Scan, differences, stops, thorough
from accel_train.tasks.gdynet.files import NAMES, Trajectory, locate, open_trajectory

NO_DIRECTIONS = "no atom_directions.npy, which model_type=gdynet_ferro needs (the default); gdynet_vanilla does without"
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)


def report(fnames: str | Path | Sequence[str | Path], ferro: bool | None = None, tau: int | None = None,
           cutoff: float | None = None) -> str:  # fmt: skip
    """The text of ``look``."""
    return look(fnames, ferro, tau, cutoff)[0]


def look(
    fnames: str | Path | Sequence[str | Path],
    ferro: bool | None = None,
    tau: int | None = None,
    cutoff: float | None = None,
) -> tuple[str, int]:
    """A section for each trajectory (its arrays, the numbers in them, a line for every check), and how many errors.

    Args:
        fnames: folders of a trajectory each, folders of such folders, or the 4 or 5 files of one trajectory.
        ferro: whether there must be directions; None: they are looked at where there are any, and missed where not.
        tau: lag in frames.
        cutoff: of the model, Angstrom.

    Raises:
        DataError: ``fnames`` are neither; everything else that is wrong is in the report.
    """
    given = [fnames] if isinstance(fnames, str | Path) else fnames
    sections, first, everything = [], None, []
    for paths in locate([path for fname in given for path in _inside(Path(fname))], ferro):
        try:
            trajectory = open_trajectory(paths)
        except DataError as error:
            found, numbers, left_out = [Finding("files", "error", str(error))], [], set(CHECKS)
        else:
            found, scan = thorough(trajectory, tau, cutoff)
            if ferro is None and trajectory.directions is None:
                found.append(Finding("directions", "warning", f"{paths['nbr_lists'].parent}: {NO_DIRECTIONS}"))
            numbers, left_out = _arrays(trajectory), _left_out(trajectory, found, tau, cutoff, first)
            if not stops(found):
                found += differences(first, trajectory) if first else []
                numbers += _numbers(trajectory, scan, tau)
                first = first or trajectory
        sections.append("\n".join([f"trajectory {paths['nbr_lists'].parent}", *numbers, *_verdicts(found, left_out)]))
        everything += found
    errors = sum(finding.level == "error" for finding in everything)
    return "\n\n".join([*sections, f"errors: {errors}, warnings: {len(everything) - errors}"]), errors


def _inside(path: Path) -> list[Path]:
    """The trajectories in a folder that is none itself; otherwise the path."""
    if any((path / f"{name}.npy").exists() for name in NAMES):
        return [path]
    return sorted({file.parent for name in NAMES for file in path.glob(f"*/{name}.npy")}) or [path]


def _arrays(trajectory: Trajectory) -> list[str]:
    lines = []
    for name, array in trajectory.arrays.items():
        size = f"{array.nbytes / 1e6:,.1f} MB"
        lines.append(f"  {trajectory.paths[name].name:<21}{size:>12}  {array.dtype} {list(array.shape)}")
    if trajectory.meta:
        lines.append("  meta.json            " + ", ".join(f"{key} {value}" for key, value in trajectory.meta.items()))
    return lines


def _numbers(trajectory: Trajectory, scan: Scan, tau: int | None) -> list[str]:
    frames, atoms, neighbours = trajectory.shape
    targets = len(trajectory.target_index)
    types, counts = np.unique(trajectory.arrays["atom_types"], return_counts=True)
    lines = [
        f"  F={frames:,} frames, N={atoms:,} atoms, n={targets:,} targets, M={neighbours} neighbours",
        "  atoms by type " + ", ".join(f"{z}: {n:,}" for z, n in zip(types, counts, strict=True)),
        f"  {scan.edges:,} edges; {1 - scan.edges / (frames * atoms * neighbours):.2%} of the places have no neighbour",
    ]
    if tau is not None:
        lag = f" = {tau * trajectory.meta['dt_ns']:g} ns" if "dt_ns" in trajectory.meta else ""
        lines.append(f"  {max(frames - tau, 0):,} pairs of frames (tau {tau}{lag})")
    if scan.histogram.any():
        quantiles = ", ".join(f"{q:.0%} {scan.quantile(q):.2f}" for q in QUANTILES)
        lines.append(f"  distances {scan.least:.3f} to {scan.largest:.3f} A; {quantiles}")
    if scan.cutoff is not None and scan.edges:
        lines.append(f"  {scan.beyond / scan.edges:.2%} of the distances are beyond the cutoff of {scan.cutoff:g} A")
    return lines


def _left_out(
    trajectory: Trajectory, found: list[Finding], tau: int | None, cutoff: float | None, first: Trajectory | None
) -> set[str]:
    """The checks that nothing can be said of."""
    if stops(found):
        return set(CHECKS) - {"files", "dtypes", "shapes"}
    there = {
        "frames": tau, "directions": trajectory.directions, "cutoff": cutoff, "meta.json": trajectory.meta or None,
        "same system": first,
    }  # fmt: skip
    return {check for check, needed in there.items() if needed is None}


def _verdicts(found: list[Finding], left_out: set[str]) -> list[str]:
    lines = []
    for check in CHECKS:
        verdicts = [(finding.level, finding.text) for finding in found if finding.check == check]
        for verdict, text in verdicts or [("-" if check in left_out else "ok", "")]:
            lines.append(f"  {verdict:<8} {check:<18} {text}".rstrip())
    return lines
