"""Synthetic trajectories whose slow processes are known, as folders in the layout of the real ones.

Each of train/, val/ and test/ is one trajectory of the same atoms, from random numbers of its own. Beside what a model
reads lie true_states.npy int8 (F, n), the hidden state of every target, and for ``ferro`` traj_coords.npy float32
(F, N, 3).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from accel_train import keyed
from accel_train.arguments import Range
from accel_train.config.convert import build
from accel_train.data.synthetic import training_line, write_data_set
from accel_train.errors import UserError, suggest
from accel_train.tasks.gdynet import systems, truth
from accel_train.tasks.gdynet.systems import RADIUS, SYSTEMS, Atoms, Frames, Random, System

SPLITS = {"train": 1.0, "val": 0.375, "test": 2.0}  # frames, over those of train
DT_NS = 0.001  # what meta.json says a frame is; nothing else depends on it
BLOCK = 2**17  # atoms times frames that are made at once
DTYPES = {"nbr_lists": "i4", "nbr_dists": "f4", "atom_directions": "f4", "traj_coords": "f4", "true_states": "i1"}


def synth(
    out: str | Path,
    seed: int = 0,
    size: int | None = None,
    system: Literal["ferro", "prinz", "ellipsoids", "markov"] = "ferro",
    **options: Any,
) -> str:
    """Write train/, val/, test/ and metadata.json, which holds every constant and the truth; what to say about it.

    Args:
        out: an empty or new folder; see ``write_data_set``.
        seed: with the options decides every number; more frames go on from the same beginning.
        size: frames of train (default: 4000, of ``prinz`` 1000); val has 3/8 of them, test twice as many.
        options: fields of ``Ferro``, ``Prinz``, ``Ellipsoids`` or ``Markov``.

    Raises:
        UserError: for an unknown system or option, a value out of range, or data that are there already.
    """
    if system not in SYSTEMS:
        raise UserError(f"system: unknown {system!r}{suggest(system, SYSTEMS)}; there are {', '.join(SYSTEMS)}")
    made: System = build(SYSTEMS[system], options)
    size = made.size if size is None else size
    Range(8).check("size", size)
    frames = {split: int(size * share) for split, share in SPLITS.items()}

    def fill(folder: Path) -> dict[str, Any]:
        for split, number in frames.items():
            _write(folder / split, made, partial(_generator, seed, system, split), number)
        return {
            "system": system, "frames": frames, "recipe": asdict(made), "constants": _constants(),
            "model_type": made.model_type, "state_len": made.state_len, "truth": made.truth(),
        }  # fmt: skip

    return _report(Path(out), made, write_data_set(out, seed, size, fill))


def _write(folder: Path, system: System, random: Random, frames: int) -> None:
    folder.mkdir()
    atoms = system.atoms()
    np.save(folder / "atom_types.npy", atoms.types.astype(np.int32))
    np.save(folder / "target_index.npy", atoms.targets.astype(np.int32))
    length = max(1, BLOCK // len(atoms.types))
    lengths = [min(length, frames - start) for start in range(0, frames, length)]
    files: Frames = {}
    start = 0
    for block in system.frames(random, lengths):
        rows = len(block["true_states"])
        block["nbr_lists"] = np.broadcast_to(atoms.neighbours, (rows, *atoms.neighbours.shape))
        for name, values in block.items():
            shape = (frames, *_shape(name, atoms))
            if name not in files:
                files[name] = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", DTYPES[name], shape)
            files[name][start : start + rows] = values.reshape(rows, *shape[1:])
        start += rows
    meta = {"radius": RADIUS, "n_nbrs": atoms.neighbours.shape[1], "dt_ns": DT_NS}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _shape(name: str, atoms: Atoms) -> tuple[int, ...]:
    """The shape of this array in one frame."""
    if name == "true_states":
        return atoms.targets.shape
    return atoms.neighbours.shape if name.startswith("nbr") else (len(atoms.types), 3)


def _constants() -> dict[str, Any]:
    constants = vars(truth) | vars(systems) | globals()
    return {name.lower(): value for name, value in constants.items() if name.isupper() and name != "SYSTEMS"}


def _report(out: Path, system: System, about: dict[str, Any]) -> str:
    atoms, known = system.atoms(), about["truth"]
    frames = ", ".join(f"{split} {number}" for split, number in about["frames"].items())
    lines = [
        f"{out}: {about['system']}, {len(atoms.targets)} targets among {len(atoms.types)} atoms; frames: {frames}",
        f"  truth: {_ceilings(known)}",
    ]
    if "vanilla" in known:
        lines.append(f"  from distances alone: {_ceilings(known['vanilla'])}")
    arguments = {
        "model_type": system.model_type, "state_len": system.state_len,
        **{f"{split}_fnames": [str(out / split)] for split in SPLITS},
    }  # fmt: skip
    return "\n".join([*lines, f"  {training_line('examples/gdynet_small.yaml', arguments)}"])


def _ceilings(known: dict[str, Any]) -> str:
    times = ", ".join(f"{t:.2f}" for t in known["timescales_frames"])
    scores = ", ".join(f"{score:.4f} at tau={tau}" for tau, score in known["vamp2"].items())
    return f"timescales {times} frames; VAMP-2 at most {scores}"


def _generator(seed: int, system: str, split: str, purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=keyed.key(seed, f"gdynet {system}", split, purpose)))
