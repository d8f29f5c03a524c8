"""Polarisation by hand: displacements in a perovskite, however it is moved or wrapped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.crystals import ALL, perovskite

from accel_train.errors import UserError
from accel_train.tasks.gdynet.preprocess.frames import Frame
from accel_train.tasks.gdynet.preprocess.polarization import COULOMB_PER_M2, displacement, find_sites, polarization


@pytest.mark.parametrize("n", [1, 2])
def test_polarisation_by_hand(n: int) -> None:
    """B moved by u in a fixed cage: displacement u, P = 1/V (-sum of the others' charges) u = q_B u / V."""
    types, positions, cell = perovskite(n)
    charges = {56: 2.0, 22: 4.0, 8: -2.0}
    u = np.array([0.05, -0.02, 0.2])
    positions[types == 22] += u
    sites = find_sites(types, [56], [22], [8], 3.2, charges)
    frame = Frame("a frame", positions, cell, ALL)
    moved, missing = displacement(frame, sites)
    assert missing == 0
    np.testing.assert_allclose(moved[types == 22], np.tile(u, (n**3, 1)), atol=1e-6)
    p, missing = polarization(frame, sites)
    assert missing == 0
    np.testing.assert_allclose(p[types == 22], np.tile(4 * u / 64 * COULOMB_PER_M2, (n**3, 1)), atol=1e-6)
    assert not moved[types != 22].any() and not p[types != 22].any()
    mirror = polarization(Frame("a frame", positions * [1, 1, -1], cell, ALL), sites)[0]
    np.testing.assert_allclose(mirror, p * [1, 1, -1], atol=1e-6)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_polarisation_does_not_feel_translation_or_wrapping(seed: int) -> None:
    rng = np.random.default_rng(seed)
    types, positions, cell = perovskite()
    cell = cell + rng.uniform(-0.1, 0.1, (3, 3))
    positions = positions @ np.linalg.inv(np.eye(3) * 8) @ cell + rng.normal(0, 0.05, positions.shape)
    charges = rng.normal(types / 20.0, 0.1)
    sites = find_sites(types, [56], [22], [8], 3.2, None)
    moved = positions + rng.normal(0, 10, 3) + rng.integers(-2, 3, positions.shape) @ cell
    for compute in (displacement, polarization):
        here = compute(Frame("a frame", positions, cell, ALL, charges), sites)[0]
        np.testing.assert_allclose(compute(Frame("it", moved, cell, ALL, charges), sites)[0], here, atol=1e-5)
        assert abs(here).max() > 0.01


def test_vacancies_are_counted_and_sites_checked() -> None:
    types, positions, cell = perovskite()
    keep = np.arange(len(types)) != np.flatnonzero(types == 8)[0]
    sites = find_sites(types[keep], [56], [22], [8], 3.2, {56: 2.0, 8: -2.0})
    frame = Frame("x: frame 5", positions[keep], cell, ALL)
    moved, missing = displacement(frame, sites)
    assert missing == 2  # both neighbours of the missing one
    np.testing.assert_allclose(abs(moved[types[keep] == 22]).sum(), 2 * 2.0 / 5, rtol=1e-6)
    with pytest.raises(UserError, match="x: frame 5, atom 1: no atom of its cage within 1 A"):
        displacement(frame, find_sites(types[keep], [], [22], [8], 1.0, None))
    with pytest.raises(UserError, match="x: frame 5 has no charges: give --charges"):
        polarization(frame, find_sites(types[keep], [56], [22], [8], 3.2, None))
    with pytest.raises(UserError, match="different elements"):
        find_sites(types, [56], [22], [22], 3.2, None)
    with pytest.raises(UserError, match="no atom of atomic number 38"):
        find_sites(types, [38], [22], [8], 3.2, None)
    with pytest.raises(UserError, match="does not name the atomic number 8"):
        find_sites(types, [56], [22], [8], 3.2, {56: 2.0})
