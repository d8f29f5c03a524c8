"""What GPU and host say of themselves in the log, where the libraries are there."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from support.processes import run
from support.runs import config

from accel_train.tracking import records as shown
from accel_train.train import hardware
from accel_train.train.hardware import Hardware


class Nvml(SimpleNamespace):
    """As ``pynvml`` names it: newer, or with ``old`` names."""

    def __init__(self, old: bool = False) -> None:
        kind = "Throttle" if old else "Event"
        super().__init__(
            NVML_TEMPERATURE_GPU=0,
            NVML_MEMORY_ERROR_TYPE_UNCORRECTED=1,
            NVML_VOLATILE_ECC=0,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-1234": "handle"}[uuid],
            nvmlDeviceGetPowerUsage=lambda gpu: 312_500,
            nvmlDeviceGetTemperature=lambda gpu, which: 71,
            nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(used=5 * 2**20),
            nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=98),
            nvmlDeviceGetTotalEccErrors=lambda gpu, kind, since: 2,
        )
        setattr(self, f"nvmlDeviceGetCurrentClocks{kind}Reasons", lambda gpu: self.reasons)
        setattr(self, f"nvmlClocks{kind}ReasonSwThermalSlowdown", 32)
        self.nvmlClocksThrottleReasonHwSlowdown, self.reasons = 8, 4


@pytest.fixture
def gpu(monkeypatch):
    properties = lambda device: SimpleNamespace(uuid="1234")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(hardware, "REST_S", 0.0)
    return torch.device("cuda", 0)


@pytest.mark.parametrize("old", [False, True])
def test_a_gpu(gpu, monkeypatch, old):
    nvml = Nvml(old)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = Hardware(gpu).read()
    assert {name: value for name, value in found.items() if name.startswith("gpu/")} == {
        "gpu/power_w": 312.5, "gpu/temperature_c": 71, "gpu/used_mib": 5, "gpu/busy_percent": 98, "gpu/throttled": 0,
        "gpu/ecc_errors": 2,
    }  # fmt: skip
    for reasons in (8, 32 + 4):
        nvml.reasons = reasons
        assert Hardware(gpu).read()["gpu/throttled"] == 1


def test_what_a_gpu_does_not_know_is_asked_once(gpu, monkeypatch):
    asked = []

    def unknown(*arguments):
        asked.append(arguments)
        raise RuntimeError("Not Supported")

    nvml = Nvml()
    nvml.nvmlDeviceGetTotalEccErrors = unknown
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    made = Hardware(gpu)
    for _ in range(3):
        found = made.read()
    assert "gpu/ecc_errors" not in found and found["gpu/power_w"] == 312.5 and len(asked) == 1


@pytest.mark.parametrize("broken", ["absent", "no driver"])
def test_without_libraries_there_is_nothing(gpu, monkeypatch, broken):
    nvml = None
    if broken == "no driver":
        nvml = Nvml()
        nvml.nvmlInit = lambda: 1 / 0
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert Hardware(gpu).read() == {}


def test_the_host_in_the_log(tmp_path):
    run({"config": config(tmp_path, max_steps=10)})
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = next(record for record in logged if "host/process_mib" in record)
    assert 50 < first["host/process_mib"] < 1e5 and first["host/free_mib"] > 0
    assert shown.scalars(first)["host/process_mib"] == first["host/process_mib"]
    assert not any(name.startswith("host/") for name in shown.terms(first))
