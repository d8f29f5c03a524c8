"""How much memory a process takes: its own, and mapped pages of files, which the system takes back when it needs
them."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path


class Peak:
    """Looks every few milliseconds, inside of ``with``.

    Attributes:
        growth: largest ``anonymous`` and ``files`` since the beginning, MB; and ``worker``, the largest anonymous
            memory of a process that this one has spawned.
    """

    def __init__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._before = resident()
        self.growth = dict.fromkeys([*self._before, "worker"], 0.0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(4e-3):
            now = {name: value - self._before[name] for name, value in resident().items()}
            with contextlib.suppress(OSError, KeyError):  # one that ends
                now["worker"] = max([resident(child)["anonymous"] for child in spawned()], default=0.0)
            self.growth |= {name: max(value, self.growth[name]) for name, value in now.items()}


def spawned() -> list[str]:
    """Process ids. (What is forked to become another program looks like this process until it does.)"""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split()
    return [child for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def resident(process: str = "self") -> dict[str, float]:
    """MB."""
    said = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: int(said[key].split()[0]) / 1000 for name, key in (("anonymous", "RssAnon"), ("files", "RssFile"))}
