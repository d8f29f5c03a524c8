"""Which items of a batch stand out: those behind a gap, and not what has a plain reason."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from accel_train import Objective
from accel_train.train.shares import Share, Update, by_share, by_value, suspects

NAMES = [f"row {i}" for i in range(40)]


def ordinary(seed: int = 0) -> np.ndarray:
    """Losses of 40 items, with the long tail that losses have."""
    return np.random.default_rng(seed).exponential(size=40)


def update(losses: Any, **fields: Any) -> Update:
    each = [{name: values[i] for name, values in fields.items()} for i in range(len(losses))]
    shares = [Share(name, float(loss), {}, **more) for name, loss, more in zip(NAMES, losses, each, strict=True)]
    return Update(Objective(), {}, shares, math.fsum(losses), 1.0, {}, "")


def named(losses: Any, **fields: Any) -> list[str]:
    return [suspect.name for suspect in suspects(by_share(update(losses, **fields), 7))]


def test_ordinary_tails_name_nobody():
    assert sum(bool(named(ordinary(seed))) for seed in range(50)) <= 1


def test_one_or_a_few_behind_a_gap():
    losses = ordinary()
    losses[3] = 40.0
    assert named(losses) == ["row 3"]
    losses[[8, 21]] = 35.0, 45.0
    assert named(losses) == ["row 21", "row 3", "row 8"]
    losses[:20] = 40.0  # half of the batch is no outlier
    assert not named(losses)


def test_later_weights_may_tell_what_the_share_did_not():
    later = ordinary(1)
    later[5] = 60.0
    found = update(ordinary(), later=[{"loss": value} for value in later])
    (reason,) = by_share(found, 7)
    assert reason.item == "row 5" and "under the weights of step 7" in reason.text
    assert found.outstanding(1)[0].name == "row 5"


def test_what_follows_from_the_size_is_no_reason():
    """Three items of a rare class that weighs more, each with a share in proportion."""
    positive = np.zeros(40)
    positive[[2, 11, 30]] = 1, 2, 1
    losses = 0.01 * ordinary() + 50 * positive
    assert named(losses) and not named(losses, sizes=[(1.0, each) for each in positive])


def test_items_that_add_nothing_are_left_out():
    losses = np.where(np.arange(40) < 25, 0.0, ordinary())
    losses[30] = 100.0
    assert named(losses) == ["row 30"]
    assert not named(np.where(np.arange(40) < 36, 0.0, losses))  # four are too few to tell


def test_equal_shares_but_for_rounding():
    assert not named(np.full(40, 0.25) + 1e-9 * ordinary())


def test_values():
    sizes = 1 + ordinary()
    assert not by_value("x", NAMES, sizes.tolist(), set())
    sizes[4], sizes[9] = 5000, math.nan
    (large,) = by_value("x", NAMES, sizes.tolist(), set())
    assert large.item == "row 4" and large.text.startswith("x reaches 5000, ")
    assert [reason.item for reason in by_value("x", NAMES, sizes.tolist(), {"row 9"})] == ["row 9", "row 4"]


def test_not_finite_comes_first_then_values_then_shares():
    losses = ordinary()
    losses[3], losses[6] = 1e9, math.nan
    found = update(losses, finite=[i != 6 for i in range(40)])
    sizes = [5000.0 if i == 4 else 1.0 for i in range(40)]
    all_reasons = [*by_share(found, 0), *by_value("x", NAMES, sizes, {"row 6"})]
    assert [suspect.name for suspect in suspects(all_reasons)] == ["row 6", "row 4", "row 3"]
    assert [share.name for share in found.outstanding(2)] == ["row 6", "row 3"]
