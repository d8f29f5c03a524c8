"""Which TRs are for training, validation and test: stretches of runs, with a gap where one follows another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from accel_train.errors import UserError

SPLITS = ("train", "validation", "test")
STRETCH = re.compile(r"(.+?)(?::(\d+)-(\d+))?")

Stretch = dict[str, Any]
"""run, first, last: TRs from first to below last."""


def split(
    trs: dict[str, int], test: Sequence[str], validation: Sequence[str], gap: int, drop_start: int
) -> dict[str, list[Stretch]]:
    """Stretches of each split, in order.

    Args:
        trs: of each run.
        test, validation: RUN, RUN:FIRST-LAST (to below LAST), or of the validation a share of the training TRs, which
            are the last ones of the last run that has any.
        gap: TRs next to others of validation or test that are not for training: the brain answers so long.
        drop_start: TRs at the beginning of each run that are in no split.

    Raises:
        UserError: there is no such run, a stretch lies outside it or is taken twice, or nothing is left for training.
    """
    kind = {run: np.full(count, 0) for run, count in trs.items()}
    shares = [text for text in validation if _share(text) is not None]
    for number, texts in ((2, test), (1, [text for text in validation if text not in shares])):
        for text in texts:
            _take(kind, text, number)
    for text in shares:
        _take_share(kind, float(text), text)
    found: dict[str, list[Stretch]] = {name: [] for name in SPLITS}
    for run, numbers in kind.items():
        held_out = np.flatnonzero(numbers > 0)
        for t in np.flatnonzero(numbers == 0):
            if len(held_out) and np.abs(held_out - t).min() <= gap:
                numbers[t] = -1
        numbers[:drop_start] = -1
        edges = np.flatnonzero(np.diff(numbers, prepend=-2, append=-2))
        for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if numbers[first] >= 0:
                found[SPLITS[numbers[first]]].append({"run": run, "first": first, "last": last})
    if not found["train"]:
        raise UserError("preprocess: no TR is left for training; look at --test, --validation, --gap and --drop_start")
    return found


def rows_of(stretches: Sequence[Stretch], trs: dict[str, int]) -> dict[str, np.ndarray]:
    """bool [TRs] of each run: which are in these stretches."""
    chosen = {run: np.zeros(count, bool) for run, count in trs.items()}
    for each in stretches:
        chosen[each["run"]][each["first"] : each["last"]] = True
    return chosen


def _take(kind: dict[str, np.ndarray], text: str, number: int) -> None:
    found = STRETCH.fullmatch(text)
    run = found[1] if found else text
    if found is None or run not in kind:
        raise UserError(f"preprocess: --{SPLITS[number]} {text}: there is no such run; there are {', '.join(kind)}")
    numbers = kind[run]
    first, last = (0, len(numbers)) if found[2] is None else (int(found[2]), int(found[3]))
    if not 0 <= first < last <= len(numbers):
        raise UserError(f"preprocess: --{SPLITS[number]} {text}: {run} has TRs 0 to {len(numbers) - 1}")
    if numbers[first:last].any():
        raise UserError(f"preprocess: --{SPLITS[number]} {text}: some of these TRs are held out already")
    numbers[first:last] = number


def _take_share(kind: dict[str, np.ndarray], share: float, text: str) -> None:
    if not 0 <= share < 1:
        raise UserError(f"preprocess: --validation {text}: a share is from 0 (none) to below 1")
    if share == 0:
        return
    count = round(share * sum(int((numbers == 0).sum()) for numbers in kind.values()))
    free = next((numbers for numbers in reversed(kind.values()) if (numbers == 0).any()), np.zeros(0))
    places = np.flatnonzero(free == 0)
    if not 0 < count <= len(places):
        raise UserError(f"preprocess: --validation {text} is {count} TRs, the last training run has {len(places)}; "
                        "give a smaller share, or RUN:FIRST-LAST")  # fmt: skip
    free[places[-count:]] = 1


def _share(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
