"""A machine, a launcher or a rank is gone: nobody waits for ever, nothing is lost, and the restart goes on bitwise."""

import os
import signal
import time
from pathlib import Path

import pytest
from support.digests import assert_equal_bits
from support.impatient import SILENCE_S
from support.launchers import IMPATIENT, outputs, plain, torchrun, train
from support.processes import wait_for
from support.runs import damaged, steps_saved

pytestmark = pytest.mark.cluster
SLOW = 0.02
"""Seconds of a step that somebody meets on its way."""


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


LOSSES = {
    "a machine, without a word": lambda hosts: hosts[1].die(),
    "a machine, whose connections are closed": lambda hosts: hosts[1].die(silently=False),
    "the first machine, without a word": lambda hosts: hosts[0].die(),
    "the network of a machine": lambda hosts: hosts[1].unplug(),
    "a rank": lambda hosts: kill(hosts[1].ranks()),
    "the first rank": lambda hosts: kill(hosts[0].ranks()),
    "a launcher": lambda hosts: kill(hosts[1].launchers()),
    "the first launcher": lambda hosts: kill(hosts[0].launchers()),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss(lab, tmp_path: Path, whole, loss):
    there, folder = lab(2), tmp_path / "run"
    command = train(folder, SLOW, requeue_exit_code=85)  # or torchrun takes a run that was stopped for one that is done
    started = torchrun(there.hosts, command, program=IMPATIENT)
    wait_for(lambda: len(steps_saved(folder)) > 1, what="checkpoints")
    LOSSES[loss](there.hosts)
    began = time.monotonic()
    said = outputs(started)
    print(loss, f"{time.monotonic() - began:.1f} s", *said, sep="\n")
    assert time.monotonic() - began < 2 * SILENCE_S + 20  # the trainer, then the launcher
    assert [host.ranks() for host in there.hosts] == [[], []]
    assert all(process.returncode for process in started)
    assert damaged(folder) == [] and 20 <= steps_saved(folder)[-1] < 60
    again = plain([there.add(), there.add()], train(folder), program=IMPATIENT)
    said = outputs(again)
    assert [process.returncode for process in again] == [0, 0], said
    assert "resumed at step" in said[0]
    assert_equal_bits([folder, whole])
