"""What each item of a batch adds to its loss, and which items stand out from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

import numpy as np
from torch import Tensor

from accel_train.task import Objective

FAR, GAP = 12.0, 2.0
"""An item stands out if it is so many spreads from the median, and so many times as far as the next item: the tails of
an ordinary batch are long, too."""
TIMES = 100.0
"""And if its largest value is so many times that of the median item, with as wide a gap (``STEP``) to the next."""
STEP = 10.0
FEWEST = 8
"""Of so many items at least it can be said what is usual."""
ROUNDING = 1e-5
"""A spread below this part of the values is none: all items have the same."""


@dataclass(frozen=True)
class Share:
    """What one item adds to the loss of its batch.

    Args:
        name: which item it is: file, row group and row; shot; frame; else its number.
        loss: with the totals of the whole batch, so that the shares of all items add up to the loss.
        terms: the same of the terms in the log.
        finite: loss, terms, and what the item adds to the totals.
        later: loss and terms under the newest weights that the run has saved; empty if it has none of after this step.
        sizes: the numbers that it adds to the totals, such as how many steps of it count; empty if they are many.
    """

    name: str
    loss: float
    terms: dict[str, float]
    finite: bool = True
    later: dict[str, float] = field(default_factory=dict)
    sizes: Sequence[float] = ()


@dataclass(frozen=True)
class Suspect:
    """An item that stands out, and by what: the strongest reason first."""

    name: str
    reasons: list[str]


@dataclass(frozen=True)
class Update:
    """One update of a step: an objective may be repeated, and a phase may have several.

    Args:
        totals: sums over the whole batch, on all ranks.
        shares: of every item, over all ranks, in the order of the ranks and of their micro-batches.
        loss: of the update as it was made, over all ranks. With drop-out the shares do not add up to it, since an item
            alone draws other masks.
        norm: of the gradient before clipping. Not finite: nothing was updated.
        norms: the same by module that has parameters of its own, such as "model.encoder.0".
        first_non_finite: the first module, in the order of the forward pass, with an output that is not finite; "" if
            there is none.
    """

    objective: Objective
    totals: dict[str, Tensor]
    shares: list[Share]
    loss: float
    norm: float
    norms: dict[str, float]
    first_non_finite: str

    def outstanding(self, count: int = 10, term: str = "") -> list[Share]:
        """The items that stand out most: what is not finite first, then by how far the share is from the median, or
        that under the newest weights, whichever is further; of the loss, or of a term in the log."""
        now = next(values for name, _, values in self.columns() if name == (term or "loss"))
        apart = np.abs(now - np.median(now)) if len(now) else now  # decides where all but a few are alike
        order = np.lexsort((-apart, -self.far(term), np.array([each.finite for each in self.shares])))
        return [self.shares[i] for i in order[:count]]

    def far(self, term: str = "") -> np.ndarray:
        """How far each item is from the median, as ``spreads`` says; now or under the newest weights."""
        return np.max([spreads(values) for name, _, values in self.columns() if name == (term or "loss")], axis=0)

    def columns(self) -> list[tuple[str, bool, np.ndarray]]:
        """Name, whether under the newest weights, and the numbers of all items."""
        names = ["loss", *(self.shares[0].terms if self.shares else ())]
        now = [{"loss": each.loss, **each.terms} for each in self.shares]
        found = [(name, False, _numbers([each[name] for each in now])) for name in names]
        if self.shares and self.shares[0].later:
            found += [(name, True, _numbers([each.later[name] for each in self.shares])) for name in names]
        return found


def _numbers(values: Sequence[float]) -> np.ndarray:
    """What is not finite counts as the median: of these, something else is said."""
    numbers = np.array(values, np.float64)
    finite = np.isfinite(numbers)
    return np.where(finite, numbers, median(numbers[finite].tolist()) if finite.any() else 0.0)


def spreads(values: np.ndarray) -> np.ndarray:
    """How far each is from the median, in robust standard deviations (1.48 times the median distance), [N]. Items that
    add nothing (0: an event without muons) are left out. Zeros where half of the others or more are the same, or where
    they are too few to tell."""
    some = values[values != 0]
    if len(some) < FEWEST:
        return np.zeros(len(values))
    spread = 1.4826 * np.median(np.abs(some - np.median(some)))
    if spread <= ROUNDING * np.median(np.abs(some)):
        return np.zeros(len(values))
    return np.where(values != 0, np.abs(values - np.median(some)) / spread, 0.0)


def beyond_sizes(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What is left of values [N] without what items of such sizes [N, S] have by a linear fit. A rare class weighs more
    in a balanced loss, and a long row has a large share; neither stands out for that."""
    varying = sizes[:, np.ptp(sizes, axis=0) > 0]
    if not 0 < varying.shape[1] <= len(values) // 4:
        return values
    known = np.column_stack([np.ones(len(values)), varying])
    left = values - known @ np.linalg.lstsq(known, values, rcond=None)[0]
    rounding = ROUNDING * np.abs(values).mean()
    return np.where((values != 0) & (np.abs(left) > rounding), left, 0.0)


def standing_out(sizes: np.ndarray, least: float, gap: float) -> tuple[list[int], float]:
    """The few largest (at most a tenth of all, or one), if there is a gap behind them, and the next one's size."""
    order = np.argsort(-sizes, kind="stable")
    for count in range(min(max(len(sizes) // 10, 1), len(sizes) - 1), 0, -1):
        last, following = float(sizes[order[count - 1]]), float(sizes[order[count]])
        if last >= max(least, gap * following):
            return order[:count].tolist(), following
    return [], 0.0


# -- by what an item stands out --------------------------------------------------------------------------------------


class Reason(NamedTuple):
    """``what`` stands out of an item, how strongly, and in words. ``certain``: by its values, whatever a model says."""

    item: str
    what: str
    strength: float
    text: str
    certain: bool = True


def by_value(field_: str, names: Sequence[str], sizes: Sequence[float], spoilt: set[str]) -> list[Reason]:
    """Of the largest number that each item has in a field: far beyond those of the others. Not being finite is none,
    unless something that is not finite came of it (``spoilt``): a field may hold NaN for what does not exist."""
    numbers = np.array(sizes, np.float64)
    finite = np.isfinite(numbers)
    found = [Reason(names[i], field_, math.inf, f"{field_} is not finite") for i in np.flatnonzero(~finite).tolist()
             if names[i] in spoilt]  # fmt: skip
    some = numbers[finite & (numbers != 0)]
    usual = float(np.median(some)) if len(some) else 0.0
    times = np.where(finite, numbers, 0.0) / usual if usual > 0 else np.zeros(len(numbers))
    for i in standing_out(times, TIMES, STEP)[0]:
        text = f"{field_} reaches {numbers[i]:.4g}, {times[i]:,.0f} times the median item"
        found.append(Reason(names[i], field_, times[i], text))
    return found


def by_share(update: Update, later: int) -> list[Reason]:
    """Of the shares of an update, now and under the weights of step ``later``."""
    objective = update.objective.name
    found = [Reason(each.name, f"{objective} is not finite", math.inf, f"its share of {objective} is not finite")
             for each in update.shares if not each.finite]  # fmt: skip
    sizes = np.array([each.sizes for each in update.shares], np.float64)
    for name, is_later, values in update.columns():
        far = np.minimum(spreads(values), spreads(beyond_sizes(values, sizes)))
        items, following = standing_out(far, FAR, GAP)
        what = f"its share of {objective if name == 'loss' else f'{name} ({objective})'}"
        what += f" under the weights of step {later:,}" if is_later else ""
        for i in items:
            text = f"{values[i]:.4g}, {far[i]:.3g} spreads from the median (the next: {following:.3g})"
            found.append(Reason(update.shares[i].name, what, far[i], f"{what} is {text}", certain=False))
    return found


def suspects(reasons: Sequence[Reason], most: int = 3) -> list[Suspect]:
    """The items, that with the strongest reason first; of each at most so many reasons, one of a kind."""
    found: dict[str, dict[str, str]] = {}
    for each in sorted(reasons, key=lambda each: (not each.certain, -each.strength)):
        found.setdefault(each.item, {}).setdefault(each.what, each.text)
    return [Suspect(name, list(texts.values())[:most]) for name, texts in found.items()]
