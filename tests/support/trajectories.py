"""Six atoms in four frames, written as trajectory files, whole or wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess.frames import Source
from accel_train.tasks.gdynet.preprocess.trajectories import open_source, prepare

F, LENGTH = 4, 4.8
NAMES, TYPES, NUMBERS = ["Ba", "O", "O", "O", "Ti", "O"], [1, 3, 3, 3, 2, 3], [56, 8, 8, 8, 22, 8]
BASE = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0, 0, 2], [2, 2, 2], [3.5, 3.5, 3.5]])
POSITIONS = BASE + np.random.default_rng(0).integers(-20, 21, (F, 6, 3)) / 64
MAPPING = {"1": 56, "2": 22, "3": 8}
LATTICE = 'Lattice="4.8 0 0 0 4.8 0 0 0 4.8"'
BOX = "ITEM: BOX BOUNDS pp pp pp\n0 4.8\n0 4.8\n0 4.8\n"


def xyz_frame(positions: np.ndarray, comment: str = f"{LATTICE} Properties=species:S:1:pos:R:3") -> bytes:
    atoms = [f"{name} {x:.6f} {y:.6f} {z:.6f}" for name, (x, y, z) in zip(NAMES, positions, strict=True)]
    return ("\n".join([str(len(atoms)), comment, *atoms]) + "\n").encode()


def dump_frame(i: int, before: str = "", between: str = "", box: str = BOX) -> bytes:
    """``before``: sections before the TIMESTEP; ``between``: those after the number of atoms."""
    head = f"{before}ITEM: TIMESTEP\n{i * 100}\nITEM: NUMBER OF ATOMS\n6\n{between}{box}ITEM: ATOMS id type x y z\n"
    atoms = enumerate(zip(TYPES, POSITIONS[i], strict=True), 1)
    return (head + "".join(f"{n} {t} {x} {y} {z} \n" for n, (t, (x, y, z)) in atoms)).encode()


XYZ, DUMP = b"".join(map(xyz_frame, POSITIONS)), b"".join(map(dump_frame, range(F)))

Frames = Callable[[int], bytes]
Change = Callable[[bytes], bytes]


def source(folder: Path, name: str, content: bytes) -> Source:
    path, work = folder / name, folder / f"work-{len(list(folder.iterdir()))}"
    path.write_bytes(content)
    work.mkdir()
    prepare(path, work)
    if name.endswith((".dcd", ".xtc", ".trr", ".nc")):
        (folder / "atoms.xyz").write_bytes(xyz_frame(BASE))
        return open_source(path, work, topology=folder / "atoms.xyz")
    return open_source(path, work, MAPPING if name.endswith(".dump") else None)


def check(found: Source, frames: int = F, cell: np.ndarray | None = None) -> None:
    """That it holds these frames and nothing is wrong with it."""
    assert (found.fault, len(found)) == (None, frames)
    assert found.types.tolist() == NUMBERS
    for i in range(frames):
        frame = found[i]
        np.testing.assert_allclose(frame.positions, POSITIONS[i], atol=1e-6)
        np.testing.assert_allclose(frame.cell, np.eye(3) * LENGTH if cell is None else cell, atol=1e-6)
        assert frame.periodic.all() == frame.cell.any()


def wrong(folder: Path, name: str, content: bytes) -> str:
    """The one line that ends the reading of all frames."""
    with pytest.raises(UserError) as caught:
        found = source(folder, name, content)
        if found.fault:
            raise DataError(found.fault)
        for i in range(len(found)):
            found[i]
    assert "\n" not in str(caught.value) and "truncate" not in str(caught.value)
    return str(caught.value).replace(f"{folder}/", "")
