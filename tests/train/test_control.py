"""Words that are typed or piped to a run."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from accel_train.system.signals import Signals
from accel_train.train.control import Control, _readable


def control(folder, words: bytes, monkeypatch, **hooks):
    """A control that has read these words from a pipe."""
    reader, writer = os.pipe()
    os.write(writer, words)
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        made = Control(folder, is_main=True, signals=Signals(), **hooks)
        made._listen(_readable(stdin))
    return made


def test_words_from_a_pipe(tmp_path, monkeypatch, capsys):
    said = []
    made = control(tmp_path, b"status\nSave\nnonsense\nstop", monkeypatch, on_status=lambda: said.append("status"))
    assert said == ["status"] and made.save_requested and made.stop_reason == "typed stop" and not made.by_signal
    assert "'nonsense' is not a command; type stop, save or status" in capsys.readouterr().out


def test_the_end_of_a_pipe_is_no_word(tmp_path, monkeypatch, capsys):
    made = control(tmp_path, b"", monkeypatch)
    assert made.stop_reason is None and capsys.readouterr().out == ""


def test_files_and_terminals_of_others_are_not_read(tmp_path):
    """A loop of a shell may have its list on standard input."""
    path = tmp_path / "list"
    path.write_text("stop\n")
    with open(path) as file:
        assert _readable(file) is None
    assert _readable(None) is None


RANK = "import sys; from accel_train.train.control import _readable; print(_readable(sys.stdin))"
LAUNCHER = """
import os, subprocess, sys
if {background}:
    os.setpgid(0, 0)
subprocess.run([sys.executable, "-c", {rank!r}], start_new_session={session})
"""
SHELL = "import subprocess, sys; subprocess.run([sys.executable, '-c', {launcher!r}])"


@pytest.mark.parametrize("session", [False, True], ids=["alone", "rank of a launcher"])
@pytest.mark.parametrize("background", [False, True], ids=["in front", "in the background"])
def test_a_terminal(background, session):
    launcher = LAUNCHER.format(background=background, session=session, rank=RANK)
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", sys.executable, "-c", SHELL.format(launcher=launcher)]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=20)
    os.close(ours), os.close(theirs)
    assert done.stdout.strip() == ("None" if background else "0"), done.stderr
