"""Connections of this process to other machines, and machines that are suddenly gone.

One that loses its power or its network closes no connection, so who waits for a word of it goes on waiting: in gloo
for half an hour. The kernel knows better, if it is asked: it sends empty packets over a silent connection, which the
other kernel answers whatever its processes are doing, and fails the connection when nothing comes back.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys

SILENCE_S = 90
"""A machine that has answered nothing for so long is gone, as ``run/lock.py`` has it."""
BETWEEN_S = 10
"""Between two questions."""


def fail_with_their_machines() -> None:
    """From now on, connections that this process has, or accepts where it listens, fail when the machine at the other
    end is gone. On Linux; elsewhere nothing is done."""
    if sys.platform != "linux":
        return
    between = min(BETWEEN_S, SILENCE_S)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # it has been closed by now, or is no socket after all
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with socket.socket(fileno=os.dup(descriptor)) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, between)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, max(1, SILENCE_S // between))
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
