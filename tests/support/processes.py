"""Processes to run jobs in: one that may be killed, teams of ranks, launched programs.

Jobs run in processes forked from a server that has imported torch already, which makes a start cost a few milliseconds.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist
from accelerate.state import AcceleratorState

from support.probe import train
from support.runs import ON_CPU, steps_saved

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
IMPORTED_LATE = [
    "torch._dynamo",
    *(f"accel_train.tracking.{n}" for n in ("console", "jsonl", "status")),
]
"""What a run imports on its way, a second or two; the server has it already."""


def _python_path() -> str:
    return os.pathsep.join(
        [str(TESTS), str(ROOT), str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    )


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.processes", *IMPORTED_LATE])
    with mock.patch.dict(os.environ, ON_CPU | {"PYTHONPATH": _python_path()}):
        forkserver.ensure_running()
    return context


def alone(function: Callable[..., Any], *arguments: Any, timeout: float = 200.0) -> None:
    """Call it in a process of its own, which must end well."""
    process = _context().Process(target=function, args=arguments)
    process.start()
    process.join(timeout)
    process.kill()
    assert process.exitcode == 0


class Child:
    """One training in a process of its own, which may be signalled or killed. Several make a world of ranks."""

    def __init__(self, job: dict[str, Any], rank: int = 0, world_size: int = 1, meeting: str = "") -> None:
        context = _context()
        self._mine, theirs = context.Pipe()
        arguments = (theirs, rank, world_size, meeting)
        self.process = context.Process(target=_serve, args=arguments)
        self.process.start()  # not a daemon: those may have no loader processes of their own
        atexit.register(self.process.kill)
        theirs.close()
        self._mine.send(job)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, job: dict[str, Any] | None) -> None:
        self._mine.send(job)

    def ready(self, timeout: float = 0.0) -> bool:
        return self._mine.poll(timeout)

    def result(self, timeout: float = 60.0) -> dict[str, Any]:
        if not self._mine.poll(timeout):
            self.kill()
            raise TimeoutError("the run hangs")
        answer = self._mine.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.join(10)

    def alive(self) -> bool:
        return self.process.is_alive()


def _serve(pipe, rank: int, world_size: int, meeting: str) -> None:
    """Run jobs until None comes."""
    os.environ.update(ON_CPU)
    if world_size > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT="29500")  # fmt: skip
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size,
            timeout=datetime.timedelta(seconds=40),
        )  # fmt: skip
    with open(os.devnull, "w") as quiet, contextlib.suppress(EOFError):
        while (job := pipe.recv()) is not None:
            with contextlib.redirect_stdout(None if job.get("loud") else quiet):
                try:
                    answer = train(job)
                except BaseException:
                    answer = traceback.format_exc()
            pipe.send(answer)
            if job.get("leave"):  # as a program does after an error
                os._exit(1 if isinstance(answer, str) or answer["error"] else 0)


class Team:
    """Ranks that talk through gloo and run one job after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.members: list[Child] = []
        self._folder = ""

    def start(self, *jobs: dict[str, Any]) -> list[Child]:
        """Give every rank its job (or all the same one), without waiting."""
        jobs = jobs * self.size if len(jobs) == 1 else jobs
        if not self.members:
            self._folder = tempfile.mkdtemp()
            meeting = os.path.join(self._folder, "meeting")
            self.members = [Child(job, rank, self.size, meeting) for rank, job in enumerate(jobs)]
        else:
            for member, job in zip(self.members, jobs, strict=True):
                member.send(job)
        return self.members

    def run(self, *jobs: dict[str, Any], timeout: float = 60.0) -> list[dict[str, Any]]:
        results = []
        try:
            results = [member.result(timeout) for member in self.start(*jobs)]
        finally:
            if not results or any(result["error"] for result in results):
                self.close()  # who knows whether they still understand each other
        return results

    def close(self) -> None:
        for member in self.members:
            member.kill()
        self.members = []
        shutil.rmtree(self._folder, ignore_errors=True)


_teams: dict[int, Team] = {}


def team(size: int) -> Team:
    """The team of this size that lives as long as the tests."""
    return _teams.setdefault(size, Team(size))


def run(job: dict[str, Any], ranks: int = 1, timeout: float = 60.0) -> list[dict[str, Any]]:
    """The results of all ranks; one rank runs in this process."""
    if ranks > 1:
        return team(ranks).run(job, timeout=timeout)
    try:
        return [train(job)]
    finally:  # other tests fork this process to make ranks of it, which must not take themselves for single
        AcceleratorState._reset_state(reset_partial_state=True)


def launch(processes: int, *arguments: str, **named: Any) -> subprocess.Popen[str]:
    """``accelerate launch -m accel_train ...`` in a session of its own."""
    config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else f"cpu_{processes}proc.yaml")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "accel_train"]
    return program([*command, *arguments], **named)


def program(command: list[str], **named: Any) -> subprocess.Popen[str]:
    environment = os.environ | ON_CPU | {"PYTHONPATH": _python_path()}
    named = {"stdin": subprocess.DEVNULL, "start_new_session": True} | named
    return subprocess.Popen(
        command, env=environment | named.pop("env", {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **named,
    )  # fmt: skip


def wait_for(condition, seconds: float = 60.0, what: str = "") -> Any:
    """The first true value of ``condition()``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    raise TimeoutError(f"waited in vain for {what or condition}")


def kill_at_checkpoints(job: dict[str, Any], times: int = 3) -> None:
    """Start the job and kill it as soon as it has another checkpoint, again and again."""
    folder = Path(job["config"]["output_dir"])
    for _ in range(times):
        child = Child(job)
        before = steps_saved(folder)
        wait_for(lambda b=before, c=child: steps_saved(folder) != b or not c.alive(), what="a checkpoint")
        child.kill()
