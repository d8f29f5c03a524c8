"""Windows of shots, cut by index: whole slices at a time, labels as they are asked for.

A model of receptive field R gives V = nsub - R + 1 outputs for a window of nsub samples: those whose whole past lies in
the window. Windows end at the segment's end and go back from there, V steps each; the earliest begins where the segment
does, and its outputs that the next window gives, too, do not count. So every step of a segment but the first R - 1 is
scored once, and nothing before the segment is read. Behind the end of a record there are zeros: the model is causal,
and outputs there do not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from accel_train import keyed
from accel_train.contents import Contents
from accel_train.data.source import IndexedSource, part
from accel_train.errors import UserError
from accel_train.task import Batch, Event
from accel_train.tasks.tcn.labels import LabelSettings, label
from accel_train.tasks.tcn.lent import lend
from accel_train.tasks.tcn.robustness import kept_channels
from accel_train.tasks.tcn.shots import SPLITS, Shot, Shots

Arrays = dict[str, np.ndarray]
PIECE_BYTES = 1 << 18
"""Of a window, so much is copied and then hashed while it is in the processor's cache."""


class Windows:
    """The windows of some shots, in order of shots and times; for an ``IndexedSource``.

    Args:
        data: where samples come from.
        shots: whose windows; a split of ``data``.
        nsub: samples of a window, at the stored rate.
        receptive_field: of the model, in samples.
        settings: of the labels.
        stride: samples from one window to the next, 1 to V (the default). Below V steps are scored more than once.

    Attributes:
        counted, positive: int64 [windows], steps of each that count, and those of them that are positive.
        too_short: shots whose segment has fewer than ``receptive_field`` samples: they have no window.

    Raises:
        UserError: nsub is below the receptive field, or the stride is out of its range.
    """

    def __init__(
        self,
        data: Shots,
        shots: Sequence[Shot],
        nsub: int,
        receptive_field: int,
        settings: LabelSettings,
        stride: int | None = None,
    ) -> None:
        outputs = nsub - receptive_field + 1
        if receptive_field < 1 or outputs < 1:
            raise UserError(f"nsub: a window of {nsub} samples is shorter than the receptive field {receptive_field}")
        if stride is not None and not 1 <= stride <= outputs:
            raise UserError(
                f"stride: {stride} samples; must be 1 to {outputs} (nsub {nsub} - receptive field {receptive_field} "
                "+ 1), or steps would never be scored"
            )
        self.data, self.shots, self.settings, self.channels = data, list(shots), settings, data.channels
        self.nsub, self.receptive_field, self.outputs = nsub, receptive_field, outputs
        self.too_short = [shot for shot in self.shots if shot.stop - shot.start < receptive_field]
        cuts = [_cut(shot, nsub, receptive_field, stride or outputs) for shot in self.shots]
        self._shot = np.repeat(np.arange(len(cuts)), [len(cut) for cut in cuts])
        self._start, self._until = np.concatenate([np.zeros((0, 2), np.int64), *cuts]).T
        self.counted, self.positive = np.zeros((2, len(self)), np.int64)
        for item in range(len(self)):
            target, counts = self._label(item)
            self.counted[item], self.positive[item] = np.count_nonzero(counts), np.count_nonzero(target)
        self.contents = Contents(len(self), self._words, data.files(self.shots))

    def __len__(self) -> int:
        return len(self._shot)

    @property
    def mean(self) -> np.ndarray:
        """float64 [C]. To find it may take a pass over all data."""
        return self.data.mean

    @property
    def std(self) -> np.ndarray:
        return self.data.std

    def place(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of the shot and stored sample of output 0 (the last one of its receptive field), int64 each."""
        numbers = np.array([shot.number for shot in self.shots], np.int64)
        return numbers[self._shot[indices]], self._start[indices] + self.receptive_field - 1

    def read(self, indices: np.ndarray) -> Arrays:
        """A batch, in memory of its own.

        Returns:
            x [B, C, nsub] as stored; scale, offset float32 [B, C]; target, counts bool [B, V]; shot int64 [B], its
            number; first int64 [B], the stored sample of output 0; onset_ms float64 [B], from output 0 to the time from
            which on steps are positive, negative behind it, NaN in clear shots; dt_ms float64 [B], between outputs.
        """
        data, shape = self.data, (len(indices), self.data.channels)
        batch = {
            "x": lend((*shape, self.nsub), data.dtype),
            "scale": np.empty(shape, np.float32),
            "offset": np.empty(shape, np.float32),
            **self.labels(indices),
        }
        indices = np.asarray(indices)
        due = {*indices[self.contents.due(indices)].tolist()}
        for row, item in enumerate(indices.tolist()):
            shot, start = self.shots[self._shot[item]], int(self._start[item])
            batch["scale"][row], batch["offset"][row] = data.scale(shot.number), data.offset(shot.number)
            samples = data.read(shot.number, start, min(start + self.nsub, shot.samples))
            if item in due:
                due.remove(item)
                copied = _copied(samples, batch["x"][row], PIECE_BYTES)
                self.contents.look(item, itertools.chain(copied, (batch["scale"][row], batch["offset"][row])))
            else:
                next(_copied(samples, batch["x"][row]))
        batch["shot"], batch["first"] = self.place(indices)
        return batch

    def item_names(self, batch: Mapping[str, Any]) -> list[str]:
        """``first`` is the sample of output 0, at the end of its receptive field."""
        places = zip(batch["shot"].tolist(), batch["first"].tolist(), strict=True)
        begins = [(shot, first - self.receptive_field + 1) for shot, first in places]
        return [f"shot {shot}, samples {begin} to {begin + self.nsub}" for shot, begin in begins]

    def labels(self, indices: np.ndarray) -> Arrays:
        """target, counts, onset_ms and dt_ms of a batch, as ``read`` has them; no signal is read."""
        target, counts = np.empty((2, len(indices), self.outputs), bool)
        onset_ms, dt_ms = np.empty((2, len(indices)))
        for row, item in enumerate(np.asarray(indices).tolist()):
            shot, first = self.shots[self._shot[item]], int(self._start[item]) + self.receptive_field - 1
            target[row], counts[row] = self._label(item)
            onset_ms[row] = shot.t_disruption_ms - self.settings.twarn_ms - (shot.t0_ms + first * shot.dt_ms)
            dt_ms[row] = shot.dt_ms
        return {"target": target, "counts": counts, "onset_ms": onset_ms, "dt_ms": dt_ms}

    def ahead(self, indices: np.ndarray) -> None:
        """These windows will be read soon. Costs nothing where data are in memory or in the cache of the system."""
        tell = getattr(self.data, "ahead", None)
        if tell is not None:
            for item in np.asarray(indices).tolist():
                shot, start = self.shots[self._shot[item]], int(self._start[item])
                tell(shot.number, start, min(start + self.nsub, shot.samples))

    def fingerprint(self) -> dict[str, Any]:
        return {"items": len(self), **self.data.fingerprint()}

    @property
    def warnings(self) -> list[str]:
        """What is left out, in lines; of the shots of all splits with those of training."""
        if not self.too_short:
            return self._of_all
        return [
            *self._of_all,
            f"{self.shots[0].split}: {len(self.too_short):,} of {len(self.shots):,} shots, the first "
            f"{self.too_short[0].number}, are shorter than the receptive field of {self.receptive_field:,} samples and "
            "have no window",
        ]

    @property
    def _of_all(self) -> list[str]:
        training = any(shot.split == SPLITS[0] for shot in self.shots)
        return list(getattr(self.data, "warnings", ())) if training else []

    def _words(self, item: int) -> str:
        shot, start = self.shots[self._shot[item]], int(self._start[item])
        return f"shot {shot.number}, samples {start:,} to {min(start + self.nsub, shot.samples) - 1:,}"

    def _label(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        first = int(self._start[item]) + self.receptive_field - 1
        target, counts = label(self.shots[self._shot[item]], first, first + self.outputs, self.settings)
        counts[max(0, int(self._until[item]) - first) :] = False
        return target & counts, counts


class WindowSource(IndexedSource):
    """Batches of windows: of ``Windows``, or of any data that know their fingerprint. What they warn of are the first
    events. While a batch is read, the system may fetch what the next one needs.

    Attributes:
        channel_dropout: if it is set, batches have ``kept`` bool [B, C] too: ``kept_channels`` of that rate, by the
            place of a window in its epoch.
    """

    channel_dropout: float = 0.0

    def __init__(self, data: Any, batch_size: int, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__(data, batch_size, seed, shuffle)
        self._events = [Event("warning", text) for text in getattr(data, "warnings", ())]

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        ahead, steps = getattr(self.data, "ahead", None), self.steps(epoch)
        if ahead is not None and steps is not None and step + 1 < steps:
            ahead(self.share(epoch, step + 1, rank, world_size))
        batch = super().batch(epoch, step, rank, world_size)
        if batch is None or not self.channel_dropout:
            return batch
        items = len(self.indices(epoch, step))
        places = step * self.batch_size + np.arange(items)[part(items, rank, world_size)]
        kept = kept_channels(self.seed, epoch, places, self.data.channels, self.channel_dropout)
        return {**batch, "kept": kept}

    def fingerprint(self) -> dict[str, Any]:
        return self.data.fingerprint()

    def events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


class Stratified(WindowSource):
    """Global batches of which each has as many windows with a positive step, and as many without.

    An epoch has as many batches as the class that lasts longer needs; the other, and what its last batch lacks, is
    gone through again, in another order. The order is a function of (seed, epoch) alone.

    Args:
        data: ``Windows``, or anything with ``positive`` [items].
        batch_size: windows of a global batch, at least 2.
        ratio: windows without a positive step for each one with.
        name: of the split, for messages.

    Raises:
        UserError: a class has no window, or the batch is too small for both.
    """

    def __init__(self, data: Any, batch_size: int, seed: int = 0, ratio: float = 1.0, name: str = "train") -> None:
        super().__init__(data, batch_size, seed)
        if batch_size < 2 or not ratio > 0:
            raise UserError(
                f"stratified batches of both classes need 2 windows or more and a ratio above 0; there are "
                f"{batch_size} and {ratio:g}"
            )
        positive = np.asarray(data.positive) > 0
        self._classes = np.flatnonzero(positive), np.flatnonzero(~positive)
        for items, what in zip(self._classes, ("with", "without"), strict=True):
            if not len(items):
                raise UserError(
                    f"{name}: none of the {len(positive)} windows is {what} a positive step, so batches cannot have "
                    "both; look at the split, twarn_ms, exclude_last_ms and ignore_twarn, or do not stratify"
                )
        with_positive = min(max(1, round(batch_size / (1 + ratio))), batch_size - 1)
        self._each = with_positive, batch_size - with_positive
        self._orders: tuple[int, tuple[np.ndarray, ...]] | None = None

    def steps(self, epoch: int) -> int:
        return max(-(-len(items) // each) for items, each in zip(self._classes, self._each, strict=True))

    def indices(self, epoch: int, step: int) -> np.ndarray:
        orders = self._orders  # one read: another thread may replace it
        if orders is None or orders[0] != epoch:
            orders = self._orders = (epoch, (self._class_order(epoch, 0), self._class_order(epoch, 1)))
        parts = [order[step * n : (step + 1) * n] for order, n in zip(orders[1], self._each, strict=True)]
        mixed = np.concatenate(parts)  # the share of a rank is a part of it, and should have both
        return self._generator("mix", epoch, step).permutation(mixed)

    def _class_order(self, epoch: int, of: Literal[0, 1]) -> np.ndarray:
        """The windows of a class for all batches of an epoch, each as often as another but for one."""
        items, needed = self._classes[of], self.steps(epoch) * self._each[of]
        rounds = range(-(-needed // len(items)))
        return np.concatenate([self._generator("order", epoch, of, n).permutation(items) for n in rounds])[:needed]

    def _generator(self, *what: int | str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=keyed.key(self.seed, "stratified", *what)))


def _copied(samples: np.ndarray, into: np.ndarray, most_bytes: int | None = None) -> Iterator[np.ndarray]:
    """Channels of ``into`` [C, nsub], some at a time, as soon as they have been copied; zeros behind the samples."""
    channels = len(into) if most_bytes is None else max(1, most_bytes * len(into) // into.nbytes)
    for begin in range(0, len(into), channels):
        piece = into[begin : begin + channels]
        piece[:, : samples.shape[1]] = samples[begin : begin + channels]
        piece[:, samples.shape[1] :] = 0
        yield piece


def _cut(shot: Shot, nsub: int, receptive_field: int, stride: int) -> np.ndarray:
    """int64 [windows, 2]: where each begins, and the step from which on its outputs do not count."""
    if shot.stop - shot.start < receptive_field:
        return np.zeros((0, 2), np.int64)
    starts = np.arange(shot.stop - nsub, shot.start, -stride)[::-1]
    until = np.full(len(starts) + 1, shot.stop)
    if len(starts) and stride == nsub - receptive_field + 1:
        until[0] = starts[0] + receptive_field - 1
    return np.stack([[shot.start, *starts], until], 1).astype(np.int64)
