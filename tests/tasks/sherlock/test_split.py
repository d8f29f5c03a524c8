"""Splits: no TR is in two, and training keeps its distance."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from accel_train.errors import UserError
from accel_train.tasks.sherlock.preprocess.split import SPLITS, rows_of, split


@given(
    trs=st.lists(st.integers(10, 80), min_size=1, max_size=3),
    gap=st.integers(0, 25),
    drop=st.integers(0, 8),
    share=st.floats(0.05, 0.5),
    stretch=st.tuples(st.integers(0, 79), st.integers(1, 30)),
    whole=st.booleans(),
)
def test_laws(trs, gap, drop, share, stretch, whole):
    runs = {f"r{i}": count for i, count in enumerate(trs)}
    test = ["r0"] if whole and len(trs) > 1 else [f"r0:{stretch[0]}-{sum(stretch)}"]
    try:
        found = split(runs, test, [str(share)], gap, drop)
    except UserError:
        return
    rows = {name: rows_of(found[name], runs) for name in SPLITS}
    for run, count in runs.items():
        each = np.stack([rows[name][run] for name in SPLITS])
        assert each.sum(0).max() <= 1 and not each[:, :drop].any()
        held_out, train = np.flatnonzero(each[1:].any(0)), np.flatnonzero(each[0])
        if len(held_out) and len(train):
            # a TR that is dropped at the start of a run keeps its distance from training, too
            assert np.abs(held_out[:, None] - train).min() > gap
        assert count == len(rows["train"][run])
    assert sum(part.sum() for part in rows["train"].values()) > 0


def test_a_share_is_the_end_of_the_last_run_that_is_trained_on():
    found = split({"a": 100, "b": 60, "c": 50}, ["c"], ["0.25"], 21, 0)
    assert found["validation"] == [{"run": "b", "first": 20, "last": 60}]
    assert found["train"] == [{"run": "a", "first": 0, "last": 100}]


def test_no_validation():
    found = split({"a": 30, "b": 20}, ["b"], ["0"], 5, 0)
    assert found["validation"] == [] and found["train"] == [{"run": "a", "first": 0, "last": 30}]


def test_stretches():
    found = split({"a": 100}, ["a:80-100"], ["a:40-50"], 5, 10)
    assert found["train"] == [{"run": "a", "first": 10, "last": 35}, {"run": "a", "first": 55, "last": 75}]
