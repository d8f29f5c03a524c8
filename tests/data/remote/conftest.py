"""A federation for each test that asks for one."""

import pytest
from support.federation import DATA, Federation

from accel_train.data.remote import requests
from accel_train.system import waiting


@pytest.fixture
def federation():
    """With ``/ns/a.bin``; a test may give a stop."""
    with Federation(objects={"/ns/a.bin": DATA}) as started:
        started.trust()
        yield started
        waiting.begin()
    requests._filesystems.clear()
    requests._said.clear()
