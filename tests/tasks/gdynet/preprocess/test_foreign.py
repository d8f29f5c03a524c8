"""Trajectories that others made, those of MDAnalysisTests: positions and cells are those that MDAnalysis reads, and
neighbour lists those of ase, which knows nothing of ours."""

from __future__ import annotations

import bz2
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("ase")
pytest.importorskip("MDAnalysisTests", reason="MDAnalysisTests is not installed")

import MDAnalysis as mda
import MDAnalysisTests
from ase.neighborlist import primitive_neighbor_list

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.preprocess.frames import Frame, Source
from accel_train.tasks.gdynet.preprocess.neighbours import nearest
from accel_train.tasks.gdynet.preprocess.trajectories import open_source, prepare

data = Path(MDAnalysisTests.__file__).parent / "data"

NEEDED = {"tng": "pytng", "gsd": "gsd.hoomd"}

# trajectory, topology or how many atoms, neighbours within so many Angstrom, ns per frame
CASES = [
    ("SiN_tric_namd.dcd", "SiN_tric_namd.psf", 3, None),
    ("adk_dims2.dcd", "adk.psf", 4, None),
    ("adk_gbis_tmd-fast1_NAMD.dcd", "adk_closed_NAMD.psf", 4, 1e-5),
    ("tip125_tric_C36.dcd", "tip125_tric_C36.psf", 6, 1e-3),
    ("watdyn.dcd", "watdyn.psf", 6, 2e-5),
    ("lammps/ifabp_apo_100mM.dcd", "lammps/ifabp_apo_100mM.data.bz2", 3, None),
    ("coordinates/test.dcd", 5, 30, None),
    ("coordinates/test.xtc", 5, 30, 1e-3),
    ("coordinates/test.trr", 5, 30, 1e-3),
    ("coordinates/test.tng", 5, 30, 1e-3),
    ("coordinates/test.xyz", None, 30, None),
    ("coordinates/test.xyz.bz2", None, 30, None),
    ("cobrotoxin.xtc", "cobrotoxin.tpr", 2.5, 0.05),
    ("cobrotoxin.trr", "cobrotoxin.tpr", 2.5, 0.05),
    ("aux_edr.xtc", "aux_edr.tpr", 2, 2e-5),
    ("xyz_random_walk.xtc", "RANDOM_WALK_TOPO.pdb", 4, 1e-3),
    ("surface.trr", "surface.pdb.bz2", 5, None),
    ("argon_npt_compressed.tng", 1000, 6, 0.01),
    ("argon_npt_compressed_vels_forces.tng", 1000, 6, 2e-5),
    ("Amber/ace_mbondi3.nc", "Amber/ace_mbondi3.parm7", 6, 5e-3),
    ("Amber/ace_tip3p.nc", "Amber/ace_tip3p.parm7", 5, 1e-3),
    ("Amber/bala.ncdf", "Amber/bala.prmtop", 5, None),
    ("Amber/cpptraj_traj.nc", "Amber/cpptraj_traj.prmtop", 6, None),
    ("Amber/posfor.ncdf", "Amber/posfor.top", 6, 2e-5),
    ("Amber/tz2.truncoct.nc", "Amber/tz2.truncoct.parm7.bz2", 4, None),
    ("example_bonds.gsd", None, 1.2, None),
    ("example.gsd", None, 1.2, None),
    ("example_longer.gsd", None, 1.2, None),
    ("adk_oplsaa.xtc", "adk_oplsaa.tpr", 2, 0.1),
    ("adk_oplsaa.trr", "adk_oplsaa.tpr", 2, 0.1),
    ("analysis/YiiP_lipids.xtc", 43480, 2, 20),
    ("xtc_test_only_10_frame_10_atoms.xtc", 10, 50, 5e-4),
    ("trr_test_only_10_frame_10_atoms.trr", 10, 50, 5e-4),
    ("2r9r-1b.xyz", None, 4, None),
    ("2r9r-1b.xyz.bz2", None, 4, None),
    ("lammps/chain_dump_2.lammpstrj", None, 6, None),
    ("lammps/image_vf.lammpstrj", None, 6, None),
    ("lammps/mass_q_elem.lammpstrj", None, 4, None),
    ("lammps/nomass_elemx.lammpstrj", None, 4, None),
    ("windows/WIN_wat.lammpstrj", None, 4, None),
    ("lammps/albite_triclinic.dump", None, 6, None),
    ("lammps/chain_dump_1.lammpstrj", None, 6, None),
    ("lammps/spce_all_coords.lammpstrj.bz2", None, 3, None),
    ("lammps/wat.lammpstrj.bz2", None, 4, None),
]
SLOW = "adk_oplsaa YiiP aux_edr cobrotoxin spce ifabp tz2 example adk_gbis".split()
"""They take more than a second each."""

TYPES = {
    "example_bonds.gsd": {"A": 1, "B": 2},
    "example.gsd": {"R": 1, "A": 2},
    "example_longer.gsd": {"R": 1, "A": 2},
    "adk_oplsaa.xtc": {"opls_115": 0},
    "adk_oplsaa.trr": {"opls_115": 0},
    "cobrotoxin.xtc": {"opls_115": 0},  # the fourth site of water
    "cobrotoxin.trr": {"opls_115": 0},
}
CHARMM = "tip125_tric_C36.dcd"


def ours(name: str, topology: str | int | None, work: Path) -> Source:
    path, types = data / name, TYPES.get(name, {str(i): i for i in range(1, 15)} if "lammpstrj" in name else None)
    if name.endswith(".dump"):
        types = {str(i): i for i in range(1, 15)}
    at = None
    if topology is not None:
        at = work / "atoms.xyz"
        if isinstance(topology, int):  # the file comes with none, or with one that names no elements
            at.write_text(f"{topology}\n\n" + "Ar 0 0 0\n" * topology)
        elif topology.endswith(".bz2"):
            at = work / Path(topology).stem
            at.write_bytes(bz2.decompress((data / topology).read_bytes()))
        else:
            at = data / topology
    prepare(path, work)
    return open_source(path, work, types, at)


def theirs(name: str, found: Source) -> Any:
    """A reader of MDAnalysis."""
    kind = {"lammpstrj": "LAMMPSDUMP", "dump": "LAMMPSDUMP"}.get(name.removesuffix(".bz2").rpartition(".")[2])
    options: dict[str, Any] = {"format": kind} if kind else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mda.Universe.empty(len(found.types)).load_new(str(data / name), **options).trajectory


def same_lists(frame: Frame, radius: float) -> None:
    """As ase finds them, all within the radius, for the atoms that have a whole list."""
    lists, distances, found = nearest(frame, 20, radius)
    positions, cell = frame.positions, frame.cell
    if not frame.periodic.any():  # ase is slow for what is outside its cell
        positions, cell = positions - positions.min(0), np.diag(np.ptp(positions, axis=0) + 1)
    i, d = primitive_neighbor_list("id", frame.periodic, cell, positions, radius)
    order = np.lexsort((d, i))
    starts = np.searchsorted(i[order], np.arange(len(lists) + 1))
    assert (np.minimum(np.diff(starts), 21) == found).all()
    rank = np.arange(len(i)) - starts[i[order]]
    listed = rank < 20
    np.testing.assert_allclose(distances[i[order][listed], rank[listed]], d[order][listed], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "topology", "radius", "dt"),
    [pytest.param(*case, id=case[0], marks=[pytest.mark.slow] * any(s in case[0] for s in SLOW)) for case in CASES],
)
@pytest.mark.filterwarnings("ignore")  # of MDAnalysis
def test_frames_are_those_of_others(
    tmp_path: Path, name: str, topology: str | int | None, radius: float, dt: Any
) -> None:
    pytest.importorskip(NEEDED.get(name.rpartition(".")[2], "ase"))
    if not (data / name).exists():
        pytest.skip("this version of MDAnalysisTests does not have it")
    found = ours(name, topology, tmp_path)
    reader = theirs(name, found)
    assert (found.fault, len(found)) == (None, len(reader))
    assert found.dt == (None if dt is None else pytest.approx(dt, rel=1e-4))
    if dt is not None:
        last = len(found) - 1
        assert reader[last].time - reader[0].time == pytest.approx(dt * 1000 * last, rel=1e-4)
    for number in {0, len(found) - 1}:
        frame, moment = found[number], reader[number]
        size = max(100, abs(frame.positions).max())
        origin = [0, 0, 0] if reader.format != "LAMMPSDUMP" else frame.positions[0] - moment.positions[0]
        np.testing.assert_allclose(frame.positions - origin, moment.positions, atol=1e-6 * size)
        if moment.dimensions is None or not moment.dimensions[:3].any():
            assert not frame.periodic.any()
        else:  # lengths and angles, since the cell may be turned
            vectors = moment.triclinic_dimensions.astype(float)
            np.testing.assert_allclose(frame.cell @ frame.cell.T, vectors @ vectors.T, rtol=1e-4, atol=0.05)
            if name != CHARMM:
                np.testing.assert_allclose(frame.cell, vectors, atol=2e-3)
    same_lists(found[0], radius)
    if name == CHARMM:  # which turned, would have atoms of two molecules at a distance of less than 1.45
        assert np.sort(nearest(found[0], 3, 1.9)[1].ravel())[-1] < 1.9 and (nearest(found[0], 3, 1.45)[2] < 3).all()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adk_dims.dcd", "frame 98 is missing: the file holds 98 of 500 frames that its header promises"),
        ("empty.dcd", "cannot be read"),
        ("argon_npt_compressed_uneven.tng", "a box every 20 steps and positions every 10"),
        ("cu.h5md", "is HDF5"),
        ("Amber/test.inpcrd", "neither a LAMMPS text dump"),
        ("lammps/additional_columns.lammpstrj", "names no elements, nor types of atoms"),
        ("lammps/spce_no_coords.lammpstrj.bz2", "line 42: 2 fields are expected, there is '88 1 1'"),
        ("lammps/wat.lammpstrj_long.bz2", "line 10: 5 fields are expected, there is '1 2 0 0.25"),
        ("five.xyz", "line 3: 'A' is no element: give --types"),
        ("gromos11/gromos11_empty.trc", "is empty"),
        ("capping/aaqaa.gro", "neither a LAMMPS text dump"),
    ],
)
def test_what_is_not_whole_or_not_known_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    if name.endswith(".tng"):
        pytest.importorskip("pytng")
    with pytest.raises(UserError) as caught:
        found = ours(name, {".dcd": "adk.psf", ".tng": 1000}.get(Path(name).suffix), tmp_path)
        assert found.fault
        raise DataError(found.fault)
    assert text in str(caught.value) and "\n" not in str(caught.value)
