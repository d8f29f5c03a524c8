"""The benchmark of a GPU, tried where there is none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import warnings

import pytest
from support.processes import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_every_row_is_measured_or_says_why_not(tmp_path):
    command = [sys.executable, str(SCRIPT), "--minutes=2", "--steps=4", "--tiny", "--no_compile", "--no_tests"]
    command += ["--only", "gdynet_small", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = {row["row"]: row for row in json.loads((tmp_path / "gpu.json").read_text())["results"]}
    assert set(rows) == {"fp32", "bf16", "fp16", "resume, deterministic"}
    assert rows["fp32"]["steps"] == 4 and rows["fp32"]["items_per_s"] > 0 and rows["fp32"]["save_ms"] > 0
    assert rows["fp16"].get("error", "").startswith("UserError: mixed_precision") or rows["fp16"]["steps"] == 4
    assert rows["resume, deterministic"]["resumes"] and rows["resume, deterministic"]["repeats"]
    assert "gdynet_small   fp32 " in done.stdout, "the table at the end"


def test_waits_for_the_device_are_counted_by_line(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    modes = []
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", modes.append)
    waits = gpu.Waits(cuda=True)

    def step(value: int) -> int:
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return value

    watched = waits.watch(step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [watched(i) for i in range(3 * gpu.WARM)] == list(range(3 * gpu.WARM))
    assert waits.per_step() == 1.0
    assert list(waits.lines.values()) == [gpu.WARM] and "tests/test_benchmarks.py" in next(iter(waits.lines))
    assert modes == ["warn", "default"] * gpu.WARM
