"""Batches whose items may lose a modality, or the name of their subject, for an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from accel_train import keyed
from accel_train.data.source import IndexedSource
from accel_train.task import Batch


class StimulusSource(IndexedSource):
    """Items of ``data`` with what training withholds from them: keyed by (seed, epoch, item), and so the same however a
    batch is cut, and after a resume.

    Args:
        data: gives ``available`` bool [B, M] among others, and knows its ``fingerprint``.
        modality_dropout: share of the modalities that are withheld from the encoder. An item that would lose all it
            has keeps all.
        subject_dropout: share of the items that the head sees without their subject.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        modality_dropout: float = 0.0,
        subject_dropout: float = 0.0,
    ) -> None:
        super().__init__(data, batch_size, seed, shuffle)
        self.modality_dropout, self.subject_dropout = modality_dropout, subject_dropout

    def batch(self, epoch: int, step: int, rank: int, world_size: int) -> Batch | None:
        """Also item int64 [B], its number in the data; and keep_modality bool [B, M] and keep_subject bool [B], where
        there is drop-out."""
        item = self.share(epoch, step, rank, world_size)
        if not len(item):
            return None
        batch = {**self.data.read(item), "item": item}
        available = batch["available"]
        if self.modality_dropout:
            keep = self._uniform("modality", epoch, item, available.shape[1]) >= self.modality_dropout
            batch["keep_modality"] = keep | ~(keep & available).any(1, keepdims=True)
        if self.subject_dropout:
            batch["keep_subject"] = self._uniform("subject", epoch, item, 1)[:, 0] >= self.subject_dropout
        return batch

    def fingerprint(self) -> dict[str, Any]:
        return self.data.fingerprint()

    def _uniform(self, what: str, epoch: int, item: np.ndarray, draws: int) -> np.ndarray:
        return keyed.uniform(keyed.key(self.seed, "sherlock", what, epoch), item, draws)
