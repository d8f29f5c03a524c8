"""Lists of shots: what meta.csv and the 9-column lists say, who wins, and what is left out and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from accel_train.errors import DataError, UserError
from accel_train.tasks.tcn.lists import find, read_list, read_meta
from accel_train.tasks.tcn.shots import split_of

HEADER = "# Shot segments tstart tlast dt SNR tflat dflat tdisrupt\n"


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Empty files: nothing is opened here."""
    for name, numbers in (("disrupt", (10, 11, 12)), ("clear", (9, 20, 100))):
        (tmp_path / name).mkdir()
        for number in numbers:
            (tmp_path / name / f"{number}.h5").touch()
    (tmp_path / "disrupt" / "meta.csv").write_text("shot,split,t_disruption\n10,train,500\n11,val,600.5\n12,test,700\n")
    return tmp_path / "disrupt", tmp_path / "clear"


def write(path: Path, *rows: str) -> Path:
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_meta_csv_for_one_class_and_nothing_for_the_other(folders):
    found = find(*folders)
    assert [entry.number for entry in found.entries] == [9, 10, 11, 12, 20, 100]
    assert [entry.split for entry in found.entries if entry.disruptive] == ["train", "validation", "test"]
    assert [entry.t_disruption_ms for entry in found.entries if entry.disruptive] == [500, 600.5, 700]
    assert all(entry.split == split_of(entry.number) for entry in found.entries if not entry.disruptive)
    assert found.left_out == []


def test_the_end_of_a_segment(folders):
    (folders[0] / "meta.csv").write_text("shot, t_disruption, t_segment_end\n10,500,450\n11,600,\n12,700,nan\n")
    ends = [entry.stop_ms for entry in find(folders[0], None).entries]
    assert ends == [450, None, None]


def test_shot_lists(folders, tmp_path):
    disrupt = write(tmp_path / "d.txt", "10 1 -50 501 0.001 4 100 380 500", "11 1 -50 600 0.001 9 NaN NaN 600")
    clear = write(tmp_path / "c.txt", "9 2 -50 900 0.001 4 100 700 -1000", "77 1 -50 900 0.001 4 100 900 -1000")
    (folders[0] / "meta.csv").unlink()
    found = find(*folders, disrupt, clear)
    assert [(entry.number, entry.start_ms, entry.stop_ms) for entry in found.entries] == [
        (9, 0, 900), (10, 0, 500), (11, 0, 600)
    ]  # fmt: skip
    assert {(entry.t0_ms, entry.dt_ms) for entry in found.entries} == {(-50, 0.001)}
    reasons = [line.rpartition("/")[2] if "no such" in line else line.partition(": ")[2] for line in found.left_out]
    assert len(reasons) == 4 and sum("not in" in reason for reason in reasons) == 3
    assert "77.h5: no such file" in found.left_out[-1]


def test_the_flattop_alone(folders, tmp_path):
    disrupt = write(tmp_path / "d.txt", "10 1 -50 501 0.001 4 100 380 500", "11 1 -50 600 0.001 9 NaN NaN 600.5")
    clear = write(tmp_path / "c.txt", "9 2 -50 900 0.001 4 100 700 -1000", "20 1 -50 900 0.001 4 100 900 -1000")
    found = find(*folders, disrupt, clear, flattop_only=True)
    assert [(entry.number, entry.start_ms, entry.stop_ms) for entry in found.entries] == [
        (9, 100, 800), (10, 100, 500), (20, 100, 900)
    ]  # fmt: skip
    assert sum("has no flattop" in line for line in found.left_out) == 1
    with pytest.raises(UserError, match="only a shot list says when the flattop is"):
        find(*folders, flattop_only=True)


def test_two_sources_that_disagree(folders, tmp_path):
    lists = write(tmp_path / "d.txt", *(f"{n} 1 -50 800 0.001 4 100 380 {t}" for n, t in ((10, 500.4), (11, 650))))
    with pytest.raises(DataError, match="shot 11: the shot list says it disrupts at 650 ms, meta.csv at 600.5 ms"):
        find(*folders, lists)


def test_the_list_gives_times_and_meta_the_split(folders, tmp_path):
    lists = write(tmp_path / "d.txt", "10 1 -50 800 0.01 4 100 380 500.4", "12 1 -50 800 0.01 4 100 380 700")
    first, second = find(folders[0], None, lists).entries
    assert (first.t_disruption_ms, first.split, second.split, first.dt_ms) == (500.4, "train", "test", 0.01)


def test_a_shot_of_both_classes(folders):
    (folders[1] / "10.h5").touch()
    with pytest.raises(DataError, match="disruptive and clear shots: shot 10 is there more than once"):
        find(*folders)


def test_rows_and_files_that_have_no_other_half(folders):
    (folders[0] / "meta.csv").write_text("shot,t_disruption\n10,500\n13,600\n")
    (folders[0] / "notes.h5").touch()
    found = find(folders[0], None)
    assert [entry.number for entry in found.entries] == [10]
    assert [line.partition(": ")[2].split("/")[0].strip() for line in found.left_out][:1] == [
        "its name is no shot number"
    ]
    assert sum("not in" in line for line in found.left_out) == 2 and "13.h5: no such file" in found.left_out[-1]


def test_nothing_there(tmp_path, folders):
    (folders[0] / "meta.csv").unlink()
    with pytest.raises(UserError, match="nothing says when its shots disrupt"):
        find(*folders)
    with pytest.raises(UserError, match="no such folder"):
        find(tmp_path / "x", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no shots in .*empty"):
        find(None, tmp_path / "empty")
    with pytest.raises(UserError, match="a shot list needs the folder of its files"):
        find(None, folders[1], disrupt_list=tmp_path / "d.txt")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column shot; there are none"),
        ("shot,split\n1,train\n", "no column t_disruption; there are shot, split"),
        ("shot,t_disruption\nx,5\n", "line 2: shot is 'x', must be a number"),
        ("shot,t_disruption\n1,\n", "line 2: t_disruption is '', must be a number above 0"),
        ("shot,t_disruption\n1,5\n1,5\n", "line 3: shot 1 is there for the second time"),
        ("shot,t_disruption,split\n1,5,trian\n", "line 2: split is 'trian', must be train, val or test"),
        ("shot,t_disruption,t_last\n1,5,soon\n", "line 2: t_last is 'soon'"),
        ("shot,t_disruption\n1\n", "line 2: t_disruption is None"),
    ],
)
def test_a_wrong_meta_csv(tmp_path, text, message):
    (tmp_path / "meta.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_meta(tmp_path / "meta.csv", disruptive=True)


@pytest.mark.parametrize(
    "row, message",
    [
        ("1 5.0", "line 2: has 2 columns, not 9"),
        (
            "1 1 -50 800 0.001 4 100 380 -1000",
            "line 2: shot 1 is clear .tdisrupt -1000., in a list of disruptive shots",
        ),
        ("1 1 -50 nan 0.001 4 100 380 500", "line 2: column 3 is 'nan', must be a number"),
        ("1 1 -50 800 0.001 4 100 380 500\n1 1 -50 800 0.001 4 100 380 500", "line 3: shot 1 is there for the second"),
    ],
)
def test_a_wrong_shot_list(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_list(write(tmp_path / "d.txt", row), disruptive=True, flattop_only=False)


def test_a_disruption_in_the_list_of_clear_shots(tmp_path):
    row = write(tmp_path / "c.txt", "1 1 -50 800 0.001 4 100 380 500")
    with pytest.raises(DataError, match="shot 1 disrupts at 500 ms, in a list of not disruptive shots"):
        read_list(row, disruptive=False, flattop_only=False)
