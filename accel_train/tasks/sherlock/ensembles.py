"""Several networks as one: their predictions averaged, each voxel or parcel with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accel_train.errors import DataError, UserError
from accel_train.tasks.sherlock.scores import fisher_mean, temporal_r

SHARPNESS = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""From all alike to the best one alone."""


def ensemble_weights(predicted: Sequence[np.ndarray], true: np.ndarray) -> np.ndarray:
    """float64 [networks, V], each voxel's with sum 1: those of exp(s r) with r the correlation of each network on
    validation data, and s, one for all voxels, such that the average is best there.

    Args:
        predicted: [T, V] of each network.
        true: [T, V].

    Raises:
        UserError: fewer than 2 networks. DataError: predictions of different shapes.
    """
    if len(predicted) < 2:
        raise UserError("an ensemble takes at least 2 runs")
    r = np.nan_to_num(np.stack([temporal_r(each, true) for each in predicted]))  # nothing known: as good as chance
    tried = [_softmax(sharpness * r) for sharpness in SHARPNESS]
    scores = [float(fisher_mean(temporal_r(ensemble(predicted, weights), true))) for weights in tried]
    return tried[int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0]


def ensemble(predicted: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """float64 [T, V]: the average. Raises ``DataError`` for predictions of different shapes."""
    shapes = {each.shape for each in predicted}
    if len(shapes) > 1:
        raise DataError(f"ensemble: predictions have different shapes, {' and '.join(map(str, sorted(shapes)))}")
    found = np.zeros(predicted[0].shape)
    for each, weight in zip(predicted, weights, strict=True):
        found += weight * each
    return found


def _softmax(x: np.ndarray) -> np.ndarray:
    odds = np.exp(x - x.max(0))
    return odds / odds.sum(0)
