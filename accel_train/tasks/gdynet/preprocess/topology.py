"""The atoms of a trajectory that does not say which it holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess import text
from accel_train.tasks.gdynet.preprocess.frames import charges, elements, library


def read_atoms(
    topology: Path, mapping: dict[str, int] | None, trajectory: Path, count: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Atomic numbers int32 [N], and charges float64 [N] if the file has them: of the first frame of a trajectory of
    text, or of whatever else ASE reads. Raises ``UserError`` or ``DataError``, also if they are not ``count``."""
    if not topology.is_file():
        raise UserError(f"{topology}: no such file")
    with open(topology, "rb") as file:
        format = text.kind(file.read(1 << 16))
    types, found = _of_text(topology, format, mapping) if format else _by_ase(topology, mapping)
    if len(types) != count:
        raise DataError(f"{topology} has {len(types)} atoms, {trajectory} has {count}")
    return types, found


def _of_text(path: Path, format: str, mapping: dict[str, int] | None) -> tuple[np.ndarray, np.ndarray | None]:
    with tempfile.TemporaryDirectory() as folder:
        text.prepare(path, format, Path(folder))
        source = text.Text(path, format, Path(folder), mapping)
    return source.types, source[0].charges


def _by_ase(path: Path, mapping: dict[str, int] | None) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        form = "lammps-data" if path.suffix in (".data", ".lmp") else None
        atoms = library("ase.io").read(path, format=form)
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read by ASE: {type(error).__name__}: {error}") from error
    return elements(atoms, mapping, str(path)), charges(atoms)
