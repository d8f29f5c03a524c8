"""What a config may choose by name. Apart from what it means, so that reading a config or data needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

LOSSES = ("vamp2", "vamp1", "vamp1_true", "vampe")
Mode = Literal["trunc", "regularize", "clamp"]
MODES: tuple[str, ...] = get_args(Mode)
EPSILON = 1e-6
Norm = Literal["layer", "batch", "sync_batch"]
ELEMENTS = 100
"""Rows of the embedding: atomic numbers 0 to 99."""
