"""Which trajectories, or which part of them, is for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accel_train.errors import DataError
from accel_train.tasks.gdynet import checks
from accel_train.tasks.gdynet.data import load
from accel_train.tasks.gdynet.files import Trajectory


def load_splits(
    fnames: Mapping[str, Sequence[str]], ferro: bool, tau: int, cutoff: float, val_share: float
) -> dict[str, list[Trajectory]]:
    """Trajectories by split, checked. Without any for the validation, it gets the end of every training trajectory.

    Raises:
        DataError: something is wrong in the files, they are not of one system, or a part is too short for one pair.
    """
    splits = {split: load(names, ferro, cutoff) if names else [] for split, names in fnames.items()}
    checks.same_system([trajectory for trajectories in splits.values() for trajectory in trajectories])
    if not splits["validation"] and val_share > 0:
        parts = [_cut(trajectory, tau, val_share) for trajectory in splits["train"]]
        splits["train"], splits["validation"] = [a for a, _ in parts], [b for _, b in parts]
    return splits


def _cut(trajectory: Trajectory, tau: int, share: float) -> tuple[Trajectory, Trajectory]:
    """In time, since neighbouring frames are nearly the same, and tau frames apart, as the two of a pair are."""
    frames = trajectory.frames
    held_out = max(round(frames * share), tau + 1)
    if frames - held_out - tau <= tau:
        raise DataError(
            f"{trajectory.name}: {frames} frames are too few to keep val_share {share:g} of them for validation at tau "
            f"{tau}; give val_fnames, or val_share: 0 for no validation"
        )
    return trajectory.part(0, frames - held_out - tau), trajectory.part(frames - held_out, frames)
