"""The watchdog of a rank: a small process beside it, which can still look when the rank's interpreter cannot.

It is run by its path, with the standard library alone, and shares a file in memory with the rank: a page of notes (see
``whereabouts``), and behind it the stacks that the rank's ``faulthandler`` writes on a signal, which needs no
interpreter lock. It counts the time in which a rank has noted nothing. Once that is too long it says so in the folder
of the session, where all watchdogs of a run see it: each then writes where its rank is, that of rank 0 puts it into one
line, and all of them end their ranks if they are to. Nothing is written there before.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAGE = 4096
"""Bytes of the notes; stacks come after them."""
COUNT, PART, STEP, WAITING, ASKED, CODE, NEWS, WHY = range(8)
"""Words of 8 bytes in the page. The rank writes the first four, the watchdog the others: what it asks for, the exit
code to end with, and how long two lines are: the news that observers should hear, and why the rank is to end."""
TEXT_AT = {NEWS: 1024, WHY: 2560}
"""The bytes of the page where these lines begin."""
TEXT_SIZE = 1536
STOP, END = 1, 2
"""What is asked for: stop and save if that is still possible; end at once."""

STARTING, READING, COMPUTING, REDUCING, ATTENDING, EVALUATING, SAVING, REPORTING, ENDING = range(9)
"""Parts of a run, in the order in which a step has them."""
DOING = (
    "starting", "reading data of step {}", "computing step {}", "adding up the gradients of step {}",
    "agreeing after step {}", "evaluating step {}", "saving step {}", "reporting on step {}", "ending after step {}",
)  # fmt: skip
PATIENT = (STARTING, EVALUATING, SAVING, REPORTING, ENDING)
"""Parts that may take long without a sign, as may every part of a session's first step, which compiles."""
PATIENCE = 6.0
"""They have so many times as long."""
USUAL = 10.0
"""What takes less than so many times the longest of its kind is slow, and not stuck."""
LOOK_S = 1.0
SHARED_S = 5.0
"""The folder that all watchdogs see is looked into so often, by a watchdog whose rank stands still; rank 0 waits twice
as long for what the others write. Both are shorter where the warning comes early."""
UNANSWERED_S = 60.0
"""If that folder has not answered for so long, a rank that is to end does so without asking for the others."""
STOP_S, END_S = 30.0, 5.0
"""A rank that was asked to stop, and notes nothing, is told to end after so long; and killed after so much more."""

STACKS = signal.SIGRTMIN + 7 if hasattr(signal, "SIGRTMIN") else int(signal.SIGUSR2)
"""The signal on which a rank writes its stacks. No scheduler sends it (but on a Mac, which has no others)."""
DEBUGGERS = re.compile(r'[/\\](?:pdb|bdb|pydevd\w*|debugpy)(?:\.py"|[/\\])')


@dataclass(frozen=True)
class Place:
    """Where a rank is. ``seconds``: since when, as its watchdog counted. ``level``: 0, or 1 if that is too long, or 2
    if it is to end."""

    rank: int
    host: str
    step: int
    part: int
    waiting: bool
    seconds: float = 0.0
    level: int = 0

    @property
    def progress(self) -> tuple[int, int, bool]:
        """Ranks wait for the one that has made the least."""
        return self.step, self.part, self.waiting

    def doing(self) -> str:
        return DOING[self.part].format(f"{self.step:,}")

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} has been {self.doing()} for {self.seconds:,.0f} s"


class Stillness:
    """How long a rank has noted nothing, and for how long that is no wonder."""

    def __init__(self, first_step: int) -> None:
        self.seconds = 0.0
        self.moves = 0
        self.first_step = first_step
        self._seen: tuple[int, int, int] | None = None
        self._longest: dict[int, float] = {}  # by part

    def look(self, count: int, part: int, step: int, passed: float) -> bool:
        """Whether the rank has moved since the last look.

        Args:
            passed: seconds in which the watchdog ran and the rank could have; none while somebody has stopped it.
        """
        if self._seen is not None and count == self._seen[0]:
            self.seconds += passed
            return False
        if self._seen is not None and self._seen[2] > self.first_step:
            part_before = self._seen[1]
            self._longest[part_before] = max(self._longest.get(part_before, 0.0), self.seconds)
        self._seen, self.seconds, self.moves = (count, part, step), 0.0, self.moves + 1
        return True

    def beyond(self, limit: float) -> bool:
        """Whether it is longer than ``limit`` allows where the rank is."""
        if self._seen is None:
            return False
        _, part, step = self._seen
        patience = PATIENCE if part in PATIENT or step <= self.first_step else 1.0
        return self.seconds >= max(patience * limit, USUAL * self._longest.get(part, 0.0))


def in_one_line(places: Sequence[Place], world_size: int) -> tuple[str, Place]:
    """What is said of ranks that stand still, and the one that the others wait for, as far as that can be told."""
    slowest = min(places, key=lambda place: (place.progress, place.rank))
    same = [place for place in places if place.progress == slowest.progress]
    others = sorted({place.doing() for place in places if place.progress != slowest.progress})
    line = str(slowest)
    if world_size == 1:
        line = line.replace(f"rank 0 on {slowest.host}", "this run", 1)
    elif len(same) == world_size:
        line = f"all {world_size} ranks have been {slowest.doing()} for {slowest.seconds:,.0f} s"
    elif len(same) > 1:
        ranks = ", ".join(str(place.rank) for place in same[:8]) + ", ..." * (len(same) > 8)
        line = f"ranks {ranks} have been {slowest.doing()} for {slowest.seconds:,.0f} s"
    if others:
        line += f"; the others wait, {' or '.join(others[:3])}"
    unheard = sorted(set(range(world_size)) - {place.rank for place in places})
    if unheard:
        line += f"; not heard of: rank{'s' * (len(unheard) > 1)} {', '.join(map(str, unheard[:8]))}"
        line += ", ..." * (len(unheard) > 8)
    return line, slowest


class Watchdog:
    """Watches its parent process.

    Args:
        file: the shared one.
        folder: of this session, shared by the ranks of a run and made when there is something to say.
        first_step: of this session.
        warning: seconds without a note after which that is said.
        timeout: seconds without a note after which the rank is ended; None: never.
        code: to end with, so that a scheduler starts the run again; given only if the session has made a step.
        mark: a file to make in that case, for a scheduler that hears of no exit code.
        recorder: how to ask NCCL's flight recorder: a pipe to write into, and the file that then comes.
    """

    def __init__(
        self,
        file: int,
        rank: int,
        world_size: int,
        folder: str,
        first_step: int,
        warning: float,
        timeout: float | None,
        code: int,
        mark: str = "",
        recorder: tuple[str, str] = ("", ""),
    ) -> None:
        self.file, self.rank, self.world_size, self.folder = file, rank, world_size, Path(folder)
        self.warning, self.timeout, self.code, self.mark, self.recorder = warning, timeout, code, mark, recorder
        self.parent, self.host = os.getppid(), socket.gethostname()
        self.page = mmap.mmap(file, PAGE)
        self.words = memoryview(self.page).cast("Q")
        self.stillness = Stillness(first_step)
        self._mine, self._verdict = self.folder / f"rank-{rank}.txt", self.folder / "hang.txt"
        self._shared_s = min(SHARED_S, warning)
        self._moves = 0
        self._asked = False  # to stop, and has not moved since
        self._since_asked = self._unanswered = 0.0
        self._forget()

    def _forget(self) -> None:
        self._level = -1  # of what was written of this rank; -1: nothing
        self._said = 0  # the level of what was said of all ranks
        self._stacks_now = ""
        self._since_shared = self._since_alarm = 0.0

    # -- looking -----------------------------------------------------------------------------------------------------

    def watch(self, alive: int) -> None:
        """Until the rank closes its end of the pipe ``alive``, or is gone. What touches the disk has a thread of its
        own, since a disk that does not answer is why ranks stand still."""
        pause, last = min(LOOK_S, self.warning / 10), time.monotonic()
        threading.Thread(target=self._tell, args=(pause,), daemon=True).start()
        while not select.select([alive], [], [], pause)[0] and os.getppid() == self.parent:
            now = time.monotonic()
            # A pause of the whole machine, or of the watchdog, is no time in which the rank stood still.
            passed, last = min(now - last, 2 * pause), now
            self.look(passed)

    def _tell(self, pause: float) -> None:
        while True:
            time.sleep(pause)
            with contextlib.suppress(OSError):  # a full disk: this rank may still be ended
                self.tell(pause)
            self._unanswered = 0.0

    def look(self, passed: float) -> None:
        """Count the seconds in which the rank stood still, and see to it that it ends once it is to."""
        count, part, step, _ = self.words[COUNT:ASKED]
        if self.stillness.look(count, part, step, 0.0 if _is_stopped(self.parent) else passed):
            self._asked, self._since_asked = False, 0.0
        elif self._asked:
            self._since_asked += passed
            self._see_to_it_that_it_ends()
        elif self._unanswered >= UNANSWERED_S and self.timeout is not None and self.stillness.beyond(self.timeout):
            line = f"{self._place(2)}, and {self.folder} does not answer"
            _print(f"{line}\n{self._stacks_now}")
            self._obey(2, line)
        self._unanswered += passed

    def tell(self, passed: float) -> None:
        """Share with the other watchdogs what there is to say, and do as they say."""
        if self._moves != self.stillness.moves:
            self._moves = self.stillness.moves
            self._went_on()
            return
        self._since_shared += passed
        if self._level >= 0 or self.stillness.beyond(self.warning) or self._others_are_stuck():
            self._alarm(passed)

    def _others_are_stuck(self) -> bool:
        """Another rank stands still for too long, while this one has for a while."""
        if self.world_size == 1 or self._since_shared < self._shared_s:
            return False
        self._since_shared = 0.0
        return any(_read(path) for path in self.folder.glob("rank-*.txt"))

    # -- saying ------------------------------------------------------------------------------------------------------

    def _alarm(self, passed: float) -> None:
        """This rank stands still, and it or another one for too long."""
        ends = self.timeout is not None and self.stillness.beyond(self.timeout)
        level = 2 if ends else int(self.stillness.beyond(self.warning))
        if level > self._level:
            self._stacks_now = self._stacks()
            if DEBUGGERS.search(self._stacks_now):  # a person looks at it
                self.stillness.seconds = 0.0
                return
            self._write(level)
        self._since_alarm += passed
        if self.rank == 0 and self.world_size == 1:
            self._judge()
        elif self._since_shared >= self._shared_s:
            self._since_shared = 0.0
            if self.rank > 0:
                self._read_verdict()
            elif self._since_alarm >= 2 * self._shared_s:
                self._judge()

    def _place(self, level: int) -> Place:
        step, part, waiting = self.words[STEP], self.words[PART], bool(self.words[WAITING])
        return Place(self.rank, self.host, step, part, waiting, round(self.stillness.seconds, 1), level)

    def _write(self, level: int) -> None:
        """Where this rank is and what it does there, in the folder of the session."""
        place = self._place(level)
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self._mine, f"{place}\n{json.dumps(asdict(place))}\n\n{self._stacks_now}")
        if self._level < 0 and self.recorder[0]:
            self._record()
        self._level = level

    def _stacks(self) -> str:
        """What every thread of the rank does, as text; it is complete when no more comes."""
        before = size = os.fstat(self.file).st_size
        os.kill(self.parent, STACKS)
        for _ in range(20):
            time.sleep(0.1)
            now = os.fstat(self.file).st_size
            if now == size > before:
                break
            size = now
        return os.pread(self.file, size - before, before).decode(errors="replace") or "no stacks came\n"

    def _record(self) -> None:
        """A copy of what NCCL's flight recorder knows, beside the stacks."""
        pipe, dump = map(Path, self.recorder)
        with contextlib.suppress(OSError):
            with open(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "wb") as file:
                file.write(b"1\n")
            for _ in range(50):
                time.sleep(0.1)
                if dump.is_file():
                    time.sleep(0.5)
                    self._mine.with_suffix(".nccl").write_bytes(dump.read_bytes())
                    return

    def _judge(self) -> None:
        """Put what all ranks say into one line, for people and for the watchdogs of the others."""
        places = [place for path in self.folder.glob("rank-*.txt") if (place := _read(path))]
        if not places:
            return
        line, slowest = in_one_line(places, self.world_size)
        if slowest.level > self._said:
            _replace(self._verdict, f"{line}\n{json.dumps({'level': slowest.level})}\n")
            if self._said == 0:
                self._say(f"{line}; stacks are in {self.folder}")
            self._said = slowest.level
        self._obey(slowest.level, line)

    def _read_verdict(self) -> None:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            line, more = self._verdict.read_text().splitlines()
            self._obey(json.loads(more)["level"], line)

    def _say(self, line: str) -> None:
        """In the console, the log and the alerts of the run if it can still speak, else on standard error."""
        self._put(NEWS, line)
        for _ in range(30):  # it looks twice a second
            time.sleep(0.1)
            if not self.words[NEWS]:
                return
        self.words[NEWS] = 0
        _print(line)

    def _put(self, word: int, line: str) -> None:
        text = line.encode()[:TEXT_SIZE]
        self.page[TEXT_AT[word] : TEXT_AT[word] + len(text)] = text
        self.words[word] = len(text)

    def _went_on(self) -> None:
        if self._level >= 0:
            said, _, *stacks = self._mine.read_text(errors="replace").splitlines()
            _replace(self._mine, "\n".join([f"{said}, and went on", "", *stacks]) + "\n")
            if self.rank == 0:
                self._verdict.unlink(missing_ok=True)
        self._forget()

    # -- ending ------------------------------------------------------------------------------------------------------

    def _obey(self, level: int, line: str) -> None:
        """Level 2, of the rank that all wait for, is the end of every rank that stands still."""
        if level < 2 or self.timeout is None or self._asked:
            return
        self._asked = True
        has_stepped = self.words[STEP] > self.stillness.first_step
        self.words[CODE] = self.code if has_stepped else 1  # else it might be started again for ever
        if self.mark and has_stepped:
            threading.Thread(target=_touch, args=(self.mark,), daemon=True).start()
        self._put(WHY, line)
        self.words[ASKED] = STOP

    def _see_to_it_that_it_ends(self) -> None:
        assert self.timeout is not None
        stop_s, end_s = min(STOP_S, self.timeout), min(END_S, self.timeout)
        if self._since_asked >= stop_s + end_s:  # its interpreter is held
            _print(f"rank {self.rank} could not end by itself, and is killed")
            os.kill(self.parent, signal.SIGKILL)
        elif self._since_asked >= stop_s:
            self.words[ASKED] = END


def _read(path: Path) -> Place | None:
    """What another watchdog wrote, unless its rank has gone on since."""
    try:
        return Place(**json.loads(path.read_text(errors="replace").splitlines()[1]))
    except (OSError, ValueError, IndexError, TypeError):
        return None


def _touch(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).touch()


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _is_stopped(pid: int) -> bool:
    """By a terminal, a scheduler or a debugger."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def _print(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"accel-train: {line}", file=sys.stderr, flush=True)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # it ends with its rank
    settings: dict[str, Any] = json.loads(sys.argv[1])
    alive = settings.pop("alive")
    Watchdog(**settings).watch(alive)


if __name__ == "__main__":
    main()
