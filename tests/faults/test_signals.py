"""Stopped from outside: all ranks save the same step, leave with the right exit code, and resume to the same end."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from support.long_run import arguments, job, logged
from support.processes import Child, Team, launch, program, run, wait_for
from support.runs import assert_same_run, config, damaged, records, steps_saved, weights_files
from support.toys import Toy

from accel_train import Trainer, cli
from accel_train.commands import train as train_command
from accel_train.run import checkpoint, weights
from accel_train.run.saved import find_saved
from accel_train.system import waiting
from accel_train.system.signals import SIGNALS, caught
from accel_train.tracking.observer import Observer
from accel_train.train.agenda import GRACE_S
from accel_train.train.control import request
from accel_train.train.measuring import evaluate_saved


def status(folder) -> dict:
    path = Path(folder) / "status.json"
    return json.loads(path.read_text()) if path.exists() else {}


def goes_on(folder, whole, ranks, stopped_at):
    """Whole, saved at the step it stopped at, and bit for bit the same in the end."""
    assert damaged(folder) == [] and steps_saved(folder)[-1] == stopped_at
    assert 0 < stopped_at < 200
    results = run(job(folder), ranks)
    assert results[0]["outcome"] == "completed" and min(results[0]["samples"]) == stopped_at + 1
    assert_same_run(folder, whole(ranks))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_one_process(tmp_path, whole, number):
    child = Child(job(tmp_path, slow=0.005))
    wait_for(lambda: logged(tmp_path))
    os.kill(child.pid, number)
    result = child.result()
    child.kill()
    assert (result["error"], result["outcome"], result["by_signal"]) == (None, "stopped", True)
    assert signal.Signals(number).name in result["reason"]
    goes_on(tmp_path, whole, 1, result["step"])


@pytest.mark.parametrize("to", [[0], [1], [0, 1]], ids=["rank 0", "rank 1", "both"])
def test_two_ranks(tmp_path, whole, to):
    team = Team(2)
    try:
        members = team.start(job(tmp_path, slow=0.005))
        wait_for(lambda: logged(tmp_path))
        for rank in to:
            os.kill(members[rank].pid, signal.SIGTERM)
        results = [member.result() for member in members]
    finally:
        team.close()
    for result in results:
        assert (result["error"], result["outcome"], result["by_signal"]) == (None, "stopped", True)
        assert result["reason"] == "SIGTERM"
    assert len({result["step"] for result in results}) == 1
    goes_on(tmp_path, whole, 2, results[0]["step"])


def test_the_program_and_its_exit_code(tmp_path, whole):
    """The whole group is signalled, as a terminal and a scheduler do, loader processes included."""
    more = dict(num_workers=1, worker_type="process", requeue_exit_code=75, eval_steps=0, max_steps=2000)
    running = program([sys.executable, "-m", "accel_train", *arguments(tmp_path, 0.005, **more)])
    wait_for(lambda: logged(tmp_path))
    os.killpg(running.pid, signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 75, output
    assert "Traceback" not in output and "stopped at step" in output and "SIGTERM" in output
    assert status(tmp_path)["state"] == "stopped" and damaged(tmp_path) == []
    assert steps_saved(tmp_path) == [status(tmp_path)["step"]]


def test_the_second_interrupt_does_not_wait(tmp_path):
    running = program([sys.executable, "-m", "accel_train", *arguments(tmp_path, 20.0, num_workers=1)])
    assert running.stdout is not None
    assert any("asleep" in line for line in running.stdout), "the first step began"
    os.kill(running.pid, signal.SIGINT)
    time.sleep(0.5)
    assert running.poll() is None, "the first one waits for the end of the step"
    began = time.monotonic()
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=15)
    assert running.returncode == 130 and time.monotonic() - began < 10
    assert "interrupted" in output and "Traceback" not in output


@pytest.fixture
def alerts(monkeypatch):
    """Titles of the alerts that a server takes."""
    taken = []

    class Handler(http.server.BaseHTTPRequestHandler):
        log_message = lambda self, *arguments: None  # noqa: E731

        def do_POST(self):
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["embeds"][0]["title"])
            self.send_response(204)
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("ACCEL_TRAIN_WEBHOOK_URL", f"http://127.0.0.1:{server.server_port}/")
        yield taken
        server.shutdown()


def signalled_in(monkeypatch, owner, name):
    """A signal comes while this is done for the first time, which goes on once nobody waits any more."""
    real, done = getattr(owner, name), []

    def signalled(*arguments, **named):
        if not done:
            done.append(os.kill(os.getpid(), signal.SIGTERM))
            wait_for(waiting.given_up)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, signalled)


@pytest.mark.parametrize("during", ["a checkpoint", "the closing export"])
def test_while_it_writes(tmp_path, whole, monkeypatch, alerts, during):
    """What was begun is finished, and whoever watches from afar hears of it."""
    folder, copy = tmp_path / "run", tmp_path / "copy"
    if during == "a checkpoint":
        signalled_in(monkeypatch, checkpoint, "write_manifest")
    else:
        signalled_in(monkeypatch, weights, "export_models")
    watched = dict(save_steps=20, report_to=["tensorboard"], tb_sync_to=str(copy), tb_sync_interval=3600)
    evaluated = {} if during == "a checkpoint" else {"eval_steps": 0}
    (result,) = run(job(folder, **watched | evaluated))
    assert result["error"] is None and not waiting.given_up()
    step, ending = result["step"], "stopped" if during == "a checkpoint" else "completed"
    assert (result["outcome"], result["by_signal"], status(folder)["state"]) == (ending, ending == "stopped", ending)
    assert alerts == ["started", ending]
    written = {file.name: file.read_bytes() for file in (folder / "tensorboard").rglob("*tfevents*")}
    assert written and {file.name: file.read_bytes() for file in copy.rglob("*tfevents*")} == written
    if ending == "stopped":
        assert 20 <= step <= 30, "the step after the checkpoint, or the next log line"
        goes_on(folder, whole, 1, step)
    else:
        assert step == 200 and damaged(folder) == [] and weights_files(folder)


def test_a_process_that_goes_on_after_a_stop(tmp_path):
    """As a notebook does: data can be read again, and the same trainer goes on or is stopped once more."""

    class Interrupting(Observer):
        def on_log(self, record):
            if record["step"] == 10:
                os.kill(os.getpid(), signal.SIGINT)
                wait_for(waiting.given_up)

    trainer = Trainer(Toy(), observers=[Interrupting()], **config(tmp_path, max_steps=40))
    handlers = [signal.getsignal(number) for number in SIGNALS]
    first = trainer.fit()
    assert (first.outcome, first.reason, first.by_signal) == ("stopped", "SIGINT", True)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers and not (tmp_path / "run.lock").exists()
    assert set(evaluate_saved(find_saved(tmp_path, "latest", [], True), "validation", None, None).metrics) == {"loss"}
    trainer.request_stop("once more")
    second = trainer.fit()
    assert (second.outcome, second.reason, second.by_signal) == ("stopped", "once more", False)
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.append(trainer.fit()))
    thread.start()
    thread.join()
    assert (in_thread[0].outcome, in_thread[0].step) == ("completed", 40)


def test_two_interrupts_in_a_process_that_goes_on(tmp_path):
    """Nothing is saved, and nothing is left behind that a next run would meet."""

    class Impatient(Observer):
        def on_log(self, record):
            if record["step"] == 10:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        Trainer(Toy(), observers=[Impatient()], **config(tmp_path)).fit()
    assert steps_saved(tmp_path) == [6] and not (tmp_path / "run.lock").exists() and not waiting.given_up()
    assert status(tmp_path)["reason"] == "interrupted; the last checkpoint is of step 6"
    assert Trainer(Toy(), **config(tmp_path)).fit().outcome == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_it_prepares(tmp_path, number):
    folder, mark = tmp_path / "run", tmp_path / "mark"
    task = ["--task=support.toys.SlowToPrepare", f"--task.init_args.mark={mark}"]
    more = [f"--output_dir={folder}", "--max_steps=5", "--requeue_exit_code=75"]
    running = program([sys.executable, "-m", "accel_train", "train", *task, *more])
    wait_for(mark.exists)
    running.send_signal(number)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 75 and not folder.exists()
    assert output == f"accel-train: stopped while preparing ({number.name}); nothing was trained\n"


def test_before_the_config_is_read(tmp_path, monkeypatch, capsys):
    """Only then is it known with which code to end."""
    read = train_command.parse
    monkeypatch.setattr(train_command, "parse", lambda given: os.kill(os.getpid(), signal.SIGUSR1) or read(given))
    handlers = [signal.getsignal(number) for number in SIGNALS]
    assert cli.main([*arguments(tmp_path / "run", 0.0, requeue_exit_code=75)]) == 75
    assert "stopped while preparing (SIGUSR1)" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_a_hangup_that_is_to_be_ignored_is():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with caught() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_while_nothing_can_be_interrupted(tmp_path):
    """As in a library that does not return: the main thread never gets to its handler."""
    code = (
        "import ctypes, signal\n"
        "from accel_train.system.signals import caught\n"
        "with caught(program=True):\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "    print('ready', flush=True)\n"
        "    while True: ctypes.CDLL(None).sleep(60)\n"
    )
    running = program([sys.executable, "-c", code])
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 130 and output == "accel-train: interrupted\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_the_launcher(tmp_path, whole, processes):
    """SIGTERM to ``accelerate launch`` alone; what it returns is its own business."""
    running = launch(processes, *arguments(tmp_path, 0.01))
    wait_for(lambda: logged(tmp_path))
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    wait_for(lambda: status(tmp_path).get("state") == "stopped", 30, f"a clean stop: {output[-2000:]}")
    wait_for(lambda: status(tmp_path)["step"] in steps_saved(tmp_path), 10)
    goes_on(tmp_path, whole, processes, status(tmp_path)["step"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_whole_group_of_a_launch(tmp_path, whole, number):
    running = launch(2, *arguments(tmp_path, 0.01))
    wait_for(lambda: logged(tmp_path))
    os.killpg(running.pid, number)
    running.communicate(timeout=60)
    wait_for(lambda: status(tmp_path).get("state") == "stopped", 30)
    goes_on(tmp_path, whole, 2, status(tmp_path)["step"])


@pytest.mark.parametrize("ranks", [1, 2])
def test_stop_file(tmp_path, whole, ranks, capsys):
    team = Team(ranks)
    try:
        members = team.start(job(tmp_path, slow=0.005)) if ranks > 1 else [Child(job(tmp_path, slow=0.005))]
        wait_for(lambda: logged(tmp_path))
        assert cli.main(["stop", str(tmp_path)]) == 0
        probes = 0
        while not members[0].ready(0.005):
            assert status(tmp_path)["state"] in ("running", "stopped")  # whole JSON at every moment
            assert cli.main(["status", str(tmp_path)]) == 0
            probes += 1
        results = [member.result() for member in members]
    finally:
        team.close()
    for result in results:
        assert (result["outcome"], result["by_signal"]) == ("stopped", False)
        assert result["step"] == results[0]["step"]
    assert probes and "accel-train stop" in results[0]["reason"]
    assert not (tmp_path / "control" / "stop").exists()
    goes_on(tmp_path, whole, ranks, results[0]["step"])


def test_save_file(tmp_path):
    child = Child(job(tmp_path, slow=0.005, max_steps=2000, eval_steps=0))
    wait_for(lambda: logged(tmp_path))
    assert cli.main(["save", str(tmp_path)]) == 0
    (step,) = wait_for(lambda: steps_saved(tmp_path))
    before = len(records(tmp_path))
    wait_for(lambda: len(records(tmp_path)) > before, what="going on after it")
    child.kill()
    assert damaged(tmp_path) == [] and step > 0


def test_an_old_stop_file_stops_nothing(tmp_path):
    run(job(tmp_path) | {"stop_at": {"step": 20}})
    request(tmp_path, "stop")
    assert run(job(tmp_path))[0]["outcome"] == "completed"


def test_max_time(tmp_path, whole):
    began = time.monotonic()
    (result,) = run(job(tmp_path, slow=0.02, max_time="3s"))
    assert time.monotonic() - began < 3 and (result["outcome"], result["reason"]) == ("stopped", "max_time")
    assert steps_saved(tmp_path)[-1] == result["step"]
    goes_on(tmp_path, whole, 1, result["step"])


def test_the_end_of_a_slurm_job(tmp_path, whole, monkeypatch):
    """Without any signal, and with the exit code of one."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", f"{time.time() + GRACE_S + 3:.0f}")
    (result,) = run(job(tmp_path, slow=0.02))
    assert (result["outcome"], result["reason"], result["by_signal"]) == ("stopped", "SLURM_JOB_END_TIME", True)
    assert steps_saved(tmp_path)[-1] == result["step"]
    monkeypatch.undo()
    goes_on(tmp_path, whole, 1, result["step"])


@pytest.mark.slow
def test_max_time_on_two_ranks(tmp_path, whole):
    results = run(job(tmp_path, slow=0.02, max_time="3s"), 2)
    assert {(r["outcome"], r["reason"], r["step"]) for r in results} == {("stopped", "max_time", results[0]["step"])}
    goes_on(tmp_path, whole, 2, results[0]["step"])
    assert weights_files(tmp_path)
