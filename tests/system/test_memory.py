"""Memory that was freed is kept for the next batch, unless somebody has said how."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from accel_train.system.memory import keep_freed

keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(1 << 21)  # 16 MiB
before = faults()
for _ in range(20):
    np.ones(1 << 21)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_arrays_are_not_touched_anew():
    def page_faults(**environment: str) -> int:
        run = [sys.executable, "-c", PROGRAM]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        done = subprocess.run(run, env=inherited | environment, capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept = page_faults()
    assert kept < 1000 and kept < page_faults(MALLOC_MMAP_THRESHOLD_="131072")
