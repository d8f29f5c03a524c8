"""Copies to a mirror: beside the training, the newest next, and what fails is said and never waited for."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support.processes import wait_for

from accel_train.errors import AccessError
from accel_train.run.mirror import AheadError, OvertakenError
from accel_train.run.mirror_folder import ForeignError
from accel_train.system import waiting
from accel_train.task import Task
from accel_train.tracking import mirroring
from accel_train.tracking.mirroring import Mirroring
from accel_train.tracking.observer import Run


class Store:
    """In place of a mirror: notes what is copied, and does what it is told."""

    newest = None

    def __init__(self) -> None:
        self.copied: list[int] = []
        self.pruned = 0
        self.errors: list[Exception] = []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()

    def copy(self, step, go_on):
        self.begun.set()
        self.free.wait(30)
        go_on()
        if self.errors:
            raise self.errors.pop(0)
        self.copied.append(step)
        self.newest = step
        return True

    def prune(self):
        self.pruned += 1


def started(newest=None):
    store, events = Store(), []
    observer = Mirroring(store, newest, events.append)  # type: ignore[arg-type]
    observer.on_start(Run(Path(), Task(), {}, {}, 100))
    return store, observer, events


def titles(events):
    return [event.title for event in events]


def test_one_at_a_time_and_of_those_that_wait_the_newest():
    store, observer, events = started()
    store.free.clear()
    for step in (1, 2, 3, 4):
        observer.on_save(step, Path())
        store.begun.wait(5)
    began = time.monotonic()
    store.free.set()
    observer.on_end("completed", {})
    assert store.copied == [1, 4] and store.pruned == 2 and time.monotonic() - began < 5
    assert events == []


def test_what_the_run_goes_on_from_comes_first():
    store, observer, _ = started(newest=7)
    wait_for(lambda: store.copied == [7])
    observer.on_end("stopped", {})


def test_a_copy_that_hangs_is_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr(mirroring, "STOP_S", 0.3)
    monkeypatch.setattr(mirroring, "SLOW_S", 0.05)
    monkeypatch.setattr(mirroring, "SOON_S", 0.1)
    store, observer, events = started()
    store.free.clear()
    observer.on_save(1, Path())
    wait_for(lambda: observer.on_tick({}) or events)
    observer.on_tick({})
    began = time.monotonic()
    observer.on_end("stopped", {})
    assert time.monotonic() - began < 3
    slow, note, end = titles(events)
    assert "the copy of step 1 takes more than" in slow
    assert "waiting for the last copy, at most 0.3 s" in note
    assert end == (
        "checkpoint_mirror: the last copy was not finished in 0.3 s; the mirror holds no checkpoint of this session"
    )
    store.free.set()
    observer._thread.join(5)
    assert not observer._thread.is_alive() and store.copied == [], "what is left of it ends before its next file"


def test_a_run_that_is_done_waits_longer_unless_it_is_stopped(monkeypatch):
    monkeypatch.setattr(mirroring, "STOP_S", 0.1)
    store, observer, events = started()
    store.free.clear()
    observer.on_save(1, Path())
    store.begun.wait(5)
    threading.Timer(0.4, store.free.set).start()
    observer.on_end("completed", {})
    assert store.copied == [1] and events == []
    store, observer, events = started()
    store.free.clear()
    observer.on_save(1, Path())
    waiting.give_up()
    try:
        observer.on_end("completed", {})
    finally:
        waiting.begin()
        store.free.set()
    assert "not finished in 0.1 s" in titles(events)[0]


def test_failures_are_said_once_for_each_kind_counted_and_tried_again(monkeypatch):
    monkeypatch.setattr(mirroring, "PAUSE_S", 0.01)
    store, observer, events = started()
    store.errors = [
        AccessError("s3://b/run/checkpoints/step-000000001/x: failed 6 times: refused, token=abcdefgh123"),
        AccessError("s3://b/run/checkpoints/step-000000001/y: failed 6 times: refused, token=abcdefgh123"),
        OSError(28, "No space left"),
    ]
    observer.on_save(1, Path())
    wait_for(lambda: store.copied == [1])
    store.errors = [AccessError("s3://b/run/checkpoints/step-000000012/z: failed 9 times: refused, token=abcdefgh123")]
    observer.on_save(12, Path())
    observer.on_end("stopped", {})
    refused, full, count = titles(events)
    assert refused == (
        "checkpoint_mirror: step 1 was not copied: s3://b/run/checkpoints/step-000000001/x: failed 6 times: refused, "
        "token=***"
    )
    assert "No space left" in full
    assert count == "checkpoint_mirror: 4 of 5 copies failed; the mirror holds step 1"
    assert all(event.kind == "warning" for event in events)


@pytest.mark.parametrize("error", [ForeignError("another's"), AheadError("further on")])
def test_what_cannot_be_copied_now_is_not_tried_again_and_again(error):
    store, observer, events = started()
    store.errors = [error]
    observer.on_save(1, Path())
    wait_for(lambda: not store.errors and (observer.on_tick({}) or events))
    observer.on_save(2, Path())
    observer.on_end("completed", {})
    assert store.copied == ([2] if isinstance(error, AheadError) else [])
    assert str(error) in titles(events)[0]


def test_a_checkpoint_that_is_gone_is_no_failure():
    store, observer, events = started()
    store.errors = [OvertakenError()]
    observer.on_save(1, Path())
    wait_for(lambda: not store.errors)
    observer.on_save(2, Path())
    observer.on_end("completed", {})
    assert (store.copied, events) == ([2], [])


def test_a_run_that_lost_its_folder_writes_nothing_more():
    store, observer, events = started()
    store.free.clear()
    observer.on_save(1, Path())
    store.begun.wait(5)
    observer.on_save(2, Path())
    threading.Timer(0.2, store.free.set).start()
    observer.on_end("lost", {})
    store.free.set()
    observer._thread.join(5)
    assert (store.copied, events) == ([], [])
