"""Preprocessing gives the same folder whatever the format, the processes and the kills, or says in a line why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.crystals import ALL, perovskite, plain_count

from accel_train.errors import UserError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.preprocess import blocks, frames
from accel_train.tasks.gdynet.preprocess.frames import Frame
from accel_train.tasks.gdynet.preprocess.neighbours import nearest
from accel_train.tasks.gdynet.preprocess.polarization import displacement, find_sites, polarization

main = COMMANDS["preprocess"].run

ARRAYS = ("atom_types.npy", "target_index.npy", "nbr_lists.npy", "nbr_dists.npy")


F, TYPES, NAMES = 7, {56: 1, 22: 2, 8: 3}, {56: "Ba", 22: "Ti", 8: "O"}


def trajectory(frames: int = F) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Types, positions [F, N, 3] and one orthogonal cell, all in steps of 1/64, which every format holds exactly."""
    types, positions, cell = perovskite()
    rng = np.random.default_rng(1)
    return types, positions + rng.integers(-20, 21, (frames, *positions.shape)) / 64, cell


def write_npz(path: Path, frames: int = F) -> Path:
    types, positions, cell = trajectory(frames)
    lattices = np.broadcast_to(cell, (frames, 3, 3))
    np.savez_compressed(
        path, traj_coords=positions, lattices=lattices, atom_types=types, target_index=np.flatnonzero(types == 22)
    )
    return path


def write_xyz(path: Path) -> Path:
    from ase import Atoms
    from ase.io import write

    types, positions, cell = trajectory()
    write(path, [Atoms(types, positions=p, cell=cell, pbc=True) for p in positions], format="extxyz")
    return path


def write_dump(path: Path, element: bool = False, steps: list[int] | None = None) -> Path:
    """As LAMMPS does: an origin that is not 0, wrapped atoms in any order, charges."""
    types, positions, cell = trajectory()
    rng, lines = np.random.default_rng(2), []
    length = cell[0, 0]
    for frame, p in enumerate(positions):
        lines += ["ITEM: TIMESTEP", str(steps[frame] if steps else frame * 100), "ITEM: NUMBER OF ATOMS",
                  str(len(types)), "ITEM: BOX BOUNDS pp pp pp"]  # fmt: skip
        lines += [f"-1.0 {length - 1}"] * 3
        lines.append("ITEM: ATOMS id type x y z q" + " element" * element)
        for i in rng.permutation(len(types)):
            x, y, z = (p[i] + 1) % length - 1
            more = f" {NAMES[types[i]]}" if element else ""
            lines.append(f"{i + 1} {TYPES[types[i]]} {x} {y} {z} {charge(types[i])}{more}")
    path.write_text("\n".join(lines) + "\n")
    return path


def with_charges(path: Path, column: str) -> Path:
    """Extended XYZ written by hand."""
    lines = []
    types, positions, cell = trajectory()
    for p in positions:
        lattice = " ".join(map(str, cell.ravel()))
        lines += [str(len(types)), f'Lattice="{lattice}" Properties=species:S:1:pos:R:3:{column}:R:1']
        lines += [f"{NAMES[z]} {x[0]} {x[1]} {x[2]} {charge(z)}" for z, x in zip(types, p, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def charge(number: int) -> float:
    return {56: 2.0, 22: 4.0, 8: -2.0}[int(number)]


def write_dcd(path: Path) -> tuple[Path, Path]:
    """And a topology, a LAMMPS data file."""
    mda = pytest.importorskip("MDAnalysis")
    types, positions, cell = trajectory()
    universe = mda.Universe.empty(len(types), trajectory=True)
    with mda.Writer(str(path), n_atoms=len(types)) as writer:
        for p in positions:
            universe.atoms.positions = p
            universe.dimensions = [*np.diag(cell), 90, 90, 90]
            writer.write(universe)
    atoms = enumerate(zip(types, positions[0], strict=True))
    rows = [f"{i + 1} {TYPES[t]} {charge(t)} {x} {y} {z}" for i, (t, (x, y, z)) in atoms]
    box = [f"0 {cell[0, 0]} {axis}lo {axis}hi" for axis in "xyz"]
    head = ["a crystal", "", f"{len(types)} atoms", "3 atom types", "", *box, "", "Atoms # charge", ""]
    topology = path.with_suffix(".data")
    topology.write_text("\n".join([*head, *rows]) + "\n")
    return path, topology


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    return [str(source), "--out", str(out), "--n_nbrs", "6", "--radius", "5", *more]


def same(a: Path, b: Path, names: tuple[str, ...] = ARRAYS) -> None:
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_all_formats_give_the_same_folder(tmp_path: Path) -> None:
    types = ("--types", "1=Ba,2=22,3=O", "--targets", "Ti")
    made = {
        "npz": main(arguments(write_npz(tmp_path / "t.npz"), tmp_path / "npz")),
        "xyz": main(arguments(write_xyz(tmp_path / "t.xyz"), tmp_path / "xyz", "--targets", "22")),
        "dump": main(arguments(write_dump(tmp_path / "t.dump"), tmp_path / "dump", *types)),
        "named": main(arguments(write_dump(tmp_path / "e.dump", True), tmp_path / "named", "--targets", "Ti")),
    }
    dcd, topology = write_dcd(tmp_path / "t.dcd")
    made["dcd"] = main(arguments(dcd, tmp_path / "dcd", "--topology", str(topology), *types))
    for name, code in made.items():
        assert code == 0
        same(tmp_path / "npz", tmp_path / name)
    lists, dists = (np.load(tmp_path / "npz" / f"nbr_{name}.npy") for name in ("lists", "dists"))
    numbers, positions, cell = trajectory()
    assert lists.shape == dists.shape == (F, len(numbers), 6)
    for frame in (0, F - 1):
        expected = nearest(Frame("", positions[frame], cell, ALL), 6, 5.0)
        assert (lists[frame] == expected[0]).all() and (dists[frame] == expected[1]).all()
    assert list(np.load(tmp_path / "npz" / "target_index.npy")) == list(np.flatnonzero(numbers == 22))
    assert sorted(p.name for p in (tmp_path / "npz").iterdir()) == sorted([*ARRAYS, "meta.json"])
    assert not list(tmp_path.glob(".*"))


def test_triclinic_scaled_and_slab_dumps(tmp_path: Path) -> None:
    """Scaled coordinates of a tilted box, periodic along two axes, against the vectors that LAMMPS documents."""
    rng = np.random.default_rng(3)
    cell = np.array([[6.0, 0, 0], [1.5, 5, 0], [-0.5, 1, 7]])
    scaled = rng.uniform(0, 1, (30, 3))
    bounds = [(-0.5, 7.5, 1.5), (0, 6, -0.5), (0, 7, 1)]  # xlo_bound = 0 + min(0, xy, xz, xy + xz), and so on
    lines = ["ITEM: TIMESTEP", "0", "ITEM: NUMBER OF ATOMS", "30", "ITEM: BOX BOUNDS xy xz yz pp pp ff"]
    lines += [f"{lo} {hi} {tilt}" for lo, hi, tilt in bounds] + ["ITEM: ATOMS id type xs ys zs"]
    lines += [f"{i + 1} 1 {' '.join(map(repr, map(float, row)))}" for i, row in enumerate(scaled)]
    (tmp_path / "t.dump").write_text("\n".join(lines) + "\n")
    assert main(arguments(tmp_path / "t.dump", tmp_path / "out", "--types", "1=Li", "--targets", "Li")) == 0
    expected = nearest(Frame("", scaled @ cell, cell, np.array([True, True, False])), 6, 5.0)
    assert (np.load(tmp_path / "out" / "nbr_lists.npy")[0] == expected[0]).all()
    np.testing.assert_allclose(np.load(tmp_path / "out" / "nbr_dists.npy")[0], expected[1], rtol=1e-5)


def test_meta_frames_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_npz(tmp_path / "t.npz")
    (tmp_path / "all").mkdir()  # an empty folder is not in the way
    assert main(arguments(source, tmp_path / "all")) == 0
    assert main(arguments(source, tmp_path / "some", "--frames", "1::2", "--dt", "0.001", "--targets", "3,0,")) == 0
    text = capsys.readouterr().out
    assert "no --dt" in text and "3 frames of 40 atoms, 2 of them targets; 0.002 ns per frame" in text
    whole, some = (np.load(tmp_path / name / "nbr_dists.npy") for name in ("all", "some"))
    assert (some == whole[1::2]).all()
    meta = json.loads((tmp_path / "some" / "meta.json").read_text())
    assert (meta["radius"], meta["n_nbrs"], meta["dt_ns"], meta["frames"], meta["source"]) == (5, 6, 0.002, 3, "t.npz")
    assert "dt_ns" not in json.loads((tmp_path / "all" / "meta.json").read_text())
    counts = [len(each) for p in trajectory()[1][1::2] for each in plain_count(Frame("", p, 8 * np.eye(3), ALL), 5.0)]
    assert meta["neighbours"]["min"] == min(min(counts), 7)
    assert meta["neighbours"]["cut"] == np.mean([count > 6 for count in counts])
    assert meta["neighbours"]["closest"] == some.min() and meta["neighbours"]["reach_max"] == some.max()
    assert list(np.load(tmp_path / "some" / "target_index.npy")) == [3, 0]
    np.save(tmp_path / "targets.npy", np.array([1, 6]))
    assert main(arguments(source, tmp_path / "file", "--targets", str(tmp_path / "targets.npy"))) == 0
    assert list(np.load(tmp_path / "file" / "target_index.npy")) == [1, 6]


def test_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    types, positions, cell = trajectory()
    fixed = {56: 2.0, 22: 4.0, 8: -2.0}
    more = ("--types", "1=Ba,2=Ti,3=O", "--targets", "Ti", "--b_site", "Ti")
    dump = write_dump(tmp_path / "t.dump")
    assert main(arguments(dump, tmp_path / "d", *more, "--directions", "displacement")) == 0
    assert main(arguments(dump, tmp_path / "p", *more, "--directions", "charges", "--a_site", "Ba")) == 0
    npz, given = write_npz(tmp_path / "t.npz"), "Ba=2,Ti=4,O=-2"
    charges = ("--directions", "charges", "--a_site", "Ba", "--b_site", "Ti", "--charges", given)
    assert main(arguments(npz, tmp_path / "f", *charges)) == 0
    for column in ("charge", "charges", "initial_charges", "q"):
        xyz = with_charges(tmp_path / f"{column}.xyz", column)
        assert main(arguments(xyz, tmp_path / column, *more[2:], "--directions", "charges", "--a_site", "Ba")) == 0
        same(tmp_path / "p", tmp_path / column, (*ARRAYS, "atom_directions.npy"))
    sites = find_sites(types, [56], [22], [8], 3.2, fixed)
    for name, compute, unit in (("d", displacement, "Angstrom"), ("p", polarization, "C/m^2"), ("f", polarization, "")):
        found = np.load(tmp_path / name / "atom_directions.npy")
        assert found.dtype == np.float32
        expected = [compute(Frame("", p, cell, ALL), sites)[0] for p in positions]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert unit in json.loads((tmp_path / name / "meta.json").read_text())["units"]["atom_directions"]
    assert "warning" not in capsys.readouterr().err
    assert main(arguments(npz, tmp_path / "w", *charges, "--targets", "Ba", "--cage_radius", "2.05")) == 0
    text = capsys.readouterr().err
    assert "of the cages are incomplete" in text and "8 targets are not on the B site" in text


def test_padding_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_npz(tmp_path / "t.npz")
    few = [str(source), "--out", str(tmp_path / "out"), "--n_nbrs", "6", "--radius", "2.2"]
    with pytest.raises(UserError, match=r"t.npz: frame 0, atom 0: 0 neighbours within 2.2 A, 6 wanted; give a larger"):
        main(few)
    main([*few, "--pad", "--out", str(tmp_path / "padded")])
    lists, dists = (np.load(tmp_path / "padded" / f"nbr_{name}.npy") for name in ("lists", "dists"))
    assert ((lists == -1) == (dists == 0)).all() and (lists == -1).any() and (lists >= 0).any()
    assert "of the lists are padded" in capsys.readouterr().err
    dump = write_dump(tmp_path / "t.dump", True, [0, 100, 200, 200, 300, 400, 500])
    main(arguments(dump, tmp_path / "uneven", "--targets", "Ti"))
    assert "not evenly spaced, first at frame 3" in capsys.readouterr().err
    types, positions, cell = trajectory()
    np.savez(tmp_path / "nm.npz", traj_coords=positions / 10, lattices=np.tile(cell, (F, 1, 1)), atom_types=types)
    main(arguments(tmp_path / "nm.npz", tmp_path / "nm", "--targets", "O", "--frames", ":1"))
    assert "are the coordinates in Angstrom?" in capsys.readouterr().err


# -- many processes, and kills ---------------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "MOST_FRAMES", 2)


def test_other_options_or_another_file_are_another_folder(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_npz(tmp_path / "t.npz")
    with monkeypatch.context() as patch:
        patch.setattr(blocks.Job, "do", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(arguments(source, tmp_path / "out"))
    with pytest.raises(UserError, match="unfinished work with another radius .radius there: 5.0.; repeat"):
        main(arguments(source, tmp_path / "out", "--radius", "6"))
    assert main(arguments(source, tmp_path / "out")) == 0
    with pytest.raises(UserError, match="exists and was made otherwise"):
        main(arguments(source, tmp_path / "out", "--n_nbrs", "5"))
    write_npz(source)  # changed since: another time
    with pytest.raises(UserError, match="exists and was made otherwise"):
        main(arguments(source, tmp_path / "out"))


def test_a_kill_while_preparing_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_npz(tmp_path / "t.npz")
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "find_targets", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(arguments(source, tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_worker_processes(tmp_path: Path, small_blocks: None) -> None:
    """The result of one process; a fault in a worker ends it in one line, and is not begun otherwise."""
    source = write_npz(tmp_path / "t.npz")
    main(arguments(source, tmp_path / "one"))
    main(arguments(source, tmp_path / "two", "--workers", "2"))
    same(tmp_path / "one", tmp_path / "two", (*ARRAYS, "meta.json"))
    types, positions, cell = trajectory()
    positions[5, 9, 2] = np.nan
    np.savez(tmp_path / "bad.npz", traj_coords=positions, lattices=np.tile(cell, (F, 1, 1)), atom_types=types)
    with pytest.raises(UserError, match="bad.npz: frame 5, atom 9: the position is not finite"):
        main(arguments(tmp_path / "bad.npz", tmp_path / "bad", "--workers", "2", "--targets", "Ti"))
    assert not (tmp_path / "bad").exists()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_sigkill_leaves_no_worker_and_is_resumed(tmp_path: Path, small_blocks: None) -> None:
    source = write_npz(tmp_path / "t.npz", 400)
    command = [sys.executable, "-c", SCRIPT, *arguments(source, tmp_path / "out", "--workers", "2")]
    records, table = tmp_path / ".out.preprocess" / "done", Path("/proc")
    with subprocess.Popen(command, stdout=-1) as process:
        while not list(records.glob("0*.json")):
            assert process.poll() is None
            time.sleep(0.01)
        workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        process.kill()
    assert 0 < len(list(records.glob("0*.json"))) < 200 and not (tmp_path / "out").exists()
    while any((table / str(pid)).exists() and "Z" not in (table / str(pid) / "stat").read_text() for pid in workers):
        time.sleep(0.05)  # or pytest's own limit ends it
    main(arguments(source, tmp_path / "out"))
    main(arguments(source, tmp_path / "whole"))
    same(tmp_path / "whole", tmp_path / "out", (*ARRAYS, "meta.json"))


SCRIPT = """
import sys
from accel_train.tasks.gdynet.preprocess import blocks
blocks.MOST_FRAMES = 2
from accel_train.cli import main
code = main(["gdynet", "preprocess", *sys.argv[1:]])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_ranks_share_the_frames(tmp_path: Path, small_blocks: None) -> None:
    source = write_npz(tmp_path / "t.npz")
    main(arguments(source, tmp_path / "one"))
    command = [sys.executable, "-c", SCRIPT, *arguments(source, tmp_path / "two")]

    def start(rank: int) -> subprocess.Popen[str]:
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"}
        return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)

    ranks = [start(1), start(0)]  # 1 must wait for 0 to prepare
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    same(tmp_path / "one", tmp_path / "two", (*ARRAYS, "meta.json"))
    assert "".join(out for out, _ in said).count("7 frames of 40 atoms") == 1


def test_a_rank_alone_leaves_the_rest(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_npz(tmp_path / "t.npz")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments(source, tmp_path / "out")) == 0
    assert "part 0 of 2 is done; 3 of 7 frames are left to others" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:  # an error that only another rank meets is said by that rank
        patch.setenv("RANK", "1")
        patch.setattr(blocks, "nearest", lambda *_: (_ for _ in ()).throw(UserError("a bad frame")))
        with pytest.raises(UserError, match="a bad frame"):
            main(arguments(source, tmp_path / "out"))
        said = "accel-train: error: rank 1: preprocess: 3 of 7 frames cannot be used; mend them and repeat the command "
        assert said in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(arguments(source, tmp_path / "out")) == 0
    monkeypatch.delenv("WORLD_SIZE")
    main(arguments(source, tmp_path / "one"))
    same(tmp_path / "one", tmp_path / "out", (*ARRAYS, "meta.json"))


# -- what can be wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--n_nbrs", "0"), "--n_nbrs must be above 0"),
        (("--radius", "nan"), "--radius must be above 0"),
        (("--dt", "0"), "--dt must be above 0"),
        (("--frames", "5"), "--frames is START:STOP"),
        (("--frames", "::-1"), "--frames is START:STOP"),
        (("--frames", "100:"), "has 7 frames, --frames leaves none"),
        (("--targets", "Sr"), "has no such atom"),
        (("--targets", "Xx"), "'Xx' is no element"),
        (("--targets", "0,40"), "targets go from 0 to 40, atoms from 0 to 39"),
        (("--targets", "0,0"), "1 targets are named more than once"),
        (("--targets", "0,a"), "these are indices"),
        (("--targets", "no.npy"), "no.npy: no such file"),
        (("--types", "1=Ba"), "--types is for types and names of atoms"),
        (("--types", "1Ba"), "--types is NAME=VALUE with commas"),
        (("--topology", "t.npz"), "no such file"),
        (("--directions", "displacement"), "needs --b_site"),
        (("--directions", "charges", "--b_site", "Ti"), "needs --a_site"),
        (("--charges", "Ti=4"), "are for --directions charges"),
        (("--what",), "unrecognized arguments"),
    ],
)
def test_options_that_cannot_be(tmp_path: Path, more: tuple[str, ...], text: str) -> None:
    source = write_npz(tmp_path / "t.npz")
    with pytest.raises(UserError, match=text) as caught:
        main(arguments(source, tmp_path / "out", *more))
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def fails(source: Path, text: str, *more: str) -> None:
    out = source.parent / f"out-{len(list(source.parent.iterdir()))}"  # what has begun is not begun otherwise
    with pytest.raises(UserError, match=text) as caught:
        main(arguments(source, out, *more))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be(tmp_path: Path) -> None:
    fails(tmp_path / "none.xyz", "none.xyz: no such file")
    (tmp_path / "t.gz").write_bytes(b"\x1f\x8b1234")
    fails(tmp_path / "t.gz", "t.gz cannot be unpacked")
    types, positions, cell = trajectory()
    whole = {"traj_coords": positions, "lattices": np.tile(cell, (F, 1, 1)), "atom_types": types}
    for change, text in (
        ({"atom_types": None}, "has no atom_types"),
        ({"atom_types": types * 3}, "from 24 to 168; 0 to 99 are possible"),
        ({"atom_types": types[:-1]}, r"traj_coords is float64 \(7, 40, 3\), it should be float \(7, 39, 3\)"),
        ({"lattices": cell}, r"lattices is float64 \(3, 3\)"),
        ({"traj_coords": np.array([None])}, "t.npz: .*[Oo]bject"),
        ({}, "names no targets: give --targets"),
    ):
        np.savez(tmp_path / "t.npz", **{k: v for k, v in (whole | change).items() if v is not None})
        fails(tmp_path / "t.npz", text)
    (tmp_path / "t.npz").write_bytes(b"nothing")
    fails(tmp_path / "t.npz", "t.npz cannot be read")
    positions[3, 4] = positions[3, 9]
    np.savez(tmp_path / "t.npz", **whole)
    fails(tmp_path / "t.npz", "frame 3: atoms 4 and 9 are at the same place", "--targets", "Ti")


def test_text_that_cannot_be(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "t.dump")
    fails(dump, "names no elements: give --types", "--targets", "Ti")
    fails(dump, "has type 3, which --types does not name", "--targets", "Ti", "--types", "1=Ba,2=Ti")
    named = ("--targets", "Ti", "--types", "1=Ba,2=Ti,3=O")
    text = dump.read_text()
    for end in (text[:-3], text[: text.rindex("ITEM: ATOMS")], text[: text.rindex("\n", 0, -2) + 1]):
        dump.write_text(end)
        fails(dump, "frame 6 is cut short: .*; --frames :6 takes what is before it", *named)
        assert main(arguments(dump, tmp_path / f"mended-{len(end)}", *named, "--frames=:6")) == 0  # as the message says
        assert dump.read_text() == end
    dump.write_text(text.replace("ATOMS id type", "ATOMS no type"))
    fails(dump, "no column 'id'", *named)
    first, second = text.index("ITEM: TIMESTEP", 5), text.index("ITEM: TIMESTEP", text.index("ITEM: TIMESTEP", 5) + 5)
    middle = text[first:second]
    dump.write_text(text[:first] + middle.replace("\n1 1 ", "\n1 2 ", 1) + text[second:])
    fails(dump, "frame 1 has other elements than the first", *named)
    gone = middle[: middle[:-1].rindex("\n") + 1].replace("\n40\n", "\n39\n")
    dump.write_text(text[:first] + gone + text[second:])
    fails(dump, "frame 1 has 39 atoms, the first has 40", *named)
    xyz = write_xyz(tmp_path / "t.xyz")
    lines = xyz.read_text().splitlines()
    lines[42 + 5] = "Ba not a number"
    xyz.write_text("\n".join(lines) + "\n")
    fails(xyz, "frame 1, line 48: 'not' is no number", "--targets", "Ti")
    xyz.write_text("\n".join([*lines[:42], "what is this", *lines[42:]]) + "\n")
    fails(xyz, "frame 1 does not begin as a frame", "--targets", "Ti")


def test_dcd_that_cannot_be(tmp_path: Path) -> None:
    dcd, topology = write_dcd(tmp_path / "t.dcd")
    fails(dcd, "give --topology FILE")
    fails(dcd, "none: no such file", "--topology", str(tmp_path / "none"))
    (tmp_path / "t.what").write_text("nothing")
    fails(dcd, "t.what cannot be read by ASE", "--topology", str(tmp_path / "t.what"))
    fewer = topology.read_text().replace("40 atoms", "39 atoms")
    topology.write_text(fewer[: fewer[:-1].rindex("\n") + 1])
    fails(dcd, "has 39 atoms, .*t.dcd has 40", "--topology", str(topology), "--types", "1=Ba,2=Ti,3=O")
    (tmp_path / "bad.dcd").write_bytes(b"nothing")
    fails(tmp_path / "bad.dcd", "bad.dcd cannot be read", "--topology", str(topology))


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    fails(write_npz(tmp_path / "t.npz"), r"needs scipy, which is not here: pip install 'accel_train\[gdynet\]'")
    monkeypatch.setitem(sys.modules, "ase.io", None)
    with pytest.raises(UserError, match="needs ase"):
        frames.library("ase.io")
