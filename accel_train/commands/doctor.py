"""accel-train doctor: what this machine can do, and what on it would hinder a training run."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from accel_train.command import Parser
from accel_train.errors import UserError, brief
from accel_train.system import process

if TYPE_CHECKING:
    from accel_train.train.world import Ranks

OK, NOTE, PROBLEM = "ok", "note", "problem"
GB = 1e9

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "plots": (("matplotlib",), "figures, and Result.plot in a notebook"),
    "wandb": (("wandb",), "report_to: [wandb]"),
    "pelican": (("pelicanfs", "fsspec"), "Parquet from a Pelican federation"),
    "gdynet": (("scipy", "ase"), "the gdynet task: neighbours, trajectory files"),
    "sherlock": (("nibabel", "openpyxl", "av"), "the sherlock task: volumes, tables, film"),
    "monitor": (("pynvml", "psutil"), "power, heat and throttling of GPUs, memory of processes in the logs"),
}
"""Extra: the modules it brings, and what for."""


class Line(NamedTuple):
    """One finding. ``state``: fine (ok), worth knowing (note), or a thing that training needs and lacks (problem)."""

    state: str
    subject: str
    text: str


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--launch",
        action="store_true",
        help="also start two processes and let them add numbers; or, under accelerate launch or torchrun, those "
        "that were started",
    )


def run(options: argparse.Namespace) -> int:
    text, healthy = report(options.launch)
    if not options.launch or process.rank() == 0:
        print(text)
    return 0 if healthy else 1


def report(launch: bool = False) -> tuple[str, bool]:
    """(text for a person, whether nothing on this machine stands in the way of training).

    Args:
        launch: also start two processes with accelerate and let them add numbers, which takes some ten seconds; or, if
            this is one of several already, let these do so.
    """
    checks: list[Callable[[], list[Line]]] = [_software, _processor, _memory, _gpus, _disk, _limits, _extras]
    if launch:
        checks.append(_launch)
    lines: list[Line] = []
    for check in checks:
        try:
            lines += check()
        except Exception as error:  # one question that this system cannot answer must not hide the others
            name = check.__name__.strip("_")
            lines.append(Line(NOTE, name, f"could not be found out ({type(error).__name__}: {error})"))
    problems = sum(line.state == PROBLEM for line in lines)
    notes = sum(line.state == NOTE for line in lines)
    shown = [f"{line.state:<8} {line.subject:<12} {line.text}" for line in lines]
    verdict = "ready to train" if not problems else f"{problems} problem{'s' * (problems > 1)} to mend first"
    return "\n".join([*shown, "", f"{verdict} ({notes} note{'s' * (notes != 1)})"]), problems == 0


# -- the checks ------------------------------------------------------------------------------------------------------


def _software() -> list[Line]:
    lines = [Line(OK, "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for package, least in (("torch", (2, 8)), ("accelerate", (1, 10)), ("accel_train", (0,))):
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            lines.append(Line(PROBLEM, package, "not installed: pip install -e . in the repository"))
            continue
        if _numbers(found) < least:
            wanted = ".".join(map(str, least))
            lines.append(Line(PROBLEM, package, f"{found}, needs {wanted}: pip install --upgrade {package}"))
        else:
            lines.append(Line(OK, package, found))
    return lines


def _processor() -> list[Line]:
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    text = f"{usable} of {os.cpu_count()} cores usable, {torch.get_num_threads()} threads in torch"
    quota = _cpu_quota()
    if quota is not None and quota < usable:
        text += f", but a limit of {quota:g} cores for this container"
        return [Line(NOTE, "cores", f"{text}: set OMP_NUM_THREADS={max(int(quota), 1)}")]
    set_ = os.environ.get("OMP_NUM_THREADS")
    if set_ is not None and set_.isdecimal() and int(set_) > usable:
        return [Line(NOTE, "cores", f"{text}; OMP_NUM_THREADS={set_} is more than there are: set at most {usable}")]
    lines = [Line(OK, "cores", text)]
    if set_ is None:
        text = f"OMP_NUM_THREADS is not set (make train sets it); for several processes here it is {usable} / processes"
        lines.append(Line(NOTE, "threads", text))
    return lines


def _memory() -> list[Line]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    limit, used = _memory_limit()
    where = ""
    if limit is not None and limit < total:
        total, free, where = limit, min(free, limit - used), " for this container"
    text = f"{free / GB:.1f} of {total / GB:.1f} GB free{where}"
    if free < 1.5e9:
        return [Line(NOTE, "memory", f"{text}: too little for most runs, close something")]
    return [Line(OK, "memory", text)]


def _gpus() -> list[Line]:
    import torch

    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            return [Line(NOTE, "gpu", "Apple GPU (mps): not used, since it has no float64; training is on the CPU")]
        nvidia = shutil.which("nvidia-smi") is not None
        if torch.version.cuda is None and torch.version.hip is None:
            if nvidia:
                text = "an NVIDIA driver is here but this torch is built for the CPU: install a CUDA build of torch"
            else:
                text = "none, and this torch is built for the CPU: everything runs, large models slowly"
            return [Line(NOTE, "gpu", text)]
        reason = "the driver does not answer: look at nvidia-smi" if nvidia else "no NVIDIA driver is installed"
        if os.environ.get("CUDA_VISIBLE_DEVICES", "x") in ("", "-1"):
            reason = "CUDA_VISIBLE_DEVICES hides them"
        return [Line(NOTE, "gpu", f"none usable: {reason}. Training would run on the CPU")]
    lines = []
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        text = f"{i}: {properties.name}, {properties.total_memory / GB:.0f} GB"
        try:
            free, total = torch.cuda.mem_get_info(i)
        except RuntimeError as error:
            lines.append(Line(PROBLEM, "gpu", f"{text}, does not answer: {str(error).splitlines()[0]}"))
            continue
        text += f", {free / GB:.0f} GB free, bf16 {'yes' if _has_bf16(properties.major) else 'no: use fp16'}"
        busy = free < 0.5 * total
        if busy:
            text += "; somebody uses it: look at nvidia-smi"
        lines.append(Line(NOTE if busy else OK, "gpu", text))
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None  # pyright: ignore
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if nccl is None and torch.cuda.device_count() > 1:
        lines.append(Line(PROBLEM, "nccl", f"{cuda} without NCCL: several GPUs need a build of torch that has it"))
    else:
        lines.append(Line(OK, "cuda", f"{cuda}, NCCL {nccl or 'none'}"))
    return lines


def _has_bf16(major: int) -> bool:
    import torch

    return torch.version.hip is not None or major >= 8


def _disk() -> list[Line]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / GB:.1f} GB free in {here.name or here}"
    if free < 1e9:
        lines = [Line(PROBLEM, "disk", f"{text}: checkpoints will not fit, make room or set output_dir")]
    else:
        lines = [Line(OK, "disk", text) if free > 2e10 else Line(NOTE, "disk", f"{text}: mind save_total_limit")]
    try:
        speed, delay = _write_speed(here)
    except OSError as error:
        return [*lines, Line(PROBLEM, "fsync", f"cannot write here ({error.strerror}): go elsewhere or set output_dir")]
    text = f"{speed / 1e6:,.0f} MB/s flushed to disk, {1e3 * delay:.0f} ms for a small file"
    slow = speed < 2e7 or delay > 0.5
    advice = ": each checkpoint waits for that, save less often" if slow else ""
    return [*lines, Line(NOTE if slow else OK, "fsync", text + advice)]


def _write_speed(folder: Path, size: int = 16_000_000) -> tuple[float, float]:
    """(bytes per second, seconds for one small file), each with the wait for the disk, as a checkpoint is written."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as name:
        seconds = []
        for i, content in enumerate((b"x" * 100, os.urandom(size))):
            begun = time.perf_counter()
            with open(Path(name) / str(i), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            seconds.append(time.perf_counter() - begun)
    return size / max(seconds[1], 1e-9), seconds[0]


def _limits() -> list[Line]:
    lines = []
    try:
        import resource
    except ImportError:  # Windows
        resource = None
    if resource is not None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files == resource.RLIM_INFINITY:
            lines.append(Line(OK, "open files", "no limit"))
        elif files < 1024:
            lines.append(Line(NOTE, "open files", f"at most {files:,}: readers of many files may need ulimit -n 4096"))
        else:
            lines.append(Line(OK, "open files", f"at most {files:,}"))
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        if free < 2e8:
            text = "NCCL and process workers need more: docker run --shm-size=8g, or worker_type: thread"
            lines.append(Line(NOTE, "/dev/shm", f"{free / 1e6:.0f} MB free; {text}"))
        else:
            lines.append(Line(OK, "/dev/shm", f"{free / GB:.1f} GB free"))
    return lines


def _extras() -> list[Line]:
    lines = []
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            text = f"{', '.join(missing)} not installed ({purpose}): pip install -e '.[{extra}]'"
            lines.append(Line(NOTE, extra, text))
        else:
            lines.append(Line(OK, extra, f"{', '.join(modules)}: {purpose}"))
    return lines


# -- several processes -----------------------------------------------------------------------------------------------


def _launch() -> list[Line]:
    """The whole way of a run over several processes: launcher, accelerate, gloo or NCCL, sums."""
    return _two_processes() if process.world_size() == 1 else _these_processes()


def _these_processes() -> list[Line]:
    """Those that a launcher has started, on the devices and the network that a run would have."""
    from accel_train.config.schema import TrainConfig
    from accel_train.train.world import Ranks, leave_process_group, start_accelerate

    try:
        accelerator = start_accelerate(TrainConfig())
        ranks = Ranks(accelerator)
        machines = len(set(ranks.gather(platform.node())))
        speed = _all_reduce(ranks, accelerator.device.type)
        leave_process_group()
    except (RuntimeError, UserError) as error:
        return [Line(PROBLEM, "launch", f"the {process.world_size()} processes cannot add: {brief(error)}")]
    on = f"{machines} machine{'s' * (machines > 1)}, on the {'GPU' if accelerator.device.type == 'cuda' else 'CPU'}"
    return [Line(OK, "launch", f"{ranks.world_size} processes on {on}: {_as_text(*speed)}")]


def _all_reduce(ranks: Ranks, device: str, size: int = 16_000_000, times: int = 10) -> tuple[float, float]:
    """(bytes per second of a sum of ``size`` bytes over the ranks, seconds of one of 8 bytes): the medians."""
    import torch

    medians = []
    for numbers in (size // 4, 2):
        tensor, seconds = torch.zeros(numbers, device=device), []
        for _ in range(times + 2):
            ranks.all_agree(True)  # they begin together
            begun = time.perf_counter()
            ranks.sum(tensor)
            tensor[0].item()  # waits for the device
            seconds.append(time.perf_counter() - begun)
        medians.append(statistics.median(seconds[2:]))
    return size / medians[0], medians[1]


def _as_text(speed: float, delay: float) -> str:
    return f"all-reduce of 16 MB at {speed / GB:.2f} GB/s, of 8 bytes in {1e3 * delay:.2f} ms"


def _two_processes() -> list[Line]:
    """On the CPU of this machine."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu", "--num_processes=2",
        "--num_machines=1", "--gpu_ids=-1,-1", "--main_process_port=0", "--mixed_precision=no", "--dynamo_backend=no",
        "-m", "accel_train.commands.doctor",
    ]  # fmt: skip
    hidden = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        text = "two processes did not find each other in 120 s: is the loopback blocked? Try GLOO_SOCKET_IFNAME=lo"
        return [Line(PROBLEM, "launch", text)]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"world_size"')]
    right = [each for each in answers if (each["world_size"], each["sum"]) == (2, 3.0)]
    if done.returncode == 0 and right:
        took = f"two processes added a number in {time.perf_counter() - begun:.0f} s"
        return [Line(OK, "launch", f"{took}; {_as_text(*right[0]['all_reduce'])}")]
    if answers:
        return [Line(PROBLEM, "launch", f"wrong answer: {answers}")]
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in said if "Error" in line] or said or [f"exit code {done.returncode}"]
    return [Line(PROBLEM, "launch", f"two processes could not be started: {errors[-1]}")]


def _add_a_number() -> None:
    """What each of the two processes runs."""
    import torch

    from accel_train.config.schema import TrainConfig
    from accel_train.system.signals import end_at_once
    from accel_train.train.world import Ranks, leave_process_group, start_accelerate

    ranks = Ranks(start_accelerate(TrainConfig()))
    total = ranks.host_sum(torch.tensor(ranks.rank + 1.0))
    speed = _all_reduce(ranks, "cpu")
    if ranks.is_main:
        print(json.dumps({"world_size": ranks.world_size, "sum": float(total), "all_reduce": speed}), flush=True)
    leave_process_group()
    end_at_once(0)  # as the commands do


# -- small things ----------------------------------------------------------------------------------------------------


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 13, 0) of 2.13.0+cpu."""
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _cpu_quota() -> float | None:
    """Cores that a control group allows, if it limits them."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory_limit() -> tuple[int | None, int]:
    """(bytes that a control group allows, bytes it uses)."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        return (None, 0) if limit == "max" else (int(limit), int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        return None, 0


if __name__ == "__main__":
    _add_a_number()
