"""What is too long, and what is said of ranks that stand still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from accel_train.system import watchdog
from accel_train.system.watchdog import (
    ASKED,
    ATTENDING,
    COMPUTING,
    COUNT,
    EVALUATING,
    NEWS,
    PART,
    READING,
    REDUCING,
    SAVING,
    STEP,
    Place,
    Stillness,
    Watchdog,
    in_one_line,
)


def still(part, step, seconds, first_step=1, before=()):
    """A rank that came to this part and has stood there; ``before``: (part, step, seconds) of what it did earlier."""
    found = Stillness(first_step)
    for count, (part_before, step_before, took) in enumerate(before):
        found.look(count, part_before, step_before, 0.0)
        found.look(count, part_before, step_before, took)
    found.look(len(before), part, step, 1.0)
    found.look(len(before), part, step, seconds)
    return found


def test_patience():
    assert still(READING, 7, 301).beyond(300) and not still(READING, 7, 299).beyond(300)
    for part in (EVALUATING, SAVING):
        assert not still(part, 7, 1799).beyond(300) and still(part, 7, 1801).beyond(300)
    assert not still(COMPUTING, 1, 1799).beyond(300), "the first step compiles"
    assert not still(COMPUTING, 13, 1799, first_step=13).beyond(300), "also after a resume"
    slow = [(COMPUTING, 5, 100.0), (COMPUTING, 6, 40.0)]
    assert not still(COMPUTING, 7, 999, before=slow).beyond(300) and still(COMPUTING, 7, 1001, before=slow).beyond(300)
    assert still(READING, 7, 301, before=slow).beyond(300), "only in what is slow"
    assert still(COMPUTING, 7, 301, before=[(COMPUTING, 1, 900.0)]).beyond(300), "compiling is no measure"


def places(*given):
    return [Place(rank, f"node{rank:02d}", step, part, waiting, 94.4) for rank, step, part, waiting in given]


@pytest.mark.parametrize(
    ("world_size", "ranks", "line"),
    [
        (1, [(0, 812, READING, False)], "this run has been reading data of step 812 for 94 s"),
        (
            4, [*((rank, 812, ATTENDING, True) for rank in range(3)), (3, 812, READING, False)],
            "rank 3 on node03 has been reading data of step 812 for 94 s; the others wait, agreeing after step 812",
        ),
        (2, [(0, 9, COMPUTING, False), (1, 9, COMPUTING, False)], "all 2 ranks have been computing step 9 for 94 s"),
        (
            3, [(0, 9, REDUCING, False), (1, 9, COMPUTING, True), (2, 9, COMPUTING, False)],
            "rank 2 on node02 has been computing step 9 for 94 s; the others wait, adding up the gradients of step 9 "
            "or computing step 9",
        ),
        (
            4, [(0, 9, READING, False), (1, 9, READING, False)],
            "ranks 0, 1 have been reading data of step 9 for 94 s; not heard of: ranks 2, 3",
        ),
        (2, [(1, 8, SAVING, False), (0, 9, READING, False)],
         "rank 1 on node01 has been saving step 8 for 94 s; the others wait, reading data of step 9"),
    ],
)  # fmt: skip
def test_the_line(world_size, ranks, line):
    assert in_one_line(places(*ranks), world_size)[0] == line


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes watchdogs of ranks that are not there, as they see them."""
    stacks, said, files = {"text": "stacks\n"}, [], []
    monkeypatch.setattr(Watchdog, "_stacks", lambda self: stacks["text"])
    monkeypatch.setattr(watchdog, "_print", said.append)
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(watchdog, "_is_stopped", lambda pid: False)
    monkeypatch.setattr(watchdog.threading.Thread, "start", lambda thread: thread.run())

    def make(rank=0, world_size=1, **settings):
        number = os.memfd_create("notes")
        os.truncate(number, watchdog.PAGE)
        files.append(number)
        settings = {"first_step": 1, "warning": 60.0, "timeout": None, "code": 75} | settings
        return Watchdog(number, rank, world_size, str(tmp_path / "hangs"), **settings)

    make.stacks, make.said = stacks, said
    yield make
    for number in files:
        os.close(number)


def go(dog, part, step, seconds=0):
    """The rank notes this and then nothing for so long."""
    dog.words[COUNT] += 1
    dog.words[PART], dog.words[STEP] = part, step
    look(dog, 1 + seconds)


def look(dog, seconds=1):
    for _ in range(int(seconds)):
        dog.look(1.0)
        dog.tell(1.0)
        dog._unanswered = 0.0


def together(dogs, first, second, seconds, steps=(6, 6)):
    """Two ranks in these parts, or still where they were, for so long."""
    for dog, part, step in zip(dogs, (first, second), steps, strict=True):
        if part is not None:
            go(dog, part, step)
    for _ in range(int(seconds)):
        for dog in dogs:
            look(dog)


def test_it_says_so_once_and_takes_it_back(made, tmp_path):
    dog = made()
    go(dog, READING, 5, 6)
    assert not (tmp_path / "hangs").exists() and made.said == []
    go(dog, READING, 6, 200)
    assert made.said == [f"this run has been reading data of step 6 for 60 s; stacks are in {tmp_path / 'hangs'}"]
    file = tmp_path / "hangs" / "rank-0.txt"
    assert file.read_text().endswith("\n\nstacks\n") and dog.words[ASKED] == 0
    go(dog, COMPUTING, 6)
    assert "and went on" in file.read_text() and watchdog._read(file) is None
    go(dog, READING, 7, 601)  # the one before took 200 s, so this is only slow
    assert len(made.said) == 1
    go(dog, READING, 8, 6100)
    assert len(made.said) == 2


def test_a_rank_that_can_still_speak_says_it_itself(made, monkeypatch):
    dog = made()
    monkeypatch.setattr(watchdog.time, "sleep", lambda seconds: dog.words.__setitem__(NEWS, 0))
    dog._say("x" * 5000)
    assert made.said == [] and bytes(dog.page[1024:2560]) == b"x" * watchdog.TEXT_SIZE


def test_a_folder_that_does_not_answer_saves_no_rank(made):
    """Only memory is needed for that; the rank's stacks are on standard error."""
    dog = made(1, 2, timeout=120.0)
    go(dog, READING, 6)
    dog._stacks_now = "stacks"
    for _ in range(119):
        dog.look(1.0)
    assert dog.words[ASKED] == 0
    dog.look(1.0)
    assert dog.words[ASKED] == watchdog.STOP and made.said[0].endswith("\nstacks")


def test_who_debugs_is_left_alone(made, tmp_path):
    dog = made(timeout=100.0)
    made.stacks["text"] = '  File "/usr/lib/python3.12/bdb.py", line 90 in trace_dispatch\n'
    go(dog, COMPUTING, 5, 10_000)
    assert made.said == [] and dog.words[ASKED] == 0 and not (tmp_path / "hangs").exists()


def test_others_write_where_they_are_as_soon_as_one_is_stuck(made):
    """Though this one has waited for longer before, and nobody would wonder yet."""
    dogs = [made(rank, 2) for rank in range(2)]
    go(dogs[0], REDUCING, 5, 30)
    together(dogs, REDUCING, READING, 80)
    (said,) = made.said
    assert said.startswith("rank 1 on ") and "has been reading data of step 6 for 60 s" in said
    assert "the others wait, adding up the gradients of step 6; stacks" in said


def test_all_ranks_end_when_the_one_they_wait_for_is_to_end(made, monkeypatch, tmp_path):
    killed = []
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, number: killed.append(number))
    dogs = [made(rank, 2, timeout=120.0, code=75, mark=str(tmp_path / "mark")) for rank in range(2)]
    together(dogs, REDUCING, READING, 119)
    assert [dog.words[ASKED] for dog in dogs] == [0, 0] and len(made.said) == 1 and not (tmp_path / "mark").exists()
    together(dogs, None, None, 20)
    assert [dog.words[ASKED] for dog in dogs] == [watchdog.STOP] * 2 and (tmp_path / "mark").exists()
    assert [dog.words[watchdog.CODE] for dog in dogs] == [75, 75]
    together(dogs, None, None, watchdog.STOP_S)
    assert [dog.words[ASKED] for dog in dogs] == [watchdog.END] * 2
    together(dogs, None, None, watchdog.END_S)
    assert signal.SIGKILL in killed and "could not end by itself" in made.said[-1]


def test_a_rank_that_obeys_has_the_usual_time_to_save(made, monkeypatch):
    killed = []
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, number: killed.append(number))
    dog = made(timeout=120.0)
    go(dog, READING, 6, 121)
    assert dog.words[ASKED] == watchdog.STOP
    go(dog, SAVING, 5, 6 * 120 - 1)
    assert dog.words[ASKED] == watchdog.STOP and not killed
    look(dog, 40)
    assert dog.words[ASKED] == watchdog.END and killed, "this hangs, too"


def test_a_session_without_a_step_does_not_ask_to_be_started_again(made, tmp_path):
    dog = made(timeout=120.0, mark=str(tmp_path / "mark"))
    go(dog, READING, 1, 6 * 120 + 1)
    assert dog.words[ASKED] == watchdog.STOP and dog.words[watchdog.CODE] == 1 and not (tmp_path / "mark").exists()


def test_a_patient_part_of_one_rank_ends_nobody(made):
    """The others have waited for long enough, but not the one that they wait for."""
    dogs = [made(rank, 2, timeout=120.0) for rank in range(2)]
    together(dogs, SAVING, READING, 300, steps=(5, 6))
    assert [dog.words[ASKED] for dog in dogs] == [0, 0] and made.said == []


def test_the_flight_recorder_is_asked(made, tmp_path):
    pipe, dump = tmp_path / "0.pipe", tmp_path / "dump0"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    dump.write_bytes(b"collectives")
    dog = made(recorder=(str(pipe), str(dump)))
    go(dog, COMPUTING, 5, 61)
    assert os.read(reader, 10) == b"1\n" and (tmp_path / "hangs" / "rank-0.nccl").read_bytes() == b"collectives"
    os.close(reader)


def test_time_in_which_nobody_ran_does_not_count(made, monkeypatch):
    """As when a machine sleeps, or the watchdog is stopped with its rank."""
    dog, now = made(), [0.0]
    passed = []
    monkeypatch.setattr(dog, "look", passed.append)
    monkeypatch.setattr(dog, "_tell", lambda pause: None)

    def slept(*arguments):
        now[0] += 3600.0
        return ([], [], []) if len(passed) < 3 else ([1], [], [])

    monkeypatch.setattr(watchdog.select, "select", slept)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    dog.watch(0)
    assert passed == [2.0] * 3


def test_a_stopped_process_is_known():
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"]
    ) as it:
        os.waitid(os.P_PID, it.pid, os.WSTOPPED | os.WNOWAIT)
        assert watchdog._is_stopped(it.pid) and not watchdog._is_stopped(os.getpid())
        it.kill()


def test_it_needs_nothing_but_the_standard_library():
    code = f"import runpy, sys; runpy.run_path({watchdog.__file__!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert {"json", "signal"} <= set(done.stdout.split()) and not {"accel_train", "numpy"} & set(done.stdout.split())


def test_what_it_reads_may_be_half_there(tmp_path):
    file = tmp_path / "rank-0.txt"
    assert watchdog._read(file) is None
    for text in ("", "one line", "a\n{}", "a\n[1]", "a\n{"):
        file.write_text(text)
        assert watchdog._read(file) is None
    place = Place(0, "here", 1, READING, False)
    file.write_text(f"{place}\n{json.dumps(asdict(place))}\n")
    assert watchdog._read(Path(file)) == place
