"""NetCDF by AMBER's conventions, as scipy writes it: read to the end that the file has, or not at all."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ase")
pytest.importorskip("scipy")

from scipy.io import netcdf_file
from support.trajectories import BASE, LENGTH, POSITIONS, F, check, source, wrong, xyz_frame

from accel_train.errors import UserError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.preprocess.trajectories import open_source

main = COMMANDS["preprocess"].run

CUBE = [LENGTH] * 3


def write(
    path: Path,
    lengths: Any = CUBE,
    angles: Any = (90, 90, 90),
    version: int = 2,
    times: Any = None,
    ids: Any = None,
    **units: str,
) -> bytes:
    """Coordinates in what is ``units``, which may be nanometers."""
    unit = units.get("coordinates", "angstrom")
    size = 10 if unit.startswith("nano") else 1
    with netcdf_file(path, "w", version=version) as file:
        file.Conventions, file.ConventionVersion = "AMBER", "1.0"
        for name, count in (("frame", None), ("atom", 6), ("spatial", 3), ("cell_spatial", 3), ("cell_angular", 3)):
            file.createDimension(name, count)
        file.createVariable("spatial", "c", ("spatial",))[:] = [b"x", b"y", b"z"]
        place = file.createVariable("coordinates", "f", ("frame", "atom", "spatial"))
        place.units = unit
        if times is not None:
            file.createVariable("time", "f", ("frame",)).units = units.get("time", "picosecond")
        if ids is not None:
            file.createVariable("id", "i", ("frame", "atom"))
        if lengths is not None:
            file.createVariable("cell_lengths", "d", ("frame", "cell_spatial")).units = unit
            file.createVariable("cell_angles", "d", ("frame", "cell_angular")).units = units.get("turns", "degree")
        for i, frame in enumerate(POSITIONS):
            place[i] = (frame if ids is None else frame[np.argsort(np.argsort(ids[i]))]) / size
            for name, value in (("time", times), ("id", ids)):
                if value is not None:
                    file.variables[name][i] = value[i]
            if lengths is not None:
                file.variables["cell_lengths"][i] = np.array(lengths) / size
                file.variables["cell_angles"][i] = angles
    return path.read_bytes()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("unit", ["angstrom", "Angstrom", "nanometers"])
def test_frames(tmp_path: Path, version: int, unit: str) -> None:
    found = source(tmp_path, "t.nc", write(tmp_path / "t.nc", version=version, coordinates=unit))
    check(found)
    assert found.dt is None
    check(source(tmp_path, "t.nc", write(tmp_path / "t.nc", None, version=version)), cell=np.zeros((3, 3)))
    check(source(tmp_path, "t.nc", write(tmp_path / "t.nc", [0, 0, 0])), cell=np.zeros((3, 3)))


def test_cells_with_angles_and_without_a_vector(tmp_path: Path) -> None:
    cell = np.array([[5.0, 0, 0], [1, 6, 0], [-2, 0.5, 7]])
    lengths = np.linalg.norm(cell, axis=1)
    unit = cell / lengths[:, None]
    angles = np.degrees(np.arccos([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]))
    check(source(tmp_path, "t.nc", write(tmp_path / "t.nc", lengths, angles)), cell=cell)
    slab = source(tmp_path, "t.nc", write(tmp_path / "t.nc", [*lengths[:2], 0], [0, 0, angles[2]]))
    np.testing.assert_allclose(slab[0].cell, [*cell[:2], [0, 0, 0]], atol=1e-6)
    assert slab[0].periodic.tolist() == [True, True, False]


def test_atoms_are_in_the_order_of_their_ids(tmp_path: Path) -> None:
    """LAMMPS writes them in any order, another one in each frame."""
    rng = np.random.default_rng(0)
    ids = np.array([rng.permutation(6) + 1 for _ in range(F)])
    check(source(tmp_path, "t.nc", write(tmp_path / "t.nc", ids=ids)))
    ids[2, 0] = 7
    assert "frame 2 has atoms with other ids" in wrong(tmp_path, "t.nc", write(tmp_path / "t.nc", ids=ids))


def test_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for times, unit, dt in (
        (range(F), "picosecond", 1e-3),
        (np.arange(F) * 0.1 + 1e4, "femtosecond", 1e-7),
        ([0] * F, "picosecond", None),
    ):
        found = source(tmp_path, "t.nc", write(tmp_path / "t.nc", times=list(times), time=unit))
        assert found.dt == (dt and pytest.approx(dt, rel=1e-2))
    more = ["--topology", str(tmp_path / "atoms.xyz"), "--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
    write(tmp_path / "t.nc", times=[0, 1, 2, 5])
    assert main([str(tmp_path / "t.nc"), "--out", str(tmp_path / "uneven"), *more]) == 0
    said = capsys.readouterr()
    assert "0.001 ns per frame (as the file says)" in said.out
    assert "not evenly spaced, first at frame 3" in said.err
    write(tmp_path / "t.nc", times=[0, 1, 2, 3])
    assert main([str(tmp_path / "t.nc"), "--out", str(tmp_path / "given"), *more, "--dt=0.002"]) == 0
    said = capsys.readouterr()
    assert "; 0.002 ns per frame\n" in said.out
    assert "--dt says 0.002 ns from frame to frame, the file says 0.001: --dt was taken" in said.err


def test_what_is_cut_or_not_counted(tmp_path: Path) -> None:
    whole = write(tmp_path / "t.nc")
    each = 6 * 3 * 4 + 6 * 8
    for content, text in (
        (whole[:-1], rf"frame 3 is cut short: {each - 1} of its {each} bytes are there; --frames :3 takes"),
        (whole[: -each - 1], rf"frame 2 is cut short: {each - 1} of its"),
        (whole[: -2 * each], "frame 2 is missing: the file holds 2 of 4 frames that its header promises"),
        (whole[: -4 * each], "frame 0 is missing: the file holds 0 of 4"),
        (whole[: -4 * each + 5], f"frame 0 is cut short: 5 of its {each}"),
        (whole + b"more", "frame 4 is not counted: 4 bytes follow the 4 frames of the header"),
        (whole[:4] + struct.pack(">i", 2) + whole[8:], "frame 2 is not counted: 240 bytes follow the 2 frames"),
        (whole[:200], "t.nc cannot be read: its header is not that of NetCDF: it ends within its header"),
        (whole[:6], "t.nc cannot be read"),
    ):
        assert re.search(text, wrong(tmp_path, "t.nc", content)), text
    stream = whole[:4] + struct.pack(">i", -1) + whole[8:]  # does not say how many
    check(source(tmp_path, "t.nc", stream))
    assert "frame 3 is cut short" in wrong(tmp_path, "t.nc", stream[:-9])
    for end in range(9, len(whole) - 4 * each, 7):
        assert "cannot be read" in wrong(tmp_path, "t.nc", whole[:end])


def test_what_cannot_be(tmp_path: Path) -> None:
    for options, text in (
        ({"coordinates": "furlong"}, "coordinates is in 'furlong'; angstrom, nanometer, bohr, lj are known"),
        ({"turns": "radian"}, "cell_angles is in 'radian'; degree are known"),
        ({"times": [0, 1, 2, 3], "time": "fortnight"}, "time is in 'fortnight'"),
        ({"lengths": [4, 4, -4]}, "frame 0: there is no cell of lengths"),
    ):
        assert text in wrong(tmp_path, "t.nc", write(tmp_path / "t.nc", **options)), text
    with netcdf_file(tmp_path / "t.nc", "w") as file:
        file.createDimension("what", 3)
    assert "no coordinates (frame, atom, 3)" in wrong(tmp_path, "t.nc", (tmp_path / "t.nc").read_bytes())
    (tmp_path / "t.nc").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match="is HDF5"):
        main([str(tmp_path / "t.nc"), "--out", str(tmp_path / "o"), "--targets", "Ti"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("damaged")
    (made / "atoms.xyz").write_bytes(xyz_frame(BASE))
    return made


@given(st.lists(st.tuples(st.integers(4, 520), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_damaged_header_is_one_line_or_harmless(folder: Path, changes: list[tuple[int, int]]) -> None:
    content = bytearray(write(folder / "whole.nc", times=range(F)))
    for place, value in changes:
        content[place] = value
    (folder / "t.nc").write_bytes(content)
    try:
        found = open_source(folder / "t.nc", folder, topology=folder / "atoms.xyz")
        assert all(found[i].positions.shape == (6, 3) for i in range(len(found)))
    except UserError as error:
        assert "\n" not in str(error)
