"""metrics.jsonl: valid whatever is logged, and after a resume the history of a run that was never interrupted."""

import json

import numpy as np
import pytest

from accel_train.task import Event, Task
from accel_train.tracking.jsonl import EventLog, Jsonl, histories
from accel_train.tracking.observer import Run


def start(folder, step=0, resumed=False) -> Jsonl:
    observer = Jsonl()
    run = Run(folder, Task(), {}, {}, 100, start_step=step, resumed_from="checkpoints/x" if resumed else None)
    observer.on_start(run)
    return observer


def log(observer: Jsonl, steps) -> None:
    for step in steps:
        observer.on_log({"kind": "train", "step": step, "phase": "main", "loss": np.float32(step / 8)})


def read(folder) -> list[dict]:
    def refuse(text):
        raise ValueError(f"not JSON: {text}")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_line_is_on_disk_at_once(tmp_path):
    observer = start(tmp_path)
    log(observer, [1])
    assert read(tmp_path) == [{"kind": "train", "step": 1, "phase": "main", "loss": 0.125}]
    observer.on_end("completed", {})


def test_not_finite_is_null_and_named(tmp_path):
    observer = start(tmp_path)
    observer.on_log({"kind": "train", "step": 1, "loss": float("nan"), "next": np.float32("inf"), "n": np.int64(3)})
    observer.on_end("crashed", {})
    assert read(tmp_path) == [
        {"kind": "train", "step": 1, "loss": None, "next": None, "n": 3, "non_finite": ["loss", "next"]}
    ]
    assert json.loads((tmp_path / "metrics.json").read_text())["loss"] == [None]


@pytest.mark.parametrize(
    "torn", ["", '{"kind": "train", "st', '{"kind": "train", "step": 5, "loss": 1', '"x"', "\0\0\0"]
)
def test_a_resumed_history_is_that_of_an_uninterrupted_run(tmp_path, torn):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    observer = start(whole)
    log(observer, range(1, 9))
    observer.on_end("completed", {})

    log(first := start(killed), range(1, 7))
    assert first._file is not None
    first._file.write(torn)  # and then the process is gone
    first._file.close()
    again = start(killed, step=4, resumed=True)
    log(again, range(5, 9))
    again.on_end("completed", {})

    for name in ("metrics.jsonl", "metrics.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(p.name for p in killed.iterdir()) == ["metrics.json", "metrics.jsonl"]


def test_a_whole_last_line_without_newline_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    observer = start(tmp_path, step=2, resumed=True)
    log(observer, [3])
    observer.on_end("completed", {})
    assert [r["step"] for r in read(tmp_path)] == [1, 2, 3]


def test_resuming_at_step_0_keeps_it_and_starting_afresh_does_not(tmp_path):
    observer = start(tmp_path)
    observer.on_evaluate({"step": 0, "loss": 1.0})
    observer.on_end("stopped", {})
    start(tmp_path, step=0, resumed=True).on_end("stopped", {})
    assert len(read(tmp_path)) == 1
    start(tmp_path).on_end("stopped", {})
    assert read(tmp_path) == []


def test_an_untouched_file_is_not_rewritten(tmp_path):
    log(observer := start(tmp_path), [1, 2])
    observer.on_end("stopped", {})
    before = (tmp_path / "metrics.jsonl").stat()
    start(tmp_path, step=2, resumed=True).on_end("stopped", {})
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_histories_are_plain_lists_of_equal_length(tmp_path):
    observer = start(tmp_path)
    observer.on_log({"kind": "train", "step": 10, "loss": 2.0})
    observer.on_evaluate({"kind": "eval", "step": 10, "loss": 3.0, "accuracy": 0.5})
    observer.on_log({"kind": "train", "step": 20, "loss": 1.0, "extra": 4.0})
    expected = {
        "step": [10, 20], "loss": [2.0, 1.0], "extra": [None, 4.0],
        "eval_step": [10], "eval_loss": [3.0], "eval_accuracy": [0.5],
    }  # fmt: skip
    assert histories(tmp_path / "metrics.jsonl") == expected
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == [10], "written by the evaluation"
    observer.on_end("completed", {})
    assert json.loads((tmp_path / "metrics.json").read_text()) == expected


def test_slow_histories_are_not_written_at_every_evaluation(tmp_path, monkeypatch):
    observer = start(tmp_path)
    clock = iter([100.0, 102.0, 150.0, 210.0, 210.0])
    monkeypatch.setattr("accel_train.tracking.jsonl.time.monotonic", lambda: next(clock))
    for step in (1, 2, 3):  # the first takes two seconds, so the second is too early
        observer.on_evaluate({"step": step, "loss": 1.0})
        written = json.loads((tmp_path / "metrics.json").read_text())["eval_step"]
        assert written == {1: [1], 2: [1], 3: [1, 2, 3]}[step]
    monkeypatch.undo()
    observer.on_end("completed", {})


def test_events_are_a_diary(tmp_path):
    observer = EventLog()
    observer.on_event(Event("warning", "too early to be written"))
    for step in (0, 5):
        observer.on_start(Run(tmp_path, Task(), {}, {}, 100, start_step=step))
        observer.on_event(Event("anomaly", f"at {step}", {"error": float("nan"), "n": np.int64(step)}))
        observer.on_end("completed", {})
    observer.on_event(Event("warning", "at the very end"))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["title"] for line in lines] == ["at 0", "at 5", "at the very end"]
    assert lines[1]["fields"] == {"error": None, "n": 5, "non_finite": ["error"]}
    assert lines[0]["kind"] == "anomaly" and lines[0]["wall_time"] <= lines[1]["wall_time"]
