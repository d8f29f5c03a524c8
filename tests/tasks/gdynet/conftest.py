"""A small data set of gdynet, and a run on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.gdynet_runs import train

from accel_train.tasks.gdynet.synth import synth


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gdynet") / "data"
    synth(folder, seed=3, size=47, clusters=3)
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> Path:
    """Three phases of two epochs; the test has two trajectories."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(folder, data, "--learning_rate=0.01", test_fnames=[str(data / "test"), str(data / "val")]) == 0
    return folder


@pytest.fixture
def trained(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "trained", symlinks=True))
