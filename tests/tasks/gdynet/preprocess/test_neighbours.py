"""Neighbour lists are those of a plain count, also at equal distances and in cells of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.crystals import ALL, plain_count

from accel_train.errors import UserError
from accel_train.tasks.gdynet.preprocess.frames import Frame
from accel_train.tasks.gdynet.preprocess.neighbours import nearest


def check(frame: Frame, n_nbrs: int, radius: float, exact: bool) -> None:
    lists, dists, found = nearest(frame, n_nbrs, radius)
    assert (lists.dtype, dists.dtype) == (np.int32, np.float32)
    assert lists.shape == dists.shape == (len(frame.positions), n_nbrs)
    for i, all_of_them in enumerate(plain_count(frame, radius)):
        expected = all_of_them[:n_nbrs]
        assert found[i] == min(len(all_of_them), n_nbrs + 1)
        pad = n_nbrs - len(expected)
        np.testing.assert_allclose(dists[i], [d for d, _ in expected] + [0] * pad, rtol=1e-6)
        assert (lists[i, n_nbrs - pad :] == -1).all()
        if exact:
            assert list(lists[i]) == [j for _, j in expected] + [-1] * pad


@st.composite
def some_frames(draw: st.DrawFn) -> Frame:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = draw(st.sampled_from([1.5, 3.0, 8.0]))
    cell = np.diag(rng.uniform(0.7, 1.5, 3)) * size
    if draw(st.booleans()):
        cell = cell @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + rng.uniform(-0.3, 0.3, (3, 3)) * size
    periodic = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    atoms = draw(st.integers(1, 8))
    return Frame("a frame", rng.uniform(-2, 3, (atoms, 3)) @ cell, cell, periodic)


@given(some_frames(), st.integers(1, 12), st.floats(0.5, 3.5))
@settings(max_examples=60, deadline=None)
def test_neighbours_are_those_of_a_plain_count(frame: Frame, n_nbrs: int, radius: float) -> None:
    check(frame, n_nbrs, radius, exact=False)
    lists, _dists, _ = nearest(frame, n_nbrs, radius)
    again = plain_count(frame, radius)
    for i, expected in enumerate(again):  # where the distances say which it must be, it is that one
        for m, (d, j) in enumerate(expected[:n_nbrs]):
            if all(abs(d - e) > 1e-4 for k, (e, _) in enumerate(expected) if k != m):
                assert lists[i, m] == j


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=12, unique=True),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(1, 14),
    st.sampled_from([1.0, 2.0, 3.0]),
    st.integers(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_equal_distances_are_in_order_of_the_atoms(points, periodic, n_nbrs: int, radius: float, tilt: int) -> None:
    """On a lattice nearly all distances are equal to others, also across the end of the list and at the radius."""
    cell = 4 * np.eye(3)
    cell[1, 0] = 2 * tilt
    check(Frame("a frame", np.array(points, float) + 0.25, cell, np.array(periodic)), n_nbrs, radius, exact=True)


def test_axes_without_vectors_and_cells_that_cannot_be() -> None:
    cell = np.diag([3.0, 3.0, 0.0])
    slab = Frame("a slab", np.array([[0.2, 0, 0], [2.9, 0, 1]]), cell, np.array([True, True, False]))
    _, dists, _ = nearest(slab, 1, 2.5)
    np.testing.assert_allclose(dists[:, 0], np.hypot(0.3, 1), rtol=1e-6)
    for cell, text in (
        (np.diag([3.0, 3.0, 0.0]), "no cell vector"),
        (np.ones((3, 3)), "no volume"),
        (np.eye(3) * 0.01, "is the cell in A"),
    ):
        with pytest.raises(UserError, match=f"x.dump: frame 3: .*{text}"):
            nearest(Frame("x.dump: frame 3", np.zeros((1, 3)), cell, ALL), 1, 2.5)
