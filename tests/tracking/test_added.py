"""What an observer adds to the logs of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from support.probe import EventRecorder
from support.runs import assert_same_run, config
from support.toys import Toy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from accel_train import Observer, Trainer
from accel_train.errors import UserError
from accel_train.tracking.jsonl import histories


class Adds(Observer):
    def on_start(self, run):
        self.run = run

    def on_evaluate(self, record):
        step = record["step"]
        self.run.add("mine/double", np.float32(2 * step), step)
        self.run.add("mine/note", f"step {step}", step)
        self.run.add("mine/grey", torch.rand(4, 6), step)
        self.run.add("mine/colour", np.zeros((4, 6, 3), np.uint8), step)
        self.run.add("mine/figure", Figure(), step)


def fit(folder, *observers, stop_at=0, **settings):
    """Until soon after the step ``stop_at``, if that is given."""
    recorder = EventRecorder()

    def on_step(step):
        if step.number == stop_at:
            trainer.request_stop("test")

    trainer = Trainer(Toy(), observers=[*observers, recorder], on_step=on_step, **config(folder, **settings))
    trainer.fit()
    return [title for kind, title in recorder.events if kind in ("warning", "note")]


def test_every_log_has_what_it_can_hold(tmp_path):
    assert fit(tmp_path, Adds(), report_to=["tensorboard"]) == []
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("mine/double")] == [(s, 2 * s) for s in (6, 12, 18, 24)]
    assert {"mine/grey", "mine/colour", "mine/figure"} <= set(events.Tags()["images"])
    assert "mine/note/text_summary" in events.Tags()["tensors"]
    lists = histories(tmp_path / "metrics.jsonl")
    doubled = [value for value in lists["own_mine/double"] if value is not None]
    assert doubled == [12, 24, 36, 48] and "step 24" in lists["own_mine/note"]
    assert len(lists["own_step"]) == 8 and len(lists["step"]) == 5 and len(lists["eval_step"]) == 4
    assert "own_mine/double" in json.loads((tmp_path / "metrics.json").read_text())


def test_a_stopped_run_has_the_same_lines(tmp_path):
    fit(tmp_path / "whole", Adds(), report_to=["tensorboard"])
    for stop_at in (4, 13, 0):
        fit(tmp_path / "pieces", Adds(), report_to=["tensorboard"], stop_at=stop_at)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


def test_images_without_tensorboard_are_missed_once(tmp_path):
    assert fit(tmp_path, Adds()) == ["no log shows the image 'mine/grey': report_to has neither tensorboard nor wandb"]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("x", None, "'x' is neither a number, a text, a figure nor an image"),
        ("x", [1, 2], "'x' is neither a number"),
        ("step", 1.0, "'step' cannot be the name"),
    ],
)
def test_a_wrong_value_costs_the_observer_and_no_run(tmp_path, name, value, said):
    class Wrong(Observer):
        def on_start(self, run):
            self.run = run

        def on_evaluate(self, record):
            self.run.add(name, value, record["step"])

    (warning,) = fit(tmp_path, Wrong())
    assert warning.startswith("Wrong failed and is switched off") and said in warning


def test_the_logs_are_closed_at_the_end(tmp_path):
    class Late(Adds):
        def on_end(self, outcome, status):
            self.run.add("late", 1.0, 24)

    assert any("the logs are open from on_start to on_end" in said for said in fit(tmp_path, Late()))


def test_what_is_no_observer_is_refused(tmp_path):
    with pytest.raises(UserError, match="observers: got the class Adds; give an instance"):
        Trainer(Toy(), observers=[Adds], **config(tmp_path))
