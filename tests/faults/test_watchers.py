"""Whoever watches does not matter: readers who leave, full disks for logs, terminals without umlauts, trackers."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import subprocess
import sys

import pytest
from support.runs import config, steps_saved
from support.toys import Toy

from accel_train import Trainer
from accel_train.cli import main
from accel_train.errors import UserError
from accel_train.system.output import Forgiving, forgiving
from accel_train.tracking.accelerate import _wandb_may_start
from accel_train.tracking.jsonl import Jsonl


class Broken(io.StringIO):
    """A stream that takes some writes and then none."""

    def __init__(self, error: Exception, good: int = 0):
        super().__init__()
        self.error, self.good = error, good

    def write(self, text):
        self.good -= 1
        if self.good < 0:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.good < 0:
            raise self.error


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.ENOSPC, "No space left"),
    ValueError("closed file"),
]


@pytest.mark.parametrize("good", [0, 3])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_run_whose_output_breaks(tmp_path, monkeypatch, error, good):
    monkeypatch.setattr(sys, "stdout", Broken(error, good))
    monkeypatch.setattr(sys, "stderr", Broken(error))
    result = Trainer(Toy(), **config(tmp_path)).fit()
    assert (result.outcome, result.saved) == ("completed", True) and steps_saved(tmp_path)[-1] == 24
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["title"].split(" and ")[0] for e in events if e["kind"] == "warning"] == ["Console failed"]
    assert isinstance(sys.stdout, Broken), "a caller's own stream is put back"


def test_what_an_encoding_lacks_is_escaped():
    raw = io.BytesIO()
    stream = Forgiving(io.TextIOWrapper(raw, encoding="ascii", newline="\n"))
    print("Läufe µ", file=stream, flush=True)
    assert raw.getvalue() == rb"L\xe4ufe \xb5" + b"\n" and stream.lost is None


def test_without_streams_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with forgiving():
        print("nobody hears this")
    assert sys.stdout is None


def test_a_program_whose_reader_leaves(tmp_path):
    """The exit code tells of the command, not of the pipe: no 120 of the interpreter's last flush, no traceback."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "accel_train", "tasks"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_disk_that_is_full_for_a_while(tmp_path, monkeypatch):
    """The observer goes on when there is room again; training never notices."""
    real, calls = Jsonl._append, []

    def append(self, record):
        calls.append(record["step"])
        if record["step"] in (5, 10):
            raise OSError(errno.ENOSPC, "No space left")
        real(self, record)

    monkeypatch.setattr(Jsonl, "_append", append)
    result = Trainer(Toy(), **config(tmp_path, eval_steps=0)).fit()
    assert result.saved and result.history["step"] == [15, 20, 24]
    titles = [json.loads(line)["title"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert titles == ["Jsonl failed and is tried again: OSError: [Errno 28] No space left"]


# -- exit codes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["checkpoint", "both"])
def test_exit_1_means_not_saved(tmp_path, monkeypatch, capsys, fails):
    from accel_train.run import checkpoint, weights

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_manifest", full)
    if fails == "both":
        monkeypatch.setattr(weights, "export_models", full)
    out = tmp_path / "run"
    arguments = [
        f"--{k}={json.dumps(v)}" for k, v in config(out, eval_steps=0, max_steps=3).items() if k != "output_dir"
    ]
    assert main(["train", "--task=support.toys.Toy", f"--output_dir={out}", *arguments]) == 1
    said, error = capsys.readouterr()
    assert "accel-train: completed, but not well: step 3 is NOT SAVED, there is no checkpoint" in error
    assert ("weights" in said) == (fails == "checkpoint") == (out / "model").is_dir()
    assert "evaluate  " not in said and "tensorboard" not in said
    assert "NOT SAVED" in json.loads((out / "status.json").read_text())["reason"]


@pytest.mark.parametrize("more", [{}, {"early_stopping_target": 100, "metric_for_best_model": "loss"}], ids=str)
def test_what_is_said_to_train_longer(tmp_path, capsys, more):
    """More steps, where it was the number of steps that ended it."""
    settings = config(tmp_path / "run", max_steps=6) | more
    arguments = [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in settings.items() if v is not None]
    assert main(["train", "--task=support.toys.Toy", *arguments]) == 0
    assert ("--max_steps=12" in capsys.readouterr().out) == (not more)


# -- trackers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wandb", "mlflow", "comet_ml", "clearml", "aim", "dvclive", "swanlab", "trackio"])
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, name):
    tracking = importlib.import_module("accelerate.tracking")
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [])
    with pytest.raises(UserError, match=rf"report_to: {name} is not installed here \(pip install {name}\)"):
        Trainer(Toy(), **config(tmp_path, report_to=[name])).fit()
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.fixture
def wandb(monkeypatch, tmp_path_factory):
    """A wandb that is installed, and behaves as it is told: in ``start``, ``log`` and ``finish``."""
    tracking = importlib.import_module("accelerate.tracking")
    accelerator = importlib.import_module("accelerate.accelerator")

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "wandb", False, False
        fails: dict[str, Exception] = {}
        options: list[dict[str, str]] = []

        def __init__(self, project, **options):
            super().__init__()
            self.run = None
            self.options.append(options)

        def _do(self, what):
            if what in self.fails:
                raise self.fails[what]

        tracker = property(lambda self: self.run)
        start = lambda self: self._do("start")  # noqa: E731
        store_init_configuration = lambda self, values: None  # noqa: E731
        log = lambda self, values, step=None, **more: self._do("log")  # noqa: E731
        finish = lambda self: self._do("finish")  # noqa: E731

    for module in (tracking, accelerator):
        monkeypatch.setattr(module, "LOGGER_TYPE_TO_CLASS", {"wandb": Tracker})
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.WANDB])
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    for variable in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Tracker, "fails", {})
    return Tracker


def test_a_tracker_that_is_not_logged_in(tmp_path, wandb):
    """One line, and the run is kept here: what only reports costs no run."""
    result = Trainer(Toy(), **config(tmp_path, report_to=["wandb"])).fit()
    assert result.outcome == "completed" and wandb.options[-1]["mode"] == "offline"
    assert (tmp_path / "events.jsonl").read_text().count("wandb is not logged in, so this run is kept in ./wandb") == 1


def test_a_tracker_that_cannot_start(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    wandb.fails = {"start": RuntimeError("permission denied"), "finish": AttributeError("run")}
    with pytest.raises(UserError, match="report_to: wandb cannot start: RuntimeError: permission denied"):
        Trainer(Toy(), **config(tmp_path, report_to=["wandb"])).fit()
    assert steps_saved(tmp_path) == []


def test_a_tracker_that_cannot_start_again_costs_no_run(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    Trainer(Toy(), **config(tmp_path, report_to=["wandb"], max_steps=6)).fit()
    wandb.fails = {"start": RuntimeError("no network")}
    result = Trainer(Toy(), **config(tmp_path, report_to=["wandb"])).fit()
    assert (result.outcome, result.saved, result.step) == ("completed", True, 24)
    assert (
        "wandb cannot start: RuntimeError: no network; the run goes on without"
        in (tmp_path / "events.jsonl").read_text()
    )


def test_a_run_is_one_run_of_its_tracker_until_it_starts_over(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.options = []
    for more in ({"max_steps": 6}, {}, {"max_steps": 6, "resume_from_checkpoint": "never"}):
        Trainer(Toy(), **config(tmp_path / "mine", report_to=["wandb"]) | more).fit()
    first, second, third = wandb.options
    assert first == second and (first["name"], first["resume"]) == ("mine", "allow")
    assert third["id"] != first["id"] and (tmp_path / "mine" / "tracker_id").read_text().strip() == third["id"]


@pytest.mark.parametrize("hook", ["log", "finish"])
def test_a_tracker_that_fails_later(tmp_path, wandb, monkeypatch, hook):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.fails = {hook: AttributeError("no such thing")}
    result = Trainer(Toy(), **config(tmp_path, report_to=["wandb"])).fit()
    assert (result.outcome, result.saved) == ("completed", True)
    assert "AttributeError: no such thing" in (tmp_path / "events.jsonl").read_text()


def test_where_wandb_keeps_its_login(tmp_path, wandb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not _wandb_may_start()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert _wandb_may_start()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not _wandb_may_start()
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    assert _wandb_may_start()
