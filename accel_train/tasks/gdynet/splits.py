"""Which trajectories, or which part of them, is for training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accel_train.errors import DataError
from accel_train.tasks.gdynet import checks
from accel_train.tasks.gdynet.data import load
from accel_train.tasks.gdynet.files import Trajectory
from accel_train.tasks.gdynet.truth import noise_floor

NOISY = 0.5
"""A score of so much by chance deserves a warning; one process scores at most 1."""


class Splits:
    """Trajectories by split, opened and checked when they are first asked for, so that a test needs no training data.

    Args:
        fnames: by split ("train", "validation", "test"), as for ``load``. Without any for the validation, it gets the
            end of every training trajectory.
        ferro, cutoff: as for ``load``.
        tau: lag, frames.
        val_share: of the frames of a training trajectory, for a validation without files; 0 for none.
    """

    def __init__(
        self, fnames: Mapping[str, Sequence[str]], ferro: bool, tau: int, cutoff: float, val_share: float
    ) -> None:
        self.fnames, self.ferro, self.tau, self.cutoff, self.val_share = fnames, ferro, tau, cutoff, val_share
        self._opened: dict[str, list[Trajectory]] = {}

    def __getitem__(self, split: str) -> list[Trajectory]:
        """Raises DataError if something is wrong in the files, they are not of one system, or too short to be cut."""
        if split not in self._opened:
            for name, trajectories in self._open(split).items():
                checks.same_system([*self.any(), *trajectories])
                self._opened[name] = trajectories
        return self._opened[split]

    def any(self) -> list[Trajectory]:
        """One trajectory that is open already, if there is one; atoms and targets are the same in all."""
        return next(([found[0]] for found in self._opened.values() if found), [])

    def _open(self, split: str) -> dict[str, list[Trajectory]]:
        cut = not self.fnames["validation"] and self.val_share > 0
        if not (cut and split in ("train", "validation")):
            names = self.fnames[split]
            return {split: load(names, self.ferro, self.cutoff) if names else []}
        parts = [self._cut(trajectory) for trajectory in load(self.fnames["train"], self.ferro, self.cutoff)]
        return {"train": [a for a, _ in parts], "validation": [b for _, b in parts]}

    def _cut(self, trajectory: Trajectory) -> tuple[Trajectory, Trajectory]:
        """Cut in time, since neighbouring frames are nearly the same, with a gap of tau frames, the lag of a pair."""
        frames, tau = trajectory.frames, self.tau
        held_out = max(round(frames * self.val_share), tau + 1)
        if frames - held_out - tau <= tau:
            raise DataError(
                f"{trajectory.name}: {frames} frames are too few to keep val_share {self.val_share:g} of them for "
                f"validation at tau {tau}; give val_fnames, or val_share: 0 for no validation"
            )
        return trajectory.part(0, frames - held_out - tau), trajectory.part(frames - held_out, frames)

    def warnings(self, batch_size: int, states: int) -> list[str]:
        """What a person should hear before training: of all splits, in batches of so many pairs.

        Raises:
            DataError: a batch or the validation would have fewer than two rows (pairs x targets).
        """
        said = [text for split in self.fnames for trajectory in self[split] for text in trajectory.warnings]
        twice = {name for name in self.fnames["train"] if name in [*self.fnames["validation"], *self.fnames["test"]]}
        said += [f"{name} is trained on and held out at once: scores of it say nothing" for name in sorted(twice)]
        targets = len(self["train"][0].target_index)
        pairs = {split: sum(t.frames - self.tau for t in self[split]) for split in ("train", "validation")}
        for what, items in (
            ("a batch", min(batch_size, pairs["train"])),
            ("the last batch of an epoch", pairs["train"] % batch_size or batch_size),
            ("the validation", pairs["validation"]),
        ):
            rows, short = items * targets, what == "the last batch of an epoch"
            if rows == 1:
                raise DataError(
                    f"{what} has 1 pair of frames x targets, and a covariance needs 2: change global_batch_size "
                    f"({batch_size}), or give longer trajectories"
                )
            if rows and not short and (by_chance := noise_floor(states, rows)) > NOISY:
                said.append(
                    f"{what} has {rows} pairs of frames x targets, of which pure noise scores VAMP-2 "
                    f"{min(by_chance, states - 1):.2g}: use more"
                )
        return said
