"""Predicted states beside known ones, as synthetic data have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from accel_train.errors import UserError
from accel_train.tasks.gdynet.analysis.moments import Predictions, blocks


def agreement(predictions: Predictions, states: Sequence[np.ndarray]) -> dict[str, Any]:
    """How well predictions [F, n, k] of each trajectory recover the known states, integers [F, n].

    ``states`` [m]: the known ones; ``counts`` int64 [k, m]: rows by their likeliest and their known state. ``purity``:
    share of rows whose known state is the commonest one of their likeliest state. ``distinct``: how many known states
    have a likeliest state of their own, in which they are the commonest. ``population_error``: largest difference of a
    mean probability from the share of the known state, states being matched one to one.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise UserError("agreement needs another package: pip install 'accel_train[gdynet]'") from None
    k, names = predictions[0].shape[2], np.unique(np.concatenate([np.unique(s) for s in states]))
    counts, sums = np.zeros((k, len(names)), np.int64), np.zeros(k)
    for p, s in zip(predictions, states, strict=True):
        for at in blocks(0, len(p), p.shape[1]):
            cell = p[at].argmax(2) * len(names) + np.searchsorted(names, s[at])
            counts += np.bincount(cell.ravel(), minlength=counts.size).reshape(counts.shape)
            sums += p[at].sum((0, 1), dtype=np.float64)
    ours, known = linear_sum_assignment(counts, maximize=True)
    error = np.abs(sums[ours] - counts.sum(0)[known]) / counts.sum()
    return {
        "states": names,
        "counts": counts,
        "purity": float(counts.max(1).sum() / counts.sum()),
        "distinct": len(np.unique(counts[counts.any(1)].argmax(1))),
        "population_error": float(error.max()),
    }
