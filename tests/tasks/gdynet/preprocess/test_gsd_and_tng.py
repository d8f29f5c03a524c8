"""GSD and TNG, which libraries read: cells as the programs mean them, and no file that is cut short."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.trajectories import LENGTH, MAPPING, NUMBERS, POSITIONS, TYPES, check, source, wrong

from accel_train.errors import UserError
from accel_train.tasks.gdynet.preprocess import tng
from accel_train.tasks.gdynet.preprocess.trajectories import open_source, prepare


def write_gsd(
    path: Path, box: tuple[float, ...] = (LENGTH, LENGTH, LENGTH, 0, 0, 0), dimensions: int = 3, names: bool = True
) -> bytes:
    hoomd = pytest.importorskip("gsd.hoomd")
    kinds = ["Ba", "Ti", "O"] if names else ["1", "2", "3"]
    with hoomd.open(str(path), "w") as file:
        for i, frame in enumerate(POSITIONS):
            moment = hoomd.Frame()
            moment.configuration.step, moment.configuration.dimensions = i * 100, dimensions
            moment.configuration.box = box
            moment.particles.N, moment.particles.types = 6, kinds
            moment.particles.typeid = [t - 1 for t in TYPES]
            moment.particles.position, moment.particles.charge = frame, TYPES
            file.append(moment)
    return path.read_bytes()


def test_gsd(tmp_path: Path) -> None:
    found = source(tmp_path, "t.gsd", write_gsd(tmp_path / "t.gsd"))
    check(found)
    assert found.steps is not None and found.steps.tolist() == [0, 100, 200, 300]
    assert np.asarray(found[3].charges).tolist() == TYPES
    write_gsd(tmp_path / "t.gsd", names=False)
    named = open_source(tmp_path / "t.gsd", tmp_path, MAPPING)
    assert (named.types.tolist(), named.how) == (NUMBERS, "--types")


def test_cell_of_gsd(tmp_path: Path) -> None:
    """Tilts are shares of the lengths, and y is the height of the second vector, not its length (HOOMD's definition of
    a box): as cosines, which MDAnalysis takes them for, they would be another cell, and none above 1."""
    found = source(tmp_path, "t.gsd", write_gsd(tmp_path / "t.gsd", (5, 6, 7, 0.5, -0.25, 1.5)))
    check(found, cell=np.array([[5, 0, 0], [3, 6, 0], [-1.75, 10.5, 7]]))
    flat = source(tmp_path, "t.gsd", write_gsd(tmp_path / "t.gsd", (5, 6, 1, 0, 0, 0), 2))
    assert flat[0].periodic.tolist() == [True, True, False]


def test_gsd_that_cannot_be(tmp_path: Path) -> None:
    hoomd = pytest.importorskip("gsd.hoomd")
    whole = write_gsd(tmp_path / "t.gsd")
    for end in range(8, len(whole), len(whole) // 40):
        assert "t.gsd cannot be read" in wrong(tmp_path, "t.gsd", whole[:end])
    assert "particle 0: '1' is no element: give --types, as in --types 3=C" in wrong(
        tmp_path, "t.gsd", write_gsd(tmp_path / "t.gsd", names=False)
    )
    for kinds, text in (
        ([0, 2, 2, 2, 2, 1], "frame 4 has other particles than the first"),
        ([0, 2, 2, 2, 1], "frame 4 has 5 atoms, the first has 6"),
    ):
        write_gsd(tmp_path / "t.gsd")
        with hoomd.open(str(tmp_path / "t.gsd"), "r+") as file:
            moment = hoomd.Frame()
            moment.particles.N, moment.particles.typeid = len(kinds), kinds
            moment.particles.position = POSITIONS[0, : len(kinds)]
            file.append(moment)
        assert text in wrong(tmp_path, "t.gsd", (tmp_path / "t.gsd").read_bytes())


@pytest.mark.parametrize(("name", "package"), [("t.gsd", "gsd"), ("t.tng", "pytng")])
def test_a_library_that_is_missing_is_one_line(
    tmp_path: Path, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins = {"t.gsd": b"\xdfe" * 4, "t.tng": b"\1".ljust(8, b"\0") + b"\x0f".ljust(8, b"\0") + tng.NAME + b"\0\0\0\0"}
    (tmp_path / name).write_bytes(begins[name].ljust(16, b"\0"))
    monkeypatch.setitem(sys.modules, "gsd.hoomd" if package == "gsd" else package, None)
    prepare(tmp_path / name, tmp_path)
    with pytest.raises(UserError, match=rf"needs {package}, which is not here: pip install {package}"):
        open_source(tmp_path / name, tmp_path, topology=None if package == "gsd" else tmp_path / "none.xyz")


def test_tng_that_is_cut(tmp_path: Path) -> None:
    """Wherever: pytng alone crashes on some of these, and reads others as if they were whole."""
    pytest.importorskip("pytng")
    tests = pytest.importorskip("MDAnalysisTests", reason="MDAnalysisTests is not installed")
    whole = (Path(tests.__file__).parent / "data/coordinates/test.tng").read_bytes()
    (tmp_path / "five.xyz").write_text("5\n\n" + "Ca 0 0 0\n" * 5)
    for end in (*range(100, len(whole), 97), len(whole) - 1):
        (tmp_path / "t.tng").write_bytes(whole[:end])
        prepare(tmp_path / "t.tng", tmp_path)
        with pytest.raises(UserError, match=r"t.tng (is cut short: its block at byte|cannot be read)"):
            open_source(tmp_path / "t.tng", tmp_path, topology=tmp_path / "five.xyz")
    (tmp_path / "t.tng").write_bytes(whole)
    found = open_source(tmp_path / "t.tng", tmp_path, topology=tmp_path / "five.xyz")
    assert (len(found), found.fault, found.dt) == (5, None, 0.001)
