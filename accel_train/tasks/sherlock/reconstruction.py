"""How well a stimulus is made again, against what knows nothing of it: its mean over the training."""

from __future__ import annotations

import numpy as np

from accel_train.errors import DataError
from accel_train.tasks.sherlock.scores import Estimate, draws_of_blocks, estimate, stretches

SHUFFLES = 10
CHUNK = 64  # TRs at once: a TR of a film may be a million numbers


def errors(made: np.ndarray, true: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """float64 [T, 2]: the error of each TR, as made and of the training mean.

    Numbers: squared, mean over them. Codes, which are integers: the share that is wrong; their mean is the code that
    comes most in training.

    Args:
        made, true: [T, ...]. mean: as one TR, or what numpy repeats to it.

    Raises:
        DataError: shapes that differ.
    """
    if made.shape != true.shape:
        raise DataError(f"a reconstruction {made.shape} does not fit the stimulus {true.shape}")
    codes, found = _is_codes(true), np.empty((len(true), 2))
    for first in range(0, len(true), CHUNK):
        at = slice(first, first + CHUNK)
        truth = np.asarray(true[at], np.float64)
        for i, guess in enumerate((np.asarray(made[at], np.float64), np.broadcast_to(mean, truth.shape))):
            each = np.rint(guess) != truth if codes else (guess - truth) ** 2
            found[at, i] = each.reshape(len(truth), -1).mean(1)
    return found


def over_mean(error: np.ndarray, block: np.ndarray, seed: int) -> Estimate:
    """The error divided by that of the training mean, 1 for what is no better; 95 % interval over blocks of time.

    Args:
        error: of ``errors``. block: int [T] (``scores.time_blocks``).
    """
    sums = np.stack([np.bincount(block, column) for column in error.T], 1)
    drawn = draws_of_blocks(len(sums), seed).numpy() @ sums
    return estimate(np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), np.nan), where=drawn[:, 1] > 0))


def shuffles(runs: np.ndarray, least: int) -> list[np.ndarray]:
    """Rows that stand in the place of others, int [T] each: every stretch turned in a circle by at least ``least`` TRs
    (less in one that is too short), by ``SHUFFLES`` different ways if there are so many. A network sees only the TRs
    just before a volume, so its predictions turned are those that it makes of a film turned."""
    found = []
    for i in range(SHUFFLES):
        rows = np.arange(len(runs))
        for at in stretches(runs):
            length = at.stop - at.start
            low = min(least, length // 2)
            by = low + round((length - 2 * low) * (i + 0.5) / SHUFFLES)
            rows[at] = np.roll(rows[at], by)
        found.append(rows)
    return found


def _is_codes(true: np.ndarray) -> bool:
    return true.dtype.kind in "iu" and true.dtype != np.uint8  # frames are uint8
