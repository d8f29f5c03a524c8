"""The clock of the loop, and the memory of a GPU in the log."""

import pytest
import torch
from support.processes import run
from support.runs import config, records

from accel_train.tracking import records as shown
from accel_train.train.clock import MIB, Clock, cuda_memory

NAMES = ["cuda/alloc_mib", "cuda/reserved_mib", "cuda/max_alloc_mib", "cuda/max_reserved_mib"]


@pytest.fixture
def gpu(monkeypatch):
    """Allocations on a GPU that is not there."""

    class Gpu:
        now = peak = 0
        read = 0

        def use(self, size):
            self.now = size
            self.peak = max(self.peak, size)

        def reset(self, device):
            self.peak = self.now

        def held(self, device):
            self.read += 1
            return self.now

    made = Gpu()
    monkeypatch.setattr(torch.cuda, "memory_allocated", made.held)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * made.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: made.peak)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2 * made.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", made.reset)
    return made


def test_memory_with_peaks_since_the_last_time(gpu):
    device = torch.device("cuda", 0)
    gpu.use(9 * MIB)
    gpu.use(3 * MIB)
    assert cuda_memory(device) == dict(zip(NAMES, [3, 6, 9, 18], strict=True))
    assert cuda_memory(device) == dict(zip(NAMES, [3, 6, 3, 6], strict=True))


def test_nothing_on_a_cpu(gpu, tmp_path):
    assert cuda_memory(torch.device("cpu")) == {}
    run({"config": config(tmp_path, max_steps=4, logging_steps=2)})
    assert not any(key.startswith("cuda/") for record in records(tmp_path) for key in record)
    assert gpu.read == 0


def test_it_is_read_when_something_is_logged_and_only_then(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr("accel_train.train.reporter.cuda_memory", lambda device: cuda_memory(torch.device("cuda", 0)))
    gpu.use(5 * MIB)
    run({"config": config(tmp_path, max_steps=12, logging_steps=4, save_steps=1)})
    logged = [record for record in records(tmp_path) if record["kind"] == "train"]
    assert gpu.read == len(logged) == 3
    for record in logged:
        assert [record[name] for name in NAMES] == [5, 10, 5, 10]
        assert not any(name.startswith("cuda") for name in shown.terms(record))
        assert shown.scalars(record)["cuda/max_alloc_mib"] == 5.0
        assert ("memory", "5 MiB") in shown.show_clock(record)


def test_rates_are_means_since_the_last_log_line_without_the_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("accel_train.train.clock.time.monotonic", lambda: now[0])
    clock = Clock(10)
    now[0] = 104.0
    clock.pause(12)
    clock.read(items=80.0, waited=1.0)
    assert clock.seconds_per_step() == 2.0
    assert clock.rates(12, 112) == {"items_per_s": 20.0, "step_s": 2.0, "wait_s": 0.5, "eta_s": 200.0}
    now[0] = 1000.0  # an evaluation
    clock.resume()
    clock.new_window()
    now[0] = 1001.0
    clock.pause(13)
    clock.read(items=5.0, waited=0.0)
    assert clock.rates(13, None) == {"items_per_s": 5.0, "step_s": 1.0, "wait_s": 0.0}
