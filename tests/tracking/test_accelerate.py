"""Trackers of accelerate get one flat config and plain floats."""

import pytest

from accel_train.task import Task
from accel_train.tracking.accelerate import AccelerateTrackers, flatten
from accel_train.tracking.observer import Run


class ToyTask(Task):
    """Only its name is needed."""


def test_flatten():
    config = {
        "seed": 1,
        "lr": 0.5,
        "name": "a",
        "amp": True,
        "none": None,
        "empty": {},
        "phases": [{"length": "3ep"}, 7],
    }
    assert flatten(config) == {
        "seed": 1, "lr": 0.5, "name": "a", "amp": True, "none": "None", "empty": "{}",
        "phases.0.length": "3ep", "phases.1": 7,
    }  # fmt: skip
    assert flatten({}) == {}


def test_a_tracker_gets_the_config_and_plain_floats(tmp_path):
    np = pytest.importorskip("numpy")
    accelerate = pytest.importorskip("accelerate")
    tracking = pytest.importorskip("accelerate.tracking")

    class Memory(tracking.GeneralTracker):
        name = "memory"
        requires_logging_directory = False
        tracker = None

        def __init__(self):
            super().__init__()
            self.config, self.logged = None, []

        def store_init_configuration(self, values):
            self.config = values

        def log(self, values, step=None, **kwargs):
            self.logged.append((step, values))

    memory = Memory()
    observer = AccelerateTrackers(accelerate.Accelerator(cpu=True, log_with=memory))
    observer.on_start(Run(tmp_path, ToyTask(), {"a": {"b": tmp_path}}, {}, 10))
    observer.on_log({"kind": "train", "step": np.int64(2), "loss": np.float32(0.5), "phase": "main", "lr": 1e-3})
    observer.on_evaluate({"step": 2, "accuracy": np.int64(1)})
    assert memory.config == {"a.b": str(tmp_path)}
    assert memory.logged == [(2, {"train/loss": 0.5, "lr": 1e-3}), (2, {"eval/accuracy": 1.0})]
    assert all(type(v) is float for _, values in memory.logged for v in values.values())
    assert all(type(step) is int for step, _ in memory.logged)
