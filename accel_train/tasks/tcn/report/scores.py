"""Scores of whole shots: of the network, of the same with sensors that fail, and of trivial models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel_train.tasks.tcn import baselines
from accel_train.tasks.tcn.alarms import ShotScores
from accel_train.tasks.tcn.labels import LabelSettings, label
from accel_train.tasks.tcn.model import TCN
from accel_train.tasks.tcn.robustness import Failure, failed, stored_zero
from accel_train.tasks.tcn.shots import Shot, Shots
from accel_train.tasks.tcn.steps import step_sums, to_onset_ms
from accel_train.tasks.tcn.streaming import overlap_save
from accel_train.tasks.tcn.windows import Windows

MOMENTS = 10_000
"""Of a split, at most about so many are shown to a trivial model: the statistics of 160 channels and 30,000 samples
take a third of a second."""
MOMENTS_OF_WARNING = 30
"""In the time of warning, where that makes no more in all."""

Logits = Callable[[Shot], np.ndarray]
"""Of the steps start + R - 1 to stop - 1 of a shot that has R or more: float [stop - start - R + 1]."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Of all shots of a split, in the order of its windows.

    by_distance, by_position: int64 [shots, groups, 2, bins + 1], ``step_sums`` of the windows of each shot.
    """

    shots: list[ShotScores]
    by_distance: Tensor
    by_position: Tensor

    @property
    def steps(self) -> Tensor:
        """int64 [shots, 2, bins + 1], of all steps that count."""
        return self.by_distance.sum(1)

    @staticmethod
    def of(windows: Windows, logits: Logits) -> Scores:
        """Raises ``DataError`` for a score that is not finite."""
        numbers, first = windows.place(np.arange(len(windows)))
        shots: list[ShotScores] = []
        sums: list[dict[str, Tensor]] = []
        for shot in windows.shots:
            items = np.flatnonzero(numbers == shot.number)
            scored = logits(shot) if len(items) else np.zeros(0)
            before = shot.start + windows.receptive_field - 1
            scores = np.concatenate([np.full(before, np.nan, np.float32), scored.astype(np.float32)])
            shots.append(
                ShotScores(shot.number, scores, shot.t0_ms, shot.dt_ms, shot.disruptive, shot.t_disruption_ms, before)
            )
            sums.append(_sums(windows, items, scores, first[items]))
        return Scores(shots, *(torch.stack([each[name] for each in sums]) for name in ("by_distance", "by_position")))


def _sums(windows: Windows, items: np.ndarray, scores: np.ndarray, first: np.ndarray) -> dict[str, Tensor]:
    """Steps are sorted by their place in a window, so whole shots are cut into windows again."""
    padded = np.append(scores, np.zeros(windows.outputs, np.float32))  # steps behind the segment do not count
    cut = padded[first[:, None] + np.arange(windows.outputs)]
    known = {name: torch.from_numpy(values) for name, values in windows.labels(items).items()}
    to_onset = to_onset_ms(known["onset_ms"], known["dt_ms"], windows.outputs)
    return step_sums(torch.from_numpy(cut), known["target"], known["counts"], to_onset)


# -- the network -----------------------------------------------------------------------------------------------------


def of_network(model: TCN, data: Shots, nsub: int, failure: Failure | None = None, seed: int = 0) -> Logits:
    """Args:
    model: in evaluation mode, on the device to use.
    nsub: samples that go through it at once.
    failure: what its sensors suffer, drawn by ``seed`` and the number of the shot.
    """

    def logits(shot: Shot) -> np.ndarray:
        units = [
            torch.tensor(values(shot.number), device=model.mean.device, dtype=model.mean.dtype)
            for values in (data.scale, data.offset)
        ]
        read = partial(data.read, shot.number) if failure is None else _with_failure(data, shot, failure, seed)
        return overlap_save(model, read, shot.start, shot.stop, nsub, *units)

    return logits


def _with_failure(data: Shots, shot: Shot, failure: Failure, seed: int) -> Callable[[int, int], np.ndarray]:
    lost = failure.first_lost(seed, shot.number, data.channels, shot.start, shot.stop, shot.dt_ms)
    zero = stored_zero(data.scale(shot.number), data.offset(shot.number), data.dtype)
    x = failed(data.read(shot.number, shot.start, shot.stop), failure, lost, zero, shot.start)
    return lambda first, last: x[:, first - shot.start : last - shot.start]


# -- trivial models --------------------------------------------------------------------------------------------------


def moment_spacing(shots: Sequence[Shot], settings: LabelSettings) -> int:
    """Samples from one moment that a trivial model is shown to the next."""
    total = sum(shot.stop - shot.start for shot in shots)
    return max(1, round(settings.twarn_ms / MOMENTS_OF_WARNING / shots[0].dt_ms), -(-total // MOMENTS))


def moments(data: Shots, shots: Sequence[Shot], receptive_field: int, settings: LabelSettings) -> baselines.Examples:
    """What trivial models are shown of a split: windows as long as what an output of the network sees.

    Raises:
        UserError: no shot is so long.
    """
    by_number = {shot.number: shot for shot in shots}

    def read(number: int, first: int, last: int) -> np.ndarray:
        gain = data.scale(number) / data.std
        shift = (data.offset(number) - data.mean) / data.std
        return data.read(number, first, last) * gain.astype(np.float32)[:, None] + shift.astype(np.float32)[:, None]

    def labels(number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        return label(by_number[number], first, last, settings)

    window = max(receptive_field, baselines.MIN_WINDOW)
    return baselines.examples(shots, read, labels, window, moment_spacing(shots, settings))


def of_trivial(model: baselines.Baseline, shown: baselines.Examples, receptive_field: int) -> Logits:
    """The score of a moment is held until the next one."""
    scores: Any = model.logit(shown)
    lowest = scores.min()  # before the first moment, where the window of statistics is longer than R

    def logits(shot: Shot) -> np.ndarray:
        mine = shown.shot == shot.number
        first = shot.start + receptive_field - 1
        return baselines.track(shown.sample[mine], scores[mine], first, shot.stop).clip(min=lowest)

    return logits
