"""Trajectory files: read to the end that their format says, or not at all, and as the program that wrote them means."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.trajectories import (
    BASE,
    BOX,
    DUMP,
    LATTICE,
    LENGTH,
    POSITIONS,
    XYZ,
    Change,
    F,
    Frames,
    check,
    dump_frame,
    source,
    wrong,
    xyz_frame,
)

from accel_train.data.work_folder import WorkFolder
from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.preprocess import command, rows
from accel_train.tasks.gdynet.preprocess.elements import atomic_number

main = COMMANDS["preprocess"].run

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


# -- whatever it is --------------------------------------------------------------------------------------------------


def test_work_of_another_reader_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its notes on the file are others, and so may be the frames it has done."""
    (tmp_path / "t.xyz").write_bytes(XYZ)
    more = ["--out", str(tmp_path / "o"), "--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
    with monkeypatch.context() as patch:
        patch.setattr(command, "READER", 1)
        patch.setattr(WorkFolder, "_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main([str(tmp_path / "t.xyz"), *more])
    with pytest.raises(UserError, match="unfinished work with another reader"):
        main([str(tmp_path / "t.xyz"), *more])


def test_a_folder_is_no_trajectory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a file"):
        main([str(tmp_path), "--out", str(tmp_path / "o"), "--targets", "Ti"])
