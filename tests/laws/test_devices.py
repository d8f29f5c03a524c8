"""What must hold on every device; on a machine without a GPU, the same tests run on the CPU."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from support.faults import FAULTS
from support.runs import assert_same_run, records
from support.toys import Toy

from accel_train import Trainer
from accel_train.train.step import Stepper

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    """Accelerate, and with it every run of this test, is on this device."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(request.param == "cpu").lower())
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    AcceleratorState._reset_state(reset_partial_state=True)
    FAULTS.clear()
    FAULTS.update(this_rank=0, this_step=0)
    yield request.param
    FAULTS.clear()
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


def train(folder, device, task=None, **settings) -> Trainer:
    options = dict(max_steps=8, global_batch_size=16, logging_steps=1, save_steps=None, eval_steps=0, report_to=[])
    trainer = Trainer(task or Toy(dropout=0.2), output_dir=str(folder), **(options | settings))
    trainer.fit()
    assert next(trainer.models["model"].parameters()).device.type == device
    return trainer


def weights(trainer):
    return {name: p.detach().cpu() for name, p in trainer.models["model"].named_parameters()}


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, device, precision):
    settings = dict(deterministic=True, mixed_precision=precision)
    train(tmp_path / "whole", device, **settings)
    train(tmp_path / "pieces", device, **settings, max_steps=5)
    train(tmp_path / "pieces", device, **settings)
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


@pytest.mark.parametrize("precision", ["no", "bf16", pytest.param("fp16", marks=CUDA.marks)])
def test_every_precision_learns(tmp_path, device, precision):
    if precision == "fp16" and device == "cpu":
        pytest.skip("fp16 does nothing on a CPU")
    train(tmp_path, device, Toy(), mixed_precision=precision, max_steps=60, learning_rate=1e-2)
    # fp16 skips its first steps, until the scale of the loss has come down, and then has nothing to report
    losses = [record["mse"] for record in records(tmp_path) if record["kind"] == "train" and "mse" in record]
    assert len(losses) >= 50
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])


@pytest.mark.parametrize("optimizer", ["AdamW", "SGD", "Adam"])
def test_a_non_finite_step_changes_no_weight(tmp_path, device, optimizer):
    """Fused optimisers decide it on the device, the others on the host."""

    class Spoilt(Toy):
        steps = 0

        def loss_step(self, models, batch, totals, objective):
            self.steps += 1
            loss = super().loss_step(models, batch, totals, objective)
            return loss._replace(value=loss.value * float("nan")) if self.steps > 4 else loss

    settings = {"optimizer": {"class_path": optimizer}}
    before = weights(train(tmp_path / "short", device, max_steps=4, **settings))
    after = weights(train(tmp_path / "long", device, Spoilt(dropout=0.2), max_steps=8, **settings))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sum(record.get("skipped", 0) for record in records(tmp_path / "long")) == 4


def test_a_cut_batch_gives_the_same_run(tmp_path, device):
    one = weights(train(tmp_path / "one", device, Toy()))
    cut = weights(train(tmp_path / "cut", device, Toy(), micro_batch_size=5))
    for name in one:
        torch.testing.assert_close(cut[name], one[name], rtol=1e-4, atol=1e-5)


def test_the_host_never_waits_for_the_device_in_a_step(tmp_path, device, monkeypatch):
    """Between two synchronisation points; on a CPU there is nothing to wait for."""
    real = Stepper.step

    def step(self, objective, share):
        with forbidden_waits(device) if objective.step > 2 else contextlib.nullcontext():
            return real(self, objective, share)

    monkeypatch.setattr(Stepper, "step", step)
    options = dict(max_steps=8, global_batch_size=16, logging_steps=4, save_steps=None, report_to=[])
    assert Trainer(Toy(), output_dir=str(tmp_path), **options).fit().step == 8


@contextlib.contextmanager
def forbidden_waits(device):
    if device == "cpu":
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
