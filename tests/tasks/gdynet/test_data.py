"""Batches of frame pairs are the right frames of the files, never across two trajectories, whatever was saved."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import DataError, UserError
from accel_train.tasks.gdynet.data import FramePairs, Frames, FrameSource, load
from accel_train.tasks.gdynet.files import Trajectory

ATOMS, NEIGHBOURS = 3, 2
NAMES = ["atom_types", "target_index", "nbr_lists", "nbr_dists", "atom_directions"]


def make_arrays(frames, number=0, dtypes=(np.int32, np.float32), ferro=True):
    """Every distance and direction is one of its own."""
    others = (np.arange(ATOMS)[:, None] + 1 + np.arange(NEIGHBOURS)) % ATOMS
    lists = np.tile(others, (frames, 1, 1)).astype(dtypes[0])
    lists[::2, 0, 1] = -1
    values = 1 + number * 1000 + np.arange(frames * ATOMS * 3).reshape(frames, ATOMS, 3)
    arrays = {
        "atom_types": np.array([22, 8, 8], np.int32), "target_index": np.array([0], np.int32), "nbr_lists": lists,
        "nbr_dists": np.where(lists == -1, 0, values[..., :NEIGHBOURS]).astype(dtypes[1]),
        "atom_directions": -values.astype(dtypes[1]),
    }  # fmt: skip
    return arrays if ferro else {name: arrays[name] for name in NAMES[:4]}


def save(folder, arrays):
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


def check(batch, trajectories, places, lags):
    """``places``: trajectory and first frame of every item."""
    for name, array in (("neighbours", "nbr_lists"), ("distances", "nbr_dists"), ("directions", "atom_directions")):
        expected = [[trajectories[k].arrays[array][frame + lag] for lag in lags] for k, frame in places]
        np.testing.assert_array_equal(batch[name], expected)
        assert batch[name].flags.c_contiguous and batch[name].flags.writeable
    assert batch["neighbours"].dtype == np.int32
    assert batch["distances"].dtype == batch["directions"].dtype == np.float32


@given(st.data())
def test_pairs_are_right_and_cross_no_boundary(data):
    tau = data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(tau + 1, tau + 7), min_size=1, max_size=4))
    trajectories = [Trajectory({}, make_arrays(frames, i), {}) for i, frames in enumerate(lengths)]
    pairs = FramePairs(trajectories, tau)
    places = [(i, frame) for i, frames in enumerate(lengths) for frame in range(frames - tau)]
    assert len(pairs) == len(places) == sum(lengths) - tau * len(lengths)
    indices = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=8))
    batch = pairs.read(np.array(indices))
    check(batch, trajectories, [places[i] for i in indices], (0, tau))
    assert batch["pair"].tolist() == indices and batch["pair"].dtype == np.int64
    assert [tuple(place) for place in np.transpose(pairs.place(np.array(indices))).tolist()] == [
        places[i] for i in indices
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_frames_are_all_there_in_order(lengths):
    trajectories = [Trajectory({}, make_arrays(frames, i), {}) for i, frames in enumerate(lengths)]
    frames = Frames(trajectories)
    batch = frames.read(np.arange(len(frames)))
    check(batch, trajectories, [(i, frame) for i, n in enumerate(lengths) for frame in range(n)], (0,))
    assert batch["frame"].tolist() == list(range(sum(lengths)))


@pytest.mark.parametrize("ferro", [False, True])
def test_folders_and_files_are_the_same(tmp_path, ferro):
    folder = save(tmp_path / "a", make_arrays(9))
    files = [f"{folder}/{name}.npy" for name in NAMES[: 5 if ferro else 4]]
    by_folder, by_file = (FramePairs(load(fnames, ferro), 2).read(np.arange(7)) for fnames in ([folder], files))
    names = ["neighbours", "distances", *(["directions"] if ferro else []), "pair", "atom_types", "targets"]
    assert list(by_folder) == list(by_file) == names
    for name, array in by_folder.items():
        np.testing.assert_array_equal(array, by_file[name])
    assert (trajectory := load([folder], ferro)[0]).shape == (9, ATOMS, NEIGHBOURS)
    assert (trajectory.directions is not None) == ferro and trajectory.name == folder
    assert trajectory.atom_types.dtype == trajectory.target_index.dtype == np.int64


@pytest.mark.parametrize("dtypes", [("<i8", "<f8"), ("<i2", "<f2"), (">i4", ">f4"), ("<i1", "<f4")])
def test_other_dtypes_are_cast(tmp_path, dtypes):
    folders = [save(tmp_path / str(i), make_arrays(4 + i, dtypes=dtypes)) for i in range(2)]
    for fnames in (folders, folders[:1]):
        trajectories = load(fnames, ferro=True)
        pairs = FramePairs(trajectories, 1)
        which, first = pairs.place(np.arange(len(pairs)))
        check(pairs.read(np.arange(len(pairs))), trajectories, list(zip(which, first, strict=True)), (0, 1))


def test_fortran_order_is_read_right_and_said(tmp_path):
    folder = save(tmp_path / "a", {name: np.asfortranarray(array) for name, array in make_arrays(6).items()})
    (trajectory,) = load([folder], ferro=True)
    check(FramePairs([trajectory], 2).read(np.array([3, 0])), [trajectory], [(0, 3), (0, 0)], (0, 2))
    assert "nbr_lists.npy: in Fortran order" in trajectory.warnings[0]


def test_threads_and_processes_read_the_same(tmp_path):
    trajectories = load([save(tmp_path / str(i), make_arrays(30, i)) for i in range(2)], ferro=True)
    pairs = FramePairs(trajectories, 3)
    batches = np.random.default_rng(0).integers(0, len(pairs), (40, 8))
    alone = [pairs.read(indices)["distances"] for indices in batches]
    with ThreadPoolExecutor(4) as pool:
        shared = FramePairs(trajectories, 3)
        together = list(pool.map(lambda indices: shared.read(indices)["distances"], batches))
    np.testing.assert_array_equal(alone, together)
    pickled = pickle.dumps(pairs)
    np.testing.assert_array_equal(pickle.loads(pickled).read(batches[0])["distances"], alone[0])
    assert b"nbr_lists.npy" in pickled and trajectories[0].nbr_lists.tobytes() not in pickled


def test_a_batch_is_not_touched_by_the_next(tmp_path):
    pairs = FramePairs(load([save(tmp_path / "a", make_arrays(8))], ferro=True), 1)
    held = pairs.read(np.arange(4))
    before = held["distances"].copy()
    held_again = pairs.read(np.arange(4, 7))
    held_again["distances"][:] = -1
    np.testing.assert_array_equal(held["distances"], before)
    np.testing.assert_array_equal(pairs.read(np.arange(4))["distances"], before)


def test_too_short_or_no_lag():
    trajectories = [Trajectory({"nbr_lists": Path(f"{n}/nbr_lists.npy")}, make_arrays(n), {}) for n in (12, 10)]
    assert len(FramePairs(trajectories, 9)) == 4
    with pytest.raises(DataError, match=r"^10/nbr_lists.npy: n_frames \(10\) must be > tau \(10\)"):
        FramePairs(trajectories, 10)
    with pytest.raises(UserError, match="tau: 0 frames"):
        FramePairs(trajectories, 0)


def test_a_bad_frame_is_found_when_it_is_read(tmp_path):
    arrays = make_arrays(9)
    arrays["nbr_dists"][4, 1, 0] = np.nan
    pairs = FramePairs(load([save(tmp_path / "a", arrays)], ferro=True), 2)
    pairs.read(np.array([0, 1, 3, 6]))
    for indices in ([0, 2], [4], [4]):
        with pytest.raises(DataError, match=r"a/nbr_dists.npy: frame 4, atom 1, neighbour 0: nan is no distance"):
            pairs.read(np.array(indices))


def test_warnings_of_loading_are_the_first_events(tmp_path):
    arrays = make_arrays(9) | {"target_index": np.array([0, 1, 1])}
    loaded = load([save(tmp_path / "a", arrays)], ferro=True, cutoff=1e3)
    source = FrameSource(FramePairs(loaded, 2), 4, warnings=loaded[0].warnings)
    assert source.steps(0) == 2
    (event,) = source.events()
    assert event.kind == "warning" and "target_index contains 1 duplicate entries" in event.title
    assert source.events() == []


def test_a_part_knows_its_frames(tmp_path):
    arrays = make_arrays(20)
    arrays["nbr_dists"][17, 0, 0] = -1
    (whole,) = load([save(tmp_path / "a", arrays)], ferro=True)
    last = whole.part(12, 20)
    for part in (last, pickle.loads(pickle.dumps(last))):
        pairs = FramePairs([part], 2)
        assert len(pairs) == 6
        check(pairs.read(np.array([2, 0])), [whole], [(0, 14), (0, 12)], (0, 2))
        with pytest.raises(DataError, match="a/nbr_dists.npy: frame 17, atom 0, neighbour 0: -1.0 is no distance"):
            pairs.read(np.array([3]))
