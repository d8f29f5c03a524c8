"""torchrun with fewer and more machines on the way: the run goes on, on another number of ranks, with the same bits."""

import re
import time
from pathlib import Path

import pytest
from support.digests import assert_equal_bits
from support.launchers import IMPATIENT, outputs, torchrun, train
from support.processes import wait_for
from support.runs import damaged, steps_saved

pytestmark = pytest.mark.cluster
SLOW = 0.25


def newest(folder: Path) -> int:
    return max(steps_saved(folder), default=0)


def test_a_machine_is_lost_and_another_joins(lab, tmp_path, whole):
    there, folder = lab(2), tmp_path / "run"
    command = train(folder, SLOW)
    more = ["--max-restarts=3", "--rdzv-conf=last_call_timeout=2,keep_alive_interval=1"]
    started = torchrun(there.hosts, command, 1, IMPATIENT, "1:2", *more)
    wait_for(lambda: newest(folder) >= 10, what="a checkpoint of two")
    there.hosts[1].die()
    began, before = time.monotonic(), newest(folder)
    wait_for(lambda: newest(folder) > before, 120, what="a checkpoint of one")
    print(f"alone after {time.monotonic() - began:.1f} s")
    joined = torchrun([there.add()], command, 1, IMPATIENT, "1:2", *more)
    said = outputs([started[0], *joined], 200)
    print(*said, sep="\n")
    assert [process.returncode for process in [started[0], *joined]] == [0, 0]
    sizes = re.findall(r"precision no, (\d) process", said[0] + said[1])
    assert sorted(sizes) == ["1", "2", "2"] and sizes[:2] == ["2", "1"]
    assert damaged(folder) == []
    assert_equal_bits([folder, whole])
