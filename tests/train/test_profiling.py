"""A profile of some steps is there afterwards, and changes nothing; a limited evaluation is of the first batches."""

import json

import pytest
from support.runs import assert_same_run, config
from support.toys import Toy

from accel_train import Trainer
from accel_train.errors import UserError
from accel_train.plan import parse_steps
from accel_train.tracking.jsonl import histories


def trained(folder, **settings):
    return Trainer(Toy(dropout=0.5), **config(folder, **settings)).fit()


def test_a_trace_that_perfetto_opens(tmp_path):
    trained(tmp_path / "with", profile_steps="3:4")
    trained(tmp_path / "without")
    assert_same_run(tmp_path / "with", tmp_path / "without")
    (path,) = (tmp_path / "with" / "profile").iterdir()
    assert path.name == "steps-3-4-rank0.json"
    events = json.loads(path.read_text())["traceEvents"]
    linear = [event for event in events if event.get("name") == "aten::linear" and event["ph"] == "X"]
    assert len(linear) >= 4 and all(event["dur"] >= 0 for event in linear)  # two layers, two steps
    assert "ui.perfetto.dev" in (tmp_path / "with" / "events.jsonl").read_text()
    assert not (tmp_path / "without" / "profile").exists()


@pytest.mark.parametrize(("steps", "there"), [("24:99", True), ("25:26", False)])
def test_the_run_may_end_first(tmp_path, steps, there):
    trained(tmp_path / "run", profile_steps=steps)
    assert (tmp_path / "run" / "profile").is_dir() == there


def test_a_run_that_goes_on_profiles_what_is_left(tmp_path):
    trained(tmp_path / "run", max_steps=5)
    trained(tmp_path / "run", profile_steps="2:7")
    assert [path.name for path in (tmp_path / "run" / "profile").iterdir()] == ["steps-2-7-rank0.json"]


def test_a_profiler_that_fails_costs_no_run(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("no counters here")

    monkeypatch.setattr("torch.profiler.profile", refuse)
    assert trained(tmp_path / "run", profile_steps="3:4").outcome == "completed"
    assert (
        "profile failed and is left out: RuntimeError: no counters here" in (tmp_path / "run/events.jsonl").read_text()
    )


@pytest.mark.parametrize("text", ["3", "a:b", "5:4", "0:3", "-1:3", "3:4:5"])
def test_what_are_no_steps(text):
    with pytest.raises(UserError, match="^profile_steps: "):
        Trainer(Toy(), max_steps=1, profile_steps=text)


def test_steps():
    assert parse_steps(" 10 : 15 ", "x") == (10, 15)


def test_an_evaluation_of_the_first_batches(tmp_path):
    losses = {}
    for limit in (1, 2, 3, None):
        trained(tmp_path / f"run{limit}", limit_eval_batches=limit)
        losses[limit] = histories(tmp_path / f"run{limit}" / "metrics.jsonl")["eval_loss"]
    assert losses[3] == losses[None]  # 21 items are three batches of 8
    assert losses[1] != losses[2] != losses[3]
