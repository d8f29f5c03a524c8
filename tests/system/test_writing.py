"""Folders that cannot be written to are told in one line, before the work or after it; bugs keep their tracebacks."""

import errno
import os
import threading
from pathlib import Path

import pytest

from accel_train.cli import main
from accel_train.errors import UserError
from accel_train.system.writing import refuse_unwritable, replace_folder, write_atomic, writing


def test_a_file_that_could_not_be_written_is_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \ud800", sync=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_the_mode_is_that_of_the_file_from_its_first_moment(tmp_path):
    stale = tmp_path / f".secret.{os.getpid()}.{threading.get_ident()}.tmp"
    stale.write_text("of a process that was killed, for all to read")
    write_atomic(tmp_path / "secret", "token", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_folder_that_could_not_be_written_is_the_old_one(tmp_path):
    def full(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    replace_folder(tmp_path / "model", lambda folder: (folder / "file").write_text("old") and None)
    with pytest.raises(OSError, match="No space"):
        replace_folder(tmp_path / "model", full)
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "the half is gone: what it took is free again"
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["file"]


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "mkdir", None)  # nor is it made for a moment: others that start now could meet that
    for folder in (Path("new/deep"), Path("."), tmp_path / "there"):
        refuse_unwritable("--out", folder)
        assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    there = tmp_path / "there"
    there.mkdir()
    refuse_unwritable("--out", there)
    assert not list(there.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_takes_nothing(tmp_path, monkeypatch, number):
    def fails(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", fails)
    with pytest.raises(UserError) as error:
        refuse_unwritable("--out", tmp_path)
    assert str(error.value) == f"--out: {tmp_path} cannot be written to: {os.strerror(number)}"
    with pytest.raises(UserError):
        refuse_unwritable("--out", tmp_path / "new" / "deep")
    assert not list(tmp_path.iterdir())


def test_errors_of_writing_are_one_line_and_others_stay(tmp_path):
    inside, outside = str(tmp_path / "out" / "x"), str(tmp_path / "other")
    errors = [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),  # of an open file: without a name
        RuntimeError("Error while serializing: No space left on device (os error 28)"),
        PermissionError(errno.EACCES, "Permission denied", inside),
        FileNotFoundError(errno.ENOENT, "No such file or directory", inside),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", str(tmp_path)),
    ]
    for error in errors:
        with pytest.raises(UserError, match="^--out: .*out cannot be written to: "), writing("--out", tmp_path / "out"):
            raise error
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file", outside),
        KeyError("x"),
        OSError("x"),
        UserError("x"),
    ):
        with pytest.raises(type(error)) as found, writing("--out", tmp_path / "out"):
            raise error
        assert found.value is error


def test_a_full_disk_in_the_middle_of_synth(tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("accel_train.tasks.muon.task.MuonTask.synth", full)
    assert main(["synth", "muon", f"--out={tmp_path}/new"]) == 2
    assert capsys.readouterr().err == (
        f"accel-train: error: --out: {tmp_path}/new cannot be written to: No space left on device\n"
    )


def test_what_goes_wrong_in_a_task_keeps_its_traceback(tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        open(tmp_path / "elsewhere" / "x")

    monkeypatch.setattr("accel_train.tasks.muon.task.MuonTask.synth", broken)
    assert main(["synth", "muon", f"--out={tmp_path}/new"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback") and "in broken\n" in printed and "FileNotFoundError" in printed
