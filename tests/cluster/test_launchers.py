"""On several hosts a run is what it is on one, whoever launches it."""

import pytest
from support.digests import assert_equal_bits
from support.launchers import accelerate, outputs, plain, torchrun, train


def test_two_hosts(lab, tmp_path, whole):
    started = plain(lab(2).hosts, train(tmp_path / "run"))
    said = outputs(started)
    assert [process.returncode for process in started] == [0, 0], said
    assert "2 processes" in said[0] and "step" not in said[1]
    assert_equal_bits([tmp_path / "run", whole])


LAUNCHERS = {
    "torchrun": torchrun,
    "accelerate, options": accelerate,
    "accelerate, YAML": lambda *arguments: accelerate(*arguments[:-1], folder=arguments[-1]),
}


@pytest.mark.cluster
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(lab, tmp_path, whole, launcher, ranks):
    more = [tmp_path] if "YAML" in launcher else []
    started = LAUNCHERS[launcher](lab(2).hosts, train(tmp_path / "run"), ranks, *more)
    said = outputs(started)
    assert [process.returncode for process in started] == [0, 0], said
    assert f"{2 * ranks} processes" in said[0]
    assert_equal_bits([tmp_path / "run", whole])
