"""Ragged batches must not be compiled for ever."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from accel_train.tasks.muon import synth

SCRIPT = """
import json, sys
import torch._dynamo.utils as dynamo
from accel_train import Trainer
from accel_train.tasks.muon.task import MuonTask

compiled, losses = [], []
for modes in (None, {"generator": "default", "multiplicity": "default"}):
    task = MuonTask(sys.argv[1], held_out=0.0, critic_steps=1, hidden_dim=16, max_muons_per_batch=200)
    result = Trainer(task, output_dir=f"{sys.argv[2]}/{modes is None}", max_steps=30, global_batch_size=64,
                     logging_steps=10, save_steps=None, eval_steps=0, report_to=[], torch_compile=modes).fit()
    compiled.append(dynamo.counters["stats"]["unique_graphs"])
    losses.append(result.history["multiplicity_loss"][-1])
print("RESULT", json.dumps([compiled, losses]))
"""


@pytest.mark.slow
def test_few_graphs_for_many_shapes(tmp_path):
    synth.write(tmp_path / "data", seed=3, primaries=200, row_group=200, log10_energy=(5.0, 6.5))
    command = [sys.executable, "-c", SCRIPT, f"{tmp_path}/data/*.parquet", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (eager, compiled), losses = json.loads(done.stdout.split("RESULT ")[1])
    assert eager == 0
    # Two networks, one of them with and without gradient; sizes that change become symbols, only 0 and 1 stay special.
    assert 2 <= compiled <= 12, "of some hundred shapes"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
