"""Atoms in cells, and a plain count of their neighbours."""

from __future__ import annotations

from itertools import product

import numpy as np

from accel_train.tasks.gdynet.preprocess.frames import Frame

ALL = np.ones(3, bool)
"""Periodic along all axes."""
PEROVSKITE = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


def perovskite(n: int = 2, a: float = 4.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Types, positions and cell of n^3 cubic cells."""
    corner = np.array(list(product(range(n), repeat=3)))
    return (
        np.tile([56, 22, 8, 8, 8], n**3),
        ((corner[:, None] + PEROVSKITE).reshape(-1, 3)) * a,
        np.eye(3) * n * a,
    )


def plain_count(frame: Frame, radius: float) -> list[list[tuple[np.float32, int]]]:
    """(distance, atom) of all images within the radius, in order, by trying every image."""
    reach = 0
    if frame.periodic.any():  # far more than needed: as many as the thinnest direction could ask for
        volume = abs(np.linalg.det(frame.cell))
        faces = [np.linalg.norm(np.cross(frame.cell[i - 1], frame.cell[i - 2])) for i in range(3)]
        reach = int(np.ceil(radius * max(faces) / volume)) + 1
    wrapped = frame.positions.copy()
    if frame.periodic.any():
        wrapped -= np.where(frame.periodic, np.floor(frame.positions @ np.linalg.inv(frame.cell)), 0) @ frame.cell
    steps = [range(-reach, reach + 1) if p else (0,) for p in frame.periodic]
    shifts = np.array(list(product(*steps)))
    lists = []
    for i, centre in enumerate(wrapped):
        found = []
        for shift in shifts:
            distance = np.linalg.norm(wrapped + shift @ frame.cell - centre, axis=1)
            found += [(d, j) for j, d in enumerate(distance) if d <= radius and (j != i or shift.any())]
        lists.append(sorted((np.float32(d), j) for d, j in found))
    return lists
