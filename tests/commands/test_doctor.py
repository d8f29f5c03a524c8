"""The doctor says what is there, in a line each, and never fails itself."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import launch

from accel_train.cli import main
from accel_train.commands import doctor


def lines(text: str) -> dict[str, tuple[str, str]]:
    """subject -> (state, text)."""
    found = {}
    for line in text.splitlines():
        if line.startswith(("ok ", "note ", "problem ")):
            found[line[9:21].strip()] = (line.split()[0], line[22:])
    return found


def test_a_machine_that_runs_the_tests_is_healthy_and_it_is_quick():
    began = time.perf_counter()
    text, healthy = doctor.report()
    assert healthy and "ready to train" in text
    assert time.perf_counter() - began < 5
    found = lines(text)
    for subject in ("python", "torch", "accelerate", "cores", "memory", "disk", "fsync", "plots", "wandb"):
        assert subject in found
    assert found["torch"] == ("ok", torch.__version__)


def test_two_processes_really_add_a_number():
    text, healthy = doctor.report(launch=True)
    assert healthy and lines(text)["launch"][0] == "ok" and "two processes added a number" in text
    assert re.search(r"all-reduce of 16 MB at \d+\.\d\d GB/s, of 8 bytes in \d+\.\d\d ms", lines(text)["launch"][1])


@pytest.mark.slow
def test_the_ranks_of_a_launcher_are_measured():
    running = launch(2, "doctor", "--launch")
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0 and output.count("ready to train") == 1, "rank 0 alone prints"
    assert "2 processes on 1 machine, on the CPU: all-reduce of 16 MB at " in lines(output)["launch"][1]


def test_processes_that_cannot_start_are_a_problem(monkeypatch: pytest.MonkeyPatch):
    done = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no loopback\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert doctor._launch() == [("problem", "launch", "two processes could not be started: RuntimeError: no loopback")]

    def late(*a: Any, **k: Any) -> None:
        raise subprocess.TimeoutExpired("x", 1)

    monkeypatch.setattr(subprocess, "run", late)
    assert "GLOO_SOCKET_IFNAME" in doctor._launch()[0].text


def test_a_folder_without_room_or_rights_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**8})())
    assert doctor._disk()[0].state == "problem"

    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor, "_write_speed", refuse)
    text, healthy = doctor.report()
    assert not healthy and "Permission denied" in text and "2 problems to mend first" in text
    monkeypatch.undo()


def test_it_leaves_nothing_behind(tmp_path: Path):
    speed, delay = doctor._write_speed(tmp_path, size=1000)
    assert speed > 0 and delay > 0 and not list(tmp_path.iterdir())


def test_an_old_or_missing_package_and_a_question_without_an_answer(monkeypatch: pytest.MonkeyPatch):
    def version(name: str) -> str:
        if name == "accelerate":
            raise doctor.metadata.PackageNotFoundError(name)
        return {"torch": "2.3.1+cu121"}.get(name, "1.0")

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor, "_memory", lambda: 1 / 0)
    doctor_memory = doctor._memory
    doctor_memory.__name__ = "_memory"
    text, healthy = doctor.report()
    assert not healthy
    found = lines(text)
    assert found["torch"][0] == "problem" and "needs 2.8" in found["torch"][1]
    assert found["accelerate"][0] == "problem" and "not installed" in found["accelerate"][1]
    assert found["memory"] == ("note", "could not be found out (ZeroDivisionError: division by zero)")


def test_a_gpu(monkeypatch: pytest.MonkeyPatch):
    class Cuda:
        nccl = type("nccl", (), {"version": staticmethod(lambda: (2, 27, 3))})

        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def device_count() -> int:
            return 3

        @staticmethod
        def get_device_properties(i: int) -> Any:
            return type("P", (), {"name": f"GPU {i}", "total_memory": 80 * 10**9, "major": 7 + i})

        @staticmethod
        def mem_get_info(i: int) -> tuple[int, int]:
            if i == 2:
                raise RuntimeError("CUDA error: uncorrectable ECC error\nmore")
            return (79 * 10**9, 8 * 10**9)[i], 80 * 10**9

    monkeypatch.setattr(torch, "cuda", Cuda)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    found = doctor._gpus()
    assert [line.state for line in found] == ["ok", "note", "problem", "ok"]
    assert found[0].text == "0: GPU 0, 80 GB, 79 GB free, bf16 no: use fp16"
    assert "bf16 yes" in found[1].text and "somebody uses it" in found[1].text
    assert found[2].text.endswith("does not answer: CUDA error: uncorrectable ECC error")
    assert found[3].text == "CUDA 12.8, NCCL 2.27.3"
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert doctor._gpus()[-1].state == "problem"


def test_threads_that_do_not_fit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert [line.state for line in doctor._processor()] == ["note"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert [line.state for line in doctor._processor()] == ["ok"]
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "OMP_NUM_THREADS is not set" in doctor._processor()[-1].text
    monkeypatch.setattr(doctor, "_cpu_quota", lambda: 0.5)
    assert doctor._processor()[0].text.endswith("set OMP_NUM_THREADS=1")


def test_the_command(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    assert "ready to train" in capsys.readouterr().out
