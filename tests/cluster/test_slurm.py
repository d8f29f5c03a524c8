"""The script for SLURM, against stand-ins for its commands: a warned job stops, is put back, and goes on."""

import json
import os
import sys
from pathlib import Path

import pytest
from support.digests import assert_equal_bits
from support.launchers import train, with_config
from support.processes import ROOT, program, wait_for
from support.runs import steps_saved

BIN = Path(__file__).parent / "bin"


def submit(there, folder: Path, *command: str):
    """Starts the job; returns it and the file that makes its time up."""
    folder.mkdir()
    told = {"LAB": json.dumps({host.name: host.inside for host in there.hosts}), "VENV": sys.prefix}
    told |= {"LAB_REQUEUED": str(folder / "requeued"), "LAB_TIME_IS_UP": str(folder / "time is up")}
    options = ["--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1"]
    script = str(ROOT / "examples" / "slurm.sh")
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    job = program([str(BIN / "sbatch"), *options, script, *command], cwd=ROOT, env=told | {"PATH": path})
    return there.until_closed(job), folder / "time is up"


@pytest.mark.cluster
def test_requeued_until_it_is_done(lab, tmp_path, whole):
    job, time_is_up = submit(lab(2), tmp_path / "job", *with_config(tmp_path, train(tmp_path / "run", slow=0.05)))
    wait_for(lambda: len(steps_saved(tmp_path / "run")) > 1, what="checkpoints")
    time_is_up.touch()
    said = job.communicate(timeout=200)[0]
    assert job.returncode == 0, said
    assert said.count("back into the queue") == 1 and "completed at step 60" in said
    assert_equal_bits([tmp_path / "run", whole])


@pytest.mark.cluster
def test_a_failure_is_not_requeued(lab, tmp_path):
    job, _ = submit(lab(2), tmp_path / "job", *with_config(tmp_path, train(tmp_path / "run", learning_rate=-1)))
    said = job.communicate(timeout=200)[0]
    assert job.returncode and said.count("sbatch: start") == 1, said
    assert "learning_rate" in said
