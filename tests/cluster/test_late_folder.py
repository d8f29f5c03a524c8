"""What one machine writes, another one sees some seconds later, or never."""

import contextlib
from pathlib import Path

import pytest
from support.digests import assert_equal_bits
from support.lab import LateFolder
from support.launchers import IMPATIENT, SETTINGS, outputs, plain, train
from support.long_run import job
from support.processes import run, wait_for

from accel_train.run.lock import NAME

pytestmark = pytest.mark.cluster


@pytest.fixture
def stopped(tmp_path: Path):
    """A run that has come half-way, in a folder that hosts share."""
    folder = tmp_path / "shared" / "run"
    run(job(folder, **SETTINGS | {"max_steps": 20}))
    return folder


def test_a_checkpoint_that_is_seen_late(lab, tmp_path, stopped, whole):
    hosts = lab(2).hosts
    with contextlib.closing(LateFolder(hosts[1], tmp_path / "shared", tmp_path / "copy", 2.0)) as late:
        started = plain(hosts, train(stopped))
        wait_for((stopped / NAME).exists, what="the first rank")
        late.begin()
        said = outputs(started)
    assert [process.returncode for process in started] == [0, 0], said
    assert "resumed at step 20" in said[0]
    assert_equal_bits([stopped, whole])


def test_a_checkpoint_that_is_never_seen(lab, tmp_path, stopped):
    hosts = lab(2).hosts
    with contextlib.closing(LateFolder(hosts[1], tmp_path / "shared", tmp_path / "copy", 2.0)):
        started = plain(hosts, train(stopped), program=IMPATIENT)
        said = outputs(started)
    assert [process.returncode for process in started] == [2, 2], said
    (line,) = [line for each in said for line in each.splitlines() if line.startswith("accel-train: error")]
    assert "node1 does not see" in line and "MANIFEST.json" in line and "folder that all machines share" in line
