"""One thread a process: tests run beside each other and start several ranks, and tiny models gain nothing from more.
Property tests try the same few examples in every run; HYPOTHESIS_PROFILE=default looks for new ones, and for more."""

import os
import signal
import sys

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("repeatable", derandomize=True, max_examples=30, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Ignored under nohup; the runs that tests start would inherit that, and rightly go on when a test hangs up on them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_faults_left():
    """What a test injects in this process must not meet the next one."""
    yield
    if "support.faults" in sys.modules:
        sys.modules["support.faults"].FAULTS.clear()
