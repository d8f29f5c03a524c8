"""What goes wrong during a job: in a loss, in the data, on the disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import torch

from accel_train.errors import DataError
from accel_train.system import waiting
from accel_train.train import snapshot

FAULTS: dict[str, Any] = {}
"""What goes wrong in this process during the current job; read by the toy tasks."""


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def here(name: str) -> Any:
    """The fault's setting, if it is meant for this rank and step. ``{name: {...}, rank: 1, steps: [4]}``."""
    setting = FAULTS.get(name)
    if setting is None or setting.get("rank", FAULTS["this_rank"]) != FAULTS["this_rank"]:
        return None
    if setting.get("objective", FAULTS.get("this_objective")) != FAULTS.get("this_objective"):
        return None
    return setting if "steps" not in setting or FAULTS["this_step"] in setting["steps"] else None


def fault(batch: dict[str, Any]) -> None:
    """Out of memory, an ordinary exception, or a death, as the job says."""
    no_memory("loss", len(batch["index"]))
    if here("crash") is not None:
        raise RuntimeError("injected crash")
    if here("die") is not None:
        os.kill(os.getpid(), signal.SIGKILL)


def no_memory(place: str, items: int) -> None:
    """``above``: how many items do not fit; ``place``: of what is computed from them."""
    if (oom := here("oom")) is not None and oom.get("place", "loss") == place and items > oom["above"]:
        FAULTS["ooms"] = FAULTS.get("ooms", 0) + 1
        raise torch.OutOfMemoryError(f"injected: {items} items")


class NeedsMemory(torch.autograd.Function):
    """What runs out of memory on the way back."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        no_memory("backward", len(gradient))
        return gradient


def unread(purpose: str) -> None:
    """Data that never come, or cannot be read; ``steps``: after which. ``split``: of which data."""
    if (stall := here("stall")) is not None and stall.get("split", "train") == purpose:
        Path(stall["mark"]).touch()
        waiting.result(Future())
    if (slow := here("slow data")) is not None and purpose == "train":
        time.sleep(slow.get("seconds", 0.0))
        ends = time.monotonic() + 30.0
        while "until" in slow and not slow["until"]() and time.monotonic() < ends:
            time.sleep(0.02)
    if (hang := here("hang")) is not None and hang.get("split", "train") == purpose:
        Path(hang["mark"]).touch()
        never_returns(holding=hang["holding"])
    if (bad := here("bad data")) is not None and bad.get("split", "train") == purpose:
        raise DataError("injected: nothing to read")


def never_returns(holding: bool) -> None:
    """A library that waits for ever, ``holding`` the interpreter or not."""
    while not psutil.Process().children():  # its watchdog is not there yet
        time.sleep(0.01)
    library, mutex = (ctypes.PyDLL if holding else ctypes.CDLL)(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def spoil(value: torch.Tensor) -> torch.Tensor:
    """Make the loss NaN, or infinite with a finite gradient, or its gradient NaN with a finite loss."""
    if (bad := here("non_finite")) is None:
        return value
    if bad["kind"] == "nan loss":
        return value * float("nan")
    if bad["kind"] == "inf loss":
        return value + float("inf")
    return _NanGradient.apply(value)


# -- of the disk -----------------------------------------------------------------------------------------------------


def _full(real, steps: list[int]):
    """Raises "no space left" at these steps, having left half a file where there is a path to one."""

    def call(*arguments, **named):
        if _step_being_saved() not in steps:
            return real(*arguments, **named)
        for argument in arguments:
            if isinstance(argument, str | Path):
                with contextlib.suppress(OSError):
                    Path(argument).write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device (injected)")

    return call


def _step_being_saved() -> int | None:
    """Which may be an earlier one than that in training."""
    saving = threading.current_thread().name.removeprefix("saving step ")
    return int(saving) if saving.isdecimal() else FAULTS.get("this_step")


DISK_PLACES = {
    "weights": "accelerate.utils.other.safe_save_file",
    "optimizer": "torch.save",
    "progress": "accel_train.run.folder.write_json",
    "manifest": "accel_train.run.checkpoint.write_manifest",
    "flush": "accel_train.system.writing.flush",
    "folder": "accel_train.run.checkpoint.CheckpointFolder.begin",
    "best model": "accel_train.run.weights.replace_folder",
}


@contextlib.contextmanager
def disk_faults(setting: dict[str, Any] | None) -> Generator[None]:
    """``place``: where; ``steps``: when; ``rank``: only there. ``slow``: seconds a save takes longer."""
    if setting is None or setting.get("rank", rank()) != rank():
        yield
        return
    with contextlib.ExitStack() as patches:
        if (place := setting.get("place")) == "size limit":
            patches.enter_context(_file_size_limit(setting["steps"]))
        elif place is not None:
            owner, _, name = DISK_PLACES[place].rpartition(".")
            real = getattr(_resolve(owner), name)
            patches.enter_context(mock.patch(DISK_PLACES[place], _full(real, setting["steps"])))
        if slow := setting.get("slow"):
            for target in (
                "accel_train.system.writing.flush",
                "accel_train.run.checkpoint.write_manifest",
                "torch.save",
            ):
                patches.enter_context(_slowed(target, slow))
        yield


def _resolve(path: str) -> Any:
    module, rest = sys.modules.get(path), []
    while module is None:
        path, _, last = path.rpartition(".")
        rest.insert(0, last)
        module = sys.modules.get(path)
    for name in rest:
        module = getattr(module, name)
    return module


@contextlib.contextmanager
def _slowed(target: str, seconds: float) -> Generator[None]:
    owner, _, name = target.rpartition(".")
    real = getattr(_resolve(owner), name)

    def slowly(*arguments, **named):
        time.sleep(seconds * random.SystemRandom().random())
        return real(*arguments, **named)

    with mock.patch(target, slowly):
        yield


@contextlib.contextmanager
def _file_size_limit(steps: list[int]) -> Generator[None]:
    """The real thing: while states are written no file may grow beyond 600 bytes."""

    def limited(real):
        def call(*arguments, **named):
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            if _step_being_saved() in steps:
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
            try:
                return real(*arguments, **named)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        return call

    with (
        mock.patch.object(snapshot, "write", limited(snapshot.write)),
        mock.patch.object(snapshot, "write_rest", limited(snapshot.write_rest)),
    ):
        yield
