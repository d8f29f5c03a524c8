"""Copies of TensorBoard's files: complete at the end, and a destination that fails is no matter of the training."""

import itertools
import random
import shutil
import threading
import time
from pathlib import Path

import fsspec
import pytest
from support.processes import run, wait_for
from support.runs import config, weights_files

from accel_train.config.schema import TrainConfig
from accel_train.config.setting import about
from accel_train.errors import UserError
from accel_train.task import Task
from accel_train.tracking import sync
from accel_train.tracking.observer import Run
from accel_train.tracking.sync import TensorBoardSync


def start(folder: Path, destination: str, interval: float = 0.01):
    events = []
    observer = TensorBoardSync(destination, interval, events.append)
    observer.on_start(Run(folder, Task(), {}, {}, 100))
    return observer, events


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / "tensorboard" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        file.write(content)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_copy_follows_and_is_complete_at_the_end(tmp_path):
    source, there = tmp_path / "runs" / "exp01", tmp_path / "there"
    write(source, "events.out.tfevents.1.host", b"one")
    write(source, "notes.txt", b"not an event file")
    observer, events = start(source, str(there))
    wait_for(lambda: contents(there) == {"exp01/events.out.tfevents.1.host": b"one"} and observer.copied)
    write(source, "events.out.tfevents.1.host", b" two")
    write(source, "figures/events.out.tfevents.2.host", b"deeper")
    wait_for(lambda: len(contents(there)) == 2)
    observer.interval = 1e6
    observer.on_tick({})
    write(source, "events.out.tfevents.1.host", b" three")  # what TensorBoard writes when it is closed
    observer.on_end("completed", {})
    assert contents(there / "exp01") == {
        "events.out.tfevents.1.host": b"one two three", "figures/events.out.tfevents.2.host": b"deeper"
    }  # fmt: skip
    assert events == []


def test_only_what_changed_is_copied_and_in_place(tmp_path, monkeypatch):
    source = tmp_path / "run"
    old, new = write(source, "a.tfevents", b"old"), write(source, "b.tfevents", b"new")
    copies, real = [], shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda a, b: (copies.append(a), real(a, b)))
    observer, _ = start(source, str(tmp_path / "there"), interval=1e6)
    observer._copy_changed()
    inode = (tmp_path / "there" / "run" / "b.tfevents").stat().st_ino
    write(source, "b.tfevents", b"er")
    observer.on_end("stopped", {})
    assert copies == [old, new, new]
    assert (tmp_path / "there" / "run" / "b.tfevents").stat().st_ino == inode  # an open TensorBoard reads on


@pytest.mark.parametrize("destination", ["memory://", "memory://logs/tb/", "file://{}/there"])
def test_urls(tmp_path, destination):
    source = tmp_path / "run"
    write(source, "sub/x.tfevents", b"content")
    target = destination.format(tmp_path)
    observer, events = start(source, target, interval=1e6)
    observer.on_end("completed", {})
    assert events == []
    with fsspec.open(f"{target.removesuffix('/') if target != 'memory://' else target}/run/sub/x.tfevents") as file:
        assert file.read() == b"content"


def test_a_failing_destination_is_reported_once_and_tried_again(tmp_path):
    source = tmp_path / "run"
    write(source, "x.tfevents", b"content")
    (tmp_path / "file").write_text("in the way")
    observer, events = start(source, str(tmp_path / "file" / "there"))
    wait_for(lambda: observer.on_tick({}) or events)
    time.sleep(0.1)
    observer.on_tick({})
    (tmp_path / "file").unlink()
    wait_for((tmp_path / "file" / "there" / "run" / "x.tfevents").is_file)
    observer.on_end("completed", {})
    (event,) = events
    assert event.kind == "warning" and "NotADirectoryError" in event.title and "\n" not in event.title
    assert event.title.startswith(f"tb_sync_to: {source / 'tensorboard'} could not be copied to {tmp_path}/file/there")


def test_no_token_in_the_warning(tmp_path, monkeypatch):
    write(tmp_path / "run", "x.tfevents", b"content")

    def fail(*_):
        raise OSError("401 for https://cache/x?token=abcdefgh123, Authorization: Bearer eyJhbGciOi.x.y\nmore")

    monkeypatch.setattr(shutil, "copyfile", fail)
    observer, events = start(tmp_path / "run", str(tmp_path / "there"), interval=1e6)
    observer.on_end("completed", {})
    assert "401" in events[0].title
    assert not any(part in events[0].title for part in ("abcdefgh123", "eyJhbGciOi", "more"))


def test_the_end_of_a_run_waits_only_so_long(tmp_path, monkeypatch):
    write(tmp_path / "run", "x.tfevents", b"content")
    hangs = threading.Event()
    monkeypatch.setattr(shutil, "copyfile", lambda *_: hangs.wait(30))
    monkeypatch.setattr(sync, "WAIT_S", 0.2)
    observer, events = start(tmp_path / "run", str(tmp_path / "there"), interval=1e6)
    began = time.monotonic()
    observer.on_end("completed", {})
    assert time.monotonic() - began < 5
    assert "the last copy took more than 0.2 s" in events[0].title
    observer.on_end("completed", {})
    assert len(events) == 1
    hangs.set()


def test_a_destination_inside_of_the_source_is_refused(tmp_path):
    with pytest.raises(UserError, match="inside of"):
        start(tmp_path, str(tmp_path / "tensorboard" / "copy"))


def test_never_started(tmp_path):
    TensorBoardSync(str(tmp_path), 1.0, print).on_end("crashed", {})


# -- in a run --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard
def test_a_run_with_and_without(tmp_path):
    """The copy is what the run wrote, also in a second session; training does not notice, nor a dead destination."""
    (tmp_path / "file").write_text("in the way")
    made = {}
    for name, there in (("plain", None), ("copied", tmp_path / "there"), ("failing", tmp_path / "file" / "there")):
        settings = config(tmp_path / name, report_to=["tensorboard"], tb_sync_to=there and str(there))
        (result,) = run({"config": settings, "stop_at": {"step": 9}})
        assert (result["outcome"], result["error"]) == ("stopped", None)
        time.sleep(1.05)  # event files are named by the second
        (result,) = run({"config": settings})
        assert (result["outcome"], result["error"]) == ("completed", None)
        made[name] = weights_files(tmp_path / name)
        about = [title for kind, title in result["events"] if "tb_sync_to" in title]
        assert len(about) == (name == "failing"), result["events"]
    assert made["plain"] == made["copied"] == made["failing"]
    written = contents(tmp_path / "copied" / "tensorboard")
    assert len(written) == 2 and contents(tmp_path / "there" / "copied") == written


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_tensorboard_there_is_nothing_to_copy_and_it_is_said(tmp_path):
    (result,) = run({"config": config(tmp_path / "run", max_steps=2, tb_sync_to=str(tmp_path / "there"))})
    assert result["outcome"] == "completed"
    assert [title for _, title in result["events"]] == [
        "tb_sync_to: there is nothing to copy, since report_to has no tensorboard"
    ]
    assert not (tmp_path / "there").exists()


def test_options():
    made = TrainConfig()
    assert (made.tb_sync_to, made.tb_sync_interval, made.report_first_batch) == (None, 60.0, False)
    declared = about(TrainConfig)
    assert not any(declared[name]["identity"] for name in ("tb_sync_to", "tb_sync_interval", "report_first_batch"))
    assert TrainConfig(tb_sync_to="pelican://osg-htc.org/a@b/tb").tb_sync_to
    for wrong in (0, float("nan"), 1e9):
        with pytest.raises(UserError, match="tb_sync_interval: .* is out of range"):
            TrainConfig(tb_sync_interval=wrong)
    secret = "".join(random.Random(0).choices("abcdef", k=8))
    for url in itertools.product(["https", "s3"], [f"user:{secret}@", f"{secret}@"]):
        with pytest.raises(UserError, match="tb_sync_to: a URL with a user or password") as caught:
            TrainConfig(tb_sync_to=f"{url[0]}://{url[1]}host/tb")
        assert secret not in str(caught.value)
