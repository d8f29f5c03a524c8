"""A run folder has one run: the living keeps it, the dead loses it, and of several who take it exactly one has it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accel_train.errors import UserError
from accel_train.run import lock as run_lock
from accel_train.run.lock import NAME, Holder, look, take
from accel_train.system import waiting


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Nobody waits long here, except where a test says so."""
    for name in ("SILENCE_S", "STOPPING_S", "NOTICE_S"):
        monkeypatch.setattr(run_lock, name, 0.1)
    monkeypatch.setattr(run_lock, "BEAT_S", 0.01)


@pytest.fixture
def sleeper():
    """Another living process."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def holder(pid: int, **other) -> Holder:
    other.setdefault("process_started", run_lock._process_started(pid) or "")
    return dataclasses.replace(Holder.here(), pid=pid, **other)


def dead() -> Holder:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return holder(process.pid, process_started="1")


def lies_in(folder: Path, held: Holder) -> Holder:
    (folder / NAME).touch()
    held = dataclasses.replace(held, inode=(folder / NAME).stat().st_ino)
    (folder / NAME).write_text(held.text())
    return held


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_taken_and_given_back(tmp_path):
    folder = tmp_path / "runs" / "one"
    lock = take(folder)
    assert files(folder) == [NAME] and lock.taken_from is None and not lock.lost()
    held = look(folder)
    assert held is not None and held.pid == os.getpid() and held.alive() is True
    lock.release()
    assert not (tmp_path / "runs").exists(), "a run that wrote nothing leaves nothing"
    lock.release()


def test_what_was_there_before_stays(tmp_path):
    take(tmp_path).release()
    assert files(tmp_path) == []


def test_the_living_is_left_alone(tmp_path, sleeper):
    held = lies_in(tmp_path, holder(sleeper.pid, host="here"))
    with pytest.raises(UserError) as error:
        take(tmp_path)
    says = str(error.value)
    assert f"process {sleeper.pid} on here, since {held.since}" in says and "\n" not in says
    assert f"accel-train stop {tmp_path}" in says and "output_dir" in says
    assert files(tmp_path) == [NAME] and look(tmp_path) == held


def test_this_process_too(tmp_path):
    lock = take(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        take(tmp_path)
    assert not lock.lost()
    lock.release()
    take(tmp_path).release()


def test_an_earlier_run_of_this_process_that_could_not_give_it_back(tmp_path):
    """A notebook is never locked out by itself."""
    before = lies_in(tmp_path, Holder.here())
    lock = take(tmp_path)
    assert lock.taken_from == before
    lock.release()


def test_somebody_elses_process_is_alive(tmp_path, sleeper, monkeypatch):
    def forbidden(pid, number):
        raise PermissionError

    lies_in(tmp_path, holder(sleeper.pid))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="alive"):
        patch.setattr(os, "kill", forbidden)
        patch.setattr(run_lock, "_process_started", lambda pid: None)  # hidden from us
        take(tmp_path)


def test_the_dead_is_replaced(tmp_path):
    before = lies_in(tmp_path, dead())
    lock = take(tmp_path)
    assert lock.taken_from == before and files(tmp_path) == [NAME] and not lock.lost()
    lock.release()


def test_another_process_with_the_number_of_the_dead(tmp_path, sleeper):
    before = lies_in(tmp_path, holder(sleeper.pid, process_started="17"))
    lock = take(tmp_path)
    assert lock.taken_from == before
    lock.release()


def test_a_process_that_is_dead_but_not_buried(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    held = holder(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    alive = held.alive(), holder(process.pid, process_started="").alive()
    process.wait()
    assert alive == (False, False), "whenever it was looked at"


@pytest.mark.parametrize("machine", ["another boot pid:[4026531836]", ""])
def test_elsewhere_and_silent(tmp_path, capsys, machine):
    """Another boot or another container may share the host's name; numbers of its processes mean nothing here."""
    before = lies_in(tmp_path, holder(os.getpid(), machine=machine, host="node7"))
    lock = take(tmp_path)
    assert lock.taken_from == before
    assert "waiting up to 0.1 s to see whether process" in capsys.readouterr().err
    lock.release()


def test_elsewhere_and_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SILENCE_S", 20.0)
    held = lies_in(tmp_path, holder(1, machine="elsewhere", host="node7"))
    over = threading.Event()

    def beats():
        beat = 0
        while not over.wait(0.05):
            beat += 1
            with open(tmp_path / NAME, "r+") as file:
                file.write(dataclasses.replace(held, beat=beat).text())

    thread = threading.Thread(target=beats)
    thread.start()
    try:
        with pytest.raises(UserError, match="on node7"):
            take(tmp_path)
    finally:
        over.set()
        thread.join()
    assert files(tmp_path) == [NAME]


def test_a_stop_ends_the_waiting(tmp_path):
    held = lies_in(tmp_path, holder(1, machine="elsewhere"))
    waiting.give_up()
    try:
        with pytest.raises(waiting.StoppedError):
            take(tmp_path)
    finally:
        waiting.begin()
    assert look(tmp_path) == held and files(tmp_path) == [NAME]


def test_the_lock_of_a_holder_beats_and_keeps_its_length(tmp_path):
    stopping = threading.Event()
    lock = take(tmp_path, stopping.is_set)
    size = (tmp_path / NAME).stat().st_size
    for wanted in (False, True):
        if wanted:
            stopping.set()
        end, first = time.monotonic() + 20, look(tmp_path)
        assert first is not None
        while (now := look(tmp_path)) and (now.beat == first.beat or now.stopping != wanted):
            assert time.monotonic() < end
    assert (tmp_path / NAME).stat().st_size == size and not lock.lost()
    lock.release()


def test_a_lock_that_is_being_released_is_not_that_of_the_dead(tmp_path, monkeypatch):
    """Within one process, too, where there is only a list of what is held to tell."""
    first = take(tmp_path)
    found = []
    monkeypatch.setattr(run_lock, "_create", lambda path, mine: found.append(look(tmp_path).alive()))
    first.release()
    assert found == [True] and look(tmp_path).alive() is False


def test_a_holder_that_is_about_to_stop_is_waited_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_lock, "STOPPING_S", 60.0)
    first = take(tmp_path, lambda: True)
    while not (look(tmp_path) or Holder("")).stopping:
        time.sleep(0.01)
    threading.Timer(0.3, first.release).start()
    second = take(tmp_path)
    assert second.taken_from is None and "which is about to stop" in capsys.readouterr().err
    second.release()


def test_but_not_for_ever(tmp_path, sleeper):
    lies_in(tmp_path, holder(sleeper.pid, stopping=True))
    with pytest.raises(UserError, match="another run is alive"):
        take(tmp_path)


def test_a_folder_that_another_run_removes_as_it_ends(tmp_path, monkeypatch):
    acquire, times = run_lock._acquire, []

    def late(path, mine):
        times.append(path)
        if len(times) < 3:
            path.parent.rmdir()
            path.parent.parent.rmdir()
        return acquire(path, mine)

    monkeypatch.setattr(run_lock, "_acquire", late)
    take(tmp_path / "runs" / "a").release()
    assert len(times) == 3 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_of_many_threads_one_has_it(tmp_path, links, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for round_ in range(10):
        folder = tmp_path / str(round_)
        folder.mkdir()
        if round_ % 2:
            lies_in(folder, holder(os.getpid(), process_started="17"))
        together, locks, refused = threading.Barrier(8), [], []

        def start(folder=folder, together=together, locks=locks, refused=refused):
            together.wait()
            try:
                locks.append(take(folder))
            except UserError as error:
                refused.append(str(error))

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(locks) == 1 and len(refused) == 7, refused
        assert not locks[0].lost() and files(folder) == [NAME]
        locks[0].release()


def no_links(*_):
    raise OSError(95, "Operation not supported")


def test_of_many_processes_one_takes_it_from_the_dead(tmp_path):
    lies_in(tmp_path, dead())
    script = (
        "import sys, time; from pathlib import Path; from accel_train.run.lock import take\n"
        "print('ready', flush=True); input()\n"
        "try: lock = take(Path(sys.argv[1]))\n"
        "except Exception as error: print('refused:', error, flush=True)\n"
        "else: print('mine' if not lock.lost() else 'lost', flush=True); input(); lock.release()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    starters = [subprocess.Popen(command, **pipes) for _ in range(6)]
    for starter in starters:
        assert starter.stdout.readline() == "ready\n"
    for starter in starters:
        starter.stdin.write("go\n")
        starter.stdin.flush()
    answers = [starter.stdout.readline() for starter in starters]
    for starter in starters:
        starter.communicate("\n")
    assert answers.count("mine\n") == 1, answers
    assert sum("another run is alive" in answer for answer in answers) == 5, answers
    assert files(tmp_path) == []


def test_one_who_died_while_taking_over_is_taken_over(tmp_path):
    first = lies_in(tmp_path, dead())
    claim = tmp_path / "claim"
    claim.mkdir()
    lies_in(claim, dead())
    (claim / NAME).rename(tmp_path / f".{NAME}.{first.token}")
    claim.rmdir()
    lock = take(tmp_path)
    assert lock.taken_from == first and files(tmp_path) == [NAME]
    lock.release()


def test_one_who_comes_late_does_not_take_it_from_the_new_one(tmp_path, sleeper):
    """It judged the dead one, and in the meantime another has taken over."""
    before = lies_in(tmp_path, dead())
    judge = run_lock._Watch.alive

    def slow(self, held):
        verdict = judge(self, held)
        if held.token == before.token:
            lies_in(tmp_path, living)
        return verdict

    living = holder(sleeper.pid)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=f"process {sleeper.pid}"):
        patch.setattr(run_lock._Watch, "alive", slow)
        take(tmp_path)
    held = look(tmp_path)
    assert held is not None and held.token == living.token and files(tmp_path) == [NAME]


def test_one_who_was_taken_for_dead_notices_and_touches_nothing(tmp_path, sleeper):
    lock = take(tmp_path)
    other = lies_in(tmp_path, holder(sleeper.pid))
    assert f"process {sleeper.pid}" in lock.lost() and "\n" not in lock.lost()
    time.sleep(0.05)
    lock.release()
    assert look(tmp_path) == other and files(tmp_path) == [NAME]


def test_a_lock_that_was_removed_is_lost(tmp_path):
    """Another run may have been here and have ended."""
    lock = take(tmp_path)
    (tmp_path / NAME).unlink()
    assert f"{NAME} is gone" in lock.lost()
    lock.release()
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", '{"token": "x"}', "\xff", '{"beat": 1, "stopping": 2, "a": 3}']
)
def test_an_unreadable_lock_that_stands_still_is_replaced(tmp_path, text):
    (tmp_path / NAME).write_text(text, encoding="latin-1")
    lock = take(tmp_path)
    assert "unreadable" in str(lock.taken_from)
    lock.release()
    assert files(tmp_path) == []


def test_a_copy_of_the_folder_of_a_living_run_is_free(tmp_path):
    lock = take(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    copy = take(tmp_path / "copy")
    assert copy.taken_from is not None and not lock.lost() and not copy.lost()
    copy.release()
    lock.release()


def test_something_else_of_that_name(tmp_path):
    (tmp_path / NAME).mkdir()
    with pytest.raises(UserError, match=f"{NAME} is not a file; move it away"):
        take(tmp_path)
    assert look(tmp_path) is None
    (tmp_path / NAME).rmdir()
    (tmp_path / NAME).symlink_to("nowhere")
    with pytest.raises(UserError, match="is not a file"):
        take(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Holder, "text", full)
    with pytest.raises(UserError) as error:
        take(tmp_path / "a" / "b")
    assert str(error.value) == f"output_dir: {tmp_path / 'a' / 'b'} cannot be written: No space left on device"
    assert files(tmp_path) == []
