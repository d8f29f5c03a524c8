"""A step hands work to the device and does not wait for it: no hook of a task asks what only the device knows."""

from __future__ import annotations

import pytest
import torch
from support.small_tasks import Brains, Disruptions, GDyNet, Muon
from support.waits import Waits

from accel_train import contract
from accel_train.data.loader import Loader
from accel_train.plan import Position
from accel_train.tasks.collatz.step.task import LongStepTask
from accel_train.tasks.collatz.task import CollatzTask
from accel_train.tasks.gdynet.synth import synth as synth_trajectories
from accel_train.tasks.muon import synth as muons

CPU = torch.device("cpu")
COLLATZ = dict(d_model=16, num_layers=1, nhead=2, dim_feedforward=32, max_len=96, prefix=32)


def collatz(folder):
    return CollatzTask(**COLLATZ)


def collatz_step(folder):
    return LongStepTask(base=16, digits=4, d_model=16, num_layers=1, nhead=2, dim_feedforward=32)


def muon(folder):
    muons.write(folder, seed=3, primaries=20, files=1, row_group=100, log10_energy=(5.0, 6.0))
    return Muon(files=f"{folder}/*.parquet", held_out=0.0)


def gdynet(folder):
    synth_trajectories(folder / "data", seed=3, size=47, clusters=3)
    return GDyNet(train_fnames=[str(folder / "data/train")])


def tcn(folder):
    return Disruptions(channel_dropout=0.5)


def sherlock(folder):
    return Brains(modality_dropout=0.4, subject_dropout=0.4)


def waits(task, limit: int) -> list[str]:
    """In one step of every objective, cut into parts of ``limit`` items."""
    source = task.build_data("train", 8, 1)
    models = contract.models_of(task, source)
    _, _, batch = next(Loader(source, CPU, num_workers=0).batches(Position()))
    with Waits() as seen:
        for objective in task.objectives():
            parts = [contract.forwarded(task, models, part, objective) for part in task.split(batch, limit)]
            totals: dict[str, torch.Tensor] = {}
            for part in parts:
                sums = contract.sums_of(task, "totals", task.totals(models, part, objective), CPU)
                for name, value in sums.items():
                    totals[name] = totals[name] + value if name in totals else value
            for part in parts:
                contract.loss_of(task, task.loss_step(models, part, totals, objective)).value.backward()
    return seen.found


@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize("make", [collatz, collatz_step, muon, tcn, sherlock])
def test_no_hook_waits_for_the_device(tmp_path, make, limit):
    assert waits(make(tmp_path), limit) == []


def test_gdynet_waits_once_for_the_sums_of_a_batch(tmp_path):
    """Its small matrices are the host's work."""
    task = gdynet(tmp_path)
    found = waits(task, 100)
    assert found.count("cpu") == len(task.objectives())


def test_the_counting_sees_what_waits():
    x = torch.arange(4.0, requires_grad=True)
    with Waits() as seen:
        x.sum().item()
        x[x > 1].sum().backward()
        bool(x.max() > 3)
        x.detach().cpu().numpy()
    assert {"item", "index", "__bool__", "cpu", "numpy"} <= set(seen.found)
