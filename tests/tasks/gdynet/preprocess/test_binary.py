"""DCD, XTC and TRR: read to the end that the files have, or not at all."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.trajectories import BASE, LENGTH, NUMBERS, POSITIONS, F, check, source, wrong, xyz_frame

from accel_train.errors import DataError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.preprocess.frames import Frame
from accel_train.tasks.gdynet.preprocess.neighbours import nearest
from accel_train.tasks.gdynet.preprocess.trajectories import open_source, prepare

main = COMMANDS["preprocess"].run

# -- DCD -------------------------------------------------------------------------------------------------------------


def write_dcd(
    positions: np.ndarray,
    six: Sequence[float] | None,
    order: str = "<",
    version: int = 24,
    promised: int | None = None,
    step: float = 0,
    title: bytes = b"a title",
) -> bytes:
    """As the format is: records between their lengths. ``six``: the numbers of the unit cell."""
    pytest.importorskip("MDAnalysis")

    def record(content: bytes) -> bytes:
        return struct.pack(f"{order}i", len(content)) + content + struct.pack(f"{order}i", len(content))

    control = [0] * 20
    control[0] = len(positions) if promised is None else promised
    control[2], control[10], control[19] = 1, six is not None, version
    first = bytearray(b"CORD" + struct.pack(f"{order}20i", *control))
    first[40:44] = struct.pack(f"{order}f", step)
    parts = [bytes(first), struct.pack(f"{order}i", 1) + title.ljust(80), struct.pack(f"{order}i", positions.shape[1])]
    for frame in positions:
        parts += [struct.pack(f"{order}6d", *six)] if six is not None else []
        parts += [axis.astype(f"{order}f4").tobytes() for axis in frame.T]
    return b"".join(map(record, parts))


CUBE = [LENGTH, 0, LENGTH, 0, 0, LENGTH]


@pytest.mark.parametrize("order", ["<", ">"])
def test_dcd_of_either_order(tmp_path: Path, order: str) -> None:
    check(source(tmp_path, "t.dcd", write_dcd(POSITIONS, CUBE, order)))
    check(source(tmp_path, "t.dcd", write_dcd(POSITIONS, None, order)), cell=np.zeros((3, 3)))
    check(source(tmp_path, "t.dcd", write_dcd(POSITIONS, [0] * 6, order)), cell=np.zeros((3, 3)))


@pytest.mark.parametrize(("version", "degrees"), [(24, False), (24, True), (36, True)])
def test_dcd_with_angles(tmp_path: Path, version: int, degrees: bool) -> None:
    """Lengths and angles, in degrees or as cosines, are of vectors with the first along x and the second in xy."""
    cell = np.array([[5.0, 0, 0], [1, 6, 0], [-2, 0.5, 7]])
    a, b, c = np.linalg.norm(cell, axis=1)
    cosines = [cell[0] @ cell[1] / a / b, cell[0] @ cell[2] / a / c, cell[1] @ cell[2] / b / c]
    gamma, beta, alpha = np.degrees(np.arccos(cosines)) if degrees else cosines
    check(source(tmp_path, "t.dcd", write_dcd(POSITIONS, [a, gamma, b, beta, alpha, c], version=version)), cell=cell)


@pytest.mark.parametrize("tilt", [(1.5, -1, 0.5), (0.3, 0.2, 0.1), (2.5, 1.5, 1.2), (0, 0, 0)])
def test_dcd_of_charmm(tmp_path: Path, tilt: tuple[float, float, float]) -> None:
    """Its cell is a symmetric matrix, and its coordinates belong to that, not to vectors of the same lengths and angles
    that are turned: a lattice of atoms in steps of half the vectors has no other distances than those."""
    xy, xz, yz = tilt
    cell = np.array([[6, xy, xz], [xy, 7, yz], [xz, yz, 8]])
    corners = np.array(list(product((0, 0.5), repeat=3)))[:6]
    positions = np.repeat(((corners + 0.25) @ cell)[None], 2, axis=0)
    found = source(tmp_path, "t.dcd", write_dcd(positions, [6, xy, 7, xz, yz, 8], version=36))
    np.testing.assert_allclose(found[1].cell, cell)
    expected = nearest(Frame("", positions[1], cell, np.ones(3, bool)), 3, 5.0)[1]
    np.testing.assert_allclose(nearest(found[1], 3, 5.0)[1], expected, rtol=1e-6)
    if tilt == (1.5, -1, 0.5):  # no cosines, no degrees: CHARMM's whatever the version
        old = source(tmp_path, "t.dcd", write_dcd(positions, [6, xy, 7, xz, yz, 8]))
        np.testing.assert_allclose(old[1].cell, cell)


@pytest.mark.parametrize("order", ["<", ">"])
def test_dcd_times(tmp_path: Path, order: str) -> None:
    """The time step is in CHARMM's unit, 48.88821 fs, where that is known, and is not guessed at where it is not."""
    for version, title, dt in (
        (36, b"* TITLE OF CHARMM", 2 * 0.5 * 4.888821e-5),
        (24, b"REMARKS FILENAME=a.dcd CREATED BY NAMD", 2 * 0.5 * 4.888821e-5),
        (24, b"Created by OpenMM", 2 * 0.5 * 4.888821e-5),
        (24, b"Written by LAMMPS", None),
        (24, b"Created by DCD plugin", None),
    ):
        content = bytearray(write_dcd(POSITIONS, CUBE, order, version, step=0.5, title=title))
        content[16:20] = struct.pack(f"{order}i", 2)  # a frame every second step
        found = source(tmp_path, "t.dcd", bytes(content))
        check(found)
        assert found.dt == (dt and pytest.approx(dt, rel=1e-5)), title
    assert source(tmp_path, "t.dcd", write_dcd(POSITIONS, CUBE, order, 36)).dt is None


def test_dcd_does_not_say_how_its_cell_lies(tmp_path: Path) -> None:
    """Lengths and angles, of vectors that a program may have turned: NAMD does, CHARMM writes another thing, and
    LAMMPS and OpenMM have no others."""
    six = [6, 0.5, 6, 0, 0, 7]
    for title, said in ((b"CREATED BY NAMD", True), (b"a title", True), (b"Written by LAMMPS", False)):
        found = source(tmp_path, "t.dcd", write_dcd(POSITIONS, six, title=title))
        assert ("lengths and angles of its cell and not how it lies" in (found.remark or "")) == said, title
    for straight in (CUBE, None):
        assert source(tmp_path, "t.dcd", write_dcd(POSITIONS, straight)).remark is None
    assert source(tmp_path, "t.dcd", write_dcd(POSITIONS, six, version=36)).remark is None


def test_topology_of_text(tmp_path: Path) -> None:
    """Names of atoms, bytes in its comment, no newline: as in a trajectory."""
    whole = xyz_frame(BASE, "5 A of charges Properties=species:S:1:pos:R:3:q:R:1").replace(b" A", b" \xc5")
    rows_of_it = [line + b" 0.5" * (line[:1] in b"BOT") for line in whole.splitlines()]
    (tmp_path / "names.xyz").write_bytes(b"\n".join(rows_of_it).replace(b"Ti ", b"Ti1 "))
    (tmp_path / "t.dcd").write_bytes(write_dcd(POSITIONS, CUBE))
    found = open_source(tmp_path / "t.dcd", tmp_path, topology=tmp_path / "names.xyz")
    check(found)
    assert np.asarray(found[0].charges).tolist() == [0.5] * 6


def test_dcd_that_is_cut(tmp_path: Path) -> None:
    whole = write_dcd(POSITIONS, CUBE)
    frame = (len(whole) - len(write_dcd(POSITIONS[:0], CUBE))) // F
    for content, text in (
        (whole[:-50], rf"frame 3 is cut short: {frame - 50} of its {frame} bytes are there; --frames :3 takes"),
        (whole[: -2 * frame - 1], rf"frame 1 is cut short: {frame - 1} of its"),
        (whole[: -2 * frame], "frame 2 is missing: the file holds 2 of 4 frames that its header promises; --frames :2"),
        (write_dcd(POSITIONS, CUBE, promised=50), "frame 4 is missing: the file holds 4 of 50 frames"),
        (whole + b"more", "frame 4 is cut short: 4 of its"),
        (whole[: -4 * frame + 9], f"frame 0 is cut short: 9 of its {frame} bytes are there"),
        (whole[: -4 * frame], "frame 0 is missing: the file holds 0 of 4 frames"),
        (whole[:50], "t.dcd cannot be read"),
        (b"", "t.dcd cannot be read"),
        (struct.pack("<q", 84) + whole[4:], "marks of 4 bytes, but as one with marks of 8"),
        (write_dcd(POSITIONS, [-1, 0, 4, 0, 0, 4]), "frame 0: the unit cell .* is none that is known"),
        (whole[:-frame] + write_dcd(POSITIONS[:1], [0] * 6)[-frame:], "frame 3 is periodic along other cell vectors"),
        (
            write_dcd(np.where(POSITIONS[2, 3, 1] == POSITIONS, np.nan, POSITIONS), CUBE),
            "frame 2, atom 3: the position",
        ),
    ):
        assert re.search(text, wrong(tmp_path, "t.dcd", content)), text


def test_dcd_frames_beyond_the_header_are_read_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A killed job leaves one frame more than its header says; CP2K leaves the header at 0."""
    for promised, said in ((F - 1, True), (0, False)):
        check(source(tmp_path, f"{promised}.dcd", write_dcd(POSITIONS, CUBE, promised=promised)))
        more = ["--topology", str(tmp_path / "atoms.xyz"), "--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
        assert main([str(tmp_path / f"{promised}.dcd"), "--out", str(tmp_path / f"o{promised}"), *more]) == 0
        assert ("holds 4 frames, its header says 3; all of them are read" in capsys.readouterr().err) == said


def test_dcd_frames_that_are_there_are_taken_when_asked_for(tmp_path: Path) -> None:
    source(tmp_path, "t.dcd", write_dcd(POSITIONS, CUBE, promised=50))
    more = ["--topology", str(tmp_path / "atoms.xyz"), "--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
    command = [str(tmp_path / "t.dcd"), "--out", str(tmp_path / "o"), *more]
    with pytest.raises(DataError, match="4 of 50 frames"):
        main(command)
    assert main([*command, "--frames=:4"]) == 0
    assert len(np.load(tmp_path / "o" / "nbr_lists.npy")) == 4


# -- XTC and TRR -----------------------------------------------------------------------------------------------------


def write_gromacs(path: Path, positions: np.ndarray, length: float, steps: list[int] | None = None) -> bytes:
    """By MDAnalysis; ``length`` of a cube. Returns what is in the file."""
    formats = pytest.importorskip("MDAnalysis.lib.formats.libmdaxdr")
    box = np.eye(3, dtype=np.float32) * length / 10
    with (formats.XTCFile if path.suffix == ".xtc" else formats.TRRFile)(str(path), "w") as file:
        for i, frame in enumerate(positions):
            step, x = steps[i] if steps else i * 100, (frame / 10).astype(np.float32)
            if path.suffix == ".xtc":
                file.write(x, box, step, step / 2, 1e5)
            else:
                file.write(x, None, None, box, step, step / 2, 0.0, len(x))
    return path.read_bytes()


@pytest.mark.parametrize("name", ["t.xtc", "t.trr"])
def test_gromacs(tmp_path: Path, name: str) -> None:
    """Nanometres become Angstrom; a box of zeros is none; few atoms are stored otherwise than many."""
    found = source(tmp_path, name, write_gromacs(tmp_path / name, POSITIONS, LENGTH))
    check(found)
    assert found.steps is not None and found.steps.tolist() == [0, 100, 200, 300]
    assert found.dt == 0.05
    check(source(tmp_path, name, write_gromacs(tmp_path / name, POSITIONS, 0)), cell=np.zeros((3, 3)))
    many = np.random.default_rng(1).uniform(0, LENGTH, (3, 40, 3))
    write_gromacs(tmp_path / name, many, LENGTH)
    (tmp_path / "many.xyz").write_bytes(b"40\n\n" + b"O 0 0 0\n" * 40)
    prepare(tmp_path / name, tmp_path)
    read = open_source(tmp_path / name, tmp_path, topology=tmp_path / "many.xyz")
    assert (len(read), read.fault) == (3, None)
    np.testing.assert_allclose(read[2].positions, many[2], atol=1e-3)


@pytest.mark.parametrize("name", ["t.xtc", "t.trr"])
@pytest.mark.parametrize("atoms", [6, 40])
def test_gromacs_that_is_cut(tmp_path: Path, name: str, atoms: int) -> None:
    """Wherever: nothing is left out in silence."""
    positions = np.random.default_rng(1).uniform(0, LENGTH, (3, atoms, 3))
    whole = write_gromacs(tmp_path / name, positions, LENGTH)
    last = len(whole) - len(write_gromacs(tmp_path / name, positions[:1], LENGTH))
    for end in (*range(last + 60, len(whole), 37), len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:end])
        prepare(tmp_path / name, tmp_path)
        fault = json.loads((tmp_path / "fault.json").read_text())
        assert fault.startswith("is cut short") and len(np.load(tmp_path / "starts.npy")) == 2, end
    more = write_gromacs(tmp_path / name, positions[:, :-1], LENGTH)
    for content, text in (
        (whole + b"what follows", "does not begin as a frame: its number is 2003329396, it should be"),
        (whole + b"\0", "is cut short"),
        (whole + more, f"has {atoms - 1} atoms, the first has {atoms}"),
    ):
        (tmp_path / name).write_bytes(content)
        prepare(tmp_path / name, tmp_path)
        assert text in (tmp_path / "fault.json").read_text()
    assert wrong(tmp_path, name, whole[:40]) == f"{name}: frame 0 is cut short"
    if atoms == len(NUMBERS):
        assert wrong(tmp_path, name, whole[:-1]).endswith("; --frames :2 takes what is before it")
