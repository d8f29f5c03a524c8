"""The local polarisation of a perovskite ABO3: a vector per B atom, which tells up from down where distances cannot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess.frames import Frame, library
from accel_train.tasks.gdynet.preprocess.neighbours import Images, images

CAGE, CORNERS = 6, 8
"""O atoms around a B atom, and A atoms."""

COULOMB_PER_M2 = 16.02176634
"""1 e / Angstrom^2."""


@dataclass(frozen=True)
class Sites:
    """Atoms by their place in the lattice (indices), and the largest distance of B to O [Angstrom]. A atoms are looked
    for up to sqrt(3) times that, as far as they are in a cubic cell. ``charges`` float64 [N] in e: the same in every
    frame; without, those of the frame are taken."""

    a: np.ndarray
    b: np.ndarray
    o: np.ndarray
    radius: float
    charges: np.ndarray | None = None


def displacement(frame: Frame, sites: Sites) -> tuple[np.ndarray, int]:
    """(float32 [N, 3] in Angstrom, how many cages are incomplete): B minus the mean of its six O, 0 at other atoms."""
    near = images(frame, sites.radius)
    vectors, owner = _cage(frame, near, sites.b, sites.o, CAGE, sites.radius)
    found = (owner >= 0).sum(1)
    return _spread(frame, sites, -vectors.sum(1) / found[:, None]), int((found < CAGE).sum())


def polarization(frame: Frame, sites: Sites) -> tuple[np.ndarray, int]:
    """(float32 [N, 3] in C/m^2, how many cages are incomplete): at B, and 0 at other atoms,

        P = 1/V (q_B r_B + 1/8 sum of 8 q_A r_A + 1/2 sum of 6 q_O r_O)

    with positions relative to B, so that its own term is 0, and V the cell's volume by the number of B atoms. An atom
    that is missing in a cage counts nothing. Raises ``DataError`` without charges or a cell periodic along all axes.
    """
    charges = frame.charges if sites.charges is None else sites.charges
    if charges is None:
        raise DataError(f"{frame.place} has no charges: give --charges, as in --charges Ba=2,Ti=4,O=-2")
    if not np.isfinite(charges).all():
        raise DataError(f"{frame.place}: a charge is not finite")
    if not frame.periodic.all():
        raise DataError(f"{frame.place} is not periodic and has no volume: use --directions displacement")
    total, missing = np.zeros((len(sites.b), 3)), np.zeros(len(sites.b), bool)
    reach = np.sqrt(3) * sites.radius
    near = images(frame, reach)
    for atoms, count, radius in ((sites.o, CAGE, sites.radius), (sites.a, CORNERS, reach)):
        vectors, owner = _cage(frame, near, sites.b, atoms, count, radius)
        # An atom is shared by as many cells as it takes to give each cell its one A and three O: 8 and 2.
        total += (vectors * charges[owner][..., None]).sum(1) * (1 / 2 if count == CAGE else 1 / 8)
        missing |= (owner < 0).any(1)
    volume = abs(np.linalg.det(frame.cell)) / len(sites.b)
    return _spread(frame, sites, total * COULOMB_PER_M2 / volume), int(missing.sum())


def find_sites(
    types: np.ndarray, a: list[int], b: list[int], o: list[int], radius: float, charges: dict[int, float] | None
) -> Sites:
    """Sites by atomic numbers. Raises ``UserError`` for an element in two places or in none, or without a charge."""
    if len({*a, *b, *o}) < len(a) + len(b) + len(o):
        raise UserError("--a_site, --b_site and --o_site must name different elements")
    for number in (*a, *b, *o):
        if number not in types:
            raise UserError(f"the trajectory has no atom of atomic number {number}, which a site names")
    if charges is not None and (missing := {*a, *o} - set(charges)):
        raise UserError(f"--charges does not name the atomic number {min(missing)}")
    fixed = None if charges is None else np.array([charges.get(int(t), 0.0) for t in types])
    at = (np.flatnonzero(np.isin(types, numbers)) for numbers in (a, b, o))
    return Sites(next(at), next(at), next(at), radius, fixed)


def _cage(
    frame: Frame, near: Images, centres: np.ndarray, members: np.ndarray, count: int, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [b, count, 3] from each centre to the nearest ``members`` within ``radius``, and which atoms these are
    [b, count]; 0 and -1 where there are fewer. Raises ``DataError`` for a centre without any."""
    mine = np.flatnonzero(np.isin(near.owner, members))
    points, owner = np.append(near.points[mine], np.zeros((1, 3)), 0), np.append(near.owner[mine], -1)
    tree = library("scipy.spatial").cKDTree(points[:-1])
    found = tree.query(near.points[centres], k=count, distance_upper_bound=radius)[1]
    who = owner[found]
    alone = np.flatnonzero((who < 0).all(1))
    if len(alone):
        raise DataError(
            f"{frame.place}, atom {centres[alone[0]]}: no atom of its cage within {radius:.3g} A; check the sites and "
            "--cage_radius"
        )
    return np.where((who >= 0)[..., None], points[found] - near.points[centres][:, None], 0.0), who


def _spread(frame: Frame, sites: Sites, vectors: np.ndarray) -> np.ndarray:
    rows = np.zeros((len(frame.positions), 3), np.float32)
    rows[sites.b] = vectors
    return rows
