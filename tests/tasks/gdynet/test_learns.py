"""The gdynet task finds the processes of data that are known exactly, by the commands a user gives. Minutes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "gdynet_learns.py"


@pytest.fixture(scope="module")
def learns():
    spec = importlib.util.spec_from_file_location("gdynet_learns", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gdynet_learns")


def close(found, truth, share):
    times = found["koopman"]["timescales_frames"]
    assert times[: len(truth)] == pytest.approx(truth, rel=share), times


def test_directions_show_both_processes(learns, folder):
    ((_, ferro),) = learns.ferro(folder).items()
    found, truth = ferro["found"], ferro["truth"]
    assert found["vamp"]["vamp2"] > 0.93 * truth["vamp2"]["10"]
    close(found, truth["timescales_frames"], 0.15)
    assert found["predictions"]["mean_max_probability"] > 0.9
    assert found["agreement"]["distinct"] == 3 and found["agreement"]["purity"] > 0.97
    assert found["agreement"]["population_error"] < 0.03
    assert found["chapman_kolmogorov"]["max_difference"] < 0.03


def test_distances_alone_are_blind_to_the_mirror(learns, folder):
    for name, each in learns.vanilla(folder).items():
        found = each["found"]
        assert found["vamp"]["vamp2"] < 0.60, name
        assert all(t < 10 for t in found["koopman"]["timescales_frames"][1:]), name
        close(found, each["truth"]["timescales_frames"], 0.25)


def test_what_makes_states_crisp(learns, folder):
    """Each loss finds the processes; only one makes the probabilities mean something."""
    for name, each in learns.sharpening(folder).items():
        found = each["found"]
        crisp, distinct = found["predictions"]["mean_max_probability"], found["agreement"]["distinct"]
        close(found, each["truth"]["timescales_frames"], 0.2)
        if name == "middle phase vamp1":
            assert crisp > 0.9 and distinct == 3
        else:
            assert crisp < 0.7, name


def test_four_wells(learns, folder):
    ((_, prinz),) = learns.prinz(folder).items()
    close(prinz["found"], prinz["truth"]["timescales_frames"], 0.10)


def test_ellipsoids(learns, folder):
    ((_, each),) = learns.ellipsoids(folder).items()
    assert each["found"]["koopman"]["eigenvalues"][1] == pytest.approx(0.94, abs=0.01)
