"""Records: which keys are terms, how numbers look, and JSON that is always valid."""

import json
import subprocess
import sys

import numpy as np
import pytest

from accel_train.tracking import records

RECORD = {
    "kind": "train", "step": 12_000, "epoch": 3, "phase": "main", "loss": np.float32(0.5), "time": 0.25,
    "count": np.int64(7), "good": True, "grad_norm": 0.42, "lr": 1e-4, "lr/critic": 2e-4, "items_per_s": 1894.2,
    "step_s": 0.2, "wait_s": 0.002, "eta_s": 11520.0, "skipped": 0, "items": 512,
}  # fmt: skip


def test_terms_are_the_numbers_that_are_not_bookkeeping():
    assert records.terms(RECORD) == {"loss": 0.5, "time": 0.25, "count": 7}
    assert [type(v) for v in records.terms(RECORD).values()] == [float, float, int]


def test_scalars_have_the_tags_of_trackers():
    tags = records.scalars(RECORD)
    assert tags == {
        "train/loss": 0.5, "train/time": 0.25, "train/count": 7.0, "train/grad_norm": 0.42, "lr": 1e-4,
        "lr/critic": 2e-4, "perf/items_per_s": 1894.2, "perf/skipped": 0.0, "perf/wait_share": pytest.approx(0.01),
    }  # fmt: skip
    assert all(type(v) is float for v in tags.values())
    assert records.scalars({"kind": "eval", "step": 1, "accuracy": 0.5}) == {"eval/accuracy": 0.5}


@pytest.mark.parametrize(
    ("value", "text"),
    [(12000, "12,000"), (np.int64(5), "5"), (0.47118, "0.4712"), (0.0, "0.0000"), (-0.5, "-0.5000"),
     (2345.678, "2,345.7"), (3.21e-5, "3.21e-05"), (1.5e9, "1.50e+09"), (float("nan"), "nan"), (float("inf"), "inf"),
     (np.float32(0.25), "0.2500")],
)  # fmt: skip
def test_number(value, text):
    assert records.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0s"),
        (42, "42s"),
        (59.7, "1m00s"),
        (725, "12m05s"),
        (11520, "3h12m"),
        (187200, "2d04h"),
        (float("inf"), "?"),
    ],
)
def test_duration(seconds, text):
    assert records.duration(seconds) == text


def test_plain_is_valid_json_whatever_the_values():
    record = {"a": np.float32("nan"), "b": float("-inf"), "c": np.int64(3), "d": np.bool_(True), "e": None}
    clean = records.plain(record | {"f": {"g": np.inf}, "h": (1, np.nan, [np.int8(2)])})
    assert json.loads(json.dumps(clean, allow_nan=False)) == {
        "a": None, "b": None, "c": 3, "d": True, "e": None, "f": {"g": None, "non_finite": ["g"]},
        "h": [1, None, [2]], "non_finite": ["a", "b"],
    }  # fmt: skip


def test_the_light_modules_do_not_import_torch():
    modules = ", ".join(f"accel_train.tracking.{m}" for m in ("console", "jsonl", "status", "webhook", "tensorboard"))
    code = (
        f"import sys, accel_train.tracking, {modules}, accel_train.tracking.accelerate; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
