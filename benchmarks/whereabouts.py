"""What it costs a rank to say where it is: microseconds of CPU a note, and of a step; seconds of its watchdog a minute.

    python benchmarks/whereabouts.py [--seconds 10]

A step of one process has two notes (reading, computing), one of several has one more for each bucket of gradients, and
two for each wait for other ranks. The best of many rounds is taken, as the least disturbed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from accel_train.system import watchdog
from accel_train.system.watchdog import COMPUTING, READING, REDUCING
from accel_train.system.whereabouts import here


def cost(do, rounds: int = 200, times: int = 2000) -> float:
    """Microseconds of CPU for one call."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(times):
            do()
        best = min(best, time.process_time() - begun)
    return 1e6 * best / times


def wait() -> None:
    with here.waiting:
        pass


def step_of_one() -> None:
    here.at(READING, 5)
    here.at(COMPUTING)


def step_of_several() -> None:
    step_of_one()
    here.at(REDUCING)
    wait()
    wait()


def of_the_watchdog(seconds: float) -> float:
    """Seconds of CPU that a watchdog takes in a minute, its start left out."""
    with tempfile.TemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
        os.truncate(file.fileno(), watchdog.PAGE)
        theirs, ours = os.pipe()
        settings = {"file": file.fileno(), "alive": theirs, "rank": 0, "world_size": 1, "folder": folder,
                    "first_step": 1, "warning": 300.0, "timeout": None, "code": 1}  # fmt: skip
        command = [sys.executable, "-I", "-S", watchdog.__file__, json.dumps(settings)]
        with subprocess.Popen(command, pass_fds=(file.fileno(), theirs)) as process:
            time.sleep(2.0)
            before = _ticks(process.pid)
            time.sleep(seconds)
            used = (_ticks(process.pid) - before) / os.sysconf("SC_CLK_TCK")
            os.close(ours)
            os.close(theirs)
    return 60 * used / seconds


def _ticks(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0, help="how long to look at a watchdog")
    options = parser.parse_args()
    print(f"a note             {cost(lambda: here.at(COMPUTING)):.2f} us")
    print(f"a wait             {cost(wait):.2f} us")
    print(f"a step, one rank   {cost(step_of_one):.2f} us")
    print(f"a step, several    {cost(step_of_several):.2f} us")
    print(f"a watchdog         {of_the_watchdog(options.seconds):.3f} s of CPU in a minute")


if __name__ == "__main__":
    main()
