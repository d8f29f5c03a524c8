"""Which elements atoms are, and by what: never guessed in silence."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("ase")

from support.trajectories import NAMES, NUMBERS, XYZ

from accel_train.errors import UserError
from accel_train.tasks.gdynet.commands import COMMANDS
from accel_train.tasks.gdynet.preprocess.elements import Said, find, of_name
from accel_train.tasks.gdynet.preprocess.topology import read_atoms

main = COMMANDS["preprocess"].run


def read(path: Path, content: str, count: int, mapping: dict[str, int] | None = None) -> tuple[list[int], str, object]:
    path.write_text(content)
    (numbers, how), charges = read_atoms(path, mapping, Path("t.dcd"), count)
    return numbers.tolist(), how, None if charges is None else charges.tolist()


def test_names_that_are_of_one_element() -> None:
    names = {"Ba": 56, "Ba1": 56, "H": 1, "H12": 1, "C1": 6, "MG": 12, "TI": 22, "Na": 11, "Ca": 20, "X": 0}
    assert {name: of_name(name) for name in names} == names
    others = ("CA", "CA1", "CD1", "NA", "CL", "HW1", "OW", "OH2", "1HB", "T1", "D", "", "Q", "MG2", "MGX", "C_a")
    assert [of_name(name) for name in others] == [None] * len(others)


kinds = st.sampled_from(["Ba", "Ti", "O", "1", "CA"])


@given(st.lists(kinds, min_size=1, max_size=20), st.dictionaries(kinds, st.integers(0, 99)))
def test_what_is_mapped_is_that_and_all_else_is_what_the_file_says(symbols: list[str], mapping: dict[str, int]) -> None:
    plain = {"Ba": 56, "Ti": 22, "O": 8, "CA": 20}
    said = Said(symbols=np.array(symbols))
    if set(mapping) - set(symbols) or set(symbols) - set(plain) - set(mapping):
        with pytest.raises(Exception, match=r"which --types names|'1' is no element"):
            find(said, mapping, "t.xyz")
        return
    found = find(said, mapping, "t.xyz")
    assert found.numbers.tolist() == [mapping.get(symbol, plain.get(symbol)) for symbol in symbols]
    assert ("--types" in found.how) == bool(mapping)
    assert ("CA is Ca" in found.how) == ("CA" in set(symbols) - set(mapping))


def test_types_go_before_names_and_may_have_no_atoms() -> None:
    said = Said(types=np.array(["1", "2"]), masses=np.array([15.999, 47.867]))
    assert find(said, {"1": 16, "7": 3}, "t").numbers.tolist() == [16, 22]
    assert find(said, {"1": 16}, "t").how == "--types and masses"
    with pytest.raises(UserError, match="t has no atom 3, which --types names; there are 1, 2"):
        find(said, {"3": 1}, "t")
    with pytest.raises(UserError, match="t has type 2, which --types does not name"):
        find(Said(types=said.types), {"1": 16}, "t")
    with pytest.raises(UserError, match="t has no types or names of atoms for --types"):
        find(Said(numbers=np.array([1])), {"1": 16}, "t")


ATOMS = [("OH2", "58", -0.834, 15.9994), ("H1", "4", 0.417, 1.008), ("CA", "CT1", 0.07, 12.011), ("LP", "LP", 0, 0)]


@pytest.mark.parametrize(
    ("head", "line"),
    [
        ("PSF", "{n:8d} SOLV 1    TIP3 {name:4s} {type:4s} {charge:9.6f}     {mass:8.4f}           0"),
        ("PSF", "{n:8d}      1         {name:4s} {type:4s} {charge:9.6f}     {mass:8.4f}           0"),  # no segment
        ("PSF CMAP CHEQ", "{n:8d} A    1    TIP3 {name:4s} {type:4s} {charge:9.6f} {mass:8.4f} 0 0.0 -0.301140E-02"),
        (
            "PSF EXT",
            "{n:10d} SOLV     1        TIP3     {name:8s} {type:4s} {charge:10.6f}       {mass:7.4f}           0",
        ),
        ("PSF EXT XPLOR", "{n:10d} S        1        3        {name:8s} {type:6s} {charge:.5E}  {mass:.4f}  0"),
        ("PSF NAMD", "{n} A 1 2 {name} {type} {charge} {mass:.5f} 0"),
    ],
)
def test_psf(tmp_path: Path, head: str, line: str) -> None:
    """In whatever columns, which MDAnalysis reads from the wrong place in CHARMM's own wide form."""
    rows = [
        line.format(n=i + 1, name=name, type=type, charge=float(charge), mass=float(mass))
        for i, (name, type, charge, mass) in enumerate(ATOMS)
    ]
    text = "\n".join(
        [head, "", "       1 !NTITLE", "* a title", "", f"       {len(rows)} !NATOM", *rows, "", "0 !NBOND", ""]
    )
    numbers, how, charges = read(tmp_path / "t.psf", text, 4, {"LP": 0})
    assert (numbers, how) == ([8, 1, 6, 0], "--types and masses")
    assert charges == pytest.approx([charge for _, _, charge, _ in ATOMS], abs=1e-5)
    with pytest.raises(
        UserError, match=r"t.psf: atom 3: 0 is the mass of no element: give --types, as in --types LP=X"
    ):
        read(tmp_path / "t.psf", text, 4)
    with pytest.raises(UserError, match=r"t.psf cannot be read: ValueError: line 10 is not one of its 4 atoms"):
        read(tmp_path / "t.psf", "\n".join(text.split("\n")[:9]) + "\n", 4)
    with pytest.raises(UserError, match="there is no !NATOM"):
        read(tmp_path / "t.psf", "PSF\n", 4)
    with pytest.raises(UserError, match=r"t.psf has 4 atoms, t.dcd has 5"):
        read(tmp_path / "t.psf", text, 5, {"LP": 0})


def pdb(symbols: bool, names: list[str]) -> str:
    place = "   0.000   0.000   0.000  1.00  0.00"
    return "".join(
        f"ATOM  {i:5d} {name:<4s} ALA A   1    {place}{name[0] if symbols else '':>12s}\n"
        for i, name in enumerate(names, 1)
    )


def test_pdb_and_gro(tmp_path: Path) -> None:
    """A PDB with elements says them; names do not, and are not guessed at, as ase does: CA of a PDB to calcium, that of
    a GRO to carbon, NA and CL of a GRO to nitrogen and carbon."""
    names = ["CA", "N", "O1"]
    more = "ENDMDL\n" + pdb(True, names)
    assert read(tmp_path / "t.pdb", pdb(True, names) + more, 3) == ([6, 7, 8], "symbols", None)
    gro = "a title\n    3\n" + "".join(f"    1ALA  {name:>5s}    1   0.0   0.0   0.0\n" for name in names) + "1 1 1\n"
    for name, content in (("t.pdb", pdb(False, names)), ("t.gro", gro)):
        with pytest.raises(
            UserError, match=rf"{name}: atom 0: CA: such names may mean several elements, or none: give a"
        ):
            read(tmp_path / name, content, 3)
        assert read(tmp_path / name, content, 3, {"CA": 20}) == ([20, 7, 8], "--types and names (O1 is O)", None)
    for name, content, text in (
        ("t.gro", gro[:-40], "it ends before its 3 atoms do"),
        ("t.gro", "nothing", "t.gro cannot be read"),
        ("t.pdb", "REMARK\n", "there are no ATOM lines"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            read(tmp_path / name, content, 3)
        assert "\n" not in str(caught.value)


def lammps_data(masses: list[float] | None, labels: list[str] | None = None) -> str:
    head = "a crystal\n\n2 atoms\n2 atom types\n\n0 4 xlo xhi\n0 4 ylo yhi\n0 4 zlo zhi\n\n"
    for title, column in (("Atom Type Labels", labels), ("Masses", masses)):
        head += f"{title}\n\n" + "".join(f"{i} {each}\n" for i, each in enumerate(column, 1)) + "\n" if column else ""
    return head + "Atoms # charge\n\n1 2 0.5 0 0 0\n2 1 -0.5 1 1 1\n"


def test_lammps_data(tmp_path: Path) -> None:
    """Without masses, ase takes the types for atomic numbers; with them, it takes any mass for that of an element."""
    path = tmp_path / "t.data"
    assert read(path, lammps_data([15.999, 47.867]), 2) == ([22, 8], "masses", [0.5, -0.5])
    assert read(path, lammps_data(None, ["O", "Ti"]), 2)[0] == [22, 8]
    assert read(path, lammps_data(None), 2, {"1": 8, "2": 22})[:2] == ([22, 8], "--types")
    with pytest.raises(UserError, match=r"t.data names no elements: give --types"):
        read(path, lammps_data(None), 2)
    with pytest.raises(
        UserError, match=r"t.data: atom 0: 5000 is the mass of no element: give --types, as in --types 2"
    ):
        read(path, lammps_data([15.999, 5000]), 2)


def test_what_ase_reads_is_said_and_what_is_compressed_is_not_read(tmp_path: Path) -> None:
    poscar = "a title\n1\n4 0 0\n0 4 0\n0 0 4\nTi O\n1 1\nDirect\n0 0 0\n0.5 0 0\n"
    assert read(tmp_path / "POSCAR", poscar, 2) == ([22, 8], "what is read by ASE", None)
    (tmp_path / "t.pdb.gz").write_bytes(gzip.compress(pdb(False, ["CA"]).encode()))
    with pytest.raises(UserError, match="t.pdb.gz: it is compressed: unpack it first"):
        read_atoms(tmp_path / "t.pdb.gz", None, Path("t.dcd"), 1)


def test_elements_and_how_they_were_found_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.xyz").write_bytes(re.sub(rb"(?m)^Ti ", b"TI ", XYZ.replace(b"Ba ", b"A ")))
    more = ["--targets", "Ti", "--n_nbrs", "4", "--radius", "4"]
    assert main([str(tmp_path / "t.xyz"), "--out", str(tmp_path / "o"), "--types", "A=Ba", *more]) == 0
    assert "elements: 4 O, 1 Ti, 1 Ba; by --types and symbols (TI is Ti)" in capsys.readouterr().out
    assert np.load(tmp_path / "o/atom_types.npy").tolist() == NUMBERS and len(NAMES) == 6


@pytest.mark.filterwarnings("ignore")  # of MDAnalysis
def test_files_that_others_made(tmp_path: Path) -> None:
    """Masses and charges of every whole PSF, elements of prmtop and TPR."""
    tests = pytest.importorskip("MDAnalysisTests", reason="MDAnalysisTests is not installed")
    from ase.data import atomic_masses, atomic_numbers
    from MDAnalysis.topology.PSFParser import PSFParser

    data = Path(tests.__file__).parent / "data"
    for path in sorted(data.glob("*.psf")):
        if path.stem in ("adk_notop_BAD", "trz_psf"):  # cut short; masses in kg per mol
            with pytest.raises(UserError, match=r"is not one of its 3341 atoms|0.001 is the mass of no element"):
                read_atoms(path, None, Path("t.dcd"), 0)
            continue
        theirs = PSFParser(str(path)).parse()
        (numbers, how), charges = read_atoms(path, None, Path("t.dcd"), theirs.n_atoms)
        np.testing.assert_allclose(atomic_masses[numbers], theirs.masses.values, atol=0.02)
        np.testing.assert_allclose(charges, theirs.charges.values, atol=1e-6)
        assert how == "masses"
    for name, counts, total in (
        ("Amber/anti.top", {"H": 5822, "O": 2905, "C": 120, "N": 60, "P": 8, "Na": 8}, 0),
        ("Amber/ache.prmtop", {"H": 119, "C": 88, "N": 24, "O": 20, "S": 1}, 1),  # without ATOMIC_NUMBER
        ("tprs/2lyz_gmx_2021.tpr", {"H": 1161, "C": 613, "N": 193, "O": 286, "S": 10}, 8),
    ):
        (numbers, _), charges = read_atoms(data / name, None, Path("t.nc"), sum(counts.values()))
        assert dict(zip(*map(list, np.unique(numbers, return_counts=True)), strict=True)) == {
            atomic_numbers[symbol]: count for symbol, count in counts.items()
        }
        assert np.sum(charges) == pytest.approx(total, abs=1e-4)
