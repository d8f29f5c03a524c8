"""Showers: what is independent in muon bundles. Rows of one shower at several depths are nearly the same, so whole
showers are held out, and errors come from them too."""

from __future__ import annotations

import numpy as np

from accel_train import keyed

UNITS = 50
"""Groups of showers, whose scatter gives the errors: as many as sums of each can be kept, and enough to know an error
to a tenth."""


def shower_number(primary: np.ndarray) -> np.ndarray:
    """float64 [B] in [0, 1): the same for all depths of a shower, which share energy, zenith and mass to the last bit.

    Showers are told apart by this and not by their ids, which not every file has. It does not depend on a seed: what is
    held out in one run is held out in all.
    """
    bits = np.ascontiguousarray(primary[:, :3], np.float32).view(np.uint32).astype(np.uint64)
    first = keyed.bits(keyed.key("showers"), bits[:, 0] | (bits[:, 1] << np.uint64(32)))[:, 0]
    return keyed.uniform(keyed.key("showers", "mass"), first ^ bits[:, 2])[:, 0]


def drawn_again(primary: np.ndarray, what: str, among: int) -> np.ndarray:
    """int64 [B] below ``among``, the same for all depths of a shower. Drawn anew for each purpose: what the bits of
    ``shower_number`` say themselves is which split a shower is in."""
    number = (shower_number(primary) * 2**53).astype(np.int64)
    return (keyed.bits(keyed.key(what), number)[:, 0] % np.uint64(among)).astype(np.int64)


def units(primary: np.ndarray) -> np.ndarray:
    """int64 [B] below ``UNITS``: groups of whole showers, for errors. Rows of one shower at several depths are nearly
    the same, so that their scatter would be taken for much less than it is."""
    return drawn_again(primary, "units", UNITS)


def in_split(primary: np.ndarray, split: str, held_out: float) -> np.ndarray:
    """bool [B]: the first half of the held-out showers is for validation, the second for the test."""
    number = shower_number(primary)
    if split == "train":
        return number >= held_out
    return (number < held_out / 2) if split == "validation" else (number >= held_out / 2) & (number < held_out)
