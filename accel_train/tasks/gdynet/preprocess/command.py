"""``accel-train gdynet preprocess``: a molecular-dynamics trajectory to the neighbour lists that training reads.

Frames are read one at a time and written to their rows, so memory does not grow with the trajectory. Any number of
processes (--workers), ranks (accelerate launch) and jobs (--shard) share the frames; what was killed goes on when it
is called again. OUT appears by one rename when all of it is written; until then its parts are in .OUT.preprocess beside
it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from accel_train.command import Parser
from accel_train.data import preprocess
from accel_train.data.units import state_of
from accel_train.data.work_folder import WorkFolder
from accel_train.errors import UserError
from accel_train.tasks.gdynet.preprocess import blocks
from accel_train.tasks.gdynet.preprocess.elements import element, element_or_site
from accel_train.tasks.gdynet.preprocess.trajectories import READER

CLOSE = 0.5
"""Angstrom. No two atoms of a real material are nearer; a smaller distance is taken for a wrong unit."""


def run(options: argparse.Namespace) -> int:
    """Preprocess; prints a summary, and warnings to stderr."""
    plan = _plan(options)
    open_job = partial(blocks.Job, plan=plan, source=options.source, topology=options.topology)
    prepare = partial(blocks.prepare, open_job=open_job, source=options.source, targets=options.targets)
    shard = preprocess.shard_of(options.shard)
    work = WorkFolder(options.out, plan, open_job, prepare, what="frames", shard=shard)
    return preprocess.run(work, options, _summary, _warnings)


def add_arguments(parser: Parser) -> None:
    parser.add_argument("source", type=Path, help="LAMMPS text dump, extended XYZ, DCD, XTC, TRR, NetCDF, TNG, "
                        "GSD, or .npz with traj_coords, lattices, atom_types, target_index")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument("--targets", help="element or atomic number (Ti, 22), FILE.npy of 0-based indices, or indices "
                        "with commas (0,5,10; one: 5,); default: target_index of an npz")  # fmt: skip
    parser.add_argument("--n_nbrs", type=int, default=20, help="neighbours of each atom (default 20)")
    parser.add_argument("--radius", type=float, default=7.0, help="where they are looked for, in Angstrom (default 7)")
    parser.add_argument("--pad", action="store_true", help="allow atoms with fewer neighbours (index -1)")
    parser.add_argument("--frames", default="::", metavar="START:STOP:STEP", help="which frames (default all)")
    parser.add_argument("--dt", type=float, help="nanoseconds from one frame of SOURCE to the next (default: as "
                        "it says, if it does)")  # fmt: skip
    parser.add_argument("--types", metavar="1=Ba,CA=C", help="elements of LAMMPS types, of symbols, or of names of "
                        "atoms; X: none")  # fmt: skip
    parser.add_argument("--topology", type=Path, help="the atoms of a SOURCE that has only places: LAMMPS data file, "
                        "PDB, PSF, prmtop, TPR, GRO, XYZ, ...")  # fmt: skip
    parser.add_argument("--directions", choices=("none", "displacement", "charges"), default="none",
                        help="atom_directions of a perovskite ABO3, at B: its displacement from the six O, or the "
                        "polarisation by charges")  # fmt: skip
    parser.add_argument("--a_site", metavar="Ba", help="elements, with commas (for charges)")
    parser.add_argument("--b_site", metavar="Ti", help="elements, with commas")
    parser.add_argument("--o_site", metavar="O", default="O", help="elements, with commas (default O)")
    parser.add_argument("--cage_radius", type=float, default=3.2, help="largest distance B to O (default 3.2 A)")
    parser.add_argument("--charges", metavar="Ba=2,Ti=4,O=-2", help="in e, in place of those in SOURCE")
    preprocess.add_sharing(parser)


def _plan(options: argparse.Namespace) -> dict[str, Any]:
    """All that decides what is written, in plain values: the same plan gives the same bytes. Raises ``UserError``."""
    for name in ("n_nbrs", "radius", "cage_radius"):
        if not 0 < getattr(options, name) < np.inf:
            raise UserError(f"preprocess: --{name} must be above 0, it is {getattr(options, name)}")
    if options.dt is not None and not 0 < options.dt < np.inf:
        raise UserError(f"preprocess: --dt must be above 0, it is {options.dt}")
    kind = options.directions
    if kind != "none" and not options.b_site:
        raise UserError("preprocess: --directions needs --b_site, as in --b_site Ti")
    if kind == "charges" and not options.a_site:
        raise UserError("preprocess: --directions charges needs --a_site, as in --a_site Ba")
    if kind != "charges" and (options.a_site or options.charges):
        raise UserError("preprocess: --a_site and --charges are for --directions charges")
    if kind == "none" and options.b_site:
        raise UserError("preprocess: --b_site is for --directions displacement or charges")
    targets = options.targets
    file = Path(targets) if targets and targets.endswith(".npy") else None
    sites = {name: _elements(getattr(options, name)) for name in ("a_site", "b_site", "o_site")}
    charges = _pairs("charges", options.charges, float)
    return {
        "source": _identity(options.source),
        "topology": _identity(options.topology),
        "targets": _identity(file) if file else targets,
        "n_nbrs": options.n_nbrs,
        "radius": options.radius,
        "pad": options.pad,
        "frames": _slice(options.frames),
        "dt": options.dt,
        "types": _pairs("types", options.types, element_or_site),
        "directions": kind,
        **(sites if kind != "none" else {}),
        "reader": READER,
        "block": [blocks.BYTES, blocks.MOST_FRAMES],
        "cage_radius": options.cage_radius if kind != "none" else None,
        "charges": charges and {element(name): charge for name, charge in charges.items()},
    }


def _identity(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"preprocess: {path}: {'not a file' if path.exists() else 'no such file'}")
    return state_of(path)


def _elements(text: str | None) -> list[int]:
    return [element(name) for name in text.split(",")] if text else []


def _pairs(option: str, text: str | None, value: Any) -> dict[str, Any] | None:
    if text is None:
        return None
    found = {}
    for pair in text.split(","):
        key, equals, rest = pair.partition("=")
        try:
            if not equals or key in found:
                raise ValueError
            found[key] = value(rest)
        except ValueError:
            raise UserError(f"preprocess: --{option} is NAME=VALUE with commas, each once; not {pair!r}") from None
    return found


def _slice(text: str) -> list[int | None]:
    try:
        parts = [int(part) if part else None for part in text.split(":")]
        if not 2 <= len(parts) <= 3:
            raise ValueError
        start, stop, step = (*parts, None)[:3]
        if step is not None and step < 1:
            raise ValueError
    except ValueError:
        raise UserError(f"preprocess: --frames is START:STOP or START:STOP:STEP, not {text!r}") from None
    return [start, stop, step]


def _summary(meta: dict[str, Any]) -> str:
    found, listed, radius = meta["neighbours"], meta["n_nbrs"], meta["radius"]
    lines = [
        f"  {meta['frames']:,} frames of {meta['atoms']:,} atoms, {meta['targets']:,} of them targets; "
        + (f"{meta['dt_ns']:g} ns per frame" if "dt_ns" in meta else "no --dt, so times will be in frames")
        + (" (as the file says)" if "dt_ns" in meta and not meta["options"]["dt"] else ""),
        "  elements: "
        + ", ".join(f"{count:,} {symbol}" for symbol, count in meta["elements"]["counts"].items())
        + f"; by {meta['elements']['by']}",
        f"  {listed} neighbours are listed; within {radius:g} A there are {found['min']} at least, "
        f"{found['median']}{' or more' if found['median'] > listed else ''} in the median",
        f"  {found['cut']:.1%} of the lists end before the radius, because more atoms are within it than are listed; "
        f"the last listed is {found['reach_min']:.2f} to {found['reach_max']:.2f} A away (the model's cutoff should "
        "cover that)",
    ]
    return "\n".join(lines)


def _warnings(meta: dict[str, Any]) -> list[str]:
    found, directions = meta["neighbours"], meta["directions"]
    texts = [meta["remark"]] if meta["remark"] else []
    if found["closest"] < CLOSE:
        texts.append(f"two atoms are only {found['closest']:.3g} A apart: are the coordinates in Angstrom?")
    if found["padded"]:
        texts.append(f"{found['padded']:.1%} of the lists are padded: fewer than {meta['n_nbrs']} neighbours within "
                     f"{meta['radius']:g} A")  # fmt: skip
    given, of_source = meta["options"]["dt"], meta["dt_of_source"]
    if given and of_source and abs(given / of_source - 1) > 0.01:
        texts.append(f"--dt says {given:g} ns from frame to frame, the file says {of_source:g}: --dt was taken")
    if meta["uneven"] is not None:
        texts.append(f"the time steps are not evenly spaced, first at frame {meta['uneven']} of the source (a restart "
                     "that repeats frames?): a lag in frames is then not one in time")  # fmt: skip
    if directions and directions["incomplete"]:
        texts.append(f"{directions['incomplete']:.2%} of the cages are incomplete (vacancies, or --cage_radius too "
                     "small): what is missing counts nothing")  # fmt: skip
    if directions and directions["targets_without"]:
        texts.append(f"{directions['targets_without']:,} targets are not on the B site and have direction 0")
    return [f"warning: {text}" for text in texts]
