"""One thread a process: tests run beside each other and start several ranks, and tiny models gain nothing from more.
Property tests try the same few examples in every run; HYPOTHESIS_PROFILE=default looks for new ones, and for more."""

import gc
import os
import signal
import sys

import pytest
from hypothesis import settings

LONG = (
    "test_examples.py", "faults/", "laws/", "commands/test_evaluate.py", "muon/test_metrics.py", "muon/test_task.py",
    "analysis/test_analyse.py", "gdynet/test_model.py",
)  # fmt: skip
"""Files that take long. They are begun first: what is begun last is waited for by all who have nothing left to do."""

gc.disable()  # until all tests are known: everything that is imported stays
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("repeatable", derandomize=True, max_examples=30, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Ignored under nohup; the runs that tests start would inherit that, and rightly go on when a test hangs up on them.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(f"/{name}" in f"/{item.nodeid}" for name in LONG))


def pytest_collection_finish():
    """A run collects garbage at its beginning. To look through all that the tests have imported, a third of a second,
    takes as long as the rest of a small run; so what is there by now is set aside for good."""
    gc.collect()
    gc.freeze()
    gc.freeze = gc.unfreeze = lambda: None
    gc.enable()


@pytest.fixture(autouse=True)
def no_faults_left():
    """What a test injects in this process must not meet the next one."""
    yield
    if "support.faults" in sys.modules:
        sys.modules["support.faults"].FAULTS.clear()
