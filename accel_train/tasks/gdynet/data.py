"""Frames and pairs of frames, read as slices of memory-mapped trajectories.

A batch is filled frame by frame from the mapped files: no objects per item, no edge lists, no copy in between. What
edges need beyond the neighbours and their distances is computed on the device.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from accel_train.contents import Contents, named_hash
from accel_train.data import fingerprint
from accel_train.data.remote.identity import Identity
from accel_train.data.source import IndexedSource
from accel_train.errors import DataError, UserError
from accel_train.task import Event
from accel_train.tasks.gdynet import checks
from accel_train.tasks.gdynet.files import Trajectory, locate, open_trajectory

Arrays = dict[str, np.ndarray]

ON_DISK = {
    "neighbours": ("nbr_lists", np.int32), "distances": ("nbr_dists", np.float32),
    "directions": ("atom_directions", np.float32),
}  # fmt: skip
"""Where a batch's arrays come from, and of what dtype they are."""


def load(fnames: Sequence[str], ferro: bool, cutoff: float | None = None) -> list[Trajectory]:
    """The trajectories of a split, checked but for the frames between the first and the last of each.

    Args:
        fnames: folders, each one trajectory, or the 4 (ferro: 5) files of one, in the order types, targets, lists,
            distances, directions.
        ferro: whether directions are read too.
        cutoff: of the model in Angstrom, to warn of distances beyond it.

    Raises:
        DataError: for the first thing that is wrong. What deserves only a warning is in ``Trajectory.warnings``.
    """
    trajectories = []
    for paths in locate(fnames, ferro):
        trajectory = open_trajectory(paths)
        found = checks.quick(trajectory, cutoff)
        for finding in found:
            if finding.level == "error":
                raise DataError(finding.text)
        trajectories.append(dataclasses.replace(trajectory, warnings=tuple(finding.text for finding in found)))
    checks.same_system(trajectories)
    return trajectories


class _Frames:
    """Items of ``len(lags)`` frames each, the trajectories one behind the other; for an ``IndexedSource``.

    Every frame is checked when it is read for the first time: later ones cost a copy.
    """

    item = ""

    def __init__(self, trajectories: Sequence[Trajectory], lags: tuple[int, ...]) -> None:
        self.trajectories, self.lags = list(trajectories), lags
        lengths = [trajectory.frames - lags[-1] for trajectory in self.trajectories]
        for trajectory in self.trajectories:
            for finding in checks.too_short(trajectory, lags[-1]):
                raise DataError(finding.text)
        self.starts = np.concatenate([[0], np.cumsum(lengths)])  # the first item of each trajectory; at last the total
        self._first = np.cumsum([0, *(trajectory.frames for trajectory in self.trajectories)])
        self._firsts: list[int] = self._first.tolist()
        self._good = np.zeros(int(self._first[-1]), bool)  # frames of all trajectories
        mapped = [each.paths[name] for each in trajectories for name, _ in ON_DISK.values() if name in each.paths]
        self.contents = Contents(int(self._first[-1]), self._place, mapped)  # a block for each frame

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the trajectory and of the (first) frame in it, int64 each, for every item."""
        which = np.searchsorted(self.starts, indices, side="right") - 1
        return which, indices - self.starts[which]

    def fingerprint(self) -> dict[str, Any]:
        """Of each trajectory the size of its files and their headers, and which of its frames are meant."""
        paths, headers, sizes, rows = list[str](), list[str](), list[int](), list[int]()
        for each in self.trajectories:
            for name, path in each.paths.items():
                array = each.arrays[name]
                content = [array] if name in ("atom_types", "target_index") else []
                about = f"{array.dtype} {list(array.shape)} {each.span}".encode()
                paths.append(str(path.absolute()))
                sizes.append(path.stat().st_size)
                rows.append(len(array))
                headers.append(named_hash(about, *content))
        return fingerprint.of_files(paths, list(map(Identity, sizes)), rows, headers)

    def read(self, indices: np.ndarray) -> Arrays:
        """Raises DataError with file, frame and atom for a value that cannot be right."""
        which, first = self.place(indices)
        frames = first[:, None] + self.lags
        self._look_at_new((self._first[which][:, None] + frames).ravel())
        batch = {}
        for name, (array, dtype) in ON_DISK.items():
            if array in self.trajectories[0].arrays:
                batch[name] = _gather([each.arrays[array] for each in self.trajectories], which, frames, dtype)
        one = self.trajectories[0]  # all have the same atoms
        return {**batch, self.item: np.asarray(indices, np.int64),
                "atom_types": one.atom_types, "targets": one.target_index}  # fmt: skip

    def item_names(self, batch: Mapping[str, Any]) -> list[str]:
        which, first = self.place(np.array(batch[self.item].tolist(), np.int64))
        names = []
        for number, frame in zip(which.tolist(), first.tolist(), strict=True):
            one = self.trajectories[number]
            frames = [str(frame + lag + (one.span[0] if one.span else 0)) for lag in self.lags]  # as in the file
            names.append(f"{one.name}, frame{'s' if len(frames) > 1 else ''} {' and '.join(frames)}")
        return names

    def _look_at_new(self, frames: np.ndarray) -> None:
        new, due = {*frames[~self._good[frames]].tolist()}, {*frames[self.contents.due(frames)].tolist()}
        for each in sorted(new | due):  # a frame at a time, while it is in the processor's cache
            one, frame = self._frame(each)
            if each in new:
                checks.look_at(one, frame)
                self._good[each] = True
            if each in due:
                arrays = (one.arrays[name][frame] for name, _ in ON_DISK.values() if name in one.arrays)
                self.contents.look(each, arrays)

    def _frame(self, block: int) -> tuple[Trajectory, int]:
        which = bisect.bisect_right(self._firsts, block) - 1
        return self.trajectories[which], block - self._firsts[which]

    def _place(self, block: int) -> str:
        one, frame = self._frame(block)
        return f"{one.name}, frame {frame + (one.span[0] if one.span else 0):,}"


def _gather(arrays: list[np.ndarray], which: np.ndarray, frames: np.ndarray, dtype: type) -> np.ndarray:
    """Frames [B, L] of the arrays ``which`` [B], [B, L, ...], in memory of their own.

    A new array each time: several batches are in flight at once, and filling an old one gains nothing below 30 MB.
    """
    if len(arrays) == 1:
        return arrays[0][frames].astype(dtype, order="C", copy=False)
    filled = np.empty((*frames.shape, *arrays[0].shape[1:]), dtype)
    for number, array in enumerate(arrays):
        rows = which == number
        filled[rows] = array[frames[rows]]
    return filled


class FramePairs(_Frames):
    """All pairs (t, t + tau) within a trajectory, in order: sum over trajectories of F - tau.

    ``read`` gives neighbours int32 [B, 2, N, M] (-1: none), distances float32 [B, 2, N, M] in Angstrom, where there are
    any directions float32 [B, 2, N, 3], and pair int64 [B], the number of the pair; besides, for all pairs the same,
    atom_types [N] and targets [n].

    Raises:
        UserError: tau (frames) is below 1. DataError: a trajectory has no more than tau frames.
    """

    item = "pair"

    def __init__(self, trajectories: Sequence[Trajectory], tau: int) -> None:
        if tau < 1:
            raise UserError(f"tau: {tau} frames; must be at least 1")
        super().__init__(trajectories, (0, tau))


class Frames(_Frames):
    """All frames in order. ``read`` is that of ``FramePairs`` with axis 1 of length 1, and frame int64 [B], counted
    through all trajectories; ``place`` says which."""

    item = "frame"

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        super().__init__(trajectories, (0,))


class FrameSource(IndexedSource):
    """Batches of either, whose first events are these warnings."""

    def __init__(
        self,
        data: _Frames,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        warnings: Sequence[str] = (),
    ) -> None:
        super().__init__(data, batch_size, seed, shuffle)
        self._events = [Event("warning", text) for text in warnings]

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events
