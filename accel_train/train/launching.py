"""Training on several processes from one that cannot become one of them: a notebook, which has imported and computed
what no fork survives. Each rank is a fresh interpreter with the config of the run.

torchrun would do, but for signals: what it passes on, it follows up with a kill, and a checkpoint may take longer. So
ranks are started here, each is signalled as a single process would be, and they do what they always do.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

from accel_train.classes import unfindable
from accel_train.config.plain import to_dict
from accel_train.config.schema import TrainConfig
from accel_train.errors import UserError
from accel_train.run.folder import write_config
from accel_train.system import process
from accel_train.system.expansion import refuse_incomplete
from accel_train.system.signals import caught
from accel_train.system.waiting import StoppedError
from accel_train.task import Task
from accel_train.tracking import status
from accel_train.train.result import Result
from accel_train.train.session import run_dir

GRACE_S = 30.0
"""After a rank has failed, or a second Ctrl-C, the others have so long to end by themselves."""
LOOK_S = 0.2


def fit_launched(task: Task, config: TrainConfig, processes: int, asked_to_stop: Callable[[], str | None]) -> Result:
    """Train on so many processes of this machine, each with a GPU of its own where there are any. What they print is
    printed here.

    Args:
        asked_to_stop: looked at several times a second.

    Raises:
        UserError: this task or config cannot be launched, or a rank found something that must be mended.
        StoppedError: someone stopped it before it began.
        RuntimeError: training failed; what the ranks said of it is above.
    """
    refuse_unlaunchable(task, processes)
    described = to_dict(task, config)
    refuse_incomplete(described)
    with tempfile.TemporaryDirectory(prefix="accel_train-") as folder, caught() as signals:
        path = Path(folder) / "config.yaml"
        write_config(path, described)
        with _ranks(_command(path), processes) as ranks:
            watched = _Watched(ranks)
            try:
                while watched.alive():
                    watched.listen(LOOK_S)
                    if signals.reason or asked_to_stop():
                        watched.stop(signal.Signals[signals.reason] if signals.reason else signal.SIGTERM)
            except KeyboardInterrupt:
                watched.stop_at_once()
                raise
    return _result(watched, run_dir(task, config))


def refuse_unlaunchable(task: Task, processes: int) -> None:
    import torch

    if why := unfindable(type(task)):
        raise UserError(f"num_processes: {type(task).__name__} {why}, where other processes cannot import it; move it "
                        "into a file, and import it from there")  # fmt: skip
    if process.world_size() > 1:
        raise UserError(f"num_processes: this is one of {process.world_size()} processes already; leave it out")
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise UserError(f"num_processes: {processes} is more than the {gpus} GPUs here, and each process needs its own")


def _command(config: Path) -> list[str]:
    return [sys.executable, "-m", "accel_train", "train", "--config", str(config)]


@contextlib.contextmanager
def _ranks(command: list[str], processes: int) -> Generator[list[subprocess.Popen[bytes]]]:
    """One process for each rank. None of them is left behind."""
    import torch.distributed as dist

    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    environment = os.environ | {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        # the meeting point is here, as with torchrun's agent: a port that nobody else can take meanwhile
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "accel_train",  # by which they know that they end with this process
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),  # what can be imported here can be there
        "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(processes):
            child = subprocess.Popen(
                command,
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Jupyter interrupts the whole group of the kernel
            )
            started.append(child)
        yield started
    finally:
        for child in started:
            child.kill()  # nothing happens to one that has ended
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
        del store


class _Watched:
    """Ranks, what they have said, and how they ended."""

    def __init__(self, children: list[subprocess.Popen[bytes]]) -> None:
        self.children = children
        self.last_words = ""  # the one line of an error, which is raised here
        self.stopped = False
        self._unfinished = {child.stdout: b"" for child in children if child.stdout}  # the last line of each
        self._until: float | None = None  # when those that are left are killed

    def alive(self) -> bool:
        """Whether there are ranks left. When one has failed, that ends."""
        codes = [child.poll() for child in self.children]
        if any(codes) and self._until is None:
            self._until = time.monotonic() + GRACE_S
        if None not in codes:
            self.listen(0.0)
            return False
        return self._until is None or time.monotonic() < self._until

    def stop(self, number: signal.Signals) -> None:
        """As if each had been signalled: they save and end after the same step."""
        if not self.stopped:
            self.stopped = True
            self._signal(number)

    def stop_at_once(self) -> None:
        self._signal(signal.SIGINT)
        self._until = time.monotonic() + GRACE_S
        while self.alive():
            self.listen(LOOK_S)

    def _signal(self, number: signal.Signals) -> None:
        for child in self.children:
            child.send_signal(number)

    def listen(self, seconds: float) -> None:
        """Print what they say within this time, as it comes."""
        if not self._unfinished:  # all have closed their output, and will have ended in a moment
            time.sleep(seconds)
        while self._unfinished and (heard := select.select(list(self._unfinished), [], [], seconds)[0]):
            for stream in heard:
                text = os.read(stream.fileno(), 65536)
                *lines, rest = (self._unfinished.pop(stream) + text).split(b"\n")
                if text:
                    self._unfinished[stream] = rest
                for line in lines if text else [rest]:
                    self._say(line.decode(errors="replace"))
            seconds = 0.0

    def _say(self, line: str) -> None:
        if re.match("accel-train: (?!warning|note)", line):
            self.last_words = line.removeprefix("accel-train: ").removeprefix("error: ")
        elif line:
            print(line, flush=True)


def _result(watched: _Watched, folder: Path) -> Result:
    codes = [child.returncode for child in watched.children]
    with contextlib.suppress(UserError):
        found = status.read(folder)
        if found.get("pid") == watched.children[0].pid and found.get("state") in ("completed", "stopped"):
            return Result.of(folder, saved=1 not in codes)
    if 2 in codes:
        raise UserError(watched.last_words)
    if watched.stopped:
        raise StoppedError(watched.last_words or "stopped before it began; nothing was trained")
    failed = next((f"rank {rank} ended with exit code {code}" for rank, code in enumerate(codes) if code), "")
    raise RuntimeError(watched.last_words or f"{failed}; what it said of it is above")
