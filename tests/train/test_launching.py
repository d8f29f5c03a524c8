"""Several processes from a notebook: stand-ins for the ranks show what becomes of them, and real ones the laws."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from support.processes import program, wait_for
from support.runs import ON_CPU, config
from support.toys import Toy

from accel_train import Observer, Trainer, load_exported
from accel_train.errors import UserError
from accel_train.system.waiting import StoppedError
from accel_train.train import launching
from accel_train.train.result import Result

RANK = """
import json, os, pathlib, signal, sys, time
rank, folder = int(os.environ["RANK"]), pathlib.Path({folder!r})
def end(state, code, **more):
    status = dict(task="toy", state=state, step=7, pid=os.getpid(), best=None, reason="", **more)
    if rank == 0:
        (folder / "status.json").write_text(json.dumps(status))
    sys.exit(code)
"""


@pytest.fixture
def ranks(tmp_path, monkeypatch):
    """Gives every rank this program instead of its own."""
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()

    def become(text: str) -> None:
        program = RANK.format(folder=str(tmp_path)) + text
        monkeypatch.setattr(launching, "_command", lambda config: [sys.executable, "-S", "-c", program, str(config)])

    return become


def fit(tmp_path, processes: int = 2, **settings) -> Result:
    return Trainer(Toy(), **config(tmp_path / "run", **settings)).fit(num_processes=processes)


def test_what_ranks_print_is_printed_and_the_result_is_read(tmp_path, ranks, capsys):
    ranks("""
print(f"rank {rank} of {os.environ['WORLD_SIZE']}")
record = {"kind": "eval", "step": 7, "epoch": 0, "phase": "all", "wall_time": 1.0, "loss": 0.5, "r": None}
(folder / "metrics.jsonl").write_text(json.dumps(record))
assert "class_path: support.toys.Toy" in pathlib.Path(sys.argv[1]).read_text()
end("completed", 0)
""")
    result = fit(tmp_path)
    assert sorted(capsys.readouterr().out.splitlines()) == ["rank 0 of 2", "rank 1 of 2"]
    assert (result.outcome, result.step, result.saved, result.metrics["loss"]) == ("completed", 7, True, 0.5)
    assert result.metrics["r"] != result.metrics["r"] and set(result.metrics) == {"loss", "r"}


def test_an_error_of_a_rank_is_one_line_here(tmp_path, ranks):
    ranks('print("accel-train: error: files: there is none", file=sys.stderr) if rank else None; sys.exit(2)')
    with pytest.raises(UserError, match="^files: there is none$"):
        fit(tmp_path)
    ranks("sys.exit(0)")
    with pytest.raises(RuntimeError, match="above"):
        fit(tmp_path)


def test_when_one_rank_is_gone_the_others_do_not_stay(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr(launching, "GRACE_S", 0.2)
    ranks("time.sleep(60 if rank == 0 else 0); sys.exit(1)")
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code -9"):
        fit(tmp_path)
    assert time.monotonic() - began < 20


WAITS = """
def stop(number, frame):
    end("stopped", 0) if {saves} else None
signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)
(folder / f"ready{{rank}}").write_text("")
time.sleep(60)
"""


def interrupt_when_ready(folder, times: int) -> None:
    def work() -> None:
        wait_for(lambda: len(list(folder.glob("ready*"))) == 2)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)

    threading.Thread(target=work, daemon=True).start()


def test_an_interrupt_of_the_cell_stops_the_ranks(tmp_path, ranks):
    ranks(WAITS.format(saves=True))
    interrupt_when_ready(tmp_path / "run", times=1)
    result = fit(tmp_path)
    assert (result.outcome, result.step, result.saved) == ("stopped", 7, True)


def test_the_second_interrupt_does_not_wait_for_them(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr(launching, "GRACE_S", 0.2)
    ranks(WAITS.format(saves=False))
    interrupt_when_ready(tmp_path / "run", times=2)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path)


def test_a_request_to_stop_reaches_them(tmp_path, ranks):
    ranks("print('accel-train: stopped while preparing', file=sys.stderr); time.sleep(60)")
    trainer = Trainer(Toy(), **config(tmp_path / "run"))
    trainer.request_stop("a test")
    with pytest.raises(StoppedError):
        trainer.fit(num_processes=2)


class Cell(Toy):
    """As a class that a notebook's cell has defined."""


def test_what_cannot_be_launched_is_said_in_a_line(tmp_path, monkeypatch):
    trainer = Trainer(Toy(), **config(tmp_path))
    with pytest.raises(UserError, match="num_processes: 0 is out of range"):
        trainer.fit(num_processes=0)
    with pytest.raises(UserError, match="num_processes: observers and on_step would hear nothing"):
        Trainer(Toy(), observers=[Observer()], **config(tmp_path)).fit(num_processes=2)
    monkeypatch.setattr(Cell, "__module__", "__main__")
    with pytest.raises(UserError, match="num_processes: Cell was made in a notebook .*; move it into a file"):
        Trainer(Cell(), **config(tmp_path)).fit(num_processes=2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="num_processes: this is one of 2 processes already"):
        trainer.fit(num_processes=2)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="num_processes: 2 is more than the 1 GPUs here"):
        trainer.fit(num_processes=2)


# -- real ones -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_the_run_of_one(tmp_path):
    """Up to rounding; and where it was stopped, one process goes on."""
    alone = Trainer(Toy(), **config(tmp_path / "alone")).fit()
    Trainer(Toy(), **config(tmp_path / "two", max_steps=12)).fit(num_processes=2)
    two = Trainer(Toy(), **config(tmp_path / "two")).fit(num_processes=2)
    assert two.metrics == pytest.approx(alone.metrics, rel=1e-5) and two.best == pytest.approx(alone.best, rel=1e-5)
    assert (two.outcome, two.step, two.saved) == ("completed", 24, True)
    assert two.history["eval_loss"] == pytest.approx(alone.history["eval_loss"], rel=1e-5)
    (one, of_one), (other, of_two) = (load_exported(result.output_dir / "model")[1:] for result in (alone, two))
    assert of_one["step"] == of_two["step"] == 24
    for name, weight in one["model"].state_dict().items():
        torch.testing.assert_close(other["model"].state_dict()[name], weight, rtol=1e-4, atol=1e-6)


SCRIPT = """
from support.toys import Toy
from accel_train import Trainer
trainer = Trainer(Toy(slow=0.2), output_dir={folder!r}, max_steps=500, global_batch_size=8, report_to=[])
print(trainer.fit(num_processes=2))
"""


@pytest.mark.slow
def test_an_interrupt_saves_as_in_one_process(tmp_path):
    started: subprocess.Popen[str] = program([sys.executable, "-c", SCRIPT.format(folder=str(tmp_path))], env=ON_CPU)
    wait_for(lambda: (tmp_path / "status.json").exists(), what="the beginning")
    time.sleep(2)
    started.send_signal(signal.SIGINT)
    out, _ = started.communicate(timeout=60)
    assert started.returncode == 0 and "by_signal=True, saved=True" in out and "outcome='stopped'" in out, out
