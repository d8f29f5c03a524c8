"""Trajectory files: read to the end that their format says, or not at all, and as the program that wrote them means."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")

from accel_train.data.work_folder import WorkFolder
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.preprocess import command, rows
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source, atomic_number
from accel_train.tasks.gdynet.preprocess.neighbours import nearest
from accel_train.tasks.gdynet.preprocess.trajectories import open_source, prepare

main = COMMANDS["preprocess"].run

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
    if name.endswith((".dcd", ".xtc", ".trr")):
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


# -- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "whole", "begin"), [("t.xyz", XYZ, b"6\nL"), ("t.dump", DUMP, b"ITEM: TIMESTEP")])
@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_whole_files_are_read_whole(tmp_path: Path, name: str, whole: bytes, begin: bytes, ends: bytes) -> None:
    """Blank lines between frames and around them, byte order marks, tabs, no newline at the end."""
    for content in (
        whole,
        whole.rstrip(),
        whole + b"\n \n\t\n",
        b"\n\n" + whole,
        whole.replace(begin, b"\n  \n" + begin),
        whole.replace(begin, b"\xef\xbb\xbf" + begin),
        whole.replace(b"\n3 3 ", b"\n 3\t3  ").replace(b"\nO ", b"\n\tO  "),
    ):
        check(source(tmp_path, name, content.replace(b"\n", ends)))
    one = whole[: whole.index(begin, 20)].rstrip()
    check(source(tmp_path, name, one.replace(b"\n", ends)), frames=1)


@pytest.mark.parametrize(
    "comment",
    [
        f"{LATTICE} note=it's",
        f'{LATTICE} note="5 A',
        f"don't mind {LATTICE}",
        "lattice = '4.8 0 0 0 4.8 0 0 0 4.8'",
        "Lattice={4.8, 0, 0, 0, 4.8, 0, 0, 0, 4.8} virial=1 info=_JSON",
        f"pbc=[T, T, T], {LATTICE}, Properties=species:S:1:pos:R:3",
    ],
)
def test_comments_of_all_kinds(tmp_path: Path, comment: str) -> None:
    check(source(tmp_path, "t.xyz", b"".join(xyz_frame(p, comment) for p in POSITIONS)))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """Harmless where nothing is read, else a line with file, frame and line."""
    check(source(tmp_path, "t.xyz", XYZ.replace(b"Properties", b"unit=\xc5 Properties")))
    labelled = XYZ.replace(b"pos:R:3", b"pos:R:3:site:S:1").splitlines()
    labelled = [line + b" \xc5" if line[:1] in b"BOT" else line for line in labelled]
    check(source(tmp_path, "t.xyz", b"\n".join(labelled)))
    lines = XYZ.split(b"\n")
    lines[8 + 3] = b"\xc5" + lines[8 + 3]
    assert wrong(tmp_path, "t.xyz", b"\n".join(lines)).startswith(r"t.xyz: frame 1, line 12: '\\xc5O' is no element")
    lines[8 + 3] = lines[8 + 4].replace(b".", b"\xb7", 1)
    assert wrong(tmp_path, "t.xyz", b"\n".join(lines)).startswith("t.xyz: frame 1, line 12: ")
    bad = dump_frame(0) + dump_frame(1).replace(b"\n3 3 ", b"\n3 3 \xff")
    assert wrong(tmp_path, "t.dump", bad).startswith(r"t.dump: frame 1, line 27: '\\xff")


@pytest.mark.parametrize(("name", "whole"), [("t.xyz", XYZ), ("t.dump", DUMP)])
def test_a_cut_file_ends_at_the_frame_that_is_cut(tmp_path: Path, name: str, whole: bytes) -> None:
    """Wherever it is cut inside the last frame, unless all fields of its last line are there."""
    begin = whole.rindex(b"6\nL") if name == "t.xyz" else whole.rindex(b"ITEM: TIMESTEP")
    complete = len(whole[: whole.rstrip().rindex(b" ") + 2])
    for end in (begin + 1, begin + 15, begin + 80, begin + 130, complete - 4, complete - 2):
        text = wrong(tmp_path, name, whole[:end])
        assert text.startswith(f"{name}: frame 3 is cut short"), (end, text)
        assert text.endswith("; --frames :3 takes what is before it")
    text = wrong(tmp_path, name, whole[: whole.index(b"\n", 150)])
    assert text.startswith(f"{name}: frame 0 is cut short") and "--frames" not in text


def test_a_number_that_was_cut(tmp_path: Path) -> None:
    """All fields are there, and the last number has not the decimals that all others have."""
    atoms = [f"O {i}.000000 0.000000 0.500000" for i in range(rows.DECIMALS + 2)]
    whole = "\n".join([str(len(atoms)), LATTICE, *atoms])
    assert "is cut short: its last number has other decimals" in wrong(tmp_path, "t.xyz", whole[:-3].encode())
    for complete in (whole, whole[:-3] + "\n", whole.replace("5.000000 0.000000 0.500000", "5.0 0.0 0.25")[:-3]):
        assert source(tmp_path, "t.xyz", complete.encode()).fault is None


@pytest.mark.parametrize(("name", "frame"), [("t.xyz", lambda i: xyz_frame(POSITIONS[i])), ("t.dump", dump_frame)])
def test_a_cut_in_the_middle(tmp_path: Path, name: str, frame: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was killed and one that appended: the frame that was being written is named, not the next."""
    monkeypatch.setattr(rows, "DECIMALS", 4)
    whole = frame(1)
    last = whole.rstrip().rindex(b"\n") + 1
    for end in (last - 30, last, last + 3, len(whole) - 4):
        text = wrong(tmp_path, name, frame(0) + whole[:end] + frame(2) + frame(3))
        assert text.startswith(f"{name}: frame 1"), (end, text)


def test_frames_before_a_fault_are_taken_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "t.xyz"
    path.write_bytes(XYZ[:-40])
    command = [str(path), "--out", str(tmp_path / "o"), "--n_nbrs", "4", "--radius", "4", "--targets", "Ti"]
    for frames in ("::", ":4", "1:", ":-1", "-2:3"):
        with pytest.raises(
            DataError, match=r"frame 3 is cut short: 5 of its 6 .*; --frames :3 takes what is before it"
        ):
            main([*command, f"--frames={frames}"])
    assert main([*command, "--frames=1:3"]) == 0
    assert len(np.load(tmp_path / "o" / "nbr_lists.npy")) == 2
    assert path.read_bytes() == XYZ[:-40]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.replace(b"\nTi 2", b"\nTi *", 1), r"frame 0, line 7: '\*"),
        (lambda t: t.replace(b"\nTi ", b"\nTi 0 ", 1), "frame 0, line 7: 4 fields are expected"),
        (
            lambda t: t.replace(b"\nTi ", b"\n\nTi ", 1),
            "frame 0 cannot be read, line 7: 4 fields are expected, there is ''",
        ),
        (lambda t: t.replace(b"\nTi ", b"\nQq ", 1), "frame 0, line 7: 'Qq' is no element"),
        (lambda t: t.replace(b"\nTi ", b"\n22 ", 1), "frame 0, line 7: '22' is no element"),
        (lambda t: t.replace(b'0 4.8"', b'4.8"', 1), "frame 0, line 2: Lattice is not nine numbers"),
        (lambda t: t.replace(b"pos:R:3", b"what:R:3", 1), "frame 0, line 2: Properties name no pos:R:3"),
        (lambda t: t.replace(b"species:S:1", b"species:S", 1), "frame 0, line 2: Properties are NAME:"),
        (lambda t: t.replace(LATTICE.encode(), b"pbc=TTT", 1), "frame 0, line 2: pbc is not three"),
        (lambda t: t + xyz_frame(BASE, "no box"), r"frame 4 is periodic along other cell vectors \(F F F\)"),
        (lambda t: t + b"0\n\n", "frame 4 has 0 atoms, the first has 6"),
        (lambda t: b"0\n\n" + t, "frame 0 has no atoms"),
        (lambda t: t + b"what\n", "frame 4 does not begin as a frame: 'what'; --frames :4"),
        (lambda t: t.replace(b"\nTi ", b"\nTi nan ", 1).replace(b"00\nO 3", b"\nO 3", 1), "frame 0, line 7"),
        (lambda t: t + b"9" * 30 + b"\n", "frame 4 does not begin as a frame"),
        (lambda t: t + b"9" * 18 + b"\n\n", "frame 4 is cut short: 0 of its 9"),
        (lambda t: b"", "is empty"),
        (lambda t: b" \n\n", "is empty"),
        (lambda t: bytes(range(256)), "neither a LAMMPS text dump"),
    ],
)
def test_xyz_that_cannot_be(tmp_path: Path, change: Change, text: str) -> None:
    assert re.search(text, wrong(tmp_path, "t.xyz", change(XYZ)))


# -- LAMMPS dumps ----------------------------------------------------------------------------------------------------


def test_sections_of_a_dump(tmp_path: Path) -> None:
    """Those that LAMMPS can write, and others, in any order, in all frames or in some."""
    units, time, what = "ITEM: UNITS\nmetal\n", "ITEM: TIME\n0.5\n", "ITEM: WHAT IS THIS\n1 2\n3\n"
    steps = [[{"before": units + time}, {"before": time}, {"before": time}, {"before": time}]]
    steps += [[{"before": units}] * 4, [{"between": time}] * 4, [{"between": what}] * 4, [{"before": what}] * 4]
    steps += [[{}, {}, {"before": units}, {}], [{"box": BOX + what}] * 4, [{"box": what + BOX}] * 4]
    for each in steps:
        found = source(tmp_path, "t.dump", b"".join(dump_frame(i, **more) for i, more in enumerate(each)))
        check(found)
        assert found.steps is not None and found.steps.tolist() == [0, 100, 200, 300]


@pytest.mark.parametrize(
    ("units", "scale"), [("real", 1), ("lj", 1), ("nano", 10), ("si", 1e10), ("electron", 0.529177)]
)
def test_units_of_a_dump(tmp_path: Path, units: str, scale: float) -> None:
    found = source(tmp_path, "t.dump", f"ITEM: UNITS\n{units}\n".encode() + DUMP)
    np.testing.assert_allclose(found[3].positions, POSITIONS[3] * scale, rtol=1e-5)
    np.testing.assert_allclose(found[3].cell, np.eye(3) * LENGTH * scale, rtol=1e-5)


def test_boxes_of_a_dump(tmp_path: Path) -> None:
    """A general triclinic box gives its vectors; a restricted one bounds, of which the vectors follow."""
    cell = np.array([[4.0, 1, 0.5], [-1, 5, 0], [0, 0.5, 6]])
    rows_of_box = "".join(f"{x} {y} {z} 0\n" for x, y, z in cell)
    box = f"ITEM: BOX BOUNDS abc origin pp pp pp\n{rows_of_box}"
    check(source(tmp_path, "t.dump", b"".join(dump_frame(i, box=box) for i in range(F))), cell=cell)
    for xy, xz, yz in product((-1, 0, 1), repeat=3):
        low, high = [min(0, xy, xz, xy + xz), min(0, yz), 0], [max(0, xy, xz, xy + xz), max(0, yz), 0]
        bounds = zip(low, high, (4, 5, 6), (xy, xz, yz), strict=True)
        lines = "".join(f"{lo + 0.5} {size + hi + 0.5} {tilt}\n" for lo, hi, size, tilt in bounds)
        tilted = dump_frame(0, box=f"ITEM: BOX BOUNDS xy xz yz pp pp pp\n{lines}")
        check(source(tmp_path, "t.dump", tilted), 1, np.array([[4, 0, 0], [xy, 5, 0], [xz, yz, 6]]))


def test_elements_by_mass(tmp_path: Path) -> None:
    text = DUMP.decode().replace("id type", "id mass")
    masses = {"1": "137.33", "2": "47.867", "3": "15.9994"}
    text = re.sub(r"(?m)^(\d) (\d) (?=.*\..*\..*\.)", lambda m: f"{m[1]} {masses[m[2]]} ", text)
    path = tmp_path / "t.lammpstrj"
    check(source(tmp_path, path.name, text.encode()))
    text = text.replace("15.9994", "17.5")
    assert "frame 0, line 11: 17.5 is the mass of no element" in wrong(tmp_path, path.name, text.encode())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.replace(b"\n3 3 ", b"\n2 3 ", 1), "frame 0, line 12: the id 2 is there twice"),
        (
            lambda t: t[:-200] + t[-200:].replace(b"\n6 3 ", b"\n7 3 "),
            "frame 3 has atoms with other ids than the first",
        ),
        (lambda t: t.replace(b"pp pp pp", b"", 1), "frame 0, line 5: it is not said which sides"),
        (
            lambda t: t.replace(b"pp pp pp", b"what is pp pp pp", 1),
            "frame 0, line 5: this form of the box is not known",
        ),
        (lambda t: t.replace(b"0 4.8\n", b"0 4.8 1\n", 1), "frame 0, line 6: 2 fields are expected"),
        (
            lambda t: t.replace(b"0 4.8\n", b"", 1),
            "frame 0 cannot be read, line 5: ITEM: BOX BOUNDS has 2 lines, not 3",
        ),
        (lambda t: t.replace(BOX.encode(), b"", 1), "frame 0, line 5: there is no ITEM: BOX BOUNDS before ITEM: ATOMS"),
        (lambda t: t.replace(b"x y z", b"vx vy vz", 1), "frame 0, line 9: there are no columns x, y, z"),
        (lambda t: t.replace(b"id type", b"no type", 1), "frame 0, line 9: there is no column 'id'"),
        (
            lambda t: t.replace(b"OF ATOMS\n6", b"OF ATOMS\nsix", 1),
            "frame 0 cannot be read, line 4: 'six' is no NUMBER",
        ),
        (lambda t: t + b"ITEM: TIMESTEP\n400\n" + t, "frame 4 cannot be read, line 63: ITEM: TIMESTEP comes again"),
        (
            lambda t: t.replace(b"STEP\n200", b"STEP\n" + b"9" * 30),
            "frame 2 cannot be read, line 32: '9+' is no TIMESTEP",
        ),
        (lambda t: t.replace(b"\n3 3 ", b"\n" + b"9" * 30 + b" 3 "), "frame 0, line 12: '9+' is no integer"),
        (lambda t: b"ITEM: UNITS\nreal\n" + t + b"ITEM: UNITS\nsi\n" + t, "frames in units real and si"),
        (lambda t: b"ITEM: UNITS\nparsec\n" + t, "frame 0, line 1: ITEM: UNITS parsec is no style"),
        (lambda t: t.replace(b"\n2 3 ", b"\n2 3 nan ", 1).replace(b" \n3 ", b"\n3 ", 1), "frame 0, line 11: 5 fields"),
    ],
)
def test_dumps_that_cannot_be(tmp_path: Path, change: Change, text: str) -> None:
    assert re.search(text, wrong(tmp_path, "t.dump", change(DUMP)))


def test_time_that_goes_back_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.dump"
    path.write_bytes(b"".join(dump_frame(i) for i in reversed(range(F))))
    more = ["--types", "1=Ba,2=Ti,3=O", "--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
    assert main([str(path), "--out", str(tmp_path / "o"), *more]) == 0
    assert "time steps are not evenly spaced, first at frame 1" in capsys.readouterr().err


def test_names_of_atoms() -> None:
    names = {"Ba": 56, "BA": 56, "ba": 56, "Ba1": 56, "H12": 1, "D": 1, "T": 1, "O": 8, "X": 0}
    assert {name: atomic_number(name) for name in names} == names
    assert [atomic_number(name) for name in ("CA1", "CO1", "12", "", "Q", "C_a", "Ba+")] == [None] * 7


# -- DCD -------------------------------------------------------------------------------------------------------------


def write_dcd(
    positions: np.ndarray, six: Sequence[float] | None, order: str = "<", version: int = 24, promised: int | None = None
) -> bytes:
    """As the format is: records between their lengths. ``six``: the numbers of the unit cell."""
    pytest.importorskip("MDAnalysis")

    def record(content: bytes) -> bytes:
        return struct.pack(f"{order}i", len(content)) + content + struct.pack(f"{order}i", len(content))

    control = [0] * 20
    control[0] = len(positions) if promised is None else promised
    control[2], control[10], control[19] = 1, six is not None, version
    title = struct.pack(f"{order}i", 1) + b"a title".ljust(80)
    parts = [b"CORD" + struct.pack(f"{order}20i", *control), title, struct.pack(f"{order}i", positions.shape[1])]
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


# -- whatever it is --------------------------------------------------------------------------------------------------


def test_work_of_another_reader_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its notes on the file are others, and so may be the frames it has done."""
    (tmp_path / "t.xyz").write_bytes(XYZ)
    more = ["--out", str(tmp_path / "o"), "--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(command, "READER", 1)
        patch.setattr(WorkFolder, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main([str(tmp_path / "t.xyz"), *more])
    with pytest.raises(UserError, match="unfinished work with another reader"):
        main([str(tmp_path / "t.xyz"), *more])


def test_a_folder_is_no_trajectory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file"):
        main([str(tmp_path), "--out", str(tmp_path / "o"), "--targets", "Ti"])
