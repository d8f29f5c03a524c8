"""What an interrupted run is compared with."""

import functools

import pytest
from support import long_run
from support.processes import run


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of the long run that nobody interrupted, on so many ranks."""

    @functools.cache
    def get(ranks):
        folder = tmp_path_factory.mktemp("whole")
        run(long_run.job(folder), ranks)
        return folder

    return get
