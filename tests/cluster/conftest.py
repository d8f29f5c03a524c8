"""Hosts to run on, and the run that they are to repeat."""

import contextlib

import pytest
from support.lab import Lab, NoLabError
from support.launchers import SETTINGS
from support.long_run import job
from support.processes import run


@pytest.fixture
def lab():
    """Makes so many hosts."""
    with contextlib.ExitStack() as made:

        def make(size):
            try:
                return made.enter_context(Lab(size))
            except NoLabError as why:
                pytest.skip(str(why))

        yield make


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a run on one rank of one machine, which nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(job(folder, **SETTINGS))
    return folder
