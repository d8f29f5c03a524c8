"""Every way in which trajectories can be wrong has a message of its own, at load and in the report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import DataError
from accel_train.tasks.gdynet import checks
from accel_train.tasks.gdynet.data import load
from accel_train.tasks.gdynet.files import Trajectory, open_trajectory
from accel_train.tasks.gdynet.report import report

FRAMES, ATOMS, NEIGHBOURS = 6, 4, 3


def good():
    others = (np.arange(ATOMS)[:, None] + 1 + np.arange(NEIGHBOURS)) % ATOMS
    return {
        "atom_types": np.array([56, 22, 8, 8], np.int32),
        "target_index": np.array([1], np.int32),
        "nbr_lists": np.tile(others, (FRAMES, 1, 1)).astype(np.int32),
        "nbr_dists": np.linspace(1, 5, FRAMES * ATOMS * NEIGHBOURS).reshape(FRAMES, ATOMS, -1).astype(np.float32),
        "atom_directions": np.ones((FRAMES, ATOMS, 3), np.float32),
    }


def save(folder, arrays, meta=None):
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    if meta is not None:
        (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def in_memory(arrays):
    return Trajectory({name: Path(f"a/{name}.npy") for name in arrays}, arrays, {})


def change(name, index, value):
    def changed(arrays):
        arrays[name][index] = value
        return arrays

    return changed


def replace(name, make):
    return lambda arrays: arrays | {name: make(arrays[name])}


ERRORS = {
    "types of another system": (
        replace("atom_types", lambda a: a[:3]), "shapes",
        r"atom_types.npy: Invalid atom_types shape: \(3,\), but nbr_lists has N=4 atoms; give"),
    "not an atom": (
        change("atom_types", 2, 100), "atom types",
        "atom_types.npy: atom 2 has type 100; atomic numbers must be 0 to 99"),
    "negative type": (change("atom_types", 3, -1), "atom types", "atom 3 has type -1; atomic numbers must be"),
    "targets as a table": (
        replace("target_index", lambda a: a[None]), "shapes", r"Invalid target_index shape: \(1, 1\), expected \(n\)"),
    "no targets": (replace("target_index", lambda a: a[:0]), "shapes", r"Invalid target_index shape: \(0,\)"),
    "target too large": (
        change("target_index", 0, 4), "targets",
        "target_index.npy: Invalid target_index: entry 0 is 4, but there are N=4 atoms; valid are 0 to 3"),
    "negative target": (
        change("target_index", 0, -2), "targets",
        "target_index contains negative values: entry 0 is -2; valid are 0 to 3"),
    "lists of two axes": (
        replace("nbr_lists", lambda a: a[0]), "shapes", r"Invalid nbr_lists shape: \(4, 3\), expected \(F, N, M\)"),
    "lists without frames": (replace("nbr_lists", lambda a: a[:0]), "shapes", r"Invalid nbr_lists shape: \(0, 4, 3\)"),
    "fewer distances": (
        replace("nbr_dists", lambda a: a[:-1]), "shapes",
        r"nbr_dists.npy: Shape mismatch between nbr_lists and nbr_dists: \(6, 4, 3\) and \(5, 4, 3\); both"),
    "directions of fewer atoms": (
        replace("atom_directions", lambda a: a[:, :2]), "shapes",
        r"Invalid atom_directions shape: \(6, 2, 3\), expected \(6, 4, 3\)"),
    "lists of floats": (
        replace("nbr_lists", lambda a: a.astype(float)), "dtypes",
        "nbr_lists.npy: float64, must be integers; save as int32"),
    "distances of integers": (
        replace("nbr_dists", lambda a: a.astype(int)), "dtypes",
        "nbr_dists.npy: int64, must be floating-point numbers; save as float32"),
    "types as text": (replace("atom_types", lambda a: a.astype(str)), "dtypes", "<U.*, must be integers"),
    "index too large": (
        change("nbr_lists", (5, 3, 2), 4), "neighbour indices",
        "nbr_lists.npy: frame 5, atom 3, neighbour 2: 4 is no atom; valid are 0 to 3, and -1 for no neighbour"),
    "index below -1": (
        change("nbr_lists", (0, 3, 2), -7), "neighbour indices", "frame 0, atom 3, neighbour 2: -7 is no atom"),
    "NaN": (
        change("nbr_dists", (0, 1, 2), np.nan), "distances",
        "nbr_dists.npy: frame 0, atom 1, neighbour 2: nan is no distance: NaN, infinite or negative"),
    "infinite": (change("nbr_dists", (0, 1, 2), np.inf), "distances", "frame 0, atom 1, neighbour 2: inf is no"),
    "negative": (
        change("nbr_dists", (5, 0, 0), -0.5), "distances", "frame 5, atom 0, neighbour 0: -0.5 is no distance"),
    "too large for float32": (
        lambda arrays: change("nbr_dists", (0, 0, 0), 1e39)(replace("nbr_dists", lambda a: a.astype(float))(arrays)),
        "distances", "frame 0, atom 0, neighbour 0: 1e.39 is no distance"),
    "itself": (
        lambda arrays: change("nbr_dists", (0, 2, 1), 0)(change("nbr_lists", (0, 2, 1), 2)(arrays)), "zero distances",
        "nbr_dists.npy: frame 0, atom 2, neighbour 1: 0.0 is no distance to a neighbour; an atom is not its own"),
    "direction": (
        change("atom_directions", (5, 1, 2), np.nan), "directions",
        "atom_directions.npy: frame 5, atom 1, component 2: nan is no component"),
}  # fmt: skip

WARNINGS = {
    "duplicates": (
        replace("target_index", lambda a: np.array([1, 2, 1, 1])), "targets",
        "target_index.npy: target_index contains 2 duplicate entries"),
    "images of itself": (
        change("nbr_lists", (0, 2, 1), 2), "self-edges", "nbr_lists.npy: 1 of .* neighbours are the atom itself"),
    "no neighbours": (
        lambda arrays: change("nbr_dists", (0, 2), 0)(change("nbr_lists", (0, 2), -1)(arrays)), "isolated atoms",
        "nbr_lists.npy: 1 times an atom has no neighbour at all"),
    "beyond the cutoff": (
        change("nbr_dists", 0, 9), "cutoff", r"nbr_dists.npy: .*% of the distances are beyond the cutoff of 6 A \(up"),
}  # fmt: skip


def lines_of(text, check):
    return [line for line in text.splitlines() if line[11:].startswith(check)]


@pytest.mark.parametrize("case", ERRORS)
def test_errors(tmp_path, case):
    broken, check, says = ERRORS[case]
    folder = save(tmp_path / "a", broken(good()))
    with pytest.raises(DataError, match=says) as error:
        load([str(folder)], ferro=True)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(folder))
    text = report(folder)
    (line,) = lines_of(text, check)
    assert line.startswith("  error") and str(error.value) in line
    assert text.endswith("errors: 1, warnings: 0")


@pytest.mark.parametrize("case", WARNINGS)
def test_warnings(tmp_path, case):
    broken, check, says = WARNINGS[case]
    folder = save(tmp_path / "a", broken(good()))
    (trajectory,) = load([str(folder)], ferro=True, cutoff=6.0)
    (warning,) = trajectory.warnings
    assert re.search(says, warning) and "\n" not in warning
    text = report(folder, cutoff=6.0)
    (line,) = lines_of(text, check)
    assert line.startswith("  warning") and text.endswith("errors: 0, warnings: 1")


@given(st.sampled_from([1, 2, 3, 4]), st.integers(0, ATOMS - 1), st.integers(0, NEIGHBOURS - 1))
def test_any_frame_is_checked_by_the_report_and_by_reading(frame, atom, neighbour):
    arrays = good()
    arrays["nbr_lists"][frame, atom, neighbour] = ATOMS + 3
    trajectory = in_memory(arrays)
    assert checks.quick(trajectory) == []
    found, _ = checks.thorough(trajectory)
    place = f"a/nbr_lists.npy: frame {frame}, atom {atom}, neighbour {neighbour}: 7 is no atom"
    assert [finding.check for finding in found] == ["neighbour indices"] and found[0].text.startswith(place)
    for other in range(FRAMES):
        if other == frame:
            with pytest.raises(DataError, match=place):
                checks.look_at(trajectory, frame)
        else:
            checks.look_at(trajectory, other)


@given(st.integers(1, 60), st.floats(1.5, 4.5))
def test_numbers_do_not_depend_on_the_blocks(size, cutoff):
    arrays = good()
    arrays["nbr_lists"][1, 2, 0], arrays["nbr_dists"][1, 2, 0] = -1, 0
    trajectory = in_memory(arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "BLOCK", size)
        _, scan = checks.thorough(trajectory, cutoff=cutoff)
    real = arrays["nbr_dists"][arrays["nbr_lists"] != -1]
    assert (scan.edges, scan.beyond, scan.isolated) == (71, (real > cutoff).sum(), 0)
    assert (scan.least, scan.largest) == (real.min(), real.max())
    for q in (0.01, 0.3, 0.5, 1.0):
        assert abs(scan.quantile(q) - np.quantile(real, q, method="inverted_cdf")) <= 0.0101


def test_padding_is_accepted(tmp_path):
    arrays = good()
    arrays["nbr_lists"][:, 3, 1:], arrays["nbr_dists"][:, 3, 1:] = -1, 0
    folder = save(tmp_path / "a", arrays)
    assert load([str(folder)], ferro=True)[0].warnings == ()
    text = report(folder)
    assert "60 edges; 16.67% of the places have no neighbour" in text and text.endswith("errors: 0, warnings: 0")


def test_wrong_numbers_of_files(tmp_path):
    folder = save(tmp_path / "a", good())
    files = [str(folder / f"{name}.npy") for name in good()]
    with pytest.raises(DataError, match="^Expected 4 file paths for vanilla dataset, got 3; required, in this order"):
        load(files[:3], ferro=False)
    with pytest.raises(DataError, match="^Expected 5 file paths for ferro dataset, got 4; .* atom_directions.npy"):
        load(files[:4], ferro=True)
    with pytest.raises(DataError, match="^Expected 4 file paths for vanilla dataset, got 6"):
        load([*files, files[0]], ferro=False)
    with pytest.raises(DataError, match="^Expected 4 file paths for vanilla dataset, got 0"):
        load([], ferro=False)
    assert load(files, ferro=False)[0].directions is None


def test_missing_and_unreadable_files(tmp_path):
    folder = save(tmp_path / "a", good())
    (folder / "nbr_dists.npy").unlink()
    (folder / "atom_directions.npy").unlink()
    missing = "Missing required data files for {} dataset: .*/nbr_dists.npy{}; required: atom_types.npy"
    with pytest.raises(DataError, match=missing.format("ferro", ", .*/atom_directions.npy")):
        load([str(folder)], ferro=True)
    with pytest.raises(DataError, match=missing.format("vanilla", "")):
        load([str(folder)], ferro=False)
    assert "error    files              Missing required" in report(folder)
    with pytest.raises(DataError, match="Missing required data files.*nowhere/atom_types.npy"):
        load([str(tmp_path / "nowhere")], ferro=False)
    np.save(folder / "nbr_dists.npy", np.array([{}]), allow_pickle=True)
    for content in (None, b"", b"text", (folder / "nbr_lists.npy").read_bytes()[:-40]):
        if content is not None:
            (folder / "nbr_dists.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"a/nbr_dists.npy: not an array as np.save writes it \(") as error:
            load([str(folder)], ferro=False)
        assert "\n" not in str(error.value)
    with (folder / "nbr_dists.npy").open("wb") as file:
        np.savez(file, **good())
    with pytest.raises(DataError, match="nbr_dists.npy: an archive of arrays"):
        load([str(folder)], ferro=False)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            change("atom_types", 3, 9),
            "b/atom_types.npy: another system .*a/atom_types.npy: entry 3 is 9 and not 8",
        ),
        (replace("target_index", lambda a: np.array([1, 2])), "b/target_index.npy: .*2 entries and not 1; all"),
        (
            lambda a: a | {"nbr_lists": a["nbr_lists"][..., :2], "nbr_dists": a["nbr_dists"][..., :2]},
            "b/nbr_lists.npy: M=2 neighbours, but .*a/nbr_lists.npy has M=3; all trajectories must agree",
        ),
    ],
)
def test_trajectories_are_of_one_system(tmp_path, broken, says):
    folders = [str(save(tmp_path / "a", good())), str(save(tmp_path / "b", broken(good())))]
    with pytest.raises(DataError, match=says):
        load(folders, ferro=True)
    with pytest.raises(DataError, match=says):
        checks.same_system([load([folder], ferro=True)[0] for folder in folders])
    _, line = lines_of(report(tmp_path), "same system")
    assert line.startswith("  error")


def test_meta(tmp_path):
    (trajectory,) = load([str(save(tmp_path / "a", good(), {"n_nbrs": 20, "radius": 7.0, "dt_ns": 0.001}))], ferro=True)
    assert "a/meta.json: n_nbrs is 20, but nbr_lists has M=3" in trajectory.warnings[0]
    assert trajectory.meta["dt_ns"] == 0.001
    for meta, says in (([], "must be an object"), ({"dt_ns": 0}, "dt_ns is 0, must be a number above 0")):
        (tmp_path / "a" / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(DataError, match=f"a/meta.json: {says}"):
            load([str(tmp_path / "a")], ferro=True)
    (tmp_path / "a" / "meta.json").write_text("{")
    with pytest.raises(DataError, match="a/meta.json: not JSON"):
        open_trajectory({name: tmp_path / "a" / f"{name}.npy" for name in good()})


def test_report_of_a_folder_of_splits(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split, good(), {"n_nbrs": 3, "dt_ns": 0.5})
    text = report(tmp_path, tau=2, cutoff=4.0)
    train, val, end = text.split("\n\n")
    assert train.splitlines() == [
        f"trajectory {tmp_path}/train",
        "  atom_types.npy             0.0 MB  int32 [4]",
        "  target_index.npy           0.0 MB  int32 [1]",
        "  nbr_lists.npy              0.0 MB  int32 [6, 4, 3]",
        "  nbr_dists.npy              0.0 MB  float32 [6, 4, 3]",
        "  atom_directions.npy        0.0 MB  float32 [6, 4, 3]",
        "  meta.json            n_nbrs 3, dt_ns 0.5",
        "  F=6 frames, N=4 atoms, n=1 targets, M=3 neighbours",
        "  atoms by type 8: 2, 22: 1, 56: 1",
        "  72 edges; 0.00% of the places have no neighbour",
        "  4 pairs of frames (tau 2 = 1 ns)",
        "  distances 1.000 to 5.000 A; 1% 1.01, 10% 1.40, 50% 2.98, 90% 4.61, 99% 5.00",
        "  25.00% of the distances are beyond the cutoff of 4 A",
        *(f"  ok       {check}" for check in checks.CHECKS if check not in ("cutoff", "meta.json", "same system")),
        f"  warning  cutoff             {tmp_path}/train/nbr_dists.npy: 25.0% of the distances are beyond the "
        "cutoff of 4 A (up to 5.00 A), where all look alike to the model; raise it, or save fewer",
        "  ok       meta.json",
        "  -        same system",
    ]
    assert val.splitlines()[-1] == "  ok       same system" and end == "errors: 0, warnings: 2"


def test_report_shows_all_errors(tmp_path):
    arrays = good()
    arrays["nbr_dists"][2:4, 1] = np.nan
    arrays["nbr_lists"][3, 0, 0] = 99
    arrays["target_index"][0] = 9
    save(tmp_path / "a", arrays)
    save(tmp_path / "b", good() | {"nbr_dists": np.ones(3)})
    text = report([tmp_path / "a", tmp_path / "b"], tau=6, ferro=False)
    for says in (
        "error    targets            ", "error    frames             ", "n_frames (6) must be > tau (6)",
        "neighbour 0: 99 is no atom", "frame 2, atom 1, neighbour 0: nan is no distance", "(6 such values)",
        "error    shapes             ", "-        distances", "errors: 5, warnings: 0",
    ):  # fmt: skip
        assert says in text
