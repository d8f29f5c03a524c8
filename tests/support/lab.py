"""Several hosts on one machine: network namespaces joined by a bridge, each with a name, an address and processes of
its own.

All of it belongs to one user namespace, so no rights are needed, the machine's own network is not touched, and nothing
outlives the test: the kernel ends every process of a host with the first one, and a namespace with its last process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from support.processes import program

TOOLS = ("unshare", "nsenter", "setpriv", "ip")
END_WITH_TESTS = ["setpriv", "--pdeathsig", "KILL"]


class NoLabError(Exception):
    """Why there can be none here."""


class Host:
    """``name`` is in the /etc/hosts of all hosts."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.lab, self.number, self.name, self.address = lab, number, f"node{number}", f"10.77.0.{number + 1}"
        named = f"hostname {self.name} && ip link set lo up && mount --bind {lab.hosts_file} /etc/hosts"
        spaces = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*lab.inside, *END_WITH_TESTS, *spaces, "sh", "-c", f"{named} && echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise NoLabError("a host could not be made")
        self.first = int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())
        self._processes = os.readlink(f"/proc/{self.first}/ns/pid")
        self.inside = _enter(self.first, "--net", "--uts", "--mount", "--pid")
        lab.ip(f"link add {self.name} type veth peer name eth0 netns {self.first}")
        lab.ip(f"link set {self.name} master bridge up")
        for what in (f"address add {self.address}/24 dev eth0", "link set eth0 up"):
            _do([*self.inside, "ip", *what.split()])

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """A command on this host; what it says is to be read, since a pipe holds 64 KB."""
        named = {"GLOO_SOCKET_IFNAME": "eth0"} | environment
        return self.lab.until_closed(program([*self.inside, *command], env=named))

    def processes(self, *words: str) -> list[int]:
        """Those here whose command line has all these words; numbers of the machine's, by which they may be killed."""
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if self._is_here(pid, words)]

    def _is_here(self, pid: int, words: Sequence[str]) -> bool:
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            return os.readlink(f"/proc/{pid}/ns/pid") == self._processes and all(word in line for word in words)
        return False

    def ranks(self) -> list[int]:
        """The trainers on it, in the order of their start."""
        return [pid for pid in sorted(self.processes("train", "--output_dir")) if not self._is_launcher(pid)]

    def launchers(self) -> list[int]:
        return [pid for pid in sorted(self.processes("train", "--output_dir")) if self._is_launcher(pid)]

    def _is_launcher(self, pid: int) -> bool:
        return any(self._is_here(pid, [word]) for word in ("torch.distributed.run", "accelerate.commands.launch"))

    def unplug(self) -> None:
        """The cable is out: what is sent is lost, and no connection hears that it is."""
        self.lab.ip(f"link set {self.name} down")

    def die(self, silently: bool = True) -> None:
        """All processes end at once. ``silently``: the others are not told by the kernel that connections are closed,
        since the power is out."""
        if silently:
            self.unplug()
        os.kill(self.first, signal.SIGKILL)
        self._holder.wait(10)

    def close(self) -> None:
        _end(self._holder)


class LateFolder:
    """A shared folder as one host sees it: what others write is there ``seconds`` later, and the other way round.

    Nothing is, before ``begin``.
    """

    def __init__(self, host: Host, folder: Path, copy: Path, seconds: float) -> None:
        self.seconds = seconds
        self._sides = (folder, copy)
        self._carried: tuple[dict[str, int], dict[str, int]] = ({}, {})  # to each side: inodes by name
        self._seen: dict[tuple[str, int], float] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._carry_all)
        for each in self._sides:
            each.mkdir(exist_ok=True)
        _do([*host.inside, "mount", "--bind", str(copy), str(folder)])

    def begin(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _carry_all(self) -> None:
        while not self._closing.wait(0.05):
            for source, target in ((0, 1), (1, 0)):
                with contextlib.suppress(OSError):  # renamed while we look
                    self._carry(source, target)

    def _carry(self, source: int, target: int) -> None:
        """Folders before what is in them; files by hard links, so that they are whole at once."""
        there, here, carried = self._sides[source], self._sides[target], self._carried[target]
        found = {str(path.relative_to(there)): path for path in sorted(there.rglob("*"))}
        for name in sorted(set(carried) - set(found), reverse=True):
            _remove(here / name)
            del carried[name]
        for name, path in found.items():
            inode = path.lstat().st_ino
            if name in self._carried[source] or carried.get(name) == inode:
                continue
            if time.monotonic() - self._seen.setdefault((name, inode), time.monotonic()) >= self.seconds:
                _link(path, here / name)
                carried[name] = inode


def _link(path: Path, new: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        new.mkdir(exist_ok=True)
    else:
        new.unlink(missing_ok=True)
        os.link(path, new, follow_symlinks=False)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


class Lab:
    """Hosts, numbered from 0; gone after the ``with``."""

    def __init__(self, size: int) -> None:
        if sys.platform != "linux" or (missing := [tool for tool in TOOLS if shutil.which(tool) is None]):
            raise NoLabError(f"hosts in namespaces need Linux with {', '.join(TOOLS)}; missing: {', '.join(missing)}")
        self._folder = tempfile.mkdtemp()
        self.hosts_file = Path(self._folder) / "hosts"
        names = [f"10.77.0.{i + 1} node{i}\n" for i in range(16)]
        self.hosts_file.write_text("127.0.0.1 localhost\n" + "".join(names))
        self.hosts: list[Host] = []
        self._started: list[subprocess.Popen[str]] = []
        spaces = ["unshare", "--user", "--map-root-user", "--net"]
        self._holder = subprocess.Popen(
            [*spaces, *END_WITH_TESTS, "sh", "-c", "echo ready && exec sleep infinity"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert self._holder.stdout is not None and self._holder.stderr is not None
            if self._holder.stdout.readline() != "ready\n":
                raise NoLabError(f"no user namespaces here: {self._holder.stderr.read().strip()}")
            self.inside = _enter(self._holder.pid, "--net")
            self.ip("link add bridge type bridge")
            self.ip("link set bridge up")
            for _ in range(size):
                self.add()
        except BaseException:
            self.close()
            raise

    def add(self) -> Host:
        self.hosts.append(Host(self, len(self.hosts)))
        return self.hosts[-1]

    def until_closed(self, process: subprocess.Popen[str]) -> subprocess.Popen[str]:
        """It ends with the lab, if it has not before."""
        self._started.append(process)
        return process

    def ip(self, arguments: str) -> None:
        _do([*self.inside, "ip", *arguments.split()])

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        for process in (*self._started, self._holder):
            _end(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
    for stream in filter(None, (process.stdout, process.stderr)):
        stream.close()


def _enter(pid: int, *spaces: str) -> list[str]:
    return ["nsenter", "--target", str(pid), "--user", "--preserve-credentials", *spaces, "--"]


def _do(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoLabError(f"{' '.join(command[-8:])}: {done.stderr.strip()}")
