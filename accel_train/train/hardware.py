"""What the machine says of itself when something is logged: with ``nvidia-ml-py`` the GPU of this rank, with ``psutil``
the process and the host. Neither need be installed, and what cannot be read is left out."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import torch

MIB = 2**20
REST_S = 1.0
"""Not asked more often, since a log line may come every few milliseconds."""
THROTTLED = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
"""NVML's reasons for a slow clock that are no good sign: heat, or too little power from outside."""


class Hardware:
    """Scalars of this rank's device and host, by names that begin with ``gpu/`` and ``host/``."""

    def __init__(self, device: torch.device) -> None:
        self._questions: dict[str, Callable[[], float]] = {}
        self._rests_until = 0.0
        with contextlib.suppress(Exception):  # what only looks never fails a run
            self._questions |= _of_host(importlib.import_module("psutil"))
        if device.type == "cuda":
            with contextlib.suppress(Exception):
                self._questions |= _of_gpu(importlib.import_module("pynvml"), device)

    def read(self) -> dict[str, float]:
        """Now. A question that this machine cannot answer is not asked again."""
        found: dict[str, float] = {}
        if (now := time.monotonic()) < self._rests_until:
            return found
        self._rests_until = now + REST_S
        for name, ask in list(self._questions.items()):
            try:
                found[name] = float(ask())
            except Exception:
                del self._questions[name]
        return found


def _of_host(psutil: Any) -> dict[str, Callable[[], float]]:
    process = psutil.Process(os.getpid())
    return {
        "host/process_mib": lambda: process.memory_info().rss / MIB,
        "host/free_mib": lambda: psutil.virtual_memory().available / MIB,
    }


def _of_gpu(nvml: Any, device: torch.device) -> dict[str, Callable[[], float]]:
    nvml.nvmlInit()
    uuid = torch.cuda.get_device_properties(device).uuid  # by its number it might be another, as CUDA orders them anew
    gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    # newer drivers call them event reasons
    reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
    reasons = reasons or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
    mask = 0
    for name in THROTTLED:
        mask |= getattr(nvml, f"nvmlClocksEventReason{name}", 0) | getattr(nvml, f"nvmlClocksThrottleReason{name}", 0)
    return {
        "gpu/power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "gpu/temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "gpu/used_mib": lambda: nvml.nvmlDeviceGetMemoryInfo(gpu).used / MIB,
        "gpu/busy_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
        "gpu/throttled": lambda: float(bool(reasons(gpu) & mask)),
        "gpu/ecc_errors": lambda: nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    }
