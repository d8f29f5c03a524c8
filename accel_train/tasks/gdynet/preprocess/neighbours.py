"""The nearest neighbours of every atom of a frame, periodic or not, in a cell of any shape and size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.gdynet.preprocess.frames import Frame, library

MARGIN = 1e-9
"""Share of a cell: images this much too far are kept, so that rounding loses none."""

MOST = 50
"""Cells along one axis within the radius. More is taken for a wrong unit."""


@dataclass(frozen=True)
class Images:
    """Atoms and their periodic images: points float64 [P, 3], the atom each belongs to int64 [P]. The first N points
    are the atoms themselves, wrapped into the cell."""

    points: np.ndarray
    owner: np.ndarray


def images(frame: Frame, radius: float) -> Images:
    """All images within ``radius`` [Angstrom] of the cell, so that every point that near to an atom is among them.

    Copies the points along one axis after the other, which holds for any cell and for a radius of several cells; a
    tree over them is faster than a tree with periodic distances. Raises ``DataError`` for a cell without volume.
    """
    periodic = np.flatnonzero(frame.periodic)
    atoms = np.arange(len(frame.positions))
    if len(periodic) == 0:
        return Images(frame.positions, atoms)
    cell = _complete(frame)
    inverse = np.linalg.inv(cell)
    reach = radius * np.linalg.norm(inverse, axis=0) + MARGIN  # in cells: 1 / norm is the distance of two faces
    if reach[periodic].max() > MOST:
        raise DataError(f"{frame.place}: the radius of {radius:g} A spans more than {MOST} cells; is the cell in A?")
    fractional = frame.positions @ inverse
    shift = np.zeros_like(fractional)
    shift[:, periodic] = -np.floor(fractional[:, periodic])
    owner = atoms
    for axis in periodic:
        place = fractional[owner, axis] + shift[:, axis]
        parts, shifts = [owner], [shift]
        most = int(np.ceil(reach[axis]))
        for cells in (*range(-most, 0), *range(1, most + 1)):
            near = np.flatnonzero((place + cells >= -reach[axis]) & (place + cells <= 1 + reach[axis]))
            moved = shift[near]
            moved[:, axis] += cells
            parts.append(owner[near])
            shifts.append(moved)
        owner, shift = np.concatenate(parts), np.concatenate(shifts)
    return Images(frame.positions[owner] + shift @ cell, owner)


def _complete(frame: Frame) -> np.ndarray:
    """The cell, with unit vectors at right angles for axes that are not periodic and have none."""
    cell = frame.cell.copy()
    given = cell.any(1)
    if (frame.periodic & ~given).any():
        raise DataError(f"{frame.place}: an axis is periodic and has no cell vector")
    cell[~given] = np.linalg.svd(cell[given])[2][given.sum() :]
    if abs(np.linalg.det(cell)) < 1e-6 * np.linalg.norm(cell, axis=1).prod():
        raise DataError(f"{frame.place}: the cell has no volume")
    return cell


def nearest(frame: Frame, n_nbrs: int, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices int32 [N, M], distances float32 [N, M] in Angstrom, found int64 [N]) of the M = ``n_nbrs`` nearest
    neighbours within ``radius``, the limit included.

    Every periodic image is a neighbour of its own: an atom is listed as often as its images are near, and in a cell
    smaller than the radius also among its own neighbours; only the atom itself, at distance 0, is not. In order of
    (float32 distance, index), so that the same frame always gives the same list and equal distances do not depend on
    how they were found. Where there are fewer the index is -1 and the distance 0. ``found`` counts up to M + 1: above
    M, there are more within the radius than are listed.
    """
    near = images(frame, radius)
    tree = library("scipy.spatial").cKDTree(near.points, balanced_tree=False)
    owner = np.append(near.owner, -1)  # the tree says P where there is no further point
    limit = np.nextafter(radius, np.inf)  # the tree's own limit is exclusive

    def search(atoms: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest others, in order."""
        distance, found = tree.query(near.points[atoms], k=k + 1, distance_upper_bound=limit)
        distance[found == atoms[:, None]] = np.inf  # the atom itself, nearly always the first
        distance = np.roll(distance, -1, axis=1).astype(np.float32)
        who = np.where(np.isfinite(distance), owner[np.roll(found, -1, axis=1)], -1)
        # Few rows are not in order yet: those with equal distances, and atoms at one place.
        later = distance[:, 1:]
        rows = np.flatnonzero(((later <= distance[:, :-1]) & np.isfinite(later)).any(1))
        order = np.lexsort((who[rows], distance[rows]), axis=-1)
        who[rows] = np.take_along_axis(who[rows], order, 1)
        distance[rows] = np.take_along_axis(distance[rows], order, 1)
        return who[:, :k], distance[:, :k]

    k = n_nbrs + 1
    who, distance = search(np.arange(len(frame.positions)), k)
    # Where the last one listed and the next are equally far, others may be as well: which is listed is not yet known.
    tied = np.flatnonzero(np.isfinite(distance[:, -1]) & (distance[:, -1] == distance[:, -2]))
    while len(tied):
        k *= 2
        all_who, all_distance = search(tied, k)
        who[tied], distance[tied] = all_who[:, : n_nbrs + 1], all_distance[:, : n_nbrs + 1]
        tied = tied[np.isfinite(all_distance[:, -1]) & (all_distance[:, -1] == all_distance[:, n_nbrs - 1])]
    found = np.isfinite(distance).sum(1)
    who, distance = who[:, :n_nbrs], distance[:, :n_nbrs]
    return who.astype(np.int32), np.where(np.isfinite(distance), distance, np.float32(0)), found
