"""Trackers of accelerate get one flat config and plain floats."""

import sys
from types import SimpleNamespace

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
    assert memory.config == {"a.b": str(tmp_path), "run_folder": str(tmp_path.resolve())}
    assert memory.logged == [(2, {"train/loss": 0.5, "lr": 1e-3}), (2, {"eval/accuracy": 1.0})]
    assert all(type(v) is float for _, values in memory.logged for v in values.values())
    assert all(type(step) is int for step, _ in memory.logged)


def test_trackio_goes_on_with_the_run_that_it_had(tmp_path, monkeypatch):
    """Its stand-in is told a name that is this run's alone."""
    accelerate, tracking = pytest.importorskip("accelerate"), pytest.importorskip("accelerate.tracking")
    told, logged = [], []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    stand_in = SimpleNamespace(init=lambda **options: told.append(options) or run, config={})
    stand_in.config = SimpleNamespace(update=lambda values, allow_val_change: None)
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.TRACKIO])
    (tmp_path / "mine").mkdir()
    for resumed_from in (None, "a checkpoint", None):
        observer = AccelerateTrackers(accelerate.Accelerator(cpu=True, log_with="trackio"))
        observer.on_start(Run(tmp_path / "mine", ToyTask(), {}, {}, 10, resumed_from=resumed_from))
        observer.on_log({"kind": "train", "step": 3, "loss": 0.5})
        observer.on_figures(3, {"a": object()})  # which it does not take
    names = [each.pop("name") for each in told]
    assert told == [{"project": "toy", "resume": "allow"}] * 3 and logged == [(3, {"train/loss": 0.5})] * 3
    assert names[0] == names[1] != names[2] and all(name.startswith("mine-") for name in names)


@pytest.mark.slow
def test_figures_are_images_of_wandb(tmp_path, monkeypatch):
    """W&B itself, offline: two sessions of one run, with the picture that the task drew."""
    pytest.importorskip("wandb")
    matplotlib = pytest.importorskip("matplotlib.figure")
    from support.runs import config
    from support.toys import Toy

    from accel_train import Trainer

    class Drawn(Toy):
        def figures(self, metrics, sums):
            return {"mine": matplotlib.Figure()}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in (6, 12):
        result = Trainer(Drawn(), **config("runs/first", report_to=["wandb"], max_steps=steps)).fit()
        assert result.step == steps
    own = (tmp_path / "runs/first/tracker_id").read_text().strip()
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2 and all(each.name.endswith(own) for each in sessions)
    assert all(list(each.glob("files/media/images/figures/mine_*.png")) for each in sessions)
    assert not list((tmp_path / "runs/first").glob("errors/*"))
