"""One thread a process: tests run beside each other and start several ranks, and tiny models gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
