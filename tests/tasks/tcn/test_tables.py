"""Tables of shots: an even grid of what was known at each time, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.labels import LabelSettings
from accel_train.tasks.tcn.tables import Table
from accel_train.tasks.tcn.windows import Windows

HEADER = "shot,time,time_until_disrupt,ip,beta,split\n"
ROWS = """\
7,0.000,0.040,1,,train
7,0.010,0.030,2,5,train
7,0.020,0.020,,6,train
7,0.030,0.010,4,7,train
7,0.032,0.008,5,8,train
7,0.040,0.000,6,9,train
8,0.000,,1,1,val
8,0.010,,2,1,val
9,0.000,,3,1,test
9,0.010,,4,1,test
"""


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "shots.csv").write_text(HEADER + ROWS)
    return tmp_path / "shots.csv"


def test_the_newest_value_at_each_time(path):
    made = Table(path, 5.0)
    assert made.signals == ["ip", "beta"] and [shot.split for shot in made.shots] == ["train", "validation", "test"]
    values = made.read(7, 0, 9)
    np.testing.assert_array_equal(values[0], [1, 1, 2, 2, 2, 2, 4, 5, 6])
    np.testing.assert_allclose(values[1, :2], made.mean[1])  # nothing is known yet
    np.testing.assert_array_equal(values[1, 2:], [5, 5, 6, 6, 7, 8, 9])
    np.testing.assert_allclose(made.mean, [values[0].mean(), values[1, 2:].mean()])
    np.testing.assert_allclose(made.std, [values[0].std(), values[1, 2:].std()])
    disruptive, clear, _ = made.shots
    assert disruptive.disruptive and not clear.disruptive
    assert (disruptive.t_disruption_ms, disruptive.samples, disruptive.stop) == (40, 9, 8)


def test_parquet_and_chosen_signals(path, tmp_path):
    from pyarrow import csv, parquet

    parquet.write_table(csv.read_csv(path), tmp_path / "shots.parquet")
    for name in ("shots.csv", "shots.parquet"):
        made = Table(tmp_path / name, 5.0, ["beta"])
        assert made.channels == 1
        np.testing.assert_array_equal(made.read(7, 2, 9)[0], [5, 5, 6, 6, 7, 8, 9])


def test_another_grid_and_other_signals_are_other_data(path):
    made = [Table(path, 5.0).fingerprint(), Table(path, 4.0).fingerprint(), Table(path, 5.0, ["ip"]).fingerprint()]
    assert made[0] == Table(path, 5.0).fingerprint() and made[1] != made[0] != made[2]


def test_windows_of_a_table(path):
    data = Table(path, 2.0)
    made = Windows(data, data.split("train"), 6, 3, LabelSettings(twarn_ms=10))
    assert made.counted.sum() == 18 and made.positive.sum() == 5  # 30, 32, ... 38 ms
    assert made.read(np.arange(len(made)))["x"].shape == (len(made), 2, 6)


@pytest.mark.parametrize(
    "old, new, text",
    [
        ("7,0.020,0.020", "7,0.005,0.035", "shot 7: its rows must be in order of their times"),
        ("7,0.020,0.020", "7,0.020,0.050", "shot 7: time . time_until_disrupt goes from 40 to 70 ms"),
        ("8,0.010,,2,1,val", "8,0.010,,2,1,test", "shot 8 has split test, validation; must be one of"),
        ("8,0.000,,1,1,val\n8,0.010,,2,1,val", "8,0.000,,1,1,x", "shot 8 has split x"),
        ("time_until_disrupt", "until", "has no column time_until_disrupt; there are shot, time, until"),
        ("7,0.010,0.030,2,5", "7,0.010,0.030,two,5", "column ip is string, must be numbers"),
        ("7,0.010,0.030,2,5", "7,0.010,0.030,2,inf", "column beta has 1 values that are infinite"),
        (",train\n", ",test\n", "no shot is for training"),
        ("shot,", "shot;", "cannot be read|has no column shot"),
    ],
)
def test_a_wrong_table(path, old, new, text):
    path.write_text((HEADER + ROWS).replace(old, new))
    with pytest.raises(DataError, match=text):
        Table(path, 5.0)


def test_options_that_make_no_sense(path):
    with pytest.raises(UserError, match="dt_ms: must be above 0"):
        Table(path, 0.0)
    with pytest.raises(UserError, match="has no li; there are ip, beta"):
        Table(path, 1.0, ["ip", "li"])
    with pytest.raises(UserError, match="a table is .csv or .parquet"):
        Table(path.with_suffix(".txt"), 1.0)


def test_a_signal_without_values(path):
    rows = [line.split(",") for line in (HEADER + ROWS).splitlines()]
    path.write_text("\n".join(",".join([*row[:4], row[4] if i == 0 or row[5] != "train" else "", row[5]])
                              for i, row in enumerate(rows)) + "\n")  # fmt: skip
    with pytest.raises(DataError, match="beta has no value in any shot for training"):
        Table(path, 5.0)
