"""torchrun with fewer and more machines on the way: the run goes on, on another number of ranks, with the same bits."""

import re
from pathlib import Path

import pytest
from support.digests import assert_equal_bits
from support.launchers import elastic, outputs, train, with_config
from support.processes import wait_for
from support.runs import damaged, steps_saved

pytestmark = pytest.mark.cluster
SLOW = 0.25


def newest(folder: Path) -> int:
    return max(steps_saved(folder), default=0)


def test_a_machine_is_lost_and_another_joins(lab, tmp_path, whole):
    there, folder = lab(2), tmp_path / "run"
    command = with_config(tmp_path, train(folder, SLOW))
    first, _ = elastic(there.hosts, tmp_path, command, nodes="1:2")
    wait_for(lambda: newest(folder) >= 10, what="a checkpoint of two")
    there.hosts[1].die()
    before = newest(folder)
    wait_for(lambda: newest(folder) > before, 120, what="a checkpoint of one")
    (joined,) = elastic([there.add()], tmp_path, command, nodes="1:2")
    said = outputs([first, joined], 200)
    assert [first.returncode, joined.returncode] == [0, 0], said
    sizes = re.findall(r"precision no, (\d) process", said[0] + said[1])
    assert sorted(sizes) == ["1", "2", "2"] and sizes[:2] == ["2", "1"]
    assert damaged(folder) == []
    assert_equal_bits([folder, whole])


def test_up_to_four_machines(lab, tmp_path, whole):
    there, folder = lab(3), tmp_path / "run"
    command = with_config(tmp_path, train(folder, 2 * SLOW))
    first, second, _ = elastic(there.hosts, tmp_path, command, nodes="1:4")
    wait_for(lambda: newest(folder) >= 10, what="a checkpoint of three")
    there.hosts[2].die()
    before = newest(folder)
    wait_for(lambda: newest(folder) > before, 120, what="a checkpoint of two")
    joined = elastic([there.add(), there.add()], tmp_path, command, nodes="1:4")
    everyone = [first, second, *joined]
    said = outputs(everyone, 200)
    assert [each.returncode for each in everyone] == [0] * 4, said
    sizes = re.findall(r"precision no, (\d) process", "".join(said))
    assert {"2", "3", "4"} <= {*sizes}
    assert_equal_bits([folder, whole])


def test_a_machine_is_replaced(lab, tmp_path, whole):
    """As a pod of a Job is: never fewer than two."""
    there, folder = lab(2), tmp_path / "run"
    command = with_config(tmp_path, train(folder, SLOW))
    first, _ = elastic(there.hosts, tmp_path, command, nodes="2")
    wait_for(lambda: newest(folder) >= 10, what="a checkpoint")
    there.hosts[1].die()
    (joined,) = elastic([there.add()], tmp_path, command, nodes="2")
    said = outputs([first, joined], 200)
    assert [first.returncode, joined.returncode] == [0, 0], said
    assert re.findall(r"precision no, (\d) process", said[0] + said[1]) == ["2", "2"]
    assert_equal_bits([folder, whole])
